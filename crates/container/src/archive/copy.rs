//! A folder of one tree copied into another tree: packed by one thread and unpacked by another, each confined to its own tree.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;

use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, fstat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::confine::confine;
use super::error::ArchiveError;
use super::pack::{Packer, View};
use super::path::behind_links;
use super::unpack::{Rules, unpack};
use crate::rootpath::Root;

/// Copies everything in the folder `path` of `from` into the root folder of `to`, which also gets its owner and mode. Links on the
/// way to it are followed within `from`. What is not there is not copied.
///
/// When: blocks; does its work in threads of its own.
///
/// # Errors
/// [`ArchiveError::NotAFolder`], or what cannot be read or written; what was copied until then stays.
pub fn copy_folder(from: &Root, path: &Path, to: &Root) -> Result<(), ArchiveError> {
    let lost = |error: Errno| ArchiveError::at("find", path.as_os_str().as_bytes())(error);
    let plain = behind_links(from, path).map_err(lost)?;
    let folder = match from.resolve(&plain, OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR) => return Err(ArchiveError::NotAFolder),
        other => other.map_err(lost)?,
    };
    let (reading, writing) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| ArchiveError::Stream(error.into()))?;
    let (packed, unpacked) = thread::scope(|scope| {
        let packing = scope.spawn(|| confine(from.folder()).and_then(|()| pack(&folder, File::from(writing))));
        let unpacking =
            scope.spawn(|| confine(to.folder()).and_then(|()| unpack(to, "/", &Rules::default(), File::from(reading))));
        (packing.join(), unpacking.join())
    });
    let broken = |_| Err(ArchiveError::Stream(io::Error::other("copying broke off")));
    // A reader that gave up breaks the writer's pipe, and is the cause.
    unpacked.unwrap_or_else(broken)?;
    packed.unwrap_or_else(broken)?;
    take_over(&folder, to).map_err(ArchiveError::at("change", b"/"))
}

fn pack(folder: &OwnedFd, pipe: File) -> Result<(), ArchiveError> {
    let mut pipe = io::BufWriter::with_capacity(64 << 10, pipe);
    let mut packer = Packer::new(&mut pipe, View::Tree);
    packer.folder(folder.as_fd(), b"")?;
    packer.tar.finish().map(drop).map_err(ArchiveError::Stream)?;
    pipe.flush().map_err(ArchiveError::Stream)
}

/// Owner and mode.
fn take_over(folder: &OwnedFd, to: &Root) -> rustix::io::Result<()> {
    let stat = fstat(folder)?;
    let target = to.resolve(Path::new("/"), OFlags::RDONLY | OFlags::DIRECTORY)?;
    fchown(&target, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    // After the owner, a change of which takes set-id bits away.
    fchmod(&target, Mode::from_raw_mode(stat.st_mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_path_that_is_no_folder_is_told_and_a_missing_one_is_nothing() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("file"), "x").unwrap();
        let (root, into) = (Root::open(from.path()).unwrap(), Root::open(to.path()).unwrap());
        assert!(matches!(copy_folder(&root, Path::new("/file"), &into), Err(ArchiveError::NotAFolder)));
        copy_folder(&root, Path::new("/none"), &into).unwrap();
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_behind_a_link_is_copied_with_its_mode() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("real/deep")).unwrap();
        fs::write(from.path().join("real/deep/file"), "x").unwrap();
        symlink("deep/file", from.path().join("real/link")).unwrap();
        symlink("/../real", from.path().join("data")).unwrap();
        fs::set_permissions(from.path().join("real"), PermissionsExt::from_mode(0o2770)).unwrap();
        let (root, into) = (Root::open(from.path()).unwrap(), Root::open(to.path()).unwrap());
        copy_folder(&root, Path::new("/data"), &into).unwrap();
        assert_eq!(fs::read(to.path().join("link")).unwrap(), b"x");
        assert_eq!(fs::metadata(to.path()).unwrap().permissions().mode() & 0o7777, 0o2770);
    }
}
