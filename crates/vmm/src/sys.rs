//! The unsafe parts: descriptors that become KVM's, memory that the guest shares, reading into it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd};

use kvm_bindings::{kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    GuestMemoryRegion as _, GuestRegionMmap, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile,
};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of a page of this machine.
const PAGE: usize = 4096;

/// Takes an open `/dev/kvm`.
pub(crate) fn kvm(descriptor: OwnedFd) -> Kvm {
    use std::os::fd::FromRawFd as _;
    // SAFETY: the descriptor is open and ours alone; Kvm closes it.
    unsafe { Kvm::from_raw_fd(descriptor.into_raw_fd()) }
}

/// Gives a region to the VM. When: before its interrupt controllers exist.
pub(crate) fn add_memory_slot(
    vm: &VmFd,
    slot: u32,
    guest_address: u64,
    region: &GuestRegionMmap<()>,
) -> Result<(), kvm_ioctls::Error> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: guest_address,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the region is mapped with this length, and the machine keeps it mapped until the VM is gone. All other access
    // to it is by volatile operations.
    unsafe { vm.set_user_memory_region(slot) }
}

/// Puts a part of a file into a region's place. Shape: `kind` is `MAP_SHARED` or `MAP_PRIVATE`. When: before the guest runs, and before anybody looks into the region.
pub(crate) fn map_over(region: &GuestRegionMmap<()>, file: &File, offset: u64, kind: libc::c_int) -> io::Result<()> {
    let length = usize::try_from(region.len()).map_err(io::Error::other)?;
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, kind | libc::MAP_NORESERVE | libc::MAP_FIXED);
    // SAFETY: the range is the whole mapping of the region, which owns it, keeps it and unmaps it by address and length, whatever
    // is mapped there. Nothing in this process holds a reference to guest memory.
    let place = unsafe { libc::mmap(region.as_ptr().cast(), length, access, flags, file.as_raw_fd(), offset) };
    if place == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a part of a private region this process's own. Shape: whole pages, of the region. Source: madvise(2), `MADV_POPULATE_WRITE`.
pub(crate) fn own(region: &GuestRegionMmap<()>, offset: u64, bytes: u64) -> io::Result<()> {
    let (offset, length) = (usize::try_from(offset), usize::try_from(bytes));
    let (offset, length) = (offset.map_err(io::Error::other)?, length.map_err(io::Error::other)?);
    if offset.checked_add(length).is_none_or(|end| end as u64 > region.len()) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: the range lies in the region, which is mapped; the kernel changes nothing that can be read there.
    if unsafe { libc::madvise(region.as_ptr().wrapping_add(offset).cast(), length, libc::MADV_POPULATE_WRITE) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets the extended registers of a processor.
pub(crate) fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM reads more than a kvm_xsave only where the process has asked for larger features (AMX) by arch_prctl,
    // which this one never does.
    unsafe { vcpu.set_xsave(xsave) }
}

/// A file from one place on, for reading into guest memory and writing from it without a copy in between.
#[derive(Debug)]
pub(crate) struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl<'a> At<'a> {
    /// The file from `offset` on.
    pub(crate) fn new(file: &'a File, offset: u64) -> Self {
        Self { file, offset }
    }

    fn advance(&mut self, result: isize) -> Result<usize, VolatileMemoryError> {
        let count = usize::try_from(result).map_err(|_| VolatileMemoryError::IOError(io::Error::last_os_error()))?;
        self.offset += count as u64;
        Ok(count)
    }

    fn place(&self) -> Result<libc::off_t, VolatileMemoryError> {
        libc::off_t::try_from(self.offset)
            .map_err(|_| VolatileMemoryError::IOError(io::Error::from(io::ErrorKind::InvalidInput)))
    }
}

impl ReadVolatile for At<'_> {
    fn read_volatile<B: BitmapSlice>(&mut self, buffer: &mut VolatileSlice<B>) -> Result<usize, VolatileMemoryError> {
        let place = self.place()?;
        let guard = buffer.ptr_guard_mut();
        // SAFETY: the guard's pointer is valid for the slice's length while the guard lives; the kernel writes at most
        // that many bytes, and nothing in this process holds a reference to them.
        let result = unsafe { libc::pread(self.file.as_raw_fd(), guard.as_ptr().cast(), buffer.len(), place) };
        self.advance(result)
    }
}

impl WriteVolatile for At<'_> {
    fn write_volatile<B: BitmapSlice>(&mut self, buffer: &VolatileSlice<B>) -> Result<usize, VolatileMemoryError> {
        let place = self.place()?;
        let guard = buffer.ptr_guard();
        // SAFETY: the guard's pointer is valid for the slice's length while the guard lives, and the kernel only reads it.
        let result = unsafe { libc::pwrite(self.file.as_raw_fd(), guard.as_ptr().cast(), buffer.len(), place) };
        self.advance(result)
    }
}

/// Takes the whole pages of guest memory back from this process. They read as their file has them afterwards. Source: madvise(2).
pub(crate) fn take_back(slice: &VolatileSlice<'_>) -> io::Result<()> {
    let guard = slice.ptr_guard_mut();
    let begin = guard.as_ptr();
    let before = begin.addr().next_multiple_of(PAGE) - begin.addr();
    let bytes = slice.len().saturating_sub(before) / PAGE * PAGE;
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: the range lies in the slice, which the guest's memory keeps mapped. Nothing in this process holds a reference to
    // guest memory, whose content may change at any time anyway.
    if unsafe { libc::madvise(begin.wrapping_add(before).cast(), bytes, libc::MADV_DONTNEED) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The descriptor of an event counter.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: an EventFd owns an open descriptor for as long as it is borrowed here.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Sets a tap's header to `header_bytes`, and has it give whole frames only, which may be without their checksum. Source: Linux tuntap.rst.
pub(crate) fn set_up_tap(tap: &File, header_bytes: usize) -> io::Result<()> {
    let size = libc::c_int::try_from(header_bytes).map_err(io::Error::other)?;
    // SAFETY: the kernel reads an int at the address, which is a local variable's.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ as libc::c_ulong, &raw const size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this argument is no address.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD as libc::c_ulong, u64::from(libc::TUN_F_CSUM)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
