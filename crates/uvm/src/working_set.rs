//! The pages that every fork of a template writes until it answers: recorded with the first fork, and copied at once with the later ones
//! instead of one by one, each with an exit from the guest and a page fault.
//!
//! ```text
//! first fork    /proc/PID/pagemap: which pages of the template's file are its own by now  ──▶  STORE/<template id>/working-set.json
//! later forks   ──▶ vmm: MADV_POPULATE_WRITE, run by run, before the guest goes on
//! ```
//!
//! Recorded before any process of a container runs, so no container has a say in it. It is no part of the template and can be made again.
//! Source: Linux admin-guide/mm/pagemap.rst; madvise(2); Ustiugov et al., "Benchmarking, Analysis, and Optimization of Serverless
//! Function Snapshots" (ASPLOS 2021).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use vmm::protocol::{MOST_RUNS, PageRun};

use crate::record;

const PAGE: u64 = 4096;
/// Bytes of an entry of pagemap.
const ENTRY: usize = 8;
/// Entries that are read at once.
const AT_ONCE: usize = 8192;
/// The page is there, or swapped out.
const THERE: u64 = 1 << 63 | 1 << 62;
/// It is a page of the file.
const OF_FILE: u64 = 1 << 61;
/// Pages that are not its own but lie between such are copied, too, if they are so few: a call costs more.
const GAP: u32 = 2;
/// More is not what a fork needs to answer.
const MOST_PAGES: u32 = 4096;

/// Where a process has a part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    begin: u64,
    end: u64,
    offset: u64,
}

/// A working set that is to be recorded.
#[derive(Debug)]
pub(crate) struct Recording {
    /// The template's memory.
    pub(crate) memory: File,
    /// Where it is kept.
    pub(crate) path: PathBuf,
}

impl Recording {
    /// Records what a fork has written by now. When: it has answered, and runs nothing of a container's; blocking, milliseconds. A failure
    /// only means that the next one tries again.
    pub(crate) fn make(&self, process: u32) {
        let recorded = record(process, &self.memory).and_then(|pages| {
            record::write(&self.path, &pages)?;
            Ok(pages)
        });
        match recorded {
            Ok(runs) => tracing::info!(runs = runs.len(), pages = count(&runs), "recorded a template's working set"),
            Err(error) => tracing::warn!(%error, "cannot record a template's working set"),
        }
    }
}

/// A record of a template with so much memory; nothing if there is none, or no sound one.
pub(crate) fn read(path: &Path, memory_bytes: u64) -> Option<Vec<PageRun>> {
    let runs: Vec<PageRun> = record::read(path)?;
    let inside = |run: &PageRun| (u64::from(run.first) + u64::from(run.count)) * PAGE <= memory_bytes && run.count > 0;
    (runs.len() <= MOST_RUNS && runs.iter().all(inside) && count(&runs) <= u64::from(MOST_PAGES)).then_some(runs)
}

fn count(runs: &[PageRun]) -> u64 {
    runs.iter().map(|run| u64::from(run.count)).sum()
}

/// The pages of a file that a process has written for itself. Shape: in order, numbers of pages in the file.
///
/// # Errors
/// What `/proc` says; there is nothing to record then.
fn record(process: u32, file: &File) -> io::Result<Vec<PageRun>> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    let pagemap = File::open(format!("/proc/{process}/pagemap"))?;
    let mut own = Vec::new();
    let mappings = mappings(&maps, file.metadata()?.ino());
    if mappings.is_empty() {
        // Some file systems that lie over others show those's inodes. Nothing is known then, which is not that nothing was written.
        return Err(io::Error::other("the memory's file is not among the process's mappings"));
    }
    for mapping in mappings {
        own_pages(&pagemap, mapping, &mut own)?;
    }
    own.sort_unstable();
    Ok(runs(&own))
}

/// Where the file with this inode is private and can be written.
fn mappings(maps: &str, inode: u64) -> Vec<Mapping> {
    let mapping = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (begin, end) = fields.next()?.split_once('-')?;
        let access = fields.next()?;
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let offset = number(fields.next()?)?;
        let found: u64 = fields.nth(1)?.parse().ok()?;
        let wanted = access == "rw-p" && found == inode;
        wanted.then_some(Mapping { begin: number(begin)?, end: number(end)?, offset })
    };
    maps.lines().filter_map(mapping).collect()
}

fn own_pages(pagemap: &File, mapping: Mapping, own: &mut Vec<u32>) -> io::Result<()> {
    let mut entries = vec![0; AT_ONCE * ENTRY];
    let mut address = mapping.begin;
    while address < mapping.end {
        let left = usize::try_from((mapping.end - address) / PAGE).unwrap_or(usize::MAX);
        let wanted = &mut entries[..left.min(AT_ONCE) * ENTRY];
        pagemap.read_exact_at(wanted, address / PAGE * ENTRY as u64)?;
        for entry in wanted.chunks_exact(ENTRY) {
            let entry = u64::from_ne_bytes(entry.try_into().map_err(io::Error::other)?);
            if entry & THERE != 0 && entry & OF_FILE == 0 {
                let page = (mapping.offset + address - mapping.begin) / PAGE;
                own.push(u32::try_from(page).map_err(io::Error::other)?);
            }
            address += PAGE;
        }
    }
    Ok(())
}

