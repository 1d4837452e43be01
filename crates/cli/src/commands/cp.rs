//! `cp`.
//!
//! Source: docker cp reference, "the behavior is similar to the common Unix utility cp -a".

mod place;
mod tree;

use std::path::{Path, PathBuf};

use hyper::{Method, StatusCode};
use tokio_util::io::ReaderStream;

use super::export;
use crate::args::files::CpArgs;
use crate::client::body::RequestBody;
use crate::client::url::Url;
use crate::client::{Client, ClientError};
use crate::error::{CliError, CliResult};
use crate::output::quantity;
use crate::terminal;
use place::{Place, Stat};

/// `cp`.
pub(super) async fn cp(client: &Client, args: &CpArgs) -> CliResult<()> {
    let (source, destination) = (Place::parse(&args.source), Place::parse(&args.destination));
    let copied = match (source, destination) {
        (Place::Container { name, path }, Place::Stream) => {
            return to_stream(client, name, path, args.follow_link).await;
        }
        (Place::Stream, Place::Container { name, path }) => {
            if terminal::on_stdin() {
                return Err(usage("cowardly refusing to read an archive from a terminal"));
            }
            let body = RequestBody::stream(ReaderStream::with_capacity(tokio::io::stdin(), 256 << 10));
            return put(client, name, path, body, args.archive).await;
        }
        (Place::Container { name, path }, Place::Local(to)) => from_container(client, (name, path), to, args).await?,
        (Place::Local(from), Place::Container { name, path }) => to_container(client, from, (name, path), args).await?,
        (Place::Container { .. }, Place::Container { .. }) => {
            return Err(usage("copying between containers is not supported"));
        }
        _ => return Err(usage("must specify at least one container source")),
    };
    if !args.quiet {
        #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
        let copied = quantity::decimal_size(copied as f64);
        eprintln!("Successfully copied {copied} to {}", args.destination);
    }
    Ok(())
}

fn usage(text: &str) -> CliError {
    CliError::Usage(text.to_owned()).with_code(1)
}

fn url(container: &str, path: &str) -> Url {
    Url::container(container, "/archive").with("path", path)
}

