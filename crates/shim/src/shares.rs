//! Folders and files of the host in a utility VM: volumes and binds of a hyperv container.
//!
//! ```text
//!   container ─▶ guest's kernel, FUSE ─▶ guest service ═ substream ═▶ shim ═ socket ═▶ one jailed process for each mount
//!   container ─▶ guest's kernel, FUSE ─▶ virtio device of our own VMM ═ socket ═▶ one jailed process for all of them
//! ```
//!
//! The guest's kernel asks, over FUSE; whoever answers reads what a hostile guest has written. So the shim only passes bytes on,
//! and a process of its own answers ([`server`]) that has just these folders for a root ([`jail`]). When the shim goes, it
//! goes. Why so: docs/design/0015.

mod filter;
mod greeting;
mod jail;
pub mod server;
mod trees;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::Mount;
use proto::control::VolumePart;
use proto::gcs::{StreamHeader, StreamKind};
use proto::{ErrorKind, Status};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::mount::{OpenTreeFlags, open_tree};
use tokio::task::JoinHandle;
use uvm::{GuestConnection, UtilityVm};

use crate::files::relay;
use crate::{parts, sys};

/// Where the guest has them. Shape: `<folder>/<number>` is the mount; a shared file is [`FILE`] in it.
pub const GUEST_SHARES: &str = "/run/bulkhead/shares";
/// The name of a shared file.
pub const FILE: &str = "file";
/// Mounts of one container.
pub const MOST: usize = 64;

/// What is shared: opened once and held, so that what was looked at is what is served, whatever somebody puts in its place.
#[derive(Debug)]
pub struct Share {
    /// The folder or file on the host, for who reads of it.
    pub source: PathBuf,
    /// It, among the host's mounts.
    found: OwnedFd,
    /// Nothing is written to it.
    pub read_only: bool,
    /// With what is mounted below it.
    recursive: bool,
}

impl Share {
    /// Takes a bind of the host out of a specification: the guest mounts `number` in its place.
    ///
    /// # Errors
    /// `NotFound` when there is no such file; `NotImplemented` when it is neither a file nor a folder.
    pub fn take(mount: &mut Mount, parts: &[VolumePart], number: u32) -> Result<Self, Status> {
        let source = mount.source().clone().unwrap_or_default();
        let part = parts.iter().find(|part| part.point == source);
        let found = in_host_mounts(|| Ok(find(&source, part))).map_err(|error| unusable(&source, &error))??;
        let has = |word: &str| mount.options().iter().flatten().any(|option| option == word);
        let (read_only, recursive) = (has("ro") || has("rro"), has("rbind"));
        let point = Path::new(GUEST_SHARES).join(number.to_string());
        let folder = is_folder(&found, &source)?;
        mount.set_source(Some(if folder { point } else { point.join(FILE) }));
        Ok(Self { source, found, read_only, recursive: recursive && folder })
    }

    /// Starts its own process, and opens its substream in the guest.
    async fn stream(&self, guest: &GuestConnection, number: u32, cgroup: &str) -> Result<Served, Status> {
        let (ours, theirs) = StdStream::pair().map_err(|error| failed(self, &error))?;
        let server = start(std::slice::from_ref(self), theirs.into(), cgroup, server::ONE);
        let mut served = server.map_err(|error| failed(self, &error))?;
        let header = StreamHeader { kind: StreamKind::Share, process: number };
        let stream = guest.open_stream(header).await.map_err(|error| error.to_status())?;
        let ours = relay::into_tokio(ours).map_err(|error| failed(self, &error))?;
        served.relay = Some(tokio::spawn(relay::relay(ours, stream)));
        Ok(served)
    }

    /// A copy of its mount, and of those below it where these are shared, which hangs nowhere.
    fn tree(&self) -> io::Result<OwnedFd> {
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if self.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree = in_host_mounts(|| Ok(open_tree(&self.found, "", flags)?))?;
        sys::confine_mounts(tree.as_fd(), self.read_only)?;
        Ok(tree)
    }
}

fn find(source: &Path, part: Option<&VolumePart>) -> Result<OwnedFd, Status> {
    let found = match part {
        Some(part) => parts::find(&part.volume, &part.path)?,
        None => open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| unusable(source, &io::Error::from(error)))?,
    };
    // A link may have come where the engine saw none, and lead to what is this process' own: its memory, say.
    let reached =
        std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(|error| unusable(source, &error))?;
    if reached.starts_with(format!("/proc/{}", std::process::id())) {
        let what = format!("bind source path {} would be the shim's own", source.display());
        return Err(Status::new(ErrorKind::InvalidArgument, what));
    }
    Ok(found)
}

fn is_folder(found: &OwnedFd, source: &Path) -> Result<bool, Status> {
    let facts = fstat(found).map_err(|error| unusable(source, &io::Error::from(error)))?;
    match FileType::from_raw_mode(facts.st_mode) {
        FileType::Directory => Ok(true),
        FileType::RegularFile => Ok(false),
        _ => {
            let what = format!(
                "{} is neither a file nor a folder: it cannot be used with isolation hyperv, whose kernel is another",
                source.display()
            );
            Err(Status::new(ErrorKind::NotImplemented, what))
        }
    }
}