/// Neighbours, and nearly neighbours, put together, up to what a request can hold.
fn runs(pages: &[u32]) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    for &page in pages {
        match runs.last_mut() {
            Some(run) if page <= run.first + run.count + GAP => run.count = page - run.first + 1,
            _ => runs.push(PageRun { first: page, count: 1 }),
        }
    }
    runs.truncate(MOST_RUNS);
    let mut pages = 0;
    let fit = runs.iter().take_while(|run| {
        pages += run.count;
        pages <= MOST_PAGES
    });
    let fit = fit.count();
    runs.truncate(fit);
    runs
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes as _, FileOffset, MmapRegion, VolatileMemory as _};

    use super::*;

    fn run(first: u32, count: u32) -> PageRun {
        PageRun { first, count }
    }

    #[test]
    fn neighbours_are_put_together_up_to_the_limits() {
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[3, 4, 5, 8, 12]), [run(3, 6), run(12, 1)]);
        let scattered: Vec<u32> = (0..10_000).map(|number| number * 10).collect();
        assert_eq!(count(&runs(&scattered)), u64::from(MOST_PAGES));
        let halves: Vec<u32> = (0..3000).chain(10_000..13_000).collect();
        assert_eq!(runs(&halves), [run(0, 3000)]);
    }

    #[test]
    fn only_what_a_process_has_written_is_its_own() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * PAGE).unwrap();
        file.write_all_at(&[1; 64 * 4096], 0).unwrap();
        // As a fork has it: private, the second half first.
        let map = |from: u64| {
            let place = Some(FileOffset::new(file.try_clone().unwrap(), from * PAGE));
            let access = libc::PROT_READ | libc::PROT_WRITE;
            MmapRegion::<()>::build(place, 32 * 4096, access, libc::MAP_PRIVATE | libc::MAP_NORESERVE).unwrap()
        };
        let (high, low) = (map(32), map(0));
        let slice = |region: &MmapRegion, page: usize| region.get_slice(page * 4096, 4096).unwrap().write_obj(7_u8, 9);
        slice(&low, 5).unwrap();
        slice(&low, 20).unwrap();
        slice(&high, 1).unwrap();
        // What is only read stays the file's.
        let _: u8 = high.get_slice(20 * 4096, 4096).unwrap().read_obj(0).unwrap();
        assert_eq!(record(std::process::id(), &file).unwrap(), [run(5, 1), run(20, 1), run(33, 1)]);
        // Nothing is known of a file that it has not mapped.
        record(std::process::id(), &tempfile::tempfile().unwrap()).unwrap_err();
        record(u32::MAX, &file).unwrap_err();
    }

    #[test]
    fn a_record_is_taken_only_if_it_fits_its_template() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        assert_eq!(read(&path, 1 << 20), None);
        let many = vec![run(0, 1); MOST_RUNS + 1];
        let unfit =
            [vec![run(255, 2)], vec![run(u32::MAX, u32::MAX)], vec![run(3, 0)], many, vec![run(0, MOST_PAGES + 1)]];
        for runs in unfit {
            record::write(&path, &runs).unwrap();
            assert_eq!(read(&path, 1 << 20), None, "{:?}", runs.first());
        }
        record::write(&path, &[run(255, 1)]).unwrap();
        assert_eq!(read(&path, 1 << 20), Some(vec![run(255, 1)]));
        fs::write(&path, "[{\"first\":").unwrap();
        assert_eq!(read(&path, 1 << 20), None);
    }

    #[test]
    fn a_recording_leaves_a_record() {
        let folder = tempfile::tempdir().unwrap();
        let (memory, path) = (tempfile::tempfile().unwrap(), folder.path().join("record"));
        Recording { memory: memory.try_clone().unwrap(), path: path.clone() }.make(u32::MAX);
        assert!(!path.exists(), "there is no such process");
        Recording { memory: memory.try_clone().unwrap(), path: path.clone() }.make(std::process::id());
        assert!(!path.exists(), "it has not mapped the file");
        memory.set_len(PAGE).unwrap();
        let place = Some(FileOffset::new(memory.try_clone().unwrap(), 0));
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let _mapped = MmapRegion::<()>::build(place, 4096, access, libc::MAP_PRIVATE).unwrap();
        Recording { memory, path: path.clone() }.make(std::process::id());
        assert_eq!(read(&path, 0), Some(Vec::new()));
    }
}