/// What is at a container's path; `None` when nothing is.
async fn stat(client: &Client, container: &str, path: &str) -> CliResult<Option<Stat>> {
    match client.send(Method::HEAD, &url(container, path), RequestBody::empty()).await {
        Ok(response) => Stat::of(response.headers()).map(Some),
        Err(ClientError::Refused { status, .. }) if status == StatusCode::NOT_FOUND.as_u16() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The path that is to be read: a link's target, if that is wanted.
async fn followed(client: &Client, container: &str, path: &str, follow: bool) -> CliResult<String> {
    if follow
        && let Some(stat) = stat(client, container, path).await?
        && stat.is_link()
    {
        return Ok(stat.link_target);
    }
    Ok(path.to_owned())
}

async fn to_stream(client: &Client, container: &str, path: &str, follow: bool) -> CliResult<()> {
    let path = followed(client, container, path, follow).await?;
    let answer = client.send(Method::GET, &url(container, &path), RequestBody::empty()).await?;
    export::write_to(answer.into_body(), &mut tokio::io::stdout()).await
}

async fn put(client: &Client, container: &str, path: &str, body: RequestBody, owners: bool) -> CliResult<()> {
    let mut url = url(container, path).with("noOverwriteDirNonDir", "true");
    if owners {
        url = url.with("copyUIDGID", "true");
    }
    client.send(Method::PUT, &url, body).await.map(drop).map_err(Into::into)
}

/// Copies out of a container; gives the bytes of the files.
async fn from_container(client: &Client, from: (&str, &str), to: &str, args: &CpArgs) -> CliResult<u64> {
    let (container, path) = from;
    let path = followed(client, container, path, args.follow_link).await?;
    let answer = client.send(Method::GET, &url(container, &path), RequestBody::empty()).await?;
    let stat = Stat::of(answer.headers())?;
    let here = Path::new(to).metadata().ok();
    let is_folder = here.as_ref().is_some_and(std::fs::Metadata::is_dir);
    // What SRC is called here: the name that was asked for, whatever link was followed.
    let name = place::last_name(from.1);
    let target: PathBuf = match (&here, stat.is_folder()) {
        (Some(_), true) if !is_folder => return Err(usage(&format!("cannot copy a folder to the file {to}"))),
        (Some(_), _) if is_folder => name.map_or_else(|| PathBuf::from(to), |name| Path::new(to).join(name)),
        (None, false) if to.ends_with('/') => return Err(usage(&format!("destination folder {to} does not exist"))),
        (None, _) if !place::parent(to).is_dir() => {
            return Err(usage(&format!("no such folder: {}", place::parent(to).display())));
        }
        _ => PathBuf::from(to.trim_end_matches('/')),
    };
    let top = place::last_name(&path).is_some();
    let (sender, receiver) = std::io::pipe().map_err(CliError::local("cannot make a pipe")).map(|(r, w)| (w, r))?;
    let owners = args.archive;
    let unpacking = tokio::task::spawn_blocking(move || tree::unpack(receiver, &target, top, owners));
    let mut sender = tokio::net::unix::pipe::Sender::from_owned_fd(sender.into())
        .map_err(CliError::local("cannot write to a pipe"))?;
    let sent = export::write_to(answer.into_body(), &mut sender).await;
    drop(sender);
    let unpacked = unpacking.await.map_err(|error| CliError::Answer(error.to_string()))?;
    // A pipe that nobody reads any more follows from what the reader says.
    let copied = unpacked.map_err(CliError::local("cannot write the files"))?;
    sent.map(|()| copied)
}

/// Copies into a container; gives the bytes of the files.
async fn to_container(client: &Client, from: &str, to: (&str, &str), args: &CpArgs) -> CliResult<u64> {
    let (container, path) = to;
    let source = Path::new(from);
    let facts = if args.follow_link || from.ends_with('/') { source.metadata() } else { source.symlink_metadata() };
    let facts = facts.map_err(CliError::file(source))?;
    let mut there = stat(client, container, path).await?;
    let mut path = path.to_owned();
    if let Some(link) = there.as_ref().filter(|stat| stat.is_link()) {
        path.clone_from(&link.link_target);
        there = stat(client, container, &path).await?;
    }
    let content_only = from.ends_with("/.") || from == ".";
    let name = place::last_name(&std::path::absolute(source).unwrap_or_else(|_| source.into()).to_string_lossy());
    let (folder, name) = match &there {
        Some(stat) if stat.is_folder() => (path.clone(), if content_only { None } else { name }),
        Some(_) if facts.is_dir() => {
            return Err(usage(&format!("cannot copy a folder to the file {container}:{path}")));
        }
        None if path.ends_with('/') && !facts.is_dir() => {
            return Err(usage(&format!("destination folder {container}:{path} does not exist")));
        }
        _ => (place::parent(&path).to_string_lossy().into_owned(), place::last_name(&path)),
    };
    let follow = args.follow_link;
    let (receiver, sender) = std::io::pipe().map_err(CliError::local("cannot make a pipe"))?;
    let owned = source.to_owned();
    let packing = tokio::task::spawn_blocking(move || tree::pack(sender, &owned, name.as_deref(), follow));
    let receiver = tokio::net::unix::pipe::Receiver::from_owned_fd(receiver.into())
        .map_err(CliError::local("cannot read from a pipe"))?;
    let body = RequestBody::stream(ReaderStream::with_capacity(receiver, 256 << 10));
    put(client, container, &folder, body, args.archive).await?;
    let packed = packing.await.map_err(|error| CliError::Answer(error.to_string()))?;
    packed.map_err(CliError::local(format!("cannot read {from}")))
}
