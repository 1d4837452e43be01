//! A container's cgroup in every hierarchy of this system: version 1, version 2, or both (hybrid).
//!
//! libcontainer makes the cgroups and applies the limits; this module finds them again, reads them, stops, empties and
//! removes them, at any time and by any process.

pub(crate) mod devices;
mod hierarchy;
mod oom;
pub(crate) mod stats;

pub use oom::OomWatch;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libcgroups::common::{CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager};
use nix::errno::Errno;
use oci_spec::runtime::LinuxResources;
use proto::ErrorKind;

use self::hierarchy::Hierarchy;
use crate::failure::kind_of_io;

/// Something about a container's cgroup that did not work.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The system's cgroup hierarchies cannot be found.
    #[error("cannot find the cgroup hierarchies")]
    Hierarchies(#[source] io::Error),
    /// The path names no cgroup of a container's own.
    #[error("{0} cannot be a container's cgroup")]
    Path(PathBuf),
    /// A file of the cgroup cannot be read or written.
    #[error("cannot access {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel does not freeze or thaw the processes in time.
    #[error("the container's processes cannot be {0} (waited {1} s)")]
    Freezer(&'static str, u64),
    /// Processes do not end although they were killed.
    #[error("processes {0:?} do not end although they were killed")]
    Immortal(Vec<u32>),
    /// The limits cannot be applied.
    #[error("cannot apply the limits: {0}")]
    Limits(String),
    /// The device rules cannot be enforced.
    #[error("cannot restrict access to devices")]
    Devices(#[source] io::Error),
}

impl CgroupError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::File { source, .. } => kind_of_io(source),
            Self::Path(_) | Self::Limits(_) => ErrorKind::InvalidArgument,
            Self::Freezer(..) | Self::Immortal(_) => ErrorKind::DeadlineExceeded,
            Self::Hierarchies(_) | Self::Devices(_) => ErrorKind::Internal,
        }
    }
}

/// How long processes may take to freeze, thaw, or die.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long processes that are to be killed may take to freeze: one that waits in the kernel for another cannot.
const FREEZE_TO_KILL: Duration = Duration::from_millis(100);

/// One container's cgroup.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
    hierarchies: Vec<Hierarchy>,
}

impl Cgroup {
    /// Finds where the cgroup is, or would be.
    ///
    /// Shape: `path` is absolute and below the root of every hierarchy.
    pub fn locate(path: &Path) -> Result<Self, CgroupError> {
        let plain = path.strip_prefix("/").ok().filter(|rest| {
            rest.components().count() > 0
                && rest.components().all(|part| matches!(part, std::path::Component::Normal(_)))
        });
        let plain = plain.ok_or_else(|| CgroupError::Path(path.to_owned()))?;
        let mut hierarchies = hierarchy::mounted().map_err(CgroupError::Hierarchies)?;
        for hierarchy in &mut hierarchies {
            hierarchy.folder.push(plain);
        }
        Ok(Self { path: path.to_owned(), hierarchies })
    }

    /// The folder in version 2's hierarchy, where that one has the controllers.
    pub fn unified(&self) -> Option<&Path> {
        let only_v2 = self.hierarchies.iter().all(|hierarchy| hierarchy.is_v2());
        self.hierarchies
            .iter()
            .find(|hierarchy| only_v2 && hierarchy.is_v2())
            .map(|hierarchy| hierarchy.folder.as_path())
    }

