//! The least that KVM asks of whoever forks a machine: make it, map the memory, set the state, run up to the first instruction that
//! is seen outside. In this process, in one thread, with nothing around it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::time::{ClockId, clock_gettime};

use super::sys::Mapping;

const VCPUS: u64 = 2;
/// Where the guest begins, and its first instruction: `out 0x80, al`.
const BEGIN: u64 = 0x1000;
const CODE: [u8; 2] = [0xe6, 0x80];
/// KVM takes so many registers in one call, and some more.
const MSRS_AT_ONCE: usize = 100;
/// Where KVM keeps its own pages. Source: KVM api.rst, KVM_SET_TSS_ADDR.
const TSS: usize = 0xfffb_d000;

/// What one machine took.
pub struct Took {
    /// Time that passed.
    pub fork: Duration,
    /// Processor time of this thread, the guest's included.
    pub work: Duration,
}

struct Processor {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    run: kvm_mp_state,
    msrs: Vec<Msrs>,
}

/// A machine's state, as if it had been read from a file.
pub struct State {
    cpuid: CpuId,
    controllers: [kvm_irqchip; 3],
    processors: Vec<Processor>,
}

impl State {
    /// Reads the state of a machine that is made for it. Shape: writes its one instruction into the memory.
    pub fn read(memory: &File, bytes: u64) -> anyhow::Result<Self> {
        memory.write_all_at(&CODE, BEGIN)?;
        let kvm = Kvm::new().context("cannot open /dev/kvm")?;
        let mapping = Mapping::private(memory, bytes)?;
        let (vm, vcpus) = make(&kvm, &mapping)?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        let indices = kvm.get_msr_index_list()?.as_slice().to_vec();
        let mut controllers = [kvm_irqchip::default(); 3];
        for (chip_id, controller) in (0..).zip(&mut controllers) {
            controller.chip_id = chip_id;
            vm.get_irqchip(controller)?;
        }
        let processors = vcpus.iter().map(|vcpu| Processor::read(vcpu, &cpuid, &indices));
        let processors = processors.collect::<anyhow::Result<_>>()?;
        Ok(Self { cpuid, controllers, processors })
    }

    /// Makes a machine with this state in the memory, and runs it up to its first instruction.
    pub fn fork(&self, memory: &File, bytes: u64) -> anyhow::Result<Took> {
        let worked = thread_time();
        let began = Instant::now();
        let kvm = Kvm::new().context("cannot open /dev/kvm")?;
        let mapping = Mapping::private(memory, bytes)?;
        let (vm, mut vcpus) = make(&kvm, &mapping)?;
        for controller in &self.controllers {
            vm.set_irqchip(controller)?;
        }
        for (vcpu, processor) in vcpus.iter().zip(&self.processors) {
            vcpu.set_cpuid2(&self.cpuid)?;
            processor.write(vcpu)?;
        }
        let mut clock = vm.get_clock()?;
        clock.flags = 0;
        vm.set_clock(&clock)?;
        let first = vcpus.first_mut().context("a machine has a processor")?;
        ensure!(matches!(first.run()?, VcpuExit::IoOut(0x80, _)), "the guest does something else");
        Ok(Took { fork: began.elapsed(), work: thread_time().saturating_sub(worked) })
    }
}

/// In the order that costs least: memory before the interrupt controllers.
fn make(kvm: &Kvm, mapping: &Mapping) -> anyhow::Result<(VmFd, Vec<VcpuFd>)> {
    let vm = kvm.create_vm()?;
    mapping.install(&vm)?;
    vm.set_tss_address(TSS)?;
    vm.create_irq_chip()?;
    let vcpus = (0..VCPUS).map(|id| vm.create_vcpu(id)).collect::<Result<_, _>>()?;
    Ok((vm, vcpus))
}

impl Processor {
    fn read(vcpu: &VcpuFd, cpuid: &CpuId, indices: &[u32]) -> anyhow::Result<Self> {
        vcpu.set_cpuid2(cpuid)?;
        let mut sregs = vcpu.get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        let mut regs = vcpu.get_regs()?;
        regs.rip = BEGIN;
        Ok(Self {
            regs,
            sregs,
            xsave: vcpu.get_xsave()?,
            xcrs: vcpu.get_xcrs()?,
            lapic: vcpu.get_lapic()?,
            events: vcpu.get_vcpu_events()?,
            run: vcpu.get_mp_state()?,
            msrs: taken(vcpu, indices)?,
        })
    }

    fn write(&self, vcpu: &VcpuFd) -> anyhow::Result<()> {
        vcpu.set_mp_state(self.run)?;
        vcpu.set_regs(&self.regs)?;
        vcpu.set_sregs(&self.sregs)?;
        vcpu.set_xcrs(&self.xcrs)?;
        super::sys::set_xsave(vcpu, &self.xsave)?;
        vcpu.set_lapic(&self.lapic)?;
        for msrs in &self.msrs {
            ensure!(vcpu.set_msrs(msrs)? == msrs.as_slice().len(), "kvm does not take a register again");
        }
        Ok(vcpu.set_vcpu_events(&self.events)?)
    }
}

/// The registers that KVM gives and takes again.
fn taken(vcpu: &VcpuFd, indices: &[u32]) -> anyhow::Result<Vec<Msrs>> {
    let mut kept = Vec::new();
    for &index in indices {
        let mut one = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }])?;
        if vcpu.get_msrs(&mut one)? == 1 && vcpu.set_msrs(&one)? == 1 {
            kept.extend_from_slice(one.as_slice());
        }
    }
    Ok(kept.chunks(MSRS_AT_ONCE).map(Msrs::from_entries).collect::<Result<_, _>>()?)
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}
