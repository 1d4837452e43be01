//! Folders and files of the host in a utility VM: volumes and binds of a hyperv container.
//!
//! ```text
//!   container ─▶ guest's kernel, FUSE ─▶ guest service ═ substream ═▶ shim ═ socket ═▶ one jailed process for each mount
//! ```
//!
//! The guest's kernel asks, over FUSE; whoever answers reads what a hostile guest has written. So the shim only passes bytes on,
//! and each mount has a process of its own ([`server`]) that has just this folder for a root ([`jail`]). When the shim goes, it
//! goes. Why so: docs/design/0015.

mod filter;
mod jail;
pub mod server;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::Mount;
use proto::control::VolumePart;
use proto::gcs::{StreamHeader, StreamKind};
use proto::{ErrorKind, Status};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use uvm::GuestConnection;

use crate::files::relay;

/// Where the guest has them. Shape: `<folder>/<number>` is the mount; a shared file is [`FILE`] in it.
pub const GUEST_SHARES: &str = "/run/bulkhead/shares";
/// The name of a shared file.
pub const FILE: &str = "file";
/// Mounts of one container; each takes a process.
const MOST: usize = 64;

/// What is shared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The folder or file on the host.
    pub source: PathBuf,
    /// Only this part of it, which is looked up following no link.
    pub part: Option<PathBuf>,
    /// Nothing is written to it.
    pub read_only: bool,
    /// With what is mounted below it.
    pub recursive: bool,
}

impl Share {
    /// Takes a bind of the host out of a specification: the guest mounts `number` in its place.
    ///
    /// # Errors
    /// `NotFound` when there is no such file; `NotImplemented` when it is neither a file nor a folder.
    pub fn take(mount: &mut Mount, parts: &[VolumePart], number: usize) -> Result<Self, Status> {
        let source = mount.source().clone().unwrap_or_default();
        let part = parts.iter().find(|part| part.point == source);
        let has = |word: &str| mount.options().iter().flatten().any(|option| option == word);
        let (read_only, recursive) = (has("ro") || has("rro"), has("rbind"));
        let share = match part {
            Some(part) => Self { source: part.volume.clone(), part: Some(part.path.clone()), read_only, recursive },
            None => Self { source, part: None, read_only, recursive },
        };
        let point = Path::new(GUEST_SHARES).join(number.to_string());
        let place = if share.is_folder()? { point } else { point.join(FILE) };
        mount.set_source(Some(place));
        Ok(share)
    }

    fn is_folder(&self) -> Result<bool, Status> {
        let facts = match &self.part {
            Some(part) => crate::parts::find(&self.source, part).map(File::from).map(|found| found.metadata())?,
            None => self.source.metadata(),
        };
        let kind = facts
            .map_err(|error| {
                let kind =
                    if error.kind() == io::ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Internal };
                let what = format!("bind source path {} cannot be used", self.source.display());
                Status { kind, message: what, causes: vec![error.to_string()] }
            })?
            .file_type();
        if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
            let what = format!(
                "{} is neither a file nor a folder: it cannot be used with isolation hyperv, whose kernel is another",
                self.source.display()
            );
            return Err(Status::new(ErrorKind::NotImplemented, what));
        }
        Ok(kind.is_dir())
    }
}

/// The mounts of the host, before this process had its own.
static HOST_MOUNTS: OnceLock<File> = OnceLock::new();

/// Keeps the host's mounts at hand. When: before this process makes a mount namespace of its own.
///
/// # Errors
/// The namespace cannot be opened.
pub fn keep_host_mounts() -> io::Result<()> {
    let mounts = File::open("/proc/self/ns/mnt")?;
    // Only the first call counts.
    let _ = HOST_MOUNTS.set(mounts);
    Ok(())
}

/// Does something where the host's mounts are, on a thread of its own. Paths are the host's there.
///
/// # Errors
/// The host's mounts cannot be entered; what `act` answers.
pub fn in_host_mounts<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let mounts = HOST_MOUNTS.get().ok_or_else(|| io::Error::other("the host's mounts are not at hand"))?;
    let enter = || -> io::Result<()> {
        // Only who shares his working directory with no other thread may change his mounts.
        unshare(CloneFlags::CLONE_FS)?;
        Ok(setns(mounts, CloneFlags::CLONE_NEWNS)?)
    };
    std::thread::scope(|scope| {
        let there = std::thread::Builder::new().spawn_scoped(scope, || enter().and_then(|()| act()))?;
        there.join().unwrap_or_else(|_| Err(io::Error::other("a thread among the host's mounts failed")))
    })
}

