//! The unsafe parts of the bare minimum: memory that a guest shares, and extended registers.
#![allow(unsafe_code)]

use std::fs::File;

use anyhow::Context as _;
use kvm_bindings::{kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

/// Guest memory below the hole ends here.
const HOLE_BEGIN: u64 = 3 << 30;
const HOLE_END: u64 = 4 << 30;

/// A file's bytes, copied on write.
pub struct Mapping(Vec<(u64, MmapRegion<()>)>);

impl Mapping {
    /// Maps the file as the memory of a machine.
    pub fn private(file: &File, bytes: u64) -> anyhow::Result<Self> {
        let low = bytes.min(HOLE_BEGIN);
        let parts = [(0, low, 0), (HOLE_END, bytes - low, low)];
        let regions = parts.into_iter().filter(|&(_, length, _)| length > 0).map(|(begin, length, offset)| {
            let region = MmapRegionBuilder::new(usize::try_from(length)?)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
                .with_file_offset(FileOffset::new(file.try_clone()?, offset))
                .build()
                .context("cannot map the memory")?;
            Ok((begin, region))
        });
        Ok(Self(regions.collect::<anyhow::Result<_>>()?))
    }

    /// Gives it to a machine. When: the mapping lives longer than the machine runs.
    pub fn install(&self, vm: &VmFd) -> anyhow::Result<()> {
        for (slot, (begin, region)) in (0..).zip(&self.0) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: *begin,
                memory_size: region.size() as u64,
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped with this length; the callers keep it until the machine has stopped for good, and
            // nobody else touches the memory.
            unsafe { vm.set_user_memory_region(slot) }.context("kvm refuses the memory")?;
        }
        Ok(())
    }
}

/// Sets the extended registers of a processor.
pub fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> anyhow::Result<()> {
    // SAFETY: KVM reads more than a kvm_xsave only where the process has asked for larger features, which this one never does.
    unsafe { vcpu.set_xsave(xsave) }.context("kvm refuses the extended registers")
}
