//! Where a processor stands, for whoever wants to know why a guest does not go on: asleep with nothing coming is another thing than at
//! work on a host that has no time for it.
//!
//! Source: Intel SDM 3A, "Local APIC Register Address Map"; KVM api.rst, KVM_GET_MP_STATE.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_lapic_state, kvm_msr_entry,
};
use kvm_ioctls::VcpuFd;

/// The time-stamp counter, and its value at which the timer's interrupt comes; zero for never.
const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;
/// Interrupts that have come and were not taken: eight registers of 32 bits, 16 bytes apart.
const IRR: usize = 0x200;
/// Interrupts are allowed.
const FLAG_INTERRUPTS: u64 = 1 << 9;

/// One line about a processor. When: it stands.
pub(super) fn processor(number: usize, vcpu: &VcpuFd) -> String {
    let (Ok(state), Ok(registers), Ok(lapic)) = (vcpu.get_mp_state(), vcpu.get_regs(), vcpu.get_lapic()) else {
        return format!("processor {number} says nothing");
    };
    let how = match state.mp_state {
        KVM_MP_STATE_RUNNABLE => "at work",
        KVM_MP_STATE_HALTED => "asleep",
        KVM_MP_STATE_UNINITIALIZED => "never started",
        _ => "being started",
    };
    let allowed = if registers.rflags & FLAG_INTERRUPTS == 0 { "no interrupts allowed" } else { "interrupts allowed" };
    let (place, come, timer) = (registers.rip, come(&lapic), timer(vcpu));
    format!("processor {number} {how} at {place:#x}, {allowed}, come: {come:x?}, timer {timer}")
}

/// Numbers of the interrupts that have come.
fn come(lapic: &kvm_lapic_state) -> Vec<usize> {
    let is_set = |&number: &usize| {
        let byte = lapic.regs[IRR + number / 32 * 16 + number % 32 / 8].cast_unsigned();
        byte & 1 << (number % 8) != 0
    };
    (0..256).filter(is_set).collect()
}

fn timer(vcpu: &VcpuFd) -> String {
    let wanted = [TSC, TSC_DEADLINE].map(|index| kvm_msr_entry { index, ..Default::default() });
    let Ok(mut msrs) = Msrs::from_entries(&wanted) else { return "unknown".into() };
    let (Ok(2), Ok(khz)) = (vcpu.get_msrs(&mut msrs), vcpu.get_tsc_khz()) else { return "unknown".into() };
    let [now, deadline] = [0, 1].map(|number| msrs.as_slice()[number].data);
    due(now, deadline, khz)
}

/// When a deadline is.
fn due(now: u64, deadline: u64, khz: u32) -> String {
    let microseconds = |ticks: u64| u128::from(ticks) * 1000 / u128::from(khz.max(1));
    match deadline {
        0 => "off".into(),
        _ if deadline >= now => format!("in {} us", microseconds(deadline - now)),
        _ => format!("overdue by {} us", microseconds(now - deadline)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_is_named() {
        let mut lapic = kvm_lapic_state::default();
        (lapic.regs[IRR + 3], lapic.regs[IRR + 0x70], lapic.regs[IRR + 4]) = (1, 2, 0x7f);
        assert_eq!(come(&lapic), [24, 225]);
    }

    #[test]
    fn a_deadline_is_off_to_come_or_overdue() {
        assert_eq!(due(10, 0, 1_000_000), "off");
        assert_eq!(due(1_000_000, 3_500_000, 1_000_000), "in 2500 us");
        assert_eq!(due(u64::MAX, 1, 0), format!("overdue by {} us", u128::from(u64::MAX - 1) * 1000));
    }
}