/// What serves a container's shares; ends on drop.
#[derive(Default)]
pub struct Shares(Vec<Served>);

struct Served {
    server: Child,
    relay: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.relay.abort();
        // Killed, it cannot stay; reaping it takes no longer.
        if let Err(error) = self.server.kill().and_then(|()| self.server.wait()) {
            tracing::warn!(%error, "a process that served a mount may be left");
        }
    }
}

impl Shares {
    /// Starts a process for each, in the container's cgroup on the host, and opens its substream in the guest: share `n` has number `n`.
    ///
    /// # Errors
    /// `ResourceExhausted` for too many; what cannot be started or opened.
    pub async fn serve(guest: &GuestConnection, shares: &[Share], cgroup: &str) -> Result<Self, Status> {
        if shares.len() > MOST {
            return Err(Status::new(
                ErrorKind::ResourceExhausted,
                format!("{} mounts: at most {MOST} with isolation hyperv", shares.len()),
            ));
        }
        let mut served = Self::default();
        for (number, share) in (0..).zip(shares) {
            let (ours, theirs) = StdStream::pair().map_err(|error| failed(share, &error))?;
            let server = start(share, theirs, cgroup).map_err(|error| failed(share, &error))?;
            let header = StreamHeader { kind: StreamKind::Share, process: number };
            let stream = guest.open_stream(header).await.map_err(|error| error.to_status());
            let ours = relay::into_tokio(ours).map_err(|error| failed(share, &error));
            let relay = match (stream, ours) {
                (Ok(stream), Ok(ours)) => tokio::spawn(relay::relay(ours, stream)),
                (Err(error), _) | (_, Err(error)) => {
                    drop(Served { server, relay: tokio::spawn(async {}) });
                    return Err(error);
                }
            };
            served.0.push(Served { server, relay });
        }
        Ok(served)
    }
}

fn failed(share: &Share, error: &io::Error) -> Status {
    let what = format!("cannot share {} with the utility VM", share.source.display());
    Status { kind: ErrorKind::Internal, message: what, causes: vec![error.to_string()] }
}

fn start(share: &Share, socket: StdStream, cgroup: &str) -> io::Result<Child> {
    let mounts = HOST_MOUNTS.get().ok_or(io::ErrorKind::NotFound)?.try_clone()?;
    let request = serde_json::to_string(share).map_err(io::Error::other)?;
    Command::new("/proc/self/exe")
        .args(["share", &request, cgroup])
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .stdout(Stdio::from(mounts))
        .spawn()
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn bind(source: &Path, options: &[&str]) -> Mount {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        MountBuilder::default().source(source).destination("/x").typ("bind").options(options).build().unwrap()
    }

    #[test]
    fn folders_and_files_are_shared_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        std::fs::write(&file, "x").unwrap();
        let mut mount = bind(folder.path(), &["rbind", "ro"]);
        let share = Share::take(&mut mount, &[], 3).unwrap();
        assert!(share.read_only && share.recursive);
        assert_eq!(mount.source().as_deref(), Some(Path::new("/run/bulkhead/shares/3")));
        let mut mount = bind(&file, &["bind"]);
        let share = Share::take(&mut mount, &[], 4).unwrap();
        assert!(!share.read_only && !share.recursive);
        assert_eq!(mount.source().as_deref(), Some(Path::new("/run/bulkhead/shares/4/file")));
        let refused = |path: &str| Share::take(&mut bind(Path::new(path), &[]), &[], 0).unwrap_err().kind;
        assert_eq!(refused("/dev/null"), ErrorKind::NotImplemented);
        assert_eq!(refused("/nosuch"), ErrorKind::NotFound);
    }

    #[test]
    fn a_part_of_a_volume_is_shared_as_the_part() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let part = VolumePart { volume: folder.path().into(), path: "sub".into(), point: "/bundle/parts/0".into() };
        let mut mount = bind(&part.point.clone(), &["rbind"]);
        let share = Share::take(&mut mount, &[part], 0).unwrap();
        assert_eq!((share.source.as_path(), share.part.as_deref()), (folder.path(), Some(Path::new("sub"))));
    }
}
