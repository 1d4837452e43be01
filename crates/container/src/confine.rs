//! In the helper: what a process takes upon itself before it becomes a container's command: streams, limits, identity,
//! capabilities, the seccomp filter.
//!
//! libcontainer does this for a first process that it makes itself, and could for a further one, but without the
//! container's seccomp profile and with its errors as texts only. Its parts for capabilities, AppArmor and identities are
//! used here.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use libcontainer::config::PersonalityDomain;
use libcontainer::oci_spec::runtime::{LinuxPersonality, LinuxPersonalityDomain, Process};
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::{apparmor, capabilities};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use serde::{Deserialize, Serialize};

use crate::failure::{CommandError, SetupError};
use crate::seccomp::Filter;
use crate::terminal::{prepare_terminal, verify_terminal};
use crate::wire::{Answer, Outcome, StreamFds, WireError};

/// Why a process did not come to execute its command.
#[derive(Debug, Serialize, Deserialize)]
pub enum Failure {
    /// The command is at fault.
    Command(CommandError),
    /// A step failed.
    Step(String),
}

impl Failure {
    /// A step that failed.
    pub fn step(what: &str, error: &dyn std::fmt::Display) -> Self {
        Self::Step(format!("{what}: {error}"))
    }

    /// As the helper tells it. `pid` is a process of the caller's that has ended, or is about to.
    pub fn answer(self, pid: Option<u32>) -> Outcome {
        let answer = match self {
            Self::Command(error) => Answer::Command { error, pid },
            Self::Step(message) => Answer::Failed { error: SetupError::new(message), pid },
        };
        Outcome { answer, terminal: None }
    }
}

/// A process in a container's namespaces and cgroups, still root with all capabilities.
pub struct Confinement<'a> {
    /// What it is to become; its user is resolved.
    pub process: &'a Process,
    /// Absent for the kernel's own.
    pub personality: Option<&'a LinuxPersonality>,
    /// Absent for an unconfined container.
    pub filter: Option<&'a Filter>,
    /// A terminal's size; 0 is left unset.
    pub size: (u16, u16),
    /// Whether its terminal is the container's console.
    pub is_first: bool,
}

impl Confinement<'_> {
    /// Applies all of it; afterwards only the command is left. Without streams a terminal is made, and its master passed to
    /// `hand_out`, which may use any system call: the filter comes later.
    ///
    /// The order is libcontainer's for the first process, and runc's.
    pub fn apply(
        &self,
        streams: Option<StreamFds>,
        hand_out: impl FnOnce(&OwnedFd) -> Result<(), WireError>,
    ) -> Result<(), Failure> {
        let syscall = create_syscall();
        let (process, syscall) = (self.process, syscall.as_ref());
        rustix::process::setsid().map_err(|error| Failure::step("setsid", &error))?;
        match streams {
            Some(streams) => {
                connect_streams(&streams).map_err(|error| Failure::step("cannot connect streams", &error))?;
            }
            None => {
                let master = self.open_terminal().map_err(|error| Failure::step("cannot open a terminal", &error))?;
                hand_out(&master).map_err(|error| Failure::step("cannot pass the terminal out", &error))?;
            }
        }
        for limit in process.rlimits().iter().flatten() {
            let set = syscall.set_rlimit(limit);
            set.map_err(|error| Failure::step(&format!("cannot set {}", limit.typ()), &error))?;
        }
        self.set_attributes(syscall)?;
        // As root, since the user may not see the folder's parents; a network file system may know root as nobody, though.
        let chdir_later = match std::env::set_current_dir(process.cwd()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => true,
            other => other.map(|()| false).map_err(|error| chdir_failure(process.cwd(), &error))?,
        };
        set_identity(process, syscall)?;
        syscall.close_range(0).map_err(|error| Failure::step("close_range", &error))?;
        let no_new_privileges = process.no_new_privileges().unwrap_or(false);
        if !no_new_privileges {
            // Loading a filter takes CAP_SYS_ADMIN, which is about to go.
            self.load_seccomp()?;
        }
        capabilities::reset_effective(syscall)
            .and_then(|()| {
                let wanted = process.capabilities().as_ref();
                wanted.map_or(Ok(()), |wanted| capabilities::drop_privileges(wanted, syscall))
            })
            .map_err(|error| Failure::step("cannot set capabilities", &error))?;
        if chdir_later {
            std::env::set_current_dir(process.cwd()).map_err(|error| chdir_failure(process.cwd(), &error))?;
        }
        verify_current_dir(process.cwd())?;
        if no_new_privileges { self.load_seccomp() } else { Ok(()) }
    }

    fn set_attributes(&self, syscall: &dyn Syscall) -> Result<(), Failure> {
        let process = self.process;
        if process.no_new_privileges() == Some(true) {
            rustix::thread::set_no_new_privs(true).map_err(|error| Failure::step("no_new_privs", &error))?;
        }
        if let Some(profile) = process.apparmor_profile() {
            apparmor::apply_profile(profile)
                .map_err(|error| Failure::step("cannot set the AppArmor profile", &error))?;
        }
        if let Some(umask) = process.user().umask() {
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask & 0o777));
        }
        if let Some(personality) = self.personality {
            let domain = match personality.domain() {
                LinuxPersonalityDomain::PerLinux => PersonalityDomain::Linux,
                LinuxPersonalityDomain::PerLinux32 => PersonalityDomain::Linux32,
            };
            let set = syscall.personality(domain);
            set.map_err(|error| Failure::step("cannot set the personality", &error))?;
        }
        Ok(())
    }

    fn load_seccomp(&self) -> Result<(), Failure> {
        let Some(filter) = self.filter else { return Ok(()) };
        filter.load().map_err(|error| Failure::step("cannot load the seccomp profile", &error))
    }

    /// Makes a terminal of the container's own devpts; its master is for the caller.
    fn open_terminal(&self) -> io::Result<OwnedFd> {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        verify_terminal(&master, (5, 2))?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        verify_terminal(&slave, (136, u32::MAX))?;
        if self.is_first {
            mount_console(&slave)?;
        }
        prepare_terminal(&master, self.size.0, self.size.1, self.process.user().uid())?;
        rustix::process::ioctl_tiocsctty(&slave)?;
        rustix::stdio::dup2_stdin(&slave)?;
        rustix::stdio::dup2_stdout(&slave)?;
        rustix::stdio::dup2_stderr(&slave)?;
        Ok(master)
    }
}

