//! Lines that have not ended yet, on disk: what was taken out of a process' fifos must not die with the engine.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// The file. Shape: length of the first line as four bytes, lowest first, then both lines; it is there only while there
/// is such a line.
pub struct Unfinished {
    path: PathBuf,
    file: Option<File>,
}

impl Unfinished {
    /// Reads what a killed engine has left. A file that cannot be read is none: it is of a line, not of a log.
    pub fn open(path: PathBuf) -> (Self, [Vec<u8>; 2]) {
        let lines = std::fs::read(&path).ok().and_then(|text| split(&text)).unwrap_or_default();
        let file = lines.iter().any(|line| !line.is_empty()).then(|| open(&path).ok()).flatten();
        (Self { path, file }, lines)
    }

    /// Writes the lines; does nothing as long as there are none.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&mut self, lines: &[Vec<u8>; 2]) -> io::Result<()> {
        if lines.iter().all(Vec::is_empty) {
            if let Some(file) = &self.file {
                file.set_len(0)?;
            }
            return Ok(());
        }
        if self.file.is_none() {
            self.file = Some(open(&self.path)?);
        }
        let Some(file) = &self.file else { return Ok(()) };
        let first = u32::try_from(lines[0].len()).map_err(io::Error::other)?.to_le_bytes();
        let text = [&first[..], &lines[0], &lines[1]].concat();
        file.write_all_at(&text, 0)?;
        file.set_len(text.len() as u64)
    }

    /// Removes the file. When: the lines are in the log.
    pub fn remove(&mut self) {
        if self.file.take().is_some()
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "the beginning of a line may be logged twice");
        }
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path)
}

fn split(text: &[u8]) -> Option<[Vec<u8>; 2]> {
    let (length, lines) = text.split_first_chunk::<4>()?;
    let (out, err) = lines.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    Some([out.to_vec(), err.to_vec()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_their_writer_and_go_with_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let lines = |out: &str, err: &str| [out.as_bytes().to_vec(), err.as_bytes().to_vec()];
        let (mut keep, none) = Unfinished::open(path.clone());
        assert_eq!(none, lines("", ""));
        keep.write(&none).unwrap();
        assert!(!path.exists());
        for kept in [lines("a long one", "b"), lines("", "c"), lines("d", "")] {
            keep.write(&kept).unwrap();
            assert_eq!(Unfinished::open(path.clone()).1, kept);
        }
        keep.write(&lines("", "")).unwrap();
        assert_eq!(Unfinished::open(path.clone()).1, lines("", ""));
        keep.remove();
        assert!(!path.exists());
    }
}
