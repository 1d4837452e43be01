//! The real process, driven as `uvm` does it: what it may do once it has a machine, and how it ends. Without a /dev/kvm, or
//! without root, a test says that it was skipped.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vmm::protocol::{self, DiskRates, DiskSpec, MachineSpec, Reply, Request};

const MEMORY: u64 = 16 << 20;

/// A kernel that prints a letter and halts: `mov dx, 0x3f8; mov al, 'x'; out dx, al; hlt; jmp to it`.
fn kernel() -> File {
    const CODE: [u8; 10] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xf4, 0xeb, 0xfd];
    let entry = 0x10_0000_u64.to_le_bytes();
    let note = [&4_u32.to_le_bytes()[..], &8_u32.to_le_bytes(), &18_u32.to_le_bytes(), b"Xen\0", &entry].concat();
    let mut elf = vec![0_u8; 64 + 2 * 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[24..32].copy_from_slice(&entry);
    elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
    elf[54..58].copy_from_slice(&[56, 0, 2, 0]);
    for (at, kind, offset, length) in [(64, 1_u8, 176_u64, CODE.len()), (120, 4, 186, note.len())] {
        elf[at] = kind;
        elf[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
        elf[at + 24..at + 32].copy_from_slice(&entry);
        elf[at + 32..at + 40].copy_from_slice(&(length as u64).to_le_bytes());
        elf[at + 40..at + 48].copy_from_slice(&(length as u64).to_le_bytes());
    }
    elf.extend(CODE);
    elf.extend(note);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&elf).unwrap();
    file
}

struct Vmm {
    child: Child,
    control: OwnedFd,
}

impl Vmm {
    fn start() -> Self {
        let flags = SocketFlags::CLOEXEC;
        let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"));
        let child = command.stdin(Stdio::from(theirs)).stderr(Stdio::null()).spawn().unwrap();
        Self { child, control }
    }

