//! A container's root file system: read-only EROFS layers and a writable folder, joined by overlayfs.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto::ErrorKind;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount as mount_fs, unmount};

use crate::failure::kind_of_io;
use crate::sys::loop_device;

/// Where a layer's EROFS file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerSource {
    /// In a file: mounted directly where the kernel can do that (6.12), else through a loop device.
    File(PathBuf),
    /// On a block device.
    Device(PathBuf),
}

impl LayerSource {
    fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Device(path) => path,
        }
    }
}

/// Where a container's changes go. Both folders exist, are empty or hold an earlier run's changes, and are on one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    /// Holds the changes.
    pub upper: PathBuf,
    /// overlayfs' own.
    pub work: PathBuf,
}

/// A root file system that could not be put together; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// There are none, or more than overlayfs takes.
    #[error("{0} layers cannot be joined (1 to {MOST_LAYERS} can)")]
    LayerCount(usize),
    /// A folder is missing or cannot be made.
    #[error("cannot use the folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A layer cannot be mounted.
    #[error("cannot mount the layer {path}")]
    Layer {
        /// The layer's file or device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No loop device could be set up.
    #[error("cannot put {path} behind a loop device")]
    Loop {
        /// The layer's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// overlayfs refuses.
    #[error("cannot join the layers at {path}")]
    Join {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is still in use.
    #[error("cannot unmount {path}")]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl RootfsError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::LayerCount(_) => ErrorKind::InvalidArgument,
            Self::Folder { source, .. } => kind_of_io(source),
            Self::Layer { source, .. } => match source.raw_os_error() {
                Some(libc::ENODEV) => ErrorKind::FailedPrecondition,
                _ => kind_of_io(source),
            },
            Self::Loop { source, .. } | Self::Join { source, .. } => kind_of_io(source),
            Self::Unmount { .. } => ErrorKind::FailedPrecondition,
        }
    }
}

/// Most layers that overlayfs joins. (Docker's images have up to 127.) Source: Linux fs/overlayfs/params.h, `OVL_MAX_STACK`.
pub const MOST_LAYERS: usize = 500;
/// Longest list of options that mount(2) takes, its NUL not counted.
const OPTIONS_LIMIT: usize = 4095;
/// How long a file system that somebody is just leaving may stay busy.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);

/// A mounted root file system; dropping it unmounts it.
#[derive(Debug)]
pub struct MountedRootfs {
    merged: Option<PathBuf>,
}

impl MountedRootfs {
    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.merged.as_deref().unwrap_or(Path::new("/"))
    }

    /// Unmounts it, so that all changes are on their way to the disk and nobody uses its layers any more.
    ///
    /// # Errors
    /// [`RootfsError::Unmount`] when it stays in use; it is then detached when the last user leaves.
    pub fn unmount(mut self) -> Result<(), RootfsError> {
        let Some(path) = self.merged.take() else { return Ok(()) };
        let deadline = Instant::now() + BUSY_PATIENCE;
        loop {
            match unmount(&path, UnmountFlags::NOFOLLOW) {
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
                Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                Err(error) => {
                    // Detached, it goes when its last user does.
                    let _ = unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
                    return Err(RootfsError::Unmount { path, source: error.into() });
                }
            }
        }
    }
}

impl Drop for MountedRootfs {
    fn drop(&mut self) {
        if let Some(path) = self.merged.take()
            && let Err(error) = unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        {
            tracing::warn!(path = %path.display(), %error, "a root file system stays mounted");
        }
    }
}

/// Joins layers and a writable folder at `merged`.
///
/// Shape: `layers` lowest first, at least one. `staging` is a folder for mount points, made if missing; nothing stays in it
/// or mounted on it. `merged` is an existing folder. When: in a mount namespace whose mounts nobody else should see.
///
/// # Errors
/// [`RootfsError`]; all that was mounted is unmounted again.
pub fn mount(
    layers: &[LayerSource],
    staging: &Path,
    writable: &Upper,
    merged: &Path,
) -> Result<MountedRootfs, RootfsError> {
    if layers.is_empty() || layers.len() > MOST_LAYERS {
        return Err(RootfsError::LayerCount(layers.len()));
    }
    let staged = Staging::mount(layers, staging)?;
    join(&staged, Some(writable), merged)?;
    // overlayfs holds the layers by itself from here on, so their mount points may go.
    drop(staged);
    Ok(MountedRootfs { merged: Some(merged.to_owned()) })
}

/// Joins layers at `merged`, read-only and without a container's changes. Shape and time as [`mount()`].
///
/// # Errors
/// [`RootfsError`]; all that was mounted is unmounted again.
pub fn mount_layers(layers: &[LayerSource], staging: &Path, merged: &Path) -> Result<MountedRootfs, RootfsError> {
    match layers {
        [] => return Err(RootfsError::LayerCount(0)),
        // overlayfs wants two folders at least.
        [layer] => mount_layer(layer, merged)?,
        more if more.len() > MOST_LAYERS => return Err(RootfsError::LayerCount(more.len())),
        _ => {
            let staged = Staging::mount(layers, staging)?;
            join(&staged, None, merged)?;
        }
    }
    Ok(MountedRootfs { merged: Some(merged.to_owned()) })
}