/// Lets `/dev/console` be the terminal, by descriptors so that no path can be exchanged (CVE-2025-52565).
fn mount_console(slave: &OwnedFd) -> io::Result<()> {
    let console = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o666)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open("/dev/console")?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(slave, "", clone)?;
    let by_descriptors = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount.as_fd(), "", console.as_fd(), "", by_descriptors)?)
}

fn set_identity(process: &Process, syscall: &dyn Syscall) -> Result<(), Failure> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let user = process.user();
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    setgroups(&groups).map_err(|error| Failure::step("setgroups", &error))?;
    // Capabilities survive the change of user, to be cut down to the wanted ones afterwards.
    rustix::thread::set_keep_capabilities(true).map_err(|error| Failure::step("keep capabilities", &error))?;
    setresgid(gid, gid, gid).map_err(|error| Failure::step("setresgid", &error))?;
    setresuid(uid, uid, uid).map_err(|error| Failure::step("setresuid", &error))?;
    if !uid.is_root() {
        capabilities::reset_effective(syscall).map_err(|error| Failure::step("cannot keep capabilities", &error))?;
    }
    rustix::thread::set_keep_capabilities(false).map_err(|error| Failure::step("keep capabilities", &error))
}

fn connect_streams(streams: &StreamFds) -> io::Result<()> {
    // A stream that was not passed is /dev/null already; but it is the host's, so take the container's.
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let null = OwnedFd::from(null);
    let is_null = {
        let stat = rustix::fs::fstat(&null)?;
        (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3)
    };
    if !is_null {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the container's /dev/null is another device"));
    }
    rustix::stdio::dup2_stdin(streams.stdin.as_ref().unwrap_or(&null))?;
    rustix::stdio::dup2_stdout(streams.stdout.as_ref().unwrap_or(&null))?;
    rustix::stdio::dup2_stderr(streams.stderr.as_ref().unwrap_or(&null))?;
    Ok(())
}

/// Gives a pipe to the process' user, who could otherwise not open `/dev/stdout`. Source: runc `fixStdioPermissions`.
pub fn give_to(stream: &OwnedFd, user_id: u32) {
    use rustix::fs::FileType;
    let Ok(stat) = rustix::fs::fstat(stream) else { return };
    let kind = FileType::from_raw_mode(stat.st_mode);
    if stat.st_uid != user_id && matches!(kind, FileType::Fifo | FileType::Socket) {
        // A file system that refuses this is no reason not to run: only reopening the stream fails then.
        if let Err(error) = rustix::fs::fchown(stream, Some(rustix::process::Uid::from_raw(user_id)), None) {
            tracing::debug!(%error, user_id, "a stream keeps its owner");
        }
    }
}

fn chdir_failure(cwd: &Path, error: &io::Error) -> Failure {
    let reason = error
        .raw_os_error()
        .map_or_else(|| error.to_string(), |errno| nix::errno::Errno::from_raw(errno).desc().to_ascii_lowercase());
    Failure::Step(format!("chdir to cwd ({cwd:?}) set in config.json failed: {reason}"))
}

/// Refuses a working directory outside of the container (CVE-2024-21626: a leaked descriptor of the host).
fn verify_current_dir(cwd: &Path) -> Result<(), Failure> {
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        _ => Err(Failure::Step(format!("the working directory {cwd:?} is not in the container"))),
    }
}
