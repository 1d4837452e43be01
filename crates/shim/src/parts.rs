//! Parts of volumes (`volume-subpath`), made ready for a mount.
//!
//! What is in a volume is its containers', who may put a link in the place of any folder at any time. So the way to the part is
//! looked up within the volume, following no link, and what was found is held open until it is mounted.
//!
//! Source: openat2(2); moby `internal/safepath`; CVE-2024-23651.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use proto::control::VolumePart;
use proto::{ErrorKind, Status};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};

/// Binds each part to its point. When: in a mount namespace that ends with this process.
///
/// # Errors
/// `NotFound` when there is no such part; `InvalidArgument` when a link is on the way to it.
pub fn mount(parts: &[VolumePart]) -> Result<(), Status> {
    parts.iter().try_for_each(|part| {
        let found = find(&part.volume, &part.path)?;
        bind(&found, &part.point).map_err(|error| Status::from_error(ErrorKind::Internal, &error))
    })
}

/// Opens the part, whatever it is.
///
/// # Errors
/// As [`mount`].
pub fn find(volume: &Path, path: &Path) -> Result<OwnedFd, Status> {
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // Without NOFOLLOW: with it, O_PATH would open a link in the last place, and a mount would follow it.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = open(volume, flags | OFlags::DIRECTORY, Mode::empty())
        .and_then(|volume| openat2(volume, path, flags, Mode::empty(), within));
    opened.map_err(|error| {
        let kind = match error {
            rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => ErrorKind::NotFound,
            rustix::io::Errno::LOOP | rustix::io::Errno::XDEV => ErrorKind::InvalidArgument,
            _ => ErrorKind::Internal,
        };
        let what = format!("cannot access path {} in volume", path.display());
        Status { kind, message: what, causes: vec![io::Error::from(error).to_string()] }
    })
}

fn bind(found: &OwnedFd, point: &Path) -> io::Result<()> {
    if let Some(parent) = point.parent() {
        fs::create_dir_all(parent)?;
    }
    if FileType::from_raw_mode(fstat(found)?.st_mode) == FileType::Directory {
        fs::create_dir_all(point)?;
    } else {
        fs::File::create(point)?;
    }
    Ok(rustix::mount::mount_bind_recursive(format!("/proc/self/fd/{}", found.as_raw_fd()), point)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{CWD, RenameFlags, renameat_with};

    use super::*;

    #[test]
    fn a_part_is_found_within_its_volume_and_behind_no_link() {
        let volume = tempfile::tempdir().unwrap();
        fs::create_dir_all(volume.path().join("a/b")).unwrap();
        symlink("/etc", volume.path().join("out")).unwrap();
        symlink("a", volume.path().join("in")).unwrap();
        find(volume.path(), Path::new("a/b")).unwrap();
        for (path, kind) in [
            ("out/passwd", ErrorKind::InvalidArgument),
            ("in/b", ErrorKind::InvalidArgument),
            ("out", ErrorKind::InvalidArgument),
            ("../x", ErrorKind::InvalidArgument),
            ("none", ErrorKind::NotFound),
        ] {
            assert_eq!(find(volume.path(), Path::new(path)).unwrap_err().kind, kind, "{path}");
        }
    }
    /// F48: a container changes folder and link all the time, each of them in one step.
    #[test]
    fn a_part_that_becomes_a_link_meanwhile_is_never_followed() {
        let volume = tempfile::tempdir().unwrap();
        let [part, link] = ["part", "link"].map(|name| volume.path().join(name));
        fs::create_dir(&part).unwrap();
        symlink("/", &link).unwrap();
        let inside = fs::metadata(&part).unwrap().ino();
        let over = AtomicBool::new(false);
        let is_inside = |found: OwnedFd| fstat(&found).unwrap().st_ino == inside;
        let (mut found, mut refused, mut wrong) = (0, 0, Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    renameat_with(CWD, &part, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                }
            });
            // On a busy machine the other thread comes late.
            while wrong.is_empty() && (found + refused < 10_000 || found == 0 || refused == 0) {
                match find(volume.path(), Path::new("part")).map(is_inside) {
                    Ok(true) => found += 1,
                    Err(error) if error.kind == ErrorKind::InvalidArgument => refused += 1,
                    other => wrong.push(other),
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
