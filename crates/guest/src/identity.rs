//! What makes a fork itself: its random generator, its clock, its names. Until this has happened every fork of a template
//! is the same machine.
//!
//! Processes that exist in the template (this one, the warm helpers) have stack canaries and address layouts that all
//! forks share. They hold no secret and run no code of a container: a container's processes are executed afresh.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use proto::ErrorKind;
use proto::gcs::wire::{PersonalizeRequest, PersonalizeResponse, SyncClockRequest, SyncClockResponse};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use sha2::{Digest, Sha256};

use crate::sys;

/// Least entropy that the host must send.
const ENTROPY_BYTES_MIN: usize = 64;
const NANOSECONDS: i64 = 1_000_000_000;

/// A fork that cannot be given its identity.
#[derive(Debug, thiserror::Error)]
pub enum PersonalizeError {
    /// The request breaks the protocol.
    #[error("invalid {field}: {why}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The kernel refused a step.
    #[error("cannot {step}")]
    Kernel {
        /// What was to be done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl PersonalizeError {
    /// What a caller can act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. } => ErrorKind::InvalidArgument,
            Self::Kernel { .. } => ErrorKind::Internal,
        }
    }
}

/// 32 digits and the line's end.
const MACHINE_ID_LINE_BYTES: usize = 33;
/// Where the guest keeps its machine id.
pub const MACHINE_ID: &str = "/etc/machine-id";

/// The files that give a fork its identity, opened before the freeze point: opening a file is a thousand blocks of kernel
/// code, which each fork would run for the first time.
pub struct IdentityFiles {
    random: File,
    /// Opened and not read: the kernel makes the id when it is first read, which must be in the fork.
    boot_id: File,
    machine_id: File,
}

impl IdentityFiles {
    /// Opens them.
    ///
    /// # Errors
    /// When one of them does not exist.
    pub fn open() -> io::Result<Self> {
        let machine_id = File::options().read(true).write(true).create_new(true).open(MACHINE_ID)?;
        // So that the file has its memory, and the process knows how to read the clock without asking the kernel.
        machine_id.write_all_at(&[0; MACHINE_ID_LINE_BYTES], 0)?;
        let _ = wall_clock_ns();
        Ok(Self {
            random: File::options().write(true).open("/dev/urandom")?,
            boot_id: File::open("/proc/sys/kernel/random/boot_id")?,
            machine_id,
        })
    }

    /// Takes entropy, clock and names, in this order: what is drawn at random later must come from the new generator.
    ///
    /// # Errors
    /// `Invalid` before anything was changed; `Kernel` when a step failed, after which the fork must not be used.
    pub fn take(&self, request: &PersonalizeRequest) -> Result<PersonalizeResponse, PersonalizeError> {
        check(request)?;
        self.reseed(&request.entropy).map_err(step("reseed the random generator"))?;
        set_clock(request.wall_clock_ns).map_err(step("set the clock"))?;
        rustix::system::sethostname(request.hostname.as_bytes()).map_err(step("set the host name"))?;
        rustix::system::setdomainname(request.domainname.as_bytes()).map_err(step("set the domain name"))?;
        let line = [request.machine_id.as_bytes(), b"\n"].concat();
        self.machine_id.write_all_at(&line, 0).map_err(step("write the machine id"))?;
        self.answer().map_err(step("read the new identity"))
    }

    /// The kernel mixes the host's bytes into its pool and then draws a new key from the pool. Every processor's generator
    /// and every batch of ready random numbers notices the new key and is thrown away.
    fn reseed(&self, entropy: &[u8]) -> io::Result<()> {
        sys::add_entropy(&self.random, entropy)?;
        sys::reseed(&self.random)
    }

    fn answer(&self) -> io::Result<PersonalizeResponse> {
        let mut drawn = [0; 32];
        getrandom(&mut drawn, GetRandomFlags::empty())?;
        let mut response = PersonalizeResponse::new();
        response.version = proto::gcs::VERSION;
        response.reseeded = true;
        response.hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        response.machine_id = read_line(&self.machine_id)?;
        response.boot_id = read_line(&self.boot_id)?;
        response.fingerprint = Sha256::digest(drawn).to_vec();
        response.wall_clock_ns = wall_clock_ns();
        Ok(response)
    }
}

/// The content of a small file, without the line's end.
fn read_line(file: &File) -> io::Result<String> {
    let mut buffer = [0; 64];
    let read = file.read_at(&mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..read]).trim_end().to_owned())
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> PersonalizeError {
    move |source| PersonalizeError::Kernel { step, source: source.into() }
}

