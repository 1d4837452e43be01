//! `start`: how containerd gets a shim.
//!
//! Source: containerd core/runtime/v2/README.md, "start".

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;
use oci_spec::runtime::Spec;
use proto::Isolation;

use crate::bundle::Bundle;
use crate::flags::Flags;
use crate::foreign::{self, Options, isolation_by_name};
use crate::group::{self, Group, SOCKETS};
use crate::reserve::{self, Caller, Claim, Offer, Order};
use crate::serve::LISTENER_FD;
use crate::sys;
use crate::unique::unique_name;

/// More than a runtime's options have.
const MOST_BYTES: u64 = 128 << 10;

/// Starts a shim for the bundle in the working directory, or finds the one that serves its group, and answers what containerd wants
/// on standard output.
///
/// # Errors
/// No socket, no process.
pub fn run(flags: &Flags) -> anyhow::Result<String> {
    let id = flags.id.as_deref().context("start needs -id")?;
    let folder = std::env::current_dir().context("no working directory")?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(SOCKETS)
        .with_context(|| format!("cannot make {SOCKETS}"))?;
    let bundle = Bundle::at(folder);
    // Without one Create will tell.
    let spec = bundle.spec().ok();
    let group = spec.as_ref().and_then(|spec| Group::of_spec(spec, flags));
    let newest_known = std::env::var("MAX_SHIM_VERSION").ok();
    if let Some(spec) = spec.filter(|_| group.is_none())
        && let Some(address) = take_standby(flags, id, &bundle, &spec)
    {
        return Ok(answer(&address, newest_known.as_deref()));
    }
    // Until this process ends: two of a group do not both start a shim.
    let _lock = group.as_ref().map(|_| group::lock()).transpose()?;
    let socket = match &group {
        Some(group) => group.socket(),
        None => Path::new(SOCKETS).join(unique_name()),
    };
    let address = format!("unix://{}", socket.display());
    let served = group.is_some() && group::answers(&socket);
    let started = if served { Ok(()) } else { start(flags, id, &socket, group.is_some()) };
    let told = started
        .and_then(|()| write_address(&bundle, &address).with_context(|| format!("cannot write {}", Bundle::ADDRESS)));
    if let Err(error) = told {
        if !served {
            let _ = fs::remove_file(&socket);
        }
        return Err(error);
    }
    Ok(answer(&address, newest_known.as_deref()))
}

fn write_address(bundle: &Bundle, address: &str) -> io::Result<()> {
    fs::write(bundle.path().join(Bundle::ADDRESS), address)
}

/// Gives the container the shim that stands by, if it is for one with isolation hyperv, and there is one. Shape: its address.
/// Whatever is wrong, a shim of its own will do.
fn take_standby(flags: &Flags, id: &str, bundle: &Bundle, spec: &Spec) -> Option<String> {
    let by_name = name_isolation();
    let options = Options::read_bytes(&runtime_options().ok()?).ok()?;
    if options.isolation(by_name, spec).ok()? != Isolation::Hyperv || !options.may_stand_by() {
        return None;
    }
    // Who prepares the next one waits for this start; if it cannot be noted, it does not.
    let _ = reserve::note_start();
    if !foreign::suits_standby(spec) {
        return None;
    }
    let order = Order { caller: Caller::new(flags, by_name), options };
    let claim = Claim { id: id.to_owned(), bundle: bundle.path().to_owned() };
    let address = |offer: &Offer| format!("unix://{}", offer.socket.display());
    let record = |offer: &Offer| {
        // Should it be killed from now on, `delete` finds all of it.
        bundle.write_process_records(&offer.processes).map_err(io::Error::other)?;
        bundle.write_shim(offer.shim).map_err(io::Error::other)?;
        write_address(bundle, &address(offer))
    };
    let offer = reserve::claim(&order.place().ok()?, &claim, record).ok().flatten()?;
    Some(address(&offer))
}

/// What containerd gives on standard input: the runtime's options, nothing when there are none.
fn runtime_options() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if !io::stdin().is_terminal() {
        io::stdin().lock().take(MOST_BYTES).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// The program's own name is lost when a link to it is followed.
fn name_isolation() -> Option<Isolation> {
    isolation_by_name(std::env::args_os().next()?.as_ref())
}

fn start(flags: &Flags, id: &str, socket: &Path, is_group: bool) -> anyhow::Result<()> {
    if is_group {
        // Of a shim that was killed.
        let _ = fs::remove_file(socket);
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    spawn(flags, id, &listener, is_group)
}

fn spawn(flags: &Flags, id: &str, listener: &UnixListener, is_group: bool) -> anyhow::Result<()> {
    // This process owns nothing but its standard streams and the listener, and ends at once.
    sys::place_at(listener, LISTENER_FD).context("cannot pass the socket on")?;
    let serving = Flags {
        id: Some(id.to_owned()),
        namespace: flags.namespace.clone(),
        address: flags.address.clone(),
        isolation: name_isolation(),
        group: is_group,
        debug: flags.debug,
        ..Flags::default()
    };
    let mut command = Command::new(std::env::current_exe().context("who am I?")?);
    command.args(serving.serving());
    // containerd waits until every copy of our output is closed.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("cannot start the shim")?;
    Ok(())
}

/// A bare address is understood by every containerd; from 1.7 on, the JSON form also says which version of the Task service
/// to use.
fn answer(address: &str, newest_known: Option<&str>) -> String {
    match newest_known.and_then(|text| text.parse::<u32>().ok()) {
        Some(newest @ 2..) => {
            serde_json::json!({"version": newest.min(3), "address": address, "protocol": "ttrpc"}).to_string()
        }
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_never_newer_than_what_is_known() {
        assert_eq!(answer("unix:///s", None), "unix:///s");
        assert_eq!(answer("unix:///s", Some("")), "unix:///s");
        let json: serde_json::Value = serde_json::from_str(&answer("unix:///s", Some("2"))).unwrap();
        assert_eq!((json["version"].as_u64(), json["address"].as_str()), (Some(2), Some("unix:///s")));
        let json: serde_json::Value = serde_json::from_str(&answer("unix:///s", Some("9"))).unwrap();
        assert_eq!((json["version"].as_u64(), json["protocol"].as_str()), (Some(3), Some("ttrpc")));
    }
}
