//! The system calls that need `unsafe`: starting a program with an inherited socket, and taking sockets that were
//! handed to this process.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The descriptor number under which a spawned program finds its listening socket, and the first of `LISTEN_FDS`.
const FIRST_PASSED_FD: c_int = 3;

/// A program to start, detached: in a session of its own, standard input from `/dev/null`, output appended to a file.
pub struct Detached<'a> {
    /// The program's file.
    pub program: &'a Path,
    /// Its arguments, without its name.
    pub args: &'a [&'a str],
    /// Its current folder.
    pub folder: &'a Path,
    /// Where its standard output and error go; made if it is not there.
    pub output: &'a Path,
    /// It gets this as descriptor 3.
    pub socket: BorrowedFd<'a>,
}

/// `posix_spawn` attributes and file actions, destroyed on drop.
struct SpawnSetup {
    actions: libc::posix_spawn_file_actions_t,
    attributes: libc::posix_spawnattr_t,
}

impl SpawnSetup {
    fn new() -> io::Result<Self> {
        // SAFETY: both structs are plain data that the two init calls below fill in before any use.
        let mut setup: Self = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a live struct of the right type.
        check(unsafe { libc::posix_spawn_file_actions_init(&raw mut setup.actions) })?;
        // SAFETY: the pointer is to a live struct of the right type.
        let initialized = check(unsafe { libc::posix_spawnattr_init(&raw mut setup.attributes) });
        if let Err(error) = initialized {
            // SAFETY: the actions were initialized above and are not used again.
            unsafe { libc::posix_spawn_file_actions_destroy(&raw mut setup.actions) };
            std::mem::forget(setup);
            return Err(error);
        }
        Ok(setup)
    }

    /// A new session, and SIGPIPE (which Rust ignores) and the signal mask as a program expects them.
    fn detach(&mut self) -> io::Result<()> {
        // SAFETY: a zeroed sigset_t is valid for sigemptyset to fill in.
        let mut signals: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `signals` lives across the calls; the attributes are initialized.
        unsafe {
            libc::sigemptyset(&raw mut signals);
            check(libc::posix_spawnattr_setsigmask(&raw mut self.attributes, &raw const signals))?;
            libc::sigaddset(&raw mut signals, libc::SIGPIPE);
            check(libc::posix_spawnattr_setsigdefault(&raw mut self.attributes, &raw const signals))?;
        }
        let flags = c_int::from(libc::POSIX_SPAWN_SETSID) | libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK;
        let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
        // SAFETY: the attributes are initialized.
        check(unsafe { libc::posix_spawnattr_setflags(&raw mut self.attributes, flags) })
    }

    fn open(&mut self, fd: c_int, path: &CString, flags: c_int) -> io::Result<()> {
        // SAFETY: the actions are initialized; glibc copies the path.
        check(unsafe { libc::posix_spawn_file_actions_addopen(&raw mut self.actions, fd, path.as_ptr(), flags, 0o600) })
    }

    fn duplicate(&mut self, from: c_int, to: c_int) -> io::Result<()> {
        // SAFETY: the actions are initialized; where both numbers are equal, glibc clears close-on-exec.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.actions, from, to) })
    }

    fn change_folder(&mut self, folder: &CString) -> io::Result<()> {
        // SAFETY: the actions are initialized; glibc copies the path.
        check(unsafe { libc::posix_spawn_file_actions_addchdir_np(&raw mut self.actions, folder.as_ptr()) })
    }
}

