//! Finds out whether /dev/kvm has hardware virtualization under it.
//!
//! A /dev/kvm that opens is not enough: some hosts have a KVM that interprets every kernel-mode instruction of its
//! guests. So a short loop runs at ring 0 in a throw-away VM, and its time tells: the quickest of several pieces, since a busy host makes
//! any of them slow and none quick. What is found out stays true until the host boots again, and most hosts ask while they boot.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use crate::sys::ProbeMemory;

/// How long a KVM may take that does not come back. Long, since on a host that boots nothing may run for a second.
const LIMIT: Duration = Duration::from_secs(10);
/// The loop runs in pieces of this many iterations.
const ITERATIONS_PER_PIECE: u32 = 20_000;
/// As many pieces may be slow. All of them together take a quarter of a second where they are interpreted.
const PIECES: u32 = 12;
const MILLION: u32 = 1_000_000;
/// A million iterations take under 10 ms on hardware, over a second where they are interpreted.
const SLOWEST_HARDWARE: Duration = Duration::from_millis(150);

/// What was found out about KVM on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KvmProbe {
    /// True when guests run on hardware virtualization.
    pub(crate) usable: bool,
    /// Why, in one line.
    pub(crate) reason: String,
}

/// Runs the probe loop: where KVM does not come back, the thread is left behind and KVM is unusable.
pub(crate) fn probe_kvm() -> KvmProbe {
    let (sender, receiver) = mpsc::channel();
    let spawned = thread::Builder::new().name("kvm-probe".into()).spawn(move || {
        // The receiver is gone when the limit has passed: then nobody needs the answer.
        let _ = sender.send(time_million());
    });
    if let Err(error) = spawned {
        return KvmProbe { usable: false, reason: format!("cannot start a thread to probe /dev/kvm: {error}") };
    }
    match receiver.recv_timeout(LIMIT) {
        Ok(Ok(million)) => judge(million),
        Ok(Err(error)) => KvmProbe { usable: false, reason: format!("/dev/kvm is not usable: {error}") },
        Err(_) => KvmProbe {
            usable: false,
            reason: format!("/dev/kvm opens, but a short loop in a guest did not end within {LIMIT:?}"),
        },
    }
}

/// Shape: how long a million iterations take.
fn judge(million: Duration) -> KvmProbe {
    if million <= SLOWEST_HARDWARE {
        return KvmProbe {
            usable: true,
            reason: format!("/dev/kvm runs guest kernels on hardware ({} us for a million loops)", million.as_micros()),
        };
    }
    KvmProbe {
        usable: false,
        reason: format!(
            "/dev/kvm opens, but has no hardware virtualization under it: it interprets guest kernels ({:.1} s for a loop that takes 3 ms on hardware)",
            million.as_secs_f64()
        ),
    }
}

/// `loop: dec ecx; jnz loop; hlt; jmp loop` in 16-bit code, which is kernel mode (ring 0) without any set-up.
const LOOP: [u8; 7] = [0x66, 0x49, 0x75, 0xfc, 0xf4, 0xeb, 0xf9];

/// How long a million iterations take, by the quickest piece.
fn time_million() -> Result<Duration, io::Error> {
    let kvm = Kvm::new().map_err(from_kvm)?;
    let vm = kvm.create_vm().map_err(from_kvm)?;
    let memory = ProbeMemory::install(&vm, &LOOP)?;
    let mut vcpu = vm.create_vcpu(0).map_err(from_kvm)?;
    let mut special = vcpu.get_sregs().map_err(from_kvm)?;
    special.cs.base = 0;
    special.cs.selector = 0;
    vcpu.set_sregs(&special).map_err(from_kvm)?;
    let million = quickest(|| run_piece(&mut vcpu))?;
    drop(vcpu);
    drop(vm);
    drop(memory);
    Ok(million)
}

/// Runs pieces until one is as quick as on hardware.
fn quickest(mut piece: impl FnMut() -> Result<(), io::Error>) -> Result<Duration, io::Error> {
    let mut quickest = Duration::MAX;
    for _ in 0..PIECES {
        let began = Instant::now();
        piece()?;
        quickest = quickest.min(began.elapsed() * (MILLION / ITERATIONS_PER_PIECE));
        if quickest <= SLOWEST_HARDWARE {
            break;
        }
    }
    Ok(quickest)
}

fn run_piece(vcpu: &mut VcpuFd) -> Result<(), io::Error> {
    let mut registers = vcpu.get_regs().map_err(from_kvm)?;
    registers.rip = 0;
    registers.rcx = u64::from(ITERATIONS_PER_PIECE);
    registers.rflags = 2;
    vcpu.set_regs(&registers).map_err(from_kvm)?;
    match vcpu.run().map_err(from_kvm)? {
        VcpuExit::Hlt => Ok(()),
        other => Err(io::Error::other(format!("the probe's guest ended with {other:?}"))),
    }
}

fn from_kvm(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpretation_and_hardware_are_told_apart() {
        let hardware = judge(Duration::from_millis(4));
        assert!(hardware.usable, "{hardware:?}");
        let interpreted = judge(Duration::from_millis(1100));
        assert!(!interpreted.usable && interpreted.reason.contains("1.1 s"), "{interpreted:?}");
    }

    #[test]
    fn a_busy_host_is_no_slow_one() {
        let (slow, mut ran) = (Duration::from_millis(8), 0);
        let mut piece = |quick_after: u32| {
            ran += 1;
            if ran <= quick_after {
                thread::sleep(slow);
            }
            Ok(())
        };
        assert!(judge(quickest(|| piece(5)).unwrap()).usable);
        assert!(ran >= 6);
        ran = 0;
        let mut piece = || {
            ran += 1;
            thread::sleep(slow);
            Ok(())
        };
        assert!(!judge(quickest(&mut piece).unwrap()).usable);
        assert_eq!(ran, PIECES);
        assert!(quickest(|| Err(io::Error::other("no"))).is_err());
    }

    #[test]
    fn the_probe_answers_within_its_limit() {
        let began = Instant::now();
        let answer = probe_kvm();
        assert!(began.elapsed() < LIMIT + Duration::from_millis(500), "{:?}", began.elapsed());
        assert!(!answer.reason.is_empty());
    }
}