    fn ask(&self, request: &Request, files: &[BorrowedFd<'_>]) -> Reply {
        protocol::send(&self.control, request, files).unwrap();
        protocol::receive(&self.control).unwrap().unwrap().0
    }

    /// Boots in this memory; nothing where there is no KVM.
    fn boot(&self, memory: &File) -> Option<Reply> {
        let (kernel, initramfs) = (kernel(), tempfile::tempfile().unwrap());
        memory.set_len(MEMORY).unwrap();
        let request = Request::Boot { command_line: String::new() };
        self.make(&request, &[memory, &kernel, &initramfs])
    }

    fn make(&self, request: &Request, files: &[&File]) -> Option<Reply> {
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        let kvm = kvm.inspect_err(|error| eprintln!("SKIPPED: /dev/kvm: {error}")).ok()?;
        let (port, server) = UnixStream::pair().unwrap();
        let prepare = Request::Prepare { machine: machine() };
        let (host, _) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let ends = [kvm.as_fd(), port.as_fd(), server.as_fd(), host.as_fd()];
        protocol::send(&self.control, &prepare, &ends).unwrap();
        let descriptors: Vec<BorrowedFd> = files.iter().map(|file| file.as_fd()).collect();
        Some(self.ask(request, &descriptors))
    }

    /// Lets the guest run until it has printed its letter.
    fn run(&self) {
        assert_eq!(self.ask(&Request::Resume, &[]), Reply::Done);
        while self.ask(&Request::Console, &[]) != Reply::Console(b"x".to_vec()) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn machine() -> MachineSpec {
    MachineSpec {
        memory_bytes: MEMORY,
        vcpus: 2,
        disk_slots: 4,
        slots_per_container: 4,
        disk_bytes: 1 << 30,
        network_slots: 2,
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process's threads, once each has a name and has filtered itself, which is the first it does. Devices of one kind share one; each kind has a filter of its own.
fn threads(process: &str) -> Vec<PathBuf> {
    let expected = ["bulkhead-vmm", "devices", "layers", "net", "scratch", "vcpu0", "vcpu1"];
    let is_filtered = |task: &PathBuf| fs::read_to_string(task.join("status")).unwrap().contains("Seccomp:\t2");
    let name = |task: &PathBuf| fs::read_to_string(task.join("comm")).unwrap().trim_end().to_owned();
    for _ in 0..500 {
        let tasks = fs::read_dir(format!("{process}/task")).unwrap().map(|task| task.unwrap().path());
        // KVM's own thread for the machine runs no code of the process.
        let tasks: Vec<_> = tasks.filter(|task| !name(task).starts_with("kvm")).collect();
        let mut names: Vec<_> = tasks.iter().map(name).collect();
        names.sort();
        if names == expected && tasks.iter().all(is_filtered) {
            return tasks;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the process has other threads than {expected:?}");
}

#[test]
fn it_is_locked_in_before_its_guest_runs() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let vmm = Vmm::start();
    let Some(reply) = vmm.boot(&tempfile::tempfile().unwrap()) else { return };
    assert_eq!(reply, Reply::Done);
    vmm.run();
    let process = format!("/proc/{}", vmm.child.id());
    let user = (0x7000_0000 + vmm.child.id()).to_string();
    let tasks = threads(&process);
    for task in tasks {
        let status = fs::read_to_string(task.join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
            line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!((field("Uid"), field("Gid")), (vec![user.clone(); 4], vec![user.clone(); 4]));
        assert!(field("Groups").is_empty());
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), (vec!["1".to_owned()], vec!["2".to_owned()]));
    }
    for namespace in ["net", "ipc", "uts"] {
        let of = |process: &str| fs::read_link(format!("{process}/ns/{namespace}")).unwrap();
        assert_ne!(of(&process), of("/proc/self"), "{namespace}");
    }
}

#[test]
fn it_ends_when_its_maker_is_gone_or_talks_nonsense() {
    let mut vmm = Vmm::start();
    if vmm.boot(&tempfile::tempfile().unwrap()).is_none() {
        return;
    }
    let (control, _) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    drop(std::mem::replace(&mut vmm.control, control));
    assert!(vmm.child.wait().unwrap().success());

    let vmm = Vmm::start();
    assert!(matches!(vmm.ask(&Request::Resume, &[]), Reply::Failed(_)));
    let vmm = Vmm::start();
    rustix::io::write(&vmm.control, &[0xff; 100]).unwrap();
    let (reply, _) = protocol::receive::<Reply>(&vmm.control).unwrap().unwrap();
    assert!(matches!(reply, Reply::Failed(_)));
}

/// All that a locked-in process does for whoever drives it.
#[test]
fn it_is_frozen_forked_and_gets_other_disks() {
    let memory = tempfile::tempfile().unwrap();
    let mut template = Vmm::start();
    if template.boot(&memory).is_none() {
        return;
    }
    let mut state = tempfile::tempfile().unwrap();
    assert_eq!(template.ask(&Request::Freeze, &[state.as_fd()]), Reply::Done);
    assert!(template.child.wait().unwrap().success());

    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    let half = || DiskSpec { read_only: true, parts: vec![1 << 19; 2] };
    let whole = Some(DiskSpec { read_only: false, parts: vec![1 << 20] });
    let request = Request::Fork {
        disks: vec![whole.clone(), None, None, Some(half())],
        rates: DiskRates::default(),
        working_set: Vec::new(),
    };
    for _ in 0..2 {
        state.rewind().unwrap();
        let fork = Vmm::start();
        assert_eq!(fork.make(&request, &[&memory, &state, &disk, &disk, &disk]), Some(Reply::Done));
        fork.run();
        assert_eq!(fork.ask(&Request::Pause, &[]), Reply::Done);
        let disks = vec![None, Some(half()), None, None];
        assert_eq!(
            fork.ask(&Request::Rebind { disks, rates: DiskRates::default() }, &[disk.as_fd(), disk.as_fd()]),
            Reply::Done
        );
        assert_eq!(fork.ask(&Request::Resume, &[]), Reply::Done);
        let Reply::Standing(standing) = fork.ask(&Request::Stand, &[]) else { panic!("no answer") };
        assert!(standing.starts_with("processor 0 asleep at 0x1000"), "{standing}");
        // A writable disk in a slot that is not.
        let disks = vec![None, whole.clone(), None, None];
        assert!(matches!(
            fork.ask(&Request::Rebind { disks, rates: DiskRates::default() }, &[disk.as_fd()]),
            Reply::Failed(_)
        ));
    }
    // F109: a tap too few, or what is none.
    for taps in [1, 2] {
        state.rewind().unwrap();
        let mut files = vec![&memory, &state, &disk, &disk, &disk];
        files.extend(std::iter::repeat_n(&disk, taps));
        let reply = Vmm::start().make(&request, &files);
        assert!(matches!(reply, Some(Reply::Failed(_))), "{reply:?}");
    }
    // A file too few.
    state.rewind().unwrap();
    let reply = Vmm::start().make(&request, &[&memory, &state, &disk, &disk]);
    assert!(matches!(reply, Some(Reply::Failed(_))), "{reply:?}");
}