impl Drop for SpawnSetup {
    fn drop(&mut self) {
        // SAFETY: both were initialized by `new`, and nothing uses them after drop.
        unsafe {
            libc::posix_spawn_file_actions_destroy(&raw mut self.actions);
            libc::posix_spawnattr_destroy(&raw mut self.attributes);
        }
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL byte in an argument"))
}

/// Starts a program and returns its process id; the caller reaps it.
///
/// It is `posix_spawn`, which does not copy the page tables of an engine with much memory.
///
/// # Errors
/// What `posix_spawn` says, such as that the program is not there.
pub fn spawn_detached(detached: &Detached<'_>) -> io::Result<u32> {
    let program = c_string(detached.program.as_os_str().as_bytes())?;
    let folder = c_string(detached.folder.as_os_str().as_bytes())?;
    let output = c_string(detached.output.as_os_str().as_bytes())?;
    let args = detached.args.iter().map(|arg| c_string(arg.as_bytes())).collect::<io::Result<Vec<_>>>()?;
    let environment = std::env::vars_os()
        .map(|(name, value)| c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect::<io::Result<Vec<_>>>()?;
    let mut setup = SpawnSetup::new()?;
    setup.detach()?;
    setup.duplicate(detached.socket.as_raw_fd(), FIRST_PASSED_FD)?;
    setup.open(0, &c_string(b"/dev/null")?, libc::O_RDONLY)?;
    setup.open(1, &output, libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT)?;
    setup.duplicate(1, 2)?;
    setup.change_folder(&folder)?;
    let argv = pointers(std::iter::once(&program).chain(&args));
    let envp = pointers(environment.iter());
    let mut pid: libc::pid_t = 0;
    // SAFETY: every pointer is to a live, initialized value; argv and envp end with a null pointer and their strings
    // live until the call returns, when the child has its own copy.
    check(unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            &raw const setup.actions,
            &raw const setup.attributes,
            argv.as_ptr(),
            envp.as_ptr(),
        )
    })?;
    u32::try_from(pid).map_err(io::Error::other)
}

fn pointers<'a>(strings: impl Iterator<Item = &'a CString>) -> Vec<*mut c_char> {
    strings.map(|text| text.as_ptr().cast_mut()).chain(std::iter::once(ptr::null_mut())).collect()
}

/// Lets a task wait until something is the case with a descriptor.
///
/// # Errors
/// What registering it says.
pub fn awaitable(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped, and the `AsyncFd` owns it until then.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Whether the other end of a unix socket has read all that was sent to it.
///
/// # Errors
/// What the kernel says.
pub fn is_read(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut unread: c_int = 0;
    // SAFETY: the descriptor is open, and the request (SIOCOUTQ on sockets) writes one int, which there is.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) } {
        0 => Ok(unread == 0),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the sockets that a service manager passed. Shape: as many as `LISTEN_FDS` says, when `LISTEN_PID` is this
/// process; none otherwise. When: once, before any other descriptor is opened.
///
/// Source: `sd_listen_fds(3)`.
#[must_use]
pub fn take_passed_sockets() -> Vec<OwnedFd> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").and_then(|count| c_int::try_from(count).ok()).unwrap_or(0);
    let open = |fd: &c_int| {
        // SAFETY: fcntl with F_GETFD only looks; a number that is not open is an error it returns.
        unsafe { libc::fcntl(*fd, libc::F_GETFD) != -1 }
    };
    // SAFETY: the service manager opened these for this process alone, which `LISTEN_PID` says, and nobody else here
    // owns them: this runs once, first.
    (FIRST_PASSED_FD..FIRST_PASSED_FD + count).filter(open).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_detached_program_has_its_socket_folder_and_session() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out");
        let file = std::fs::File::create(dir.path().join("socket")).unwrap();
        let script = "pwd; echo passed >&3; ps -o sid= -p $$ | tr -d ' '; echo $$";
        let pid = spawn_detached(&Detached {
            program: Path::new("/bin/sh"),
            args: &["-c", script],
            folder: dir.path(),
            output: &output,
            socket: file.as_fd(),
        })
        .unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        nix::sys::wait::waitpid(pid, None).unwrap();
        let text = std::fs::read_to_string(&output).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], dir.path().to_str().unwrap());
        assert_eq!((lines[1], lines[2]), (pid.to_string().as_str(), pid.to_string().as_str()));
        assert_eq!(std::fs::read_to_string(dir.path().join("socket")).unwrap(), "passed\n");
    }

    #[test]
    fn a_missing_program_is_an_error_of_the_caller() {
        let dir = tempfile::tempdir().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = spawn_detached(&Detached {
            program: Path::new("/nonexistent"),
            args: &[],
            folder: dir.path(),
            output: &dir.path().join("out"),
            socket: null.as_fd(),
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
