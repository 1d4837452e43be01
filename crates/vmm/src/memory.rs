//! The guest's memory: a file, mapped once below the hole and once above it. Its place is taken before the file is there, so that KVM
//! knows it from the begin.

use std::fs::File;
use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{Address as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _};
use vm_memory::{GuestRegionCollectionError, GuestRegionMmap};

use crate::layout::{HOLE_BEGIN, HOLE_END};
use crate::protocol::PageRun;
use crate::sys;

/// What devices reach of the guest. Every access through it is checked against the memory that there is.
pub(crate) type GuestMemory = GuestMemoryMmap<()>;

/// Memory is a multiple of this.
pub(crate) const GRANULE: u64 = 1 << 20;
/// Bytes of a page in a working set.
const PAGE: u64 = 4096;

/// Who sees what the guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writes {
    /// The file has it: a machine that boots to become a template.
    Shared,
    /// Nobody: a fork, whose file is never written.
    Private,
}

/// Memory that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file is not what the machine needs.
    #[error("the memory file has {found} bytes instead of {expected}")]
    Size {
        /// Bytes of the file.
        found: u64,
        /// Bytes of the machine's memory.
        expected: u64,
    },
    /// It is something else than a file.
    #[error("the memory is no file")]
    NoFile,
    /// No machine has this much.
    #[error("a machine cannot have {0} bytes of memory")]
    Unfit(u64),
    /// The file cannot be looked at.
    #[error("cannot look at the memory file")]
    Look(#[source] io::Error),
    /// There is no place for it.
    #[error("cannot take a place for the memory")]
    Reserve(#[source] MmapRegionError),
    /// It cannot be mapped.
    #[error("cannot map the memory")]
    Map(#[source] io::Error),
    /// Its parts do not fit together.
    #[error("cannot put the memory together")]
    Regions(#[source] GuestRegionCollectionError),
    /// Pages that it does not have are to be copied.
    #[error("the working set is another memory's")]
    WorkingSet,
    /// KVM does not take it.
    #[error("kvm refuses the memory")]
    Slot(#[source] kvm_ioctls::Error),
}

/// Guest-physical begin, length and place in the file of each part.
pub(crate) fn parts(bytes: u64) -> Vec<(u64, u64, u64)> {
    let low = bytes.min(HOLE_BEGIN);
    let mut parts = vec![(0, low, 0)];
    if bytes > low {
        parts.push((HOLE_END, bytes - low, low));
    }
    parts
}

/// Takes the place of a machine's memory; there is nothing in it yet, not even zeroes. Shape: a multiple of [`GRANULE`].
pub(crate) fn reserve(bytes: u64) -> Result<Arc<GuestMemory>, MemoryError> {
    if bytes == 0 || !bytes.is_multiple_of(GRANULE) {
        return Err(MemoryError::Unfit(bytes));
    }
    let mut regions = Vec::new();
    for (begin, length, _) in parts(bytes) {
        let size = usize::try_from(length).map_err(|_| MemoryError::Unfit(bytes))?;
        let region = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_NONE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(MemoryError::Reserve)?;
        regions.push(GuestRegionMmap::new(region, GuestAddress(begin)).ok_or(MemoryError::Unfit(bytes))?);
    }
    Ok(Arc::new(GuestMemory::from_regions(regions).map_err(MemoryError::Regions)?))
}

/// A file that is as long as a machine's memory.
#[derive(Debug)]
pub(crate) struct Image {
    file: File,
    bytes: u64,
}

impl Image {
    /// Looks whether the file is one for so many bytes.
    pub(crate) fn check(file: File, bytes: u64) -> Result<Self, MemoryError> {
        let metadata = file.metadata().map_err(MemoryError::Look)?;
        if !metadata.is_file() {
            return Err(MemoryError::NoFile);
        }
        let found = metadata.len();
        if found != bytes {
            return Err(MemoryError::Size { found, expected: bytes });
        }
        Ok(Self { file, bytes })
    }

    /// Puts the file into the place that was taken for it. When: nobody has touched it.
    pub(crate) fn fill(&self, memory: &GuestMemory, writes: Writes) -> Result<(), MemoryError> {
        let kind = match writes {
            Writes::Shared => libc::MAP_SHARED,
            Writes::Private => libc::MAP_PRIVATE,
        };
        for (region, (_, _, offset)) in memory.iter().zip(parts(self.bytes)) {
            sys::map_over(region, &self.file, offset, kind).map_err(MemoryError::Map)?;
        }
        Ok(())
    }

    /// Copies these pages of a private memory at once, instead of each when the guest first writes to it. When: it is filled. A kernel
    /// before 5.14 cannot, and the guest does as well without.
    pub(crate) fn own(&self, memory: &GuestMemory, pages: &[PageRun]) -> Result<(), MemoryError> {
        for run in pages {
            let (begin, bytes) = (u64::from(run.first) * PAGE, u64::from(run.count) * PAGE);
            let place = memory.iter().zip(parts(self.bytes)).find_map(|(region, (_, length, offset))| {
                let at = begin.checked_sub(offset)?;
                (at + bytes <= length).then_some((region, at))
            });
            let (region, at) = place.ok_or(MemoryError::WorkingSet)?;
            match sys::own(region, at, bytes) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
                Err(error) => return Err(MemoryError::Map(error)),
            }
        }
        Ok(())
    }
}

/// Memory that is there at once.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn map(file: File, bytes: u64, writes: Writes) -> Result<Arc<GuestMemory>, MemoryError> {
    let memory = reserve(bytes)?;
    Image::check(file, bytes)?.fill(&memory, writes)?;
    Ok(memory)
}

/// Gives the memory to the VM. The mapping must live as long as the VM: the machine owns both.
pub(crate) fn install(vm: &VmFd, memory: &GuestMemory) -> Result<(), MemoryError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        sys::add_memory_slot(vm, slot, region.start_addr().raw_value(), region).map_err(MemoryError::Slot)?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::FileExt as _;

    use vm_memory::Bytes as _;

    use super::*;

    /// Memory of a test's own.
    pub(crate) fn of(bytes: u64) -> Arc<GuestMemory> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        map(file, bytes, Writes::Private).unwrap()
    }

    #[test]
    fn the_hole_is_left_out() {
        assert_eq!(parts(1 << 30), [(0, 1 << 30, 0)]);
        assert_eq!(parts(3 << 30), [(0, 3 << 30, 0)]);
        assert_eq!(parts(8 << 30), [(0, 3 << 30, 0), (4 << 30, 5 << 30, 3 << 30)]);
        let memory = of(4 << 30);
        memory.write_obj(1_u8, GuestAddress(HOLE_END)).unwrap();
        memory.write_obj(1_u8, GuestAddress(HOLE_BEGIN)).unwrap_err();
        memory.write_obj(1_u8, GuestAddress(HOLE_END + (1 << 30))).unwrap_err();
    }

    #[test]
    fn a_forks_writes_are_its_own() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(GRANULE).unwrap();
        for (writes, seen) in [(Writes::Private, 0), (Writes::Shared, 7)] {
            let memory = map(file.try_clone().unwrap(), GRANULE, writes).unwrap();
            memory.write_obj(7_u8, GuestAddress(5)).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, 5).unwrap();
            assert_eq!(byte, [seen], "{writes:?}");
        }
    }

    #[test]
    fn a_working_set_is_the_forks_own_before_it_writes() {
        let file = tempfile::tempfile().unwrap();
        let bytes = HOLE_BEGIN + GRANULE;
        file.set_len(bytes).unwrap();
        let image = Image::check(file.try_clone().unwrap(), bytes).unwrap();
        let memory = reserve(bytes).unwrap();
        image.fill(&memory, Writes::Private).unwrap();
        let last = u32::try_from(bytes / PAGE).unwrap() - 1;
        let run = |first, count| PageRun { first, count };
        image.own(&memory, &[run(3, 2), run(last, 1)]).unwrap();
        let own: Vec<u64> =
            [(0, 2), (0, 3), (0, 4), (0, 5), (HOLE_END, last - u32::try_from(HOLE_BEGIN / PAGE).unwrap())]
                .into_iter()
                .filter(|&(begin, page)| is_own(&memory, GuestAddress(begin + u64::from(page) * PAGE)))
                .map(|(begin, page)| begin + u64::from(page) * PAGE)
                .collect();
        assert_eq!(own, [3 * PAGE, 4 * PAGE, HOLE_END + GRANULE - PAGE]);
        // The hole is in no file, and nothing is behind its end.
        let across = run(u32::try_from(HOLE_BEGIN / PAGE).unwrap() - 1, 2);
        for unfit in [across, run(last, 2), run(last + 1, 1), run(u32::MAX, u32::MAX)] {
            assert!(matches!(image.own(&memory, &[unfit]), Err(MemoryError::WorkingSet)), "{unfit:?}");
        }
    }

    /// The page is there, and no page of the file. Source: Linux admin-guide/mm/pagemap.rst.
    fn is_own(memory: &GuestMemory, address: GuestAddress) -> bool {
        let place = memory.get_host_address(address).unwrap().addr() as u64;
        let mut entry = [0; 8];
        File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entry, place / PAGE * 8).unwrap();
        let entry = u64::from_ne_bytes(entry);
        entry >> 63 == 1 && entry & 1 << 61 == 0
    }

    #[test]
    fn f104_a_short_long_or_odd_file_is_refused() {
        let file = tempfile::tempfile().unwrap();
        for bytes in [0, GRANULE - 1, 2 * GRANULE] {
            file.set_len(bytes).unwrap();
            assert!(map(file.try_clone().unwrap(), GRANULE, Writes::Private).is_err(), "{bytes}");
        }
        assert!(matches!(map(file.try_clone().unwrap(), 0, Writes::Private), Err(MemoryError::Unfit(0))));
        assert!(matches!(map(file, GRANULE + 1, Writes::Private), Err(MemoryError::Unfit(_))));
    }
}