/// Mounts a disk file with an ext4 file system that we have made ourselves, and only containers' files were written to.
///
/// Shape: `point` is an existing folder. When: in a mount namespace whose mounts nobody else should see.
///
/// # Errors
/// [`RootfsError::Loop`], [`RootfsError::Layer`]; nothing stays mounted.
pub fn mount_disk(disk: &Path, point: &Path) -> Result<MountedRootfs, RootfsError> {
    let (device, held) = loop_behind(disk, loop_device::Access::ReadWrite)?;
    let mounted = mount_fs(&device, point, "ext4", MountFlags::NODEV | MountFlags::NOSUID, None);
    drop(held);
    mounted.map_err(|error| RootfsError::Layer { path: disk.to_owned(), source: error.into() })?;
    Ok(MountedRootfs { merged: Some(point.to_owned()) })
}

/// The layers on their temporary mount points; dropping it unmounts them and removes the mount points.
struct Staging<'a> {
    folder: &'a Path,
    mounted: usize,
}

impl<'a> Staging<'a> {
    fn mount(layers: &[LayerSource], folder: &'a Path) -> Result<Self, RootfsError> {
        make_folder(folder)?;
        let mut staging = Self { folder, mounted: 0 };
        for (number, layer) in layers.iter().enumerate() {
            let point = staging.point(number);
            make_folder(&point)?;
            staging.mounted = number + 1;
            mount_layer(layer, &point)?;
        }
        Ok(staging)
    }

    fn point(&self, number: usize) -> PathBuf {
        self.folder.join(number.to_string())
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        for number in (0..self.mounted).rev() {
            let point = self.point(number);
            match unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                // Not mounted yet when something failed.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => tracing::warn!(path = %point.display(), %error, "a layer stays mounted"),
            }
            // A folder that is left is found and used again the next time.
            let _ = fs::remove_dir(&point);
        }
        let _ = fs::remove_dir(self.folder);
    }
}

fn make_folder(path: &Path) -> Result<(), RootfsError> {
    fs::create_dir_all(path).map_err(|source| RootfsError::Folder { path: path.to_owned(), source })
}

fn mount_layer(layer: &LayerSource, point: &Path) -> Result<(), RootfsError> {
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    let failed = |error: Errno| RootfsError::Layer { path: layer.path().to_owned(), source: error.into() };
    let is_file = matches!(layer, LayerSource::File(_));
    // A kernel that cannot would also say so in its log, each time.
    let mounted = if is_file && !mounts_files(&rustix::system::uname().release().to_string_lossy()) {
        Err(Errno::NOTBLK)
    } else {
        mount_fs(layer.path(), point, "erofs", flags, None)
    };
    match mounted {
        // The kernel wants a block device.
        Err(Errno::NOTBLK) if is_file => {
            let (device, held) = loop_behind(layer.path(), loop_device::Access::ReadOnly)?;
            let mounted = mount_fs(&device, point, "erofs", flags, None).map_err(failed);
            // From here on the mount keeps the device; without one it frees itself now.
            drop(held);
            mounted
        }
        other => other.map_err(failed),
    }
}

/// Whether a kernel of this release may mount an EROFS file without a block device, if it was built for that. Source: Linux
/// 6.12, `CONFIG_EROFS_FS_BACKED_BY_FILE`.
fn mounts_files(release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 12)
}