fn check(request: &PersonalizeRequest) -> Result<(), PersonalizeError> {
    let invalid = |field, why| Err(PersonalizeError::Invalid { field, why });
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if !(ENTROPY_BYTES_MIN..=sys::ENTROPY_BYTES_MAX).contains(&request.entropy.len()) {
        return invalid("entropy", "expected 64 to 1024 bytes");
    }
    check_clock(request.wall_clock_ns)?;
    if request.machine_id.len() != 32 || !request.machine_id.bytes().all(hex) {
        return invalid("machine_id", "expected 32 lower-case hexadecimal digits");
    }
    Ok(())
}

fn check_clock(wall_clock_ns: i64) -> Result<(), PersonalizeError> {
    if wall_clock_ns > 0 {
        return Ok(());
    }
    Err(PersonalizeError::Invalid { field: "wall_clock_ns", why: "expected a time after 1970" })
}

/// Sets the clock alone, once more, and says what it is now.
///
/// # Errors
/// As [`IdentityFiles::take`].
pub fn sync_clock(request: &SyncClockRequest) -> Result<SyncClockResponse, PersonalizeError> {
    check_clock(request.wall_clock_ns)?;
    set_clock(request.wall_clock_ns).map_err(step("set the clock"))?;
    Ok(SyncClockResponse { wall_clock_ns: wall_clock_ns(), ..Default::default() })
}

fn set_clock(wall_clock_ns: i64) -> rustix::io::Result<()> {
    let time = Timespec { tv_sec: wall_clock_ns / NANOSECONDS, tv_nsec: wall_clock_ns % NANOSECONDS };
    clock_settime(ClockId::Realtime, time)
}

/// The guest's clock, nanoseconds since the epoch.
pub fn wall_clock_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * NANOSECONDS + now.tv_nsec
}

/// Gives the container the fork's machine id where its image leaves the place for one: `/etc/machine-id` empty, as images
/// made for many machines have it, or missing. An image with an id of its own keeps it, as in any container.
///
/// Nothing depends on it, so a failure is only logged. Source: machine-id(5).
pub fn give_machine_id(rootfs: &Path) {
    match write_machine_id(rootfs) {
        // No /etc, or something odd in its place.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR) | Ok(()) => {}
        Err(error) => tracing::warn!("the container has no machine id: {error}"),
    }
}

fn write_machine_id(rootfs: &Path) -> rustix::io::Result<()> {
    let root = open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = MACHINE_ID.trim_start_matches('/');
    // An image's links lead nowhere outside the image.
    let inside = |flags: OFlags| {
        // The kernel refuses a mode for a file that is not to be made.
        let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o444) } else { Mode::empty() };
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        openat2(&root, path, flags, mode, ResolveFlags::IN_ROOT)
    };
    // For reading first: opening for writing would copy an image's file up, though nothing is written.
    let file = match inside(OFlags::RDONLY) {
        Ok(there) if is_empty_file(&there)? => inside(OFlags::WRONLY)?,
        Ok(_) => return Ok(()),
        Err(Errno::NOENT) => inside(OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?,
        Err(error) => return Err(error),
    };
    let id = fs::read(MACHINE_ID).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    rustix::io::write(&file, &id).map(drop)
}

fn is_empty_file(file: &OwnedFd) -> rustix::io::Result<bool> {
    let status = fstat(file)?;
    Ok(FileType::from_raw_mode(status.st_mode) == FileType::RegularFile && status.st_size == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> PersonalizeRequest {
        let mut request = PersonalizeRequest::new();
        request.entropy = vec![1; 64];
        request.wall_clock_ns = 1;
        request.machine_id = "0123456789abcdef0123456789abcdef".into();
        request
    }

    #[test]
    fn a_request_is_checked_before_anything_happens() {
        assert!(check(&request()).is_ok());
        let broken: [fn(&mut PersonalizeRequest); 5] = [
            |request| request.entropy.truncate(63),
            |request| request.entropy = vec![1; 1025],
            |request| request.wall_clock_ns = 0,
            |request| request.machine_id.push('0'),
            |request| request.machine_id = "0123456789ABCDEF0123456789abcdef".into(),
        ];
        for break_it in broken {
            let mut request = request();
            break_it(&mut request);
            assert_eq!(check(&request).unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
    }
}
