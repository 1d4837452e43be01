//! In the helper: starting a further process in a running container.
//!
//! libcontainer 0.7 can do this too, but without the container's seccomp profile and with its errors as texts only. Its
//! parts for capabilities, AppArmor and identities are used here.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use libcontainer::config::PersonalityDomain;
use libcontainer::oci_spec::runtime::{LinuxPersonalityDomain, Process};
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::{apparmor, capabilities};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use serde::{Deserialize, Serialize};

use crate::failure::{CommandError, SetupError};
use crate::seccomp::Filter;
use crate::terminal::{prepare_terminal, verify_terminal};
use crate::wire::{self, Answer, ExecRequest, Outcome, StreamFds};
use crate::{executable, sys};

/// Why the new process did not come to execute its command; it says so over a pipe that its success closes.
#[derive(Debug, Serialize, Deserialize)]
enum Failure {
    Command(CommandError),
    Step(String),
}

impl Failure {
    fn step(what: &str, error: &dyn std::fmt::Display) -> Self {
        Self::Step(format!("{what}: {error}"))
    }

    fn answer(self, pid: Option<u32>) -> Outcome {
        let answer = match self {
            Self::Command(error) => Answer::Command { error, pid },
            Self::Step(message) => Answer::Failed { error: SetupError::new(message), pid },
        };
        Outcome { answer, terminal: None }
    }
}

/// Starts the process; answers when its command runs.
pub fn start(request: &ExecRequest, container: &OwnedFd, streams: Option<StreamFds>) -> Outcome {
    // While the caller's files are in sight.
    match read_filter(request).and_then(|filter| enter(request, container).map(|()| filter)) {
        Ok(filter) => fork(request, filter.as_ref(), streams),
        Err(failure) => failure.answer(None),
    }
}

fn read_filter(request: &ExecRequest) -> Result<Option<Filter>, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::step("cannot read the seccomp profile", error);
    let Some(file) = &request.seccomp else { return Ok(None) };
    let bytes = std::fs::read(file).map_err(|error| failed(&error))?;
    Filter::from_bytes(&bytes).map(Some).map_err(|error| failed(&error))
}

/// Makes this helper a member of the container's cgroups and namespaces, which the new process then inherits.
fn enter(request: &ExecRequest, container: &OwnedFd) -> Result<(), Failure> {
    if let Some(score) = request.process.oom_score_adj() {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| Failure::step("cannot set oom_score_adj", &error))?;
    }
    for cgroup in &request.cgroups {
        let file = cgroup.join("cgroup.procs");
        let joined = OpenOptions::new().write(true).open(&file).and_then(|mut file| file.write_all(b"0"));
        joined.map_err(|error| Failure::step(&format!("cannot join {}", file.display()), &error))?;
    }
    let namespaces = ThreadNameSpaceType::from_bits_retain(request.namespaces);
    if namespaces.is_empty() {
        return Ok(());
    }
    move_into_thread_name_spaces(container.as_fd(), namespaces)
        .map_err(|error| Failure::step("cannot join the container's namespaces", &error))
}

fn fork(request: &ExecRequest, filter: Option<&Filter>, streams: Option<StreamFds>) -> Outcome {
    let made = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).and_then(|pipe| Ok((pipe, UnixStream::pair()?)));
    let ((failure_read, failure_write), (console, console_child)) = match made {
        Ok(made) => made,
        Err(error) => return Failure::step("cannot make a pipe", &error).answer(None),
    };
    let pid = match sys::fork_sibling() {
        Ok(sys::Forked::Parent(pid)) => pid,
        Ok(sys::Forked::Child) => {
            drop((failure_read, console));
            let failure = Child { request, filter, syscall: create_syscall() }.run(streams, &console_child);
            let _ = File::from(failure_write).write_all(&serde_json::to_vec(&failure).unwrap_or_default());
            sys::exit_now(127)
        }
        Err(error) => return Failure::step("cannot fork", &error).answer(None),
    };
    drop((failure_write, console_child, streams));
    // Ends when the command is executed, since that closes the last writing end.
    let mut failure = Vec::new();
    let read = File::from(failure_read).read_to_end(&mut failure);
    if let Err(error) = read {
        return Failure::step("cannot learn what became of the process", &error).answer(Some(pid));
    }
    if !failure.is_empty() {
        let failure =
            serde_json::from_slice(&failure).unwrap_or_else(|error| Failure::step("malformed failure", &error));
        return failure.answer(Some(pid));
    }
    let terminal = if request.streams.is_none() {
        match wire::receive::<()>(&console) {
            Ok(Some(((), fds))) => fds.into_iter().next(),
            _ => return Failure::Step("no terminal came".to_owned()).answer(Some(pid)),
        }
    } else {
        None
    };
    Outcome { answer: Answer::Started { pid }, terminal }
}

/// The new process, in the container's namespaces and cgroups, still root with all capabilities.
struct Child<'a> {
    request: &'a ExecRequest,
    filter: Option<&'a Filter>,
    syscall: Box<dyn Syscall>,
}

