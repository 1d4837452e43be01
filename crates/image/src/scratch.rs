//! Where a container's changes go: an ext4 disk file for a utility VM, or two folders for overlayfs on the host.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proto::ErrorKind;
use rustix::fs::{SeekFrom, copy_file_range, seek};

use crate::content::FileError;

/// The program that formats a blank disk.
const MKFS: &str = "mkfs.ext4";
/// Looked at beside $PATH: services often run without the administrator's folders.
const MKFS_FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// Smallest disk: journal, tables and room for something.
const MIN_BYTES: u64 = 16 << 20;
/// Sizes are rounded up to this.
const GRANULE: u64 = 1 << 20;

/// How a blank disk is formatted: a 4 MiB journal, no copies of the superblock and all tables side by side, which makes
/// five extents and 140 KiB of a disk of 20 GiB. `discard` tells mkfs that the file reads as zeros, so that inode tables count as
/// zeroed: otherwise the guest would write them out in the background, 80 MiB of zeros.
const MKFS_OPTIONS: [&str; 17] = [
    "-q",
    "-F",
    "-b",
    "4096",
    "-m",
    "0",
    "-i",
    "65536",
    "-I",
    "256",
    "-G",
    "256",
    "-J",
    "size=4",
    "-O",
    "^resize_inode,sparse_super2,metadata_csum",
    "-E",
];
const MKFS_EXTENDED: &str = "discard,lazy_itable_init=0,lazy_journal_init=1,num_backup_sb=0,packed_meta_blocks=1";
/// Part of a blank disk's file name: changes with the way it is formatted.
const FORMAT_VERSION: u32 = 1;

/// A scratch disk that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// The formatting program is not there.
    #[error("cannot find {MKFS}, which formats the disks of hyperv containers: install the package e2fsprogs")]
    NoMkfs,
    /// It failed.
    #[error("{MKFS} failed: {message}")]
    Mkfs {
        /// What it said, cut to 500 characters.
        message: String,
    },
    /// The disk would be too small for a file system.
    #[error("a scratch disk of {bytes} bytes is too small: at least {MIN_BYTES} are needed")]
    TooSmall {
        /// As asked for.
        bytes: u64,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl ScratchError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoMkfs => ErrorKind::FailedPrecondition,
            Self::Mkfs { .. } => ErrorKind::Internal,
            Self::TooSmall { .. } => ErrorKind::InvalidArgument,
            Self::File(error) => error.kind(),
        }
    }
}

/// A hyperv container's writable disk: a sparse file with an ext4 file system that holds the empty folders `upper` and
/// `work`.
pub struct Scratch;

impl Scratch {
    /// Makes a disk. Shape: `disk` does not exist yet; it gets `size_bytes`, rounded up to a MiB, and takes some 140 KiB. When:
    /// the first disk of a size formats a blank one in `blank_cache`, which later ones copy; several processes may share
    /// that folder. Nothing is synced: a scratch disk does not outlive its container, and a container no crash of the host
    /// before its first write.
    ///
    /// # Errors
    /// As the variants of [`ScratchError`] say; `disk` does not exist then.
    pub fn prepare(blank_cache: &Path, disk: &Path, size_bytes: u64) -> Result<(), ScratchError> {
        let (blank, source) = open_blank(blank_cache, size_bytes)?;
        let target = create_new(disk)?;
        copy_sparse(&source, &target).map_err(|error| {
            // The half-made disk must not stay; what went wrong first is what is told.
            let _ = fs::remove_file(disk);
            FileError::new("copy", &blank)(error).into()
        })
    }

    /// As [`Scratch::prepare`], in a file that the caller has made. Shape: `disk` is empty, and on the file system of `blank_cache`.
    ///
    /// # Errors
    /// As the variants of [`ScratchError`] say.
    pub fn fill(blank_cache: &Path, disk: &File, size_bytes: u64) -> Result<(), ScratchError> {
        let (blank, source) = open_blank(blank_cache, size_bytes)?;
        copy_sparse(&source, disk).map_err(|error| FileError::new("copy", &blank)(error).into())
    }
}

/// The blank disk of that size.
fn open_blank(blank_cache: &Path, size_bytes: u64) -> Result<(PathBuf, File), ScratchError> {
    if size_bytes < MIN_BYTES {
        return Err(ScratchError::TooSmall { bytes: size_bytes });
    }
    let size_bytes = size_bytes.next_multiple_of(GRANULE);
    let blank = blank_cache.join(format!("blank-v{FORMAT_VERSION}-{size_bytes}.ext4"));
    // One of another length was cut off by a full disk or a crash, and is made anew.
    let usable = |file: &File| file.metadata().is_ok_and(|facts| facts.len() == size_bytes);
    let source = match File::open(&blank) {
        Ok(file) if usable(&file) => file,
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(FileError::new("open", &blank)(error).into());
        }
        Ok(_) | Err(_) => {
            format_blank(blank_cache, &blank, size_bytes)?;
            File::open(&blank).map_err(FileError::new("open", &blank))?
        }
    };
    Ok((blank, source))
}