/// Puts a file behind a free loop device. Shape: the device's path, and the handle that keeps it until it is mounted.
fn loop_behind(path: &Path, access: loop_device::Access) -> Result<(PathBuf, File), RootfsError> {
    let failed = |source| RootfsError::Loop { path: path.to_owned(), source };
    let writable = access == loop_device::Access::ReadWrite;
    let file = OpenOptions::new().read(true).write(writable).open(path).map_err(failed)?;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").map_err(failed)?;
    // Somebody else may take the free one first.
    for _ in 0..64 {
        let number = loop_device::free_number(&control).map_err(failed)?;
        let device = PathBuf::from(format!("/dev/loop{number}"));
        let handle = open_device(&device, number, writable).map_err(failed)?;
        match loop_device::configure(&handle, &file, access) {
            Ok(()) => return Ok((device, handle)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(failed(io::Error::from_raw_os_error(libc::EBUSY)))
}

/// Opens a loop device, making its node where no udev does.
fn open_device(device: &Path, number: u32, writable: bool) -> io::Result<File> {
    const LOOP_MAJOR: u32 = 7;
    let open = || OpenOptions::new().read(true).write(writable).open(device);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let kind = rustix::fs::FileType::BlockDevice;
            let node = rustix::fs::makedev(LOOP_MAJOR, number);
            match rustix::fs::mknodat(rustix::fs::CWD, device, kind, Mode::from_raw_mode(0o660), node) {
                Ok(()) | Err(Errno::EXIST) => open(),
                Err(error) => Err(error.into()),
            }
        }
        other => other,
    }
}

fn join(staged: &Staging<'_>, writable: Option<&Upper>, merged: &Path) -> Result<(), RootfsError> {
    let failed = |source| RootfsError::Join { path: merged.to_owned(), source };
    let changes = writable.map(|writable| [writable.upper.clone(), writable.work.clone()]);
    let plain: Vec<PathBuf> = std::iter::once(staged.folder.to_owned()).chain(changes.into_iter().flatten()).collect();
    let options = match options(staged.mounted, &plain) {
        Some(options) => mount_overlay(&options, merged),
        None => {
            // Through open folders all paths are short, and free of the signs that overlayfs takes for its own.
            let mut held = Vec::new();
            for path in &plain {
                let folder = open_folder(path).map_err(|source| RootfsError::Folder { path: path.clone(), source })?;
                held.push(folder);
            }
            let short = |fd: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            // The layers' folder is the working folder of whoever mounts, so that their paths are as short as can be.
            let short: Vec<PathBuf> = std::iter::once(PathBuf::new()).chain(held.iter().skip(1).map(short)).collect();
            let options = options(staged.mounted, &short).ok_or(RootfsError::LayerCount(staged.mounted))?;
            let merged = std::path::absolute(merged).map_err(failed)?;
            mount_overlay_within(&held[0], &options, &merged)
        }
    };
    options.map_err(|error| failed(error.into()))
}

/// As [`mount_overlay`], with relative paths of the options below `folder`: so the list of many layers fits into the page that
/// mount(2) takes. A thread of its own gets a working folder of its own, and ends with it.
fn mount_overlay_within(folder: &OwnedFd, options: &CString, merged: &Path) -> rustix::io::Result<()> {
    let mount_there = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)
            .map_err(|error| Errno::from_raw_os_error(error as i32))?;
        rustix::process::fchdir(folder)?;
        mount_overlay(options, merged)
    };
    std::thread::scope(|scope| scope.spawn(mount_there).join()).unwrap_or(Err(Errno::CANCELED))
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// overlayfs' options for `count` layers below the first of the folders (relative, when its path is empty), changes in the second,
/// work in the third, if there are more than the first. `None` when the list is too long, or a path has a sign with a meaning
/// in it.
fn options(count: usize, folders: &[PathBuf]) -> Option<CString> {
    let text =
        |path: &Path| path.to_str().filter(|text| !text.contains([':', ',', '\\', '"', '\0'])).map(str::to_owned);
    let folders: Vec<String> = folders.iter().map(|path| text(path)).collect::<Option<_>>()?;
    let (staging, changes) = match &folders[..] {
        [staging, upper, work] => (staging, format!(",upperdir={upper},workdir={work}")),
        [staging] => (staging, String::new()),
        _ => return None,
    };
    let folder = if staging.is_empty() { String::new() } else { format!("{staging}/") };
    let lower: Vec<String> = (0..count).rev().map(|number| format!("{folder}{number}")).collect();
    // Both off by default on most kernels, not on all: an image could otherwise lead into other folders of its layers.
    let options = format!("lowerdir={}{changes},redirect_dir=off,metacopy=off", lower.join(":"));
    if options.len() > OPTIONS_LIMIT { None } else { CString::new(options).ok() }
}

fn mount_overlay(options: &CString, merged: &Path) -> rustix::io::Result<()> {
    mount_fs("overlay", merged, "overlay", MountFlags::empty(), Some(options.as_c_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_newer_kernels_mount_files() {
        for (release, can) in
            [("6.1.0-48-cloud-amd64", false), ("6.12", true), ("6.18.3+", true), ("7.0-rc1", true), ("", false)]
        {
            assert_eq!(mounts_files(release), can, "{release}");
        }
    }

    #[test]
    fn options_are_refused_when_they_would_be_misread() {
        let paths = |staging: &str| [staging, "/u", "/w"].map(PathBuf::from);
        let text = options(3, &paths("/s")).unwrap().into_string().unwrap();
        assert!(text.starts_with("lowerdir=/s/2:/s/1:/s/0,upperdir=/u,workdir=/w"), "{text}");
        for bad in ["/a:b", "/a,b", "/a\\b"] {
            assert_eq!(options(1, &paths(bad)), None, "{bad}");
        }
        assert_eq!(options(100, &paths(&format!("/{}", "x".repeat(90)))), None);
        let relative = options(MOST_LAYERS, &paths("")).unwrap().into_string().unwrap();
        assert!(relative.starts_with("lowerdir=499:498:") && relative.contains(":0,upperdir="), "{relative}");
    }

    #[test]
    fn no_layers_and_too_many_are_refused() {
        let writable = Upper { upper: "/u".into(), work: "/w".into() };
        for count in [0, MOST_LAYERS + 1] {
            let layers = vec![LayerSource::File("/l".into()); count];
            let error = mount(&layers, Path::new("/nonexistent"), &writable, Path::new("/m")).unwrap_err();
            assert!(matches!(error, RootfsError::LayerCount(_)));
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
    }
}
