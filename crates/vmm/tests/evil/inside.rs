//! The prisoner's side.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use vmm::jail::{self, filter};

use crate::sys::call;
use crate::ways::WAYS;

/// How this program knows that it is a prisoner.
pub const PRISONER: &str = "bulkhead-test-prisoner";
/// Exit code of one whose call gave an error.
pub const DENIED: i32 = 10;
/// Exit code of one whose call worked.
pub const REACHED: i32 = 11;
/// The walls: all but the filter; then all, with the filter of each kind of thread.
pub const WALLS: [&str; 6] = ["unfiltered", "control", "processor", "devices", "disk", "network"];

/// What a VMM that was taken over has at hand.
pub struct Means {
    /// Of a file that everybody may read and write.
    path: CString,
    /// Paths that are worth a try.
    process_1: CString,
    program: CString,
    /// Who started it, and is root.
    pub parent: u64,
    buffer: Vec<u8>,
    /// A disk that is open for reading only.
    pub disk: u64,
    /// A memory file that is sealed.
    pub memory: u64,
    /// One end of a socket to whoever drives it.
    pub control: u64,
    _kept: [OwnedFd; 4],
}

impl Means {
    fn new(path: &str) -> Self {
        let open = |path: &str| OwnedFd::from(File::open(path).unwrap());
        let memory = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&memory, 4096).unwrap();
        let seals = rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::GROW | rustix::fs::SealFlags::SHRINK;
        rustix::fs::fcntl_add_seals(&memory, seals).unwrap();
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let disk = open(path);
        let number = |descriptor: RawFd| u64::try_from(descriptor).unwrap();
        Self {
            path: CString::new(path).unwrap(),
            process_1: CString::new("/proc/1/mem").unwrap(),
            program: CString::new("/bin/sh").unwrap(),
            parent: std::os::unix::process::parent_id().into(),
            buffer: vec![0; 4096],
            disk: number(disk.as_raw_fd()),
            memory: number(memory.as_raw_fd()),
            control: number(one.as_raw_fd()),
            _kept: [disk, memory, one.into(), other.into()],
        }
    }

    /// The address of the file's path.
    pub fn path(&self) -> u64 {
        self.path.as_ptr() as u64
    }

    /// The address of "/proc/1/mem".
    pub fn process_1(&self) -> u64 {
        self.process_1.as_ptr() as u64
    }

    /// The address of a shell's path.
    pub fn program(&self) -> u64 {
        self.program.as_ptr() as u64
    }

    /// The address of 4096 bytes.
    pub fn buffer(&mut self) -> u64 {
        self.buffer.as_mut_ptr() as u64
    }

    /// The address of a description of eight bytes of memory. Source: struct iovec.
    pub fn piece(&mut self) -> u64 {
        let place = self.buffer() + 64;
        self.content(&[place.to_ne_bytes(), 8_u64.to_ne_bytes()].concat())
    }

    /// As [`Means::buffer`], with this content.
    pub fn content(&mut self, bytes: &[u8]) -> u64 {
        self.buffer[..bytes.len()].copy_from_slice(bytes);
        self.buffer()
    }
}

/// Acts as a prisoner if this process was started as one.
pub fn act_as_prisoner() {
    let mut arguments = std::env::args();
    if arguments.next().as_deref() != Some(PRISONER) {
        return;
    }
    let [walls, way, path] = [(); 3].map(|()| arguments.next().unwrap());
    let mut means = Means::new(&path);
    let target = File::options().read(true).write(true).open(&path);
    jail::enter().unwrap().finish().unwrap();
    let role = match walls.as_str() {
        "unfiltered" => None,
        "control" => Some(filter::Role::Control),
        "processor" => Some(filter::Role::Processor),
        "devices" => Some(filter::Role::Devices),
        "disk" => Some(filter::Role::Disk),
        "network" => Some(filter::Role::Network),
        other => panic!("no such walls: {other}"),
    };
    if let Some(role) = role {
        filter::install(role).unwrap();
    }
    let reached = match way.as_str() {
        "allowed" => call(libc::SYS_getrandom, [means.buffer(), 16, 0, 0, 0, 0]).is_ok(),
        "wait" => {
            std::io::stdout().write_all(b"x").unwrap();
            std::io::stdout().flush().unwrap();
            std::io::stdin().read(&mut [0]).is_ok()
        }
        "cut memory" => crate::sys::read_behind_the_end(&target.unwrap(), 1 << 20) == 7,
        way => {
            let (_, attempt) = WAYS.iter().find(|(name, _)| *name == way).unwrap();
            attempt(&mut means).is_ok()
        }
    };
    std::process::exit(if reached { REACHED } else { DENIED })
}
