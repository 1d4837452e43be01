//! A blob on its way: written by the download, read from its beginning by the conversion at the same time.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What is between the two.
struct Shared {
    file: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy)]
struct State {
    written: u64,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// All there, and its digest is right.
    Good,
    Failed,
}

/// The writing half. Dropped before [`SpoolWriter::finish`], it fails the readers.
pub(super) struct SpoolWriter(Arc<Shared>);

/// The reading half. When: waits for what is not there yet, so it needs a thread that may; gives the end only of a blob
/// whose digest was found right.
pub(super) struct SpoolReader<F> {
    shared: Arc<Shared>,
    position: u64,
    report: F,
}

/// Both halves over an empty file.
pub(super) fn spool<F: FnMut(u64)>(file: File, report: F) -> (SpoolWriter, SpoolReader<F>) {
    let state = Mutex::new(State { written: 0, end: End::Open });
    let shared = Arc::new(Shared { file, state, changed: Condvar::new() });
    (SpoolWriter(Arc::clone(&shared)), SpoolReader { shared, position: 0, report })
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }
}

impl SpoolWriter {
    /// Appends. It goes to the page cache, at the cost of a copy.
    pub fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let written = self.0.state().written;
        self.0.file.write_all_at(bytes, written)?;
        self.0.change(|state| state.written += bytes.len() as u64);
        Ok(())
    }

    /// Says that all is there and right.
    pub fn finish(self) {
        self.0.change(|state| state.end = End::Good);
    }
}

impl Drop for SpoolWriter {
    fn drop(&mut self) {
        self.0.change(|state| {
            if state.end == End::Open {
                state.end = End::Failed;
            }
        });
    }
}

impl<F: FnMut(u64)> Read for SpoolReader<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.shared.state();
        let ready = loop {
            match (state.written - self.position, state.end) {
                (_, End::Failed) => return Err(io::Error::other("the download was given up")),
                (0, End::Good) => return Ok(0),
                (0, End::Open) => {
                    state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                (ready, _) => break ready,
            }
        };
        drop(state);
        let wanted = usize::try_from(ready).map_or(buffer.len(), |ready| ready.min(buffer.len()));
        let count = self.shared.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += count as u64;
        (self.report)(self.position);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_waits_and_sees_the_end_only_of_what_is_right() {
        let (writer, mut reader) = spool(tempfile::tempfile().unwrap(), |_| {});
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        writer.append(b"ab").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
        writer.append(b"c").unwrap();
        writer.finish();
        assert_eq!(reading.join().unwrap().unwrap(), b"abc");

        let (writer, mut reader) = spool(tempfile::tempfile().unwrap(), |_| {});
        writer.append(b"ab").unwrap();
        drop(writer);
        assert!(reader.read_to_end(&mut Vec::new()).is_err());
    }
}
