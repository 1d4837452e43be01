//! A template whose forks do not know which pages they will write.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use vmm::protocol::PageRun;

/// Its file in a template's folder.
const RECORD: &str = "working-set.json";

/// How a side is called that has such templates.
pub const ONE_BY_ONE: &str = "pages copied one by one";

/// Forgets what forks of a store's templates write first; the next one records it again.
pub fn forget(store: &Path) -> io::Result<()> {
    for entry in fs::read_dir(store)? {
        match fs::remove_file(entry?.path().join(RECORD)) {
            // The store holds other files, too.
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// How many pieces, and pages in all, the record of a store's template has that has one.
pub fn recorded(store: &Path) -> io::Result<(usize, u64)> {
    for entry in fs::read_dir(store)? {
        if let Ok(record) = fs::read(entry?.path().join(RECORD)) {
            let runs: Vec<PageRun> = serde_json::from_slice(&record)?;
            return Ok((runs.len(), runs.iter().map(|run| u64::from(run.count)).sum()));
        }
    }
    Err(io::Error::new(ErrorKind::NotFound, "no fork was recorded"))
}
