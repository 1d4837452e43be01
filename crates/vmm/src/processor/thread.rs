//! A processor's thread: runs the guest, and answers what it asks for beside memory.

use std::io;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread::{self, JoinHandle};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};

use super::gate::Gate;
use crate::bus::Bus;
use crate::jail::filter::{self, Role};
use crate::protocol::GuestEnd;

/// Types of a system event. Source: KVM api.rst, KVM_EXIT_SYSTEM_EVENT.
const EVENT_SHUTDOWN: u32 = 1;

/// A processor; its thread holds it while it runs.
pub(crate) type SharedVcpu = Arc<Mutex<VcpuFd>>;

/// Told once by each processor that meets the machine's end.
pub(crate) type OnEnd = Arc<dyn Fn(GuestEnd) + Send + Sync>;

/// The thread of a processor.
pub(crate) struct Runner {
    thread: JoinHandle<()>,
}

impl Runner {
    /// Starts the thread; it waits at the gate.
    pub(crate) fn spawn(
        number: usize,
        vcpu: SharedVcpu,
        gate: Arc<Gate>,
        bus: Arc<Bus>,
        on_end: OnEnd,
    ) -> io::Result<Self> {
        prepare_kicks();
        let run = move || {
            filter::install(Role::Processor).expect("a thread's system calls can be filtered");
            loop {
                gate.wait();
                run(&mut vcpu.lock().unwrap_or_else(PoisonError::into_inner), &gate, &bus, &on_end);
            }
        };
        let thread = thread::Builder::new().name(format!("vcpu{number}")).spawn(run)?;
        Ok(Self { thread })
    }

    /// Makes the processor leave the guest, if it is in it just now.
    pub(crate) fn kick(&self) {
        // The thread never ends, so there is always somebody to kick.
        let _ = self.thread.kill(SIGRTMIN());
    }
}

/// A signal that does nothing interrupts KVM_RUN.
fn prepare_kicks() {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        register_signal_handler(SIGRTMIN(), nothing).expect("a real-time signal can have a handler");
    });
}

/// What a stay in the guest led to.
enum Step {
    /// Something that is answered.
    Answered,
    /// Nothing: somebody wants the processor out.
    Interrupted,
    /// The machine's end.
    End(GuestEnd),
}

/// Runs the guest while the gate is open.
fn run(vcpu: &mut VcpuFd, gate: &Gate, bus: &Bus, on_end: &OnEnd) {
    while gate.is_open() {
        if let Step::End(end) = step(vcpu, bus) {
            gate.close();
            on_end(end);
        }
    }
    // What the guest read last is put into its registers when it goes on: do that now, so that it is in what is saved. An
    // access across two pages comes in two pieces.
    vcpu.set_kvm_immediate_exit(1);
    loop {
        match step(vcpu, bus) {
            Step::Answered => {}
            Step::Interrupted => break,
            Step::End(end) => {
                on_end(end);
                break;
            }
        }
    }
    vcpu.set_kvm_immediate_exit(0);
}

/// Runs the guest until it wants something.
fn step(vcpu: &mut VcpuFd, bus: &Bus) -> Step {
    match vcpu.run() {
        Ok(VcpuExit::IoIn(port, data)) => bus.ports.read(port, data),
        Ok(VcpuExit::IoOut(port, data)) => return bus.ports.write(port, data).map_or(Step::Answered, Step::End),
        Ok(VcpuExit::MmioRead(address, data)) => bus.read(address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => bus.write(address, data),
        Ok(VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_)) => {}
        Ok(VcpuExit::Intr) => return Step::Interrupted,
        // A triple fault, which is how this kernel resets the machine.
        Ok(VcpuExit::Shutdown) => return Step::End(GuestEnd::Reset),
        Ok(VcpuExit::SystemEvent(EVENT_SHUTDOWN, _)) => return Step::End(GuestEnd::PowerOff),
        Ok(VcpuExit::SystemEvent(..)) => return Step::End(GuestEnd::Reset),
        Ok(other) => return Step::End(GuestEnd::Fault(format!("{other:?}").chars().take(200).collect())),
        // A processor that was started by another one is asked to try again.
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Step::Interrupted,
        Err(error) => return Step::End(GuestEnd::Fault(error.to_string())),
    }
    Step::Answered
}
