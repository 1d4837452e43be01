//! All registers of a processor: as it begins, saved, and set again.
//!
//! Source: KVM api.rst; Xen docs/misc/pvh.pandoc and Linux Documentation/arch/x86/boot.rst for the begin.

use kvm_bindings::{
    Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::cpuid;
use crate::boot::Entry;
use crate::layout::{START_INFO, ZERO_PAGE};
use crate::sys;

/// What KVM takes in one call.
const MSRS_AT_ONCE: usize = 100;
/// The timer's deadline, valid only when the time-stamp counter is: set last. Source: Intel SDM 4, IA32_TSC_DEADLINE.
const TSC_DEADLINE: u32 = 0x6e0;
/// Fast string operations are on, as firmware leaves them. Source: Intel SDM 4, IA32_MISC_ENABLE.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRING: u64 = 1;
/// Memory is write-back where nothing else is said. Source: Intel SDM 4, IA32_MTRR_DEF_TYPE.
const MTRR_DEFAULT: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// Protected mode.
const CR0_PE: u64 = 1;

/// A processor that cannot be set up or saved.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// KVM refused.
    #[error("kvm cannot {action}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A model-specific register was not taken.
    #[error("kvm does not take the register {0:#x}")]
    Register(u32),
    /// Too many entries.
    #[error("too many {0}")]
    TooMany(&'static str),
}

fn kvm(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> ProcessorError {
    move |source| ProcessorError::Kvm { action, source }
}

/// A processor, frozen.
#[derive(Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(Default))]
pub(crate) struct ProcessorState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    pub(crate) sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    pub(crate) msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl ProcessorState {
    /// Saves a processor that stands and is not needed any more: to find out which registers KVM would take again, each is
    /// set to what it is.
    pub(crate) fn save(vcpu: &VcpuFd, indices: &[u32], cpuid: Vec<kvm_cpuid_entry2>) -> Result<Self, ProcessorError> {
        // In this order: reading the state of a halted processor may deliver what is pending. Source: KVM api.rst.
        let mp_state = vcpu.get_mp_state().map_err(kvm("read the processor's run state"))?;
        let regs = vcpu.get_regs().map_err(kvm("read the registers"))?;
        let sregs = vcpu.get_sregs().map_err(kvm("read the special registers"))?;
        let xsave = vcpu.get_xsave().map_err(kvm("read the extended registers"))?;
        let xcrs = vcpu.get_xcrs().map_err(kvm("read the extended control registers"))?;
        let debug = vcpu.get_debug_regs().map_err(kvm("read the debug registers"))?;
        let lapic = vcpu.get_lapic().map_err(kvm("read the local APIC"))?;
        let msrs = read_msrs(vcpu, indices)?;
        let events = vcpu.get_vcpu_events().map_err(kvm("read pending events"))?;
        let tsc_khz = vcpu.get_tsc_khz().map_err(kvm("read the counter's rate"))?;
        let msrs = kept(vcpu, &msrs)?;
        Ok(Self { cpuid, tsc_khz, mp_state, regs, sregs, xsave, xcrs, debug, lapic, msrs, events })
    }

    /// Sets a new processor to what was saved.
    pub(crate) fn restore(&self, vcpu: &VcpuFd) -> Result<(), ProcessorError> {
        let cpuid = cpuid::as_kvm(&self.cpuid).ok_or(ProcessorError::TooMany("processor features"))?;
        vcpu.set_cpuid2(&cpuid).map_err(kvm("set the processor's features"))?;
        if vcpu.get_tsc_khz().map_err(kvm("read the counter's rate"))? != self.tsc_khz {
            vcpu.set_tsc_khz(self.tsc_khz).map_err(kvm("set the counter's rate"))?;
        }
        vcpu.set_mp_state(self.mp_state).map_err(kvm("set the processor's run state"))?;
        vcpu.set_regs(&self.regs).map_err(kvm("set the registers"))?;
        vcpu.set_sregs(&self.sregs).map_err(kvm("set the special registers"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(kvm("set the extended control registers"))?;
        sys::set_xsave(vcpu, &self.xsave).map_err(kvm("set the extended registers"))?;
        vcpu.set_debug_regs(&self.debug).map_err(kvm("set the debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(kvm("set the local APIC"))?;
        let set = write_msrs(vcpu, &self.msrs)?;
        if let Some(refused) = self.msrs.get(set) {
            return Err(ProcessorError::Register(refused.index));
        }
        vcpu.set_vcpu_events(&self.events).map_err(kvm("set pending events"))
    }
}

/// Sets a new processor to its begin; the first one enters the kernel at `entry`, if it is to boot, and the others wait.
pub(crate) fn begin(vcpu: &VcpuFd, entry: Option<Entry>, features: &[kvm_cpuid_entry2]) -> Result<(), ProcessorError> {
    let features = cpuid::as_kvm(features).ok_or(ProcessorError::TooMany("processor features"))?;
    vcpu.set_cpuid2(&features).map_err(kvm("set the processor's features"))?;
    for (index, data) in [(MISC_ENABLE, FAST_STRING), (MTRR_DEFAULT, MTRR_WRITE_BACK)] {
        // A processor that has no such register needs no value in it.
        write_msrs(vcpu, &[kvm_msr_entry { index, data, ..Default::default() }])?;
    }
    let Some(entry) = entry else { return Ok(()) };
    let mut sregs = vcpu.get_sregs().map_err(kvm("read the special registers"))?;
    let segment = |type_, selector| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let (code, data) = match entry {
        Entry::Pvh(_) => (0x8, 0x10),
        Entry::Linux(_) => (0x10, 0x18),
    };
    sregs.cs = segment(0xb, code);
    let data = segment(0x3, data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, present: 1, selector: 0x18, ..Default::default() };
    sregs.cr0 = CR0_PE;
    sregs.cr4 = 0;
    vcpu.set_sregs(&sregs).map_err(kvm("set the special registers"))?;
    let regs = match entry {
        Entry::Pvh(rip) => kvm_regs { rip, rbx: START_INFO, rflags: 2, ..Default::default() },
        Entry::Linux(rip) => kvm_regs { rip, rsi: ZERO_PAGE, rflags: 2, ..Default::default() },
    };
    vcpu.set_regs(&regs).map_err(kvm("set the registers"))
}

/// Indices of all model-specific registers that are state.
pub(crate) fn msr_indices(kvm_fd: &Kvm) -> Result<Vec<u32>, ProcessorError> {
    Ok(kvm_fd.get_msr_index_list().map_err(kvm("list the model-specific registers"))?.as_slice().to_vec())
}

/// Reads registers; those that this machine has not are left out.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, ProcessorError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let now = &rest[..rest.len().min(MSRS_AT_ONCE)];
        let wanted: Vec<_> = now.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&wanted).map_err(|_| ProcessorError::TooMany("registers"))?;
        let count = vcpu.get_msrs(&mut msrs).map_err(kvm("read the model-specific registers"))?;
        found.extend_from_slice(&msrs.as_slice()[..count]);
        // It stopped at one that it does not know.
        rest = &rest[if count < now.len() { count + 1 } else { count }..];
    }
    found.sort_by_key(|msr| msr.index == TSC_DEADLINE);
    Ok(found)
}

/// Those of the registers that KVM takes.
fn kept(vcpu: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<Vec<kvm_msr_entry>, ProcessorError> {
    let mut kept = Vec::with_capacity(msrs.len());
    let mut rest = msrs;
    while !rest.is_empty() {
        let count = write_msrs(vcpu, rest)?;
        kept.extend_from_slice(&rest[..count]);
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    Ok(kept)
}

/// Writes registers in order until one is not taken; says how many were.
fn write_msrs(vcpu: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<usize, ProcessorError> {
    let mut written = 0;
    for chunk in msrs.chunks(MSRS_AT_ONCE) {
        let msrs = Msrs::from_entries(chunk).map_err(|_| ProcessorError::TooMany("registers"))?;
        let count = vcpu.set_msrs(&msrs).map_err(kvm("set the model-specific registers"))?;
        written += count;
        if count < chunk.len() {
            break;
        }
    }
    Ok(written)
}
