//! A guest of a few instructions in a process of our own VMM: what a fork costs without anything that a guest does.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vmm::protocol::{self, DiskRates, GuestEnd, MachineSpec, Reply, Request};

const ENTRY: u64 = 0x10_0000;
const FLAG: u64 = 0x30_0000;
/// Waits until [`FLAG`] is set, and resets the machine: `cmp dword [FLAG], 0; je back; mov al, 0xfe; out 0x64, al; hlt; jmp to it`.
const CODE: [u8; 16] = [0x83, 0x3d, 0x00, 0x00, 0x30, 0x00, 0x00, 0x74, 0xf7, 0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
const SLOTS: u32 = 4;

/// A machine of this size, frozen before it says anything.
pub struct Frozen {
    spec: MachineSpec,
    pub memory: File,
    state: File,
}

/// When the process of a fork is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// With the fork, which it is then a part of.
    New,
    /// Before, so that it has built its jail, made a machine without memory, and waits: what is measured begins with the request.
    Waiting,
}

/// What one fork took.
pub struct Took {
    /// To the guest's first sign.
    pub fork: Duration,
    /// Processor time of the process, the guest's included.
    pub work: Duration,
}

impl Frozen {
    /// Boots it and freezes it.
    pub fn make(memory_bytes: u64) -> anyhow::Result<Self> {
        let file = || tempfile::tempfile().context("cannot make a file");
        let (memory, state, initramfs, kernel) = (file()?, file()?, file()?, kernel(file()?)?);
        memory.set_len(memory_bytes)?;
        let spec = MachineSpec {
            memory_bytes,
            vcpus: 2,
            disk_slots: SLOTS,
            slots_per_container: SLOTS,
            disk_bytes: 1 << 42,
            network_slots: 2,
        };
        let request = Request::Boot { command_line: String::new() };
        let vmm = Vmm::spawn(&spec)?;
        vmm.make(&request, &[&memory, &kernel, &initramfs])?;
        vmm.ask(&Request::Resume, &[])?;
        // It waits for the flag by now, or a little later, which is the same.
        std::thread::sleep(Duration::from_millis(100));
        vmm.ask(&Request::Freeze, &[&state])?;
        memory.write_all_at(&[1], FLAG)?;
        Ok(Self { spec, memory, state })
    }

    /// Forks it in a process of its own, jail and all, and lets it run until it has said that it does.
    pub fn fork(&mut self, process: Process) -> anyhow::Result<Took> {
        self.state.rewind()?;
        let disks = (0..SLOTS).map(|_| None).collect();
        let request = Request::Fork { disks, rates: DiskRates::default(), working_set: Vec::new() };
        let mut began = Instant::now();
        let vmm = Vmm::spawn(&self.spec)?;
        let mut before = Duration::ZERO;
        if process == Process::Waiting {
            // It has no way to say that it waits; twenty times what all of that takes.
            std::thread::sleep(Duration::from_millis(100));
            before = super::memory::processor_time(vmm.child.id())?;
            began = Instant::now();
        }
        vmm.make(&request, &[&self.memory, &self.state])?;
        vmm.ask(&Request::Resume, &[])?;
        let end = vmm.reply()?;
        let fork = began.elapsed();
        ensure!(matches!(end, Reply::Ended(GuestEnd::Reset)), "the guest ended otherwise: {end:?}");
        let work = super::memory::processor_time(vmm.child.id())?.saturating_sub(before);
        Ok(Took { fork, work })
    }
}

struct Vmm {
    control: OwnedFd,
    child: Child,
    /// The host's ends of port, file system and socket device.
    _ends: [OwnedFd; 3],
}

impl Vmm {
    fn spawn(spec: &MachineSpec) -> anyhow::Result<Self> {
        let ((port, guest), (server, files)) = (UnixStream::pair()?, UnixStream::pair()?);
        let kind = SocketType::SEQPACKET;
        let (control, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let program = std::env::var_os("BULKHEAD_VMM").map_or_else(beside, |named| Ok(named.into()))?;
        let (host, device) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let child = Command::new(&program).stdin(Stdio::from(theirs)).spawn();
        let child = child.with_context(|| format!("cannot start {}", program.display()))?;
        let vmm = Self { control, child, _ends: [port.into(), server.into(), host] };
        let kvm = File::options().read(true).write(true).open("/dev/kvm").context("cannot open /dev/kvm")?;
        let prepare = Request::Prepare { machine: spec.clone() };
        protocol::send(&vmm.control, &prepare, &[kvm.as_fd(), guest.as_fd(), files.as_fd(), device.as_fd()])?;
        Ok(vmm)
    }

    fn make(&self, request: &Request, files: &[&File]) -> anyhow::Result<()> {
        let descriptors: Vec<BorrowedFd> = files.iter().map(|file| file.as_fd()).collect();
        protocol::send(&self.control, request, &descriptors)?;
        match self.reply()? {
            Reply::Done => Ok(()),
            other => bail!("the VMM says {other:?}"),
        }
    }

    fn reply(&self) -> anyhow::Result<Reply> {
        let received = protocol::receive(&self.control).context("the VMM's socket failed")?;
        received.map(|(reply, _)| reply).context("the VMM is gone")
    }

    fn ask(&self, request: &Request, files: &[&File]) -> anyhow::Result<()> {
        let descriptors: Vec<BorrowedFd> = files.iter().map(|file| file.as_fd()).collect();
        protocol::send(&self.control, request, &descriptors)?;
        match self.reply()? {
            Reply::Done => Ok(()),
            other => bail!("the VMM says {other:?} to {request:?}"),
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // One that has ended by itself is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn beside() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    Ok(own.with_file_name("bulkhead-vmm"))
}

/// An ELF file with one segment and the note that says where it is entered. Source: Xen docs/misc/pvh.pandoc.
fn kernel(mut file: File) -> anyhow::Result<File> {
    let note = [&4_u32.to_le_bytes()[..], &8_u32.to_le_bytes(), &18_u32.to_le_bytes(), b"Xen\0", &ENTRY.to_le_bytes()];
    let note = note.concat();
    let mut elf = vec![0_u8; 64 + 2 * 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[24..32].copy_from_slice(&ENTRY.to_le_bytes());
    elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
    elf[54..58].copy_from_slice(&[56, 0, 2, 0]);
    let code = CODE.len() as u64;
    for (at, kind, offset, length) in [(64, 1_u8, 176, code), (120, 4, 176 + code, note.len() as u64)] {
        elf[at] = kind;
        elf[at + 8..at + 16].copy_from_slice(&u64::to_le_bytes(offset));
        elf[at + 24..at + 32].copy_from_slice(&ENTRY.to_le_bytes());
        elf[at + 32..at + 40].copy_from_slice(&length.to_le_bytes());
        elf[at + 40..at + 48].copy_from_slice(&length.to_le_bytes());
    }
    file.write_all(&[elf, CODE.to_vec(), note].concat())?;
    Ok(file)
}
