//! What a processor says of itself: what the host's KVM offers, with this machine's own numbers.
//!
//! Source: Intel SDM 2A, "CPUID"; AMD APM 3, appendix E; KVM Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// The processor runs under a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// The local timer can be set to a value of the time-stamp counter; KVM has it whatever the host's processor is.
const TSC_DEADLINE: u32 = 1 << 24;
/// `ebx` and `ecx` of the topology leaves: one thread a core; cores.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// What the host offers, the same for every processor.
pub(crate) fn offered(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, kvm_ioctls::Error> {
    let mut entries = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?.as_slice().to_vec();
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in entries.iter_mut().filter(|entry| entry.function == 1) {
        entry.ecx |= HYPERVISOR | if deadline { TSC_DEADLINE } else { 0 };
    }
    Ok(entries)
}

/// The offer as processor `id` of `count` says it.
pub(crate) fn of_processor(offered: &[kvm_cpuid_entry2], id: u32, count: u32) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<kvm_cpuid_entry2> =
        offered.iter().filter(|entry| !matches!(entry.function, 0xb | 0x1f)).copied().collect();
    let id_bits = count.next_power_of_two().trailing_zeros();
    for entry in &mut entries {
        match entry.function {
            1 => {
                let logical = count.min(0xff);
                entry.ebx = entry.ebx & 0xffff | logical << 16 | (id & 0xff) << 24;
                entry.edx = entry.edx & !(1 << 28) | if count > 1 { 1 << 28 } else { 0 };
            }
            // Cores of the package, and one thread for each cache: Intel's way to say it.
            4 if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level < 3 { 0 } else { count - 1 };
                entry.eax = entry.eax & 0x3fff | (sharing & 0xfff) << 14 | ((count - 1) & 0x3f) << 26;
            }
            0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (count - 1) & 0xff | id_bits << 12,
            // AMD's own numbers of processor and core; one thread a core.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
    let leaf = |index, eax, ebx, level: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: index | level << 8,
        edx: id,
        ..Default::default()
    };
    if offered.iter().any(|entry| entry.function == 0xb) {
        entries.extend([leaf(0, 0, 1, LEVEL_THREAD), leaf(1, id_bits, count, LEVEL_CORE), leaf(2, 0, 0, 0)]);
    }
    entries
}

/// As KVM takes it; nothing when there are too many.
pub(crate) fn as_kvm(entries: &[kvm_cpuid_entry2]) -> Option<CpuId> {
    CpuId::from_entries(entries).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_differ_in_their_numbers_only() {
        let entry = |function| kvm_cpuid_entry2 { function, eax: 0x21, ecx: 7, ..Default::default() };
        let offered: Vec<_> = [0, 1, 4, 0xb, 0x8000_0008, 0x8000_001e].map(entry).into();
        let said = |id| of_processor(&offered, id, 4);
        let find =
            |entries: &[kvm_cpuid_entry2], function| *entries.iter().find(|one| one.function == function).unwrap();
        let (first, last) = (said(0), said(3));
        assert_eq!(find(&first, 0), find(&last, 0));
        assert_eq!((find(&first, 1).ebx >> 24, find(&last, 1).ebx >> 24), (0, 3));
        assert_eq!(find(&last, 1).ebx >> 16 & 0xff, 4);
        assert_eq!(find(&last, 0x8000_001e).eax, 3);
        let leaves: Vec<_> = last.iter().filter(|one| one.function == 0xb).collect();
        assert!(leaves.len() == 3 && leaves.iter().all(|leaf| leaf.edx == 3));
        assert_eq!((leaves[1].eax, leaves[1].ebx), (2, 4));
    }
}