    /// The folder in version 1's hierarchy with this controller.
    pub fn v1(&self, controller: &str) -> Option<&Path> {
        let found =
            self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller));
        found.map(|hierarchy| hierarchy.folder.as_path())
    }

    /// The folders that exist, one per hierarchy.
    pub fn folders(&self) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|hierarchy| &hierarchy.folder).filter(|folder| folder.is_dir()).cloned().collect()
    }

    /// Every process in the cgroup and in those below it, each once.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        for folder in self.folders() {
            for folder in descend(&folder)? {
                pids.extend(read_processes(&folder)?);
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Sends a signal to every process; new ones that appear meanwhile may miss it, unless it is SIGKILL.
    pub fn signal(&self, signal: i32) -> Result<(), CgroupError> {
        if signal == libc::SIGKILL {
            return self.kill();
        }
        self.processes()?.into_iter().for_each(|pid| send(pid, signal));
        Ok(())
    }

    /// Kills every process, also while they fork; does not wait for their end.
    fn kill(&self) -> Result<(), CgroupError> {
        for folder in self.hierarchies.iter().filter(|hierarchy| hierarchy.is_v2()).map(|hierarchy| &hierarchy.folder) {
            // Linux 5.14. In hybrid mode this hierarchy may not have the container's cgroup.
            unless_gone(write(&folder.join("cgroup.kill"), "1"))?;
        }
        let freezable = self.v1("freezer").is_some_and(Path::exists);
        // Frozen, they cannot fork away from under us. If that fails, they are killed all the same.
        let _ = freezable.then(|| self.set_frozen_v1(true, FREEZE_TO_KILL));
        self.processes()?.into_iter().for_each(|pid| send(pid, libc::SIGKILL));
        // A frozen process of version 1 dies only when it is thawed.
        if freezable { unless_gone(self.set_frozen_v1(false, PATIENCE)) } else { Ok(()) }
    }

    /// Kills every process and waits until none is left.
    pub fn empty(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(200);
        loop {
            let left = self.processes()?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(CgroupError::Immortal(left));
            }
            self.kill()?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Removes the cgroup and those below it from all hierarchies. When: after [`Self::empty`].
    pub fn remove(&self) -> Result<(), CgroupError> {
        for folder in self.folders() {
            // Children first.
            for folder in descend(&folder)?.into_iter().rev() {
                remove_folder(&folder)?;
            }
        }
        Ok(())
    }

    /// Stops all processes, or lets them go on; waits until that is so.
    pub fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        match self.unified() {
            Some(folder) => {
                write(&folder.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
                let events = folder.join("cgroup.events");
                let wanted = if frozen { "frozen 1" } else { "frozen 0" };
                await_freezer(frozen, PATIENCE, || Ok(read(&events)?.lines().any(|line| line == wanted)))
            }
            None => self.set_frozen_v1(frozen, PATIENCE),
        }
    }

    fn set_frozen_v1(&self, frozen: bool, patience: Duration) -> Result<(), CgroupError> {
        let folder = self.v1("freezer").ok_or(CgroupError::Freezer("frozen without the freezer controller", 0))?;
        let file = folder.join("freezer.state");
        let wanted = if frozen { "FROZEN" } else { "THAWED" };
        let done = await_freezer(frozen, patience, || {
            // Again each time: a process that was forking meanwhile is caught by the next write.
            write(&file, wanted)?;
            Ok(read(&file)?.trim() == wanted)
        });
        if frozen && done.is_err() {
            // Half frozen is the worst of both; the first error is the one to tell.
            let _ = write(&file, "THAWED");
        }
        done
    }

    /// Whether the processes are frozen (or about to be).
    pub fn is_frozen(&self) -> bool {
        match self.unified() {
            Some(folder) => read(&folder.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1"),
            None => self
                .v1("freezer")
                .is_some_and(|folder| read(&folder.join("freezer.state")).is_ok_and(|text| text.trim() != "THAWED")),
        }
    }

    /// Applies further limits.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let text = |error: &dyn std::fmt::Display| CgroupError::Limits(error.to_string());
        let config =
            CgroupConfig { cgroup_path: self.path.clone(), systemd_cgroup: false, container_name: String::new() };
        let manager = create_cgroup_manager(config).map_err(|error| text(&error))?;
        let options = ControllerOpt { resources, disable_oom_killer: false, oom_score_adj: None, freezer_state: None };
        manager.apply(&options).map_err(|error| text(&error))
    }
}

/// Removes a cgroup of this name from all hierarchies, with everything in it: its processes are killed.
///
/// Shape: `path` is absolute and below the root of every hierarchy. When: at any time; a cgroup that does not exist is fine.
///
/// # Errors
/// [`CgroupError::Immortal`] when processes do not die; [`CgroupError::File`] when the kernel keeps the cgroup.
pub fn remove_cgroup(path: &Path) -> Result<(), CgroupError> {
    let cgroup = Cgroup::locate(path)?;
    cgroup.empty()?;
    cgroup.remove()
}

/// Keeps the kernel's lock for moving processes between cgroups ready to be taken.
///
/// The first move after a while waits 10 to 15 ms for a grace period of RCU, and the moves after it do not, for about as long.
/// So whoever is about to move a process moves itself to where it is already, again and again, while it waits. (Not needed
/// where cgroup2 is mounted with `favordynmods`, as in a utility VM.)
pub(crate) struct Readiness {
    procs: fs::File,
}

impl Readiness {
    /// Finds a cgroup of this process; `None` where there is nothing to win.
    pub fn new() -> Option<Self> {
        let mounted = hierarchy::mounted().ok()?;
        let favoured = fs::read_to_string("/proc/thread-self/mounts").ok()?.contains("favordynmods");
        let own = fs::read_to_string("/proc/thread-self/cgroup").ok()?;
        let (folder, path) = mounted.iter().find_map(|hierarchy| {
            let path = own.lines().find_map(|line| hierarchy.path_in(line))?;
            Some((&hierarchy.folder, path))
        })?;
        let file = folder.join(path.trim_start_matches('/')).join("cgroup.procs");
        let procs = fs::OpenOptions::new().write(true).open(file).ok()?;
        (!favoured).then_some(Self { procs })
    }

    /// Takes the lock once.
    pub fn renew(&self) {
        // Nothing depends on its success.
        let _ = io::Write::write_all(&mut &self.procs, b"0");
    }
}

fn await_freezer(
    frozen: bool,
    patience: Duration,
    mut is_done: impl FnMut() -> Result<bool, CgroupError>,
) -> Result<(), CgroupError> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_micros(50);
    while !is_done()? {
        if Instant::now() > deadline {
            return Err(CgroupError::Freezer(if frozen { "frozen" } else { "thawed" }, patience.as_secs()));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    Ok(())
}

fn send(pid: u32, signal: i32) {
    if let Ok(pid) = i32::try_from(pid) {
        // A process that is gone needs no signal.
        let _ = crate::sys::send_signal(pid, signal);
    }
}

/// A cgroup and all below it, parents first.
fn descend(folder: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let mut found = vec![folder.to_owned()];
    let mut next = 0;
    while let Some(folder) = found.get(next).cloned() {
        next += 1;
        // A cgroup has a link for itself, one from its parent, and one from each child: most have none, and are long to list.
        if fs::metadata(&folder).is_ok_and(|metadata| metadata.is_dir() && metadata.nlink() == 2) {
            continue;
        }
        match fs::read_dir(&folder) {
            Ok(entries) => {
                let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                found.extend(folders.map(|entry| entry.path()));
            }
            // Removed meanwhile.
            Err(error) if is_gone(&error) => {}
            Err(source) => return Err(CgroupError::File { path: folder, source }),
        }
    }
    Ok(found)
}

fn read_processes(folder: &Path) -> Result<Vec<u32>, CgroupError> {
    match read(&folder.join("cgroup.procs")) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid != 0).collect()),
        // Removed meanwhile, or a threaded cgroup, whose processes its parent lists.
        Err(CgroupError::File { source, .. })
            if is_gone(&source) || source.raw_os_error() == Some(libc::EOPNOTSUPP) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// Takes it for done when somebody else has removed the cgroup meanwhile.
fn unless_gone(result: Result<(), CgroupError>) -> Result<(), CgroupError> {
    match result {
        Err(CgroupError::File { source, .. }) if is_gone(&source) => Ok(()),
        other => other,
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn remove_folder(folder: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut pause = Duration::from_micros(100);
    loop {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            // The last process is still on its way out.
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) && Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(10));
            }
            Err(source) => return Err(CgroupError::File { path: folder.to_owned(), source }),
        }
    }
}

