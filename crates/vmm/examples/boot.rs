//! Boots a guest image in a VMM process and prints what it says, its console, and how long it took; then freezes and forks it.
//! For looking into a machine: `boot GUEST_IMAGE_FOLDER [BULKHEAD_VMM] [KERNEL_WORD]...`.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs, reason = "an example")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vmm::protocol::{self, DiskRates, MachineSpec, Reply, Request};

struct Vmm {
    control: OwnedFd,
    child: Child,
    port: UnixStream,
}

impl Vmm {
    fn start(program: &str, machine: &MachineSpec, request: &Request, files: &[&File]) -> Self {
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let child = Command::new(program).stdin(Stdio::from(theirs)).spawn().unwrap();
        let (port, guest) = UnixStream::pair().unwrap();
        let (_, server) = UnixStream::pair().unwrap();
        let (_, host) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let prepare = Request::Prepare { machine: machine.clone() };
        protocol::send(&control, &prepare, &[kvm.as_fd(), guest.as_fd(), server.as_fd(), host.as_fd()]).unwrap();
        let descriptors: Vec<BorrowedFd> = files.iter().map(|file| file.as_fd()).collect();
        protocol::send(&control, request, &descriptors).unwrap();
        let vmm = Self { control, child, port };
        println!("made: {:?}", vmm.reply());
        vmm
    }

    fn reply(&self) -> Option<Reply> {
        protocol::receive(&self.control).unwrap().map(|(reply, _)| reply)
    }

    fn ask(&self, request: &Request, files: &[&File]) -> Option<Reply> {
        let descriptors: Vec<BorrowedFd> = files.iter().map(|file| file.as_fd()).collect();
        protocol::send(&self.control, request, &descriptors).unwrap();
        self.reply()
    }

    fn console(&self) {
        if let Some(Reply::Console(bytes)) = self.ask(&Request::Console, &[]) {
            println!("---- console\n{}\n----", String::from_utf8_lossy(&bytes));
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let folder = Path::new(&arguments[1]);
    let program = arguments.get(2).map_or("bulkhead-vmm", String::as_str);
    let extra = arguments.get(3..).unwrap_or_default().join(" ");
    let machine = MachineSpec {
        memory_bytes: 1 << 30,
        vcpus: 2,
        disk_slots: 4,
        slots_per_container: 4,
        disk_bytes: 1 << 42,
        network_slots: 2,
    };
    let command_line = format!(
        "console=ttyS0 panic=-1 oops=panic reboot=t nowatchdog rcupdate.rcu_expedited=1 transparent_hugepage=never \
         cryptomgr.notests psi=0 lsm=landlock,yama {extra}"
    );
    let open = |name: &str| File::open(folder.join(name)).unwrap();
    let path = std::env::temp_dir().join("memory");
    let memory = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    memory.set_len(machine.memory_bytes).unwrap();
    let began = Instant::now();
    let request = Request::Boot { command_line };
    let mut vmm = Vmm::start(program, &machine, &request, &[&memory, &open("vmlinux"), &open("initramfs.cpio")]);
    println!("loaded after {:?}", began.elapsed());
    println!("resume: {:?}", vmm.ask(&Request::Resume, &[]));
    vmm.port.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut ready = [0; 16];
    let read = vmm.port.read(&mut ready);
    println!("guest said {read:?} {:?} after {:?}", String::from_utf8_lossy(&ready), began.elapsed());
    vmm.console();
    std::thread::sleep(Duration::from_millis(500));
    let state_path = std::env::temp_dir().join("state");
    let state = File::create(&state_path).unwrap();
    println!("freeze: {:?}", vmm.ask(&Request::Freeze, &[&state]));
    println!("ended: {:?}, state has {} bytes", vmm.child.wait(), state.metadata().unwrap().len());
    for _ in 0..3 {
        let began = Instant::now();
        let request = Request::Fork { disks: vec![None; 4], rates: DiskRates::default(), working_set: Vec::new() };
        let mut fork =
            Vmm::start(program, &machine, &request, &[&File::open(&path).unwrap(), &File::open(&state_path).unwrap()]);
        let loaded = began.elapsed();
        println!("resume: {:?}", fork.ask(&Request::Resume, &[]));
        fork.port.write_all(b"!").unwrap();
        fork.port.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut bytes = [0; 64];
        let read = fork.port.read(&mut bytes);
        println!("fork loaded after {loaded:?}, said {read:?} {:x?} after {:?}", &bytes[..12], began.elapsed());
        println!("pause: {:?}", fork.ask(&Request::Pause, &[]));
        fork.console();
        fork.child.kill().unwrap();
        fork.child.wait().unwrap();
    }
}