fn unusable(source: &Path, error: &io::Error) -> Status {
    let kind = if error.kind() == io::ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Internal };
    let what = format!("bind source path {} cannot be used", source.display());
    Status { kind, message: what, causes: vec![error.to_string()] }
}

/// The mounts of the host, before this process had its own.
static HOST_MOUNTS: OnceLock<File> = OnceLock::new();

/// Keeps the host's mounts at hand. When: before this process makes a mount namespace of its own.
///
/// # Errors
/// The namespace cannot be opened.
pub fn keep_host_mounts() -> io::Result<()> {
    keep_mounts(File::open("/proc/self/ns/mnt")?);
    Ok(())
}

/// As [`keep_host_mounts`], of a process that has entered them: their namespace.
pub fn keep_mounts(mounts: File) {
    // Only the first call counts.
    let _ = HOST_MOUNTS.set(mounts);
}

/// Does something where the host's mounts are, on a thread of its own. Paths are the host's there. A process that kept none has
/// no others.
///
/// # Errors
/// The host's mounts cannot be entered; what `act` answers.
pub fn in_host_mounts<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let Some(mounts) = HOST_MOUNTS.get() else { return act() };
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
pub struct Shares {
    served: Vec<Served>,
    by_device: bool,
}

struct Served {
    server: Child,
    /// Between the guest and the server; nothing where the machine itself speaks to it.
    relay: Option<JoinHandle<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(relay) = &self.relay {
            relay.abort();
        }
        // Killed, it cannot stay; reaping it takes no longer.
        if let Err(error) = self.server.kill().and_then(|()| self.server.wait()) {
            tracing::warn!(%error, "a process that served a mount may be left");
        }
    }
}

impl Shares {
    /// Starts what serves those of a VM's one container: one process for the machine's file system device, or else as
    /// [`Shares::serve`].
    ///
    /// # Errors
    /// As [`Shares::serve`].
    pub async fn serve_alone(vm: &UtilityVm, shares: &[Share], cgroup: &str) -> Result<Self, Status> {
        let Some(first) = shares.first() else { return Ok(Self::default()) };
        check_number(shares)?;
        let Some(socket) = vm.file_server() else { return Self::serve(vm.guest(), 0, shares, cgroup).await };
        let served = start(shares, socket, cgroup, server::ALL).map_err(|error| failed(first, &error))?;
        Ok(Self { served: vec![served], by_device: true })
    }

    /// Starts a process for each, in the container's cgroup on the host, and opens its substream in the guest: their numbers begin
    /// with `first`.
    ///
    /// # Errors
    /// `ResourceExhausted` for too many; what cannot be started or opened.
    pub async fn serve(guest: &GuestConnection, first: u32, shares: &[Share], cgroup: &str) -> Result<Self, Status> {
        check_number(shares)?;
        let mut this = Self::default();
        for (number, share) in (first..).zip(shares) {
            this.served.push(share.stream(guest, number, cgroup).await?);
        }
        Ok(this)
    }

    /// True when the guest has them in its machine's file system device.
    #[must_use]
    pub fn by_device(&self) -> bool {
        self.by_device
    }
}

fn check_number(shares: &[Share]) -> Result<(), Status> {
    if shares.len() <= MOST {
        return Ok(());
    }
    let what = format!("{} mounts: at most {MOST} with isolation hyperv", shares.len());
    Err(Status::new(ErrorKind::ResourceExhausted, what))
}

fn failed(share: &Share, error: &io::Error) -> Status {
    let what = format!("cannot share {} with the utility VM", share.source.display());
    Status { kind: ErrorKind::Internal, message: what, causes: vec![error.to_string()] }
}

fn start(shares: &[Share], socket: OwnedFd, cgroup: &str, place: &str) -> io::Result<Served> {
    let trees = shares.iter().map(Share::tree).collect::<io::Result<Vec<_>>>()?;
    let (ours, theirs) = StdStream::pair()?;
    let server = Command::new("/proc/self/exe")
        .args(["share", cgroup, place])
        .env_clear()
        .stdin(Stdio::from(socket))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    let served = Served { server, relay: None };
    trees::send(ours, &trees)?;
    Ok(served)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

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
    fn a_part_of_a_volume_is_shared_as_the_part_whatever_comes_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let sub = folder.path().join("sub");
        std::fs::create_dir(&sub).unwrap();
        let inside = std::fs::metadata(&sub).unwrap().ino();
        let part = VolumePart { volume: folder.path().into(), path: "sub".into(), point: "/bundle/parts/0".into() };
        let mut mount = bind(&part.point.clone(), &["rbind"]);
        let share = Share::take(&mut mount, &[part], 0).unwrap();
        std::fs::remove_dir(&sub).unwrap();
        std::os::unix::fs::symlink("/", &sub).unwrap();
        assert_eq!(fstat(&share.found).unwrap().st_ino, inside);
    }

    #[test]
    fn what_a_link_says_is_the_shims_own_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/proc/self/mem", &link).unwrap();
        assert_eq!(Share::take(&mut bind(&link, &[]), &[], 0).unwrap_err().kind, ErrorKind::InvalidArgument);
    }
}