/// Reads a small file of a cgroup.
pub(crate) fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::File { path: path.to_owned(), source })
}

/// Writes to a file of a cgroup, which must exist.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    let written = fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    written.map_err(|source| CgroupError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_nobodys_cgroup() {
        for bad in ["/", "", "relative", "/a/../b", "/.."] {
            assert!(matches!(Cgroup::locate(Path::new(bad)), Err(CgroupError::Path(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_cgroup_that_does_not_exist_is_empty_and_removed() {
        if hierarchy::mounted().is_err() {
            eprintln!("skipped: no cgroups here");
            return;
        }
        let path = Path::new("/bulkhead-test-that-does-not-exist/x");
        let cgroup = Cgroup::locate(path).unwrap();
        assert!(cgroup.processes().unwrap().is_empty());
        remove_cgroup(path).unwrap();
    }

    #[test]
    fn nested_folders_are_listed_parents_first() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("a/b")).unwrap();
        fs::write(top.path().join("a/cgroup.procs"), "12\n0\n13\n").unwrap();
        let found = descend(top.path()).unwrap();
        assert_eq!(found, [top.path().to_owned(), top.path().join("a"), top.path().join("a/b")]);
        assert_eq!(read_processes(&found[1]).unwrap(), [12, 13]);
        assert_eq!(read_processes(&found[2]).unwrap(), [] as [u32; 0]);
    }
}