/// Makes the folders for a process container's changes below `folder`, which exists: `upper`, whose mode becomes that of the
/// container's root, and `work` for overlayfs.
///
/// # Errors
/// [`FileError`]: a folder cannot be made, or exists.
pub fn prepare_upper(folder: &Path) -> Result<(PathBuf, PathBuf), FileError> {
    let (upper, work) = (folder.join("upper"), folder.join("work"));
    for (path, mode) in [(&upper, 0o755), (&work, 0o700)] {
        DirBuilder::new().mode(mode).create(path).map_err(FileError::new("create", path))?;
    }
    Ok((upper, work))
}

fn create_new(path: &Path) -> Result<File, FileError> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(FileError::new("create", path))
}

/// Formats a blank disk beside its final name and then gives it the name: of two that do so at once, either is good.
fn format_blank(cache: &Path, blank: &Path, size_bytes: u64) -> Result<(), ScratchError> {
    let mkfs = find_mkfs().ok_or(ScratchError::NoMkfs)?;
    DirBuilder::new().recursive(true).mode(0o700).create(cache).map_err(FileError::new("create", cache))?;
    let work = cache.join(format!("tmp-{}-{size_bytes}-{:?}", std::process::id(), std::thread::current().id()));
    let _remove = RemoveOnDrop(&work);
    DirBuilder::new().mode(0o700).create(&work).map_err(FileError::new("create", &work))?;
    let content = work.join("content");
    for folder in [&content, &content.join("upper"), &content.join("work")] {
        DirBuilder::new().mode(0o755).create(folder).map_err(FileError::new("create", folder))?;
    }
    let disk = work.join("disk");
    let file = create_new(&disk)?;
    file.set_len(size_bytes).map_err(FileError::new("extend", &disk))?;
    let output = Command::new(&mkfs)
        .args(MKFS_OPTIONS)
        .args([MKFS_EXTENDED, "-d"])
        .args([&content, &disk])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .map_err(FileError::new("run", &mkfs))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
        return Err(ScratchError::Mkfs { message });
    }
    file.sync_all().map_err(FileError::new("sync", &disk))?;
    fs::rename(&disk, blank).map_err(FileError::new("create", blank))?;
    Ok(())
}

fn find_mkfs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(MKFS_FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join(MKFS)).find(|program| program.is_file())
}

/// Copies what is not a hole; `target` is empty.
fn copy_sparse(source: &File, target: &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut position = 0;
    while position < length {
        let data = match seek(source, SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(source, SeekFrom::Hole(data))?;
        copy_range(source, target, data, end)?;
        position = end;
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let wanted = usize::try_from(end - from).unwrap_or(usize::MAX);
        if copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

struct RemoveOnDrop<'a>(&'a Path);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a temporary folder");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_disk_is_small_and_holds_its_folders() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, disk) = (folder.path().join("cache"), folder.path().join("disk"));
        match Scratch::prepare(&cache, &disk, 20 << 30) {
            Err(ScratchError::NoMkfs) => return eprintln!("SKIPPED: {MKFS} is not installed (package e2fsprogs)"),
            result => result.unwrap(),
        }
        let second = folder.path().join("second");
        let began = Instant::now();
        Scratch::prepare(&cache, &second, 20 << 30).unwrap();
        eprintln!("a further scratch disk took {:?}", began.elapsed());
        for path in [&disk, &second] {
            let facts = path.metadata().unwrap();
            assert_eq!(facts.len(), 20 << 30);
            assert!(facts.blocks() * 512 < 1 << 20, "{} KiB on disk", facts.blocks() / 2);
        }
        let blank = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        assert_eq!(blank.len(), 1, "only the blank disk stays");
        File::options().write(true).open(&blank[0]).unwrap().set_len(4096).unwrap();
        Scratch::prepare(&cache, &folder.path().join("third"), 20 << 30).unwrap();
        assert_eq!(blank[0].metadata().unwrap().len(), 20 << 30, "a blank disk that was cut off is made anew");
        let listing = Command::new("debugfs").args(["-R", "ls -p /"]).arg(&second).output().unwrap();
        let listing = String::from_utf8(listing.stdout).unwrap();
        assert!(["upper", "work"].iter().all(|name| listing.contains(&format!("/{name}/"))), "{listing}");
        let check = Command::new("e2fsck").args(["-f", "-n"]).arg(&second).output().unwrap();
        assert!(check.status.success(), "{check:?}");
    }

    #[test]
    fn nothing_stays_of_a_disk_that_cannot_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        assert!(matches!(Scratch::prepare(folder.path(), &disk, 1), Err(ScratchError::TooSmall { bytes: 1 })));
        fs::write(&disk, "mine").unwrap();
        assert!(Scratch::prepare(folder.path(), &disk, MIN_BYTES).is_err());
        assert_eq!(fs::read(&disk).unwrap(), b"mine");
    }

    #[test]
    fn upper_and_work_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let (upper, work) = prepare_upper(folder.path()).unwrap();
        assert!(upper.is_dir() && work.is_dir());
        assert!(prepare_upper(folder.path()).is_err());
    }
}
