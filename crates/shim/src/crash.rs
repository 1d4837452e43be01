//! `delete`: gives back what a shim that died has left.
//!
//! containerd also calls it for a container of a group that was deleted as it should be, while the group's shim lives on: then
//! only what is the container's own is looked for.
//!
//! Mounts need nothing: they were in the shim's mount namespace, which ends with its last process. Processes are found by
//! what the shim recorded and by the container's cgroup.
//!
//! Source: containerd core/runtime/v2/README.md, "delete".

use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use anyhow::Context;
use container::Container;
use containerd_shim_protos::api::DeleteResponse;
use hostnet::Namespace;
use proto::{ErrorKind, Isolation};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::bundle::{Bundle, ProcessRecord};
use crate::clock;
use crate::flags::Flags;
use crate::group::{self, Group};
use crate::spec;
use crate::state::Exit;
use crate::systemd;

/// How long a killed process may take to vanish.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Cleans up after a shim that is gone, and answers what became of its container.
///
/// When: any number of times; a shim that still lives is killed. Every step is tried even when one before it failed.
///
/// # Errors
/// The first thing that could not be given back.
pub fn run(flags: &Flags) -> anyhow::Result<DeleteResponse> {
    let folder: PathBuf = match &flags.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().context("no working directory")?,
    };
    let bundle = Bundle::at(folder);
    let mut failures = Vec::new();
    let mut note = |failure: anyhow::Result<()>| failures.extend(failure.err());
    // The shim first: alive, it would see its container end and act on it.
    let records = bundle.processes().context("cannot read what was running").unwrap_or_else(|error| {
        note(Err(error));
        Vec::new()
    });
    let shim = bundle.shim();
    let answers = || Group::of(&bundle, flags).is_some_and(|group| group::answers(&group.socket()));
    // One that was killed may be heard to be gone before its socket is closed.
    let lives_on = !shim.is_some_and(|shim| shim.is_ending()) && answers();
    let shim = shim.filter(|_| !lives_on);
    for record in shim.into_iter().chain(records.iter().copied()) {
        note(kill(record));
    }
    note(delete_container(&bundle, flags.id.as_deref()));
    note(delete_cgroup(&bundle));
    systemd::clear(&bundle);
    note(give_back_network(&bundle));
    if !lives_on {
        note(remove_socket(&bundle));
    }
    note(remove_folder(&bundle.vm_dir()));
    let report = bundle.exit_report().ok().flatten();
    let exit = match report {
        Some(report) => report.into(),
        None => {
            let exit = killed_with_its_shim();
            note(bundle.write_exit_report(&exit).map_err(Into::into));
            exit
        }
    };
    if let Some(failure) = failures.into_iter().next() {
        return Err(failure);
    }
    let pid = records.first().map_or(0, |record| record.pid);
    let exited_at = clock::timestamp(exit.at_ns);
    Ok(DeleteResponse { pid, exit_status: exit.code, exited_at, ..DeleteResponse::default() })
}

fn killed_with_its_shim() -> Exit {
    let error = Some("its shim ended unexpectedly; the container was killed".to_owned());
    Exit { code: 137, at_ns: clock::now_ns(), oom_kills: 0, error }
}

/// Kills that very process and waits until it is gone. A later process with its number is left alone: the pidfd is opened
/// first and the start time compared afterwards.
fn kill(record: ProcessRecord) -> anyhow::Result<()> {
    let Some(pid) = i32::try_from(record.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    if !record.is_alive() {
        return Ok(());
    }
    // It may end by itself between the check and this.
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    let begin = Instant::now();
    while record.is_alive() {
        if begin.elapsed() > KILL_PATIENCE {
            anyhow::bail!("process {} does not die", record.pid);
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn delete_container(bundle: &Bundle, id: Option<&str>) -> anyhow::Result<()> {
    let root = bundle.runtime_root();
    let id = match id {
        Some(id) => id.to_owned(),
        // The folder holds this one container.
        None => match fs::read_dir(&root).ok().and_then(|mut entries| entries.next()).transpose()? {
            Some(entry) => entry.file_name().to_string_lossy().into_owned(),
            None => return Ok(()),
        },
    };
    match Container::load(&root, &id) {
        Ok(container) => container.delete(true).context("cannot remove the container"),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context("cannot find the container's state"),
    }
}

/// Of a hyperv container, or what a container left in the folder above its own.
fn delete_cgroup(bundle: &Bundle) -> anyhow::Result<()> {
    let Some(container) = bundle.container()? else { return Ok(()) };
    container::remove_cgroup(container.cgroup.as_ref()).context("cannot remove the container's cgroup")
}

/// Of a hyperv container in a namespace that somebody else has furnished.
fn give_back_network(bundle: &Bundle) -> anyhow::Result<()> {
    let Some(container) = bundle.container()? else { return Ok(()) };
    if container.isolation != Isolation::Hyperv || container.network.is_some() {
        return Ok(());
    }
    let Some(namespace) = spec::network_namespace(&bundle.spec()?) else { return Ok(()) };
    hostnet::give_back(&Namespace::at(namespace)).context("cannot give the container's network back")
}

fn remove_socket(bundle: &Bundle) -> anyhow::Result<()> {
    let Ok(address) = fs::read_to_string(bundle.path().join(Bundle::ADDRESS)) else { return Ok(()) };
    let Some(path) = address.strip_prefix("unix://") else { return Ok(()) };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {path}"))
        }
        _ => Ok(()),
    }
}

fn remove_folder(path: &std::path::Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_recorded_process_dies_and_a_later_one_does_not() {
        let mut child = Command::new("/bin/sleep").arg("100").spawn().unwrap();
        let record = ProcessRecord::of(child.id()).unwrap();
        kill(ProcessRecord { start_time: record.start_time + 1, ..record }).unwrap();
        assert!(record.is_alive());
        kill(record).unwrap();
        assert!(!record.is_alive());
        child.wait().unwrap();
        kill(record).unwrap();
    }

    #[test]
    fn a_bundle_of_which_nothing_is_left_is_deleted_with_137() {
        let folder = tempfile::tempdir().unwrap();
        let flags = Flags { bundle: Some(folder.path().to_owned()), id: Some("c1".into()), ..Flags::default() };
        let response = run(&flags).unwrap();
        assert_eq!((response.exit_status, response.pid), (137, 0));
        let report = Bundle::at(folder.path().to_owned()).exit_report().unwrap().unwrap();
        assert!(report.error.unwrap().contains("shim"));
        assert_eq!(run(&flags).unwrap().exited_at, response.exited_at, "the first end counts");
    }
}