impl Child<'_> {
    /// Becomes the command; returns only with the reason why not.
    fn run(&self, streams: Option<StreamFds>, console: &UnixStream) -> Failure {
        match self.set_up(streams, console) {
            Ok(()) => Failure::Command(executable::execute(&self.request.process)),
            Err(failure) => failure,
        }
    }

    /// The order is libcontainer's for the first process, and runc's.
    fn set_up(&self, streams: Option<StreamFds>, console: &UnixStream) -> Result<(), Failure> {
        let process = &self.request.process;
        rustix::process::setsid().map_err(|error| Failure::step("setsid", &error))?;
        match streams {
            Some(streams) => {
                connect_streams(&streams).map_err(|error| Failure::step("cannot connect streams", &error))?
            }
            None => self.open_terminal(console).map_err(|error| Failure::step("cannot open a terminal", &error))?,
        }
        for limit in process.rlimits().iter().flatten() {
            let set = self.syscall.set_rlimit(limit);
            set.map_err(|error| Failure::step(&format!("cannot set {}", limit.typ()), &error))?;
        }
        self.set_attributes(process)?;
        // As root, since the user may not see the folder's parents; a network file system may know root as nobody, though.
        let chdir_later = match std::env::set_current_dir(process.cwd()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => true,
            other => other.map(|()| false).map_err(|error| chdir_failure(process.cwd(), &error))?,
        };
        self.set_identity(process)?;
        self.syscall.close_range(0).map_err(|error| Failure::step("close_range", &error))?;
        let no_new_privileges = process.no_new_privileges().unwrap_or(false);
        if !no_new_privileges {
            // Loading a filter takes CAP_SYS_ADMIN, which is about to go.
            self.load_seccomp()?;
        }
        capabilities::reset_effective(self.syscall.as_ref())
            .and_then(|()| {
                process
                    .capabilities()
                    .as_ref()
                    .map_or(Ok(()), |wanted| capabilities::drop_privileges(wanted, self.syscall.as_ref()))
            })
            .map_err(|error| Failure::step("cannot set capabilities", &error))?;
        if chdir_later {
            std::env::set_current_dir(process.cwd()).map_err(|error| chdir_failure(process.cwd(), &error))?;
        }
        verify_current_dir(process.cwd())?;
        if no_new_privileges { self.load_seccomp() } else { Ok(()) }
    }

    fn set_attributes(&self, process: &Process) -> Result<(), Failure> {
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
        if let Some(personality) = &self.request.personality {
            let domain = match personality.domain() {
                LinuxPersonalityDomain::PerLinux => PersonalityDomain::Linux,
                LinuxPersonalityDomain::PerLinux32 => PersonalityDomain::Linux32,
            };
            let set = self.syscall.personality(domain);
            set.map_err(|error| Failure::step("cannot set the personality", &error))?;
        }
        Ok(())
    }

    fn set_identity(&self, process: &Process) -> Result<(), Failure> {
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
            capabilities::reset_effective(self.syscall.as_ref())
                .map_err(|error| Failure::step("cannot keep capabilities", &error))?;
        }
        rustix::thread::set_keep_capabilities(false).map_err(|error| Failure::step("keep capabilities", &error))
    }

    fn load_seccomp(&self) -> Result<(), Failure> {
        let Some(filter) = self.filter else { return Ok(()) };
        filter.load().map_err(|error| Failure::step("cannot load the seccomp profile", &error))
    }

    /// Makes a terminal of the container's own devpts, and passes its master out.
    fn open_terminal(&self, console: &UnixStream) -> io::Result<()> {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        verify_terminal(&master, (5, 2))?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        verify_terminal(&slave, (136, u32::MAX))?;
        prepare_terminal(&master, self.request.width, self.request.height, self.request.process.user().uid())?;
        wire::send(console, &(), &[master.as_fd()]).map_err(io::Error::other)?;
        rustix::process::ioctl_tiocsctty(&slave)?;
        rustix::stdio::dup2_stdin(&slave)?;
        rustix::stdio::dup2_stdout(&slave)?;
        rustix::stdio::dup2_stderr(&slave)?;
        Ok(())
    }
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

/// Which namespaces of another process are not ours, as clone(2)'s flags.
pub fn foreign_namespaces(pid: Pid) -> io::Result<u32> {
    use rustix::thread::ThreadNameSpaceType as Type;
    let kinds = [
        ("user", Type::USER),
        ("mnt", Type::MOUNT),
        ("uts", Type::HOST_NAME_AND_NIS_DOMAIN_NAME),
        ("ipc", Type::INTER_PROCESS_COMMUNICATION),
        ("net", Type::NETWORK),
        ("pid", Type::PROCESS_ID),
        ("cgroup", Type::CONTROL_GROUP),
        ("time", Type::TIME),
    ];
    let mut flags = Type::empty();
    for (name, flag) in kinds {
        let identity = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{name}"));
        match (identity("self"), identity(&pid.as_raw_nonzero().to_string())) {
            (Ok(ours), Ok(theirs)) if ours == theirs => {}
            (Ok(_), Ok(_)) => flags |= flag,
            // A kernel without this kind.
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {}
            (Err(error), _) | (_, Err(error)) => return Err(error),
        }
    }
    Ok(flags.bits())
}
