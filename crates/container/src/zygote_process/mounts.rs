//! The mounts of a plain container, made ahead below a stage and moved onto the container's root when that is there.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proto::{MASKED_PATHS, READ_ONLY_PATHS};
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
    mount_bind_recursive, mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::confine::Failure;
use crate::plain::layout::{DEVICES, LINKS, MOUNTED_FOLDERS, MOUNTS};
use crate::plain::{BoundFile, Tmpfs};
use crate::rootpath::Root;
use crate::sys;

/// Where in the stage the container's root is mounted.
const ROOT: &str = "root";
/// Where in the stage the files are that the container binds.
const FILES: &str = "files";

/// Makes all that does not need the container's root. When: in a mount namespace of its own, as process 1 of the pid namespace,
/// in the container's cgroup.
pub fn prepare(stage: &Path) -> Result<(), Failure> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|error| Failure::step("cannot make the mounts private", &error))?;
    for folder in [ROOT, FILES].into_iter().chain(MOUNTED_FOLDERS) {
        let made = fs::create_dir_all(stage.join(folder));
        made.map_err(|error| Failure::step(&format!("cannot make the mount point {folder}"), &error))?;
    }
    for plain in &MOUNTS {
        // Of version 2: a utility VM has no other.
        let kind = if plain.kind == "cgroup" { "cgroup2" } else { plain.kind };
        let made = mount_new(kind, plain.source, plain.options, &staged(stage, plain.destination));
        made.map_err(|error| Failure::step(&format!("cannot mount {}", plain.destination), &error))?;
    }
    furnish_devices(&stage.join("dev")).map_err(|error| Failure::step("cannot furnish /dev", &error))?;
    for path in READ_ONLY_PATHS {
        make_read_only(&staged(stage, path))
            .map_err(|error| Failure::step(&format!("cannot make {path} read-only"), &error))?;
    }
    for path in MASKED_PATHS {
        mask(&staged(stage, path), &stage.join("dev/null"))
            .map_err(|error| Failure::step(&format!("cannot mask {path}"), &error))?;
    }
    Ok(())
}

/// Where a path of the container is meanwhile.
fn staged(stage: &Path, path: &str) -> PathBuf {
    stage.join(path.trim_start_matches('/'))
}

fn mount_new(kind: &str, source: &str, options: &[impl AsRef<str>], target: &Path) -> io::Result<()> {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_ref() {
            "nosuid" => flags |= MountFlags::NOSUID,
            "noexec" => flags |= MountFlags::NOEXEC,
            "nodev" => flags |= MountFlags::NODEV,
            "ro" => flags |= MountFlags::RDONLY,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            other => data.push(other),
        }
    }
    if !target.exists() {
        fs::create_dir(target)?;
    }
    let data = CString::new(data.join(",")).map_err(io::Error::other)?;
    Ok(mount(source, target, kind, flags, Some(data.as_c_str()))?)
}

fn furnish_devices(folder: &Path) -> io::Result<()> {
    let everybodys = Mode::from_raw_mode(0o666);
    for (name, major, minor) in DEVICES {
        let path = folder.join(name);
        mknodat(CWD, &path, FileType::CharacterDevice, everybodys, makedev(major, minor))?;
        // Whatever the umask is.
        rustix::fs::chmod(&path, everybodys)?;
    }
    LINKS.iter().try_for_each(|(name, target)| symlink(target, folder.join(name)))
}

/// Source: runc `readonlyPath`.
fn make_read_only(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    mount_bind_recursive(path, path)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::BIND;
    Ok(mount_remount(path, flags, c"")?)
}

/// Source: runc `maskPath`.
fn mask(path: &Path, null: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, None)?),
        Ok(_) => Ok(mount_bind(null, path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// A container's root that is mounted and not yet this process' root.
pub struct Entrance {
    stage: PathBuf,
    mount: OwnedFd,
    /// Paths in it.
    pub root: Root,
}

impl Entrance {
    /// Mounts the root. Shape: `mount` is a detached mount, from `open_tree`.
    pub fn open(stage: &Path, mount: OwnedFd) -> Result<Self, Failure> {
        let path = stage.join(ROOT);
        let opened = move_mount(mount.as_fd(), "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(io::Error::from)
            .and_then(|()| Root::open(&path));
        let root = opened.map_err(|error| Failure::step("cannot mount the container's root", &error))?;
        Ok(Self { stage: stage.to_owned(), mount, root })
    }

    /// Puts the staged mounts, further file systems in memory and the files where the container has them.
    pub fn furnish(&self, tmpfs: &[Tmpfs], files: &[BoundFile]) -> Result<(), Failure> {
        for folder in MOUNTED_FOLDERS {
            let moved = self.move_in(folder);
            moved.map_err(|error| Failure::step(&format!("cannot mount /{folder}"), &error))?;
        }
        for (number, tmpfs) in tmpfs.iter().enumerate() {
            let mounted = self.mount_tmpfs(number, tmpfs);
            mounted.map_err(|error| Failure::step(&format!("cannot mount {}", tmpfs.destination.display()), &error))?;
        }
        for (number, file) in files.iter().enumerate() {
            let bound = self.bind(number, file);
            bound.map_err(|error| Failure::step(&format!("cannot mount {}", file.destination.display()), &error))?;
        }
        Ok(())
    }

    /// Moves a staged mount with all that is on it.
    fn move_in(&self, folder: &str) -> io::Result<()> {
        // A link would lead the container's /proc, which must be a true one, somewhere else.
        if !self.root.is_plain_folder_or_nothing(folder)? {
            return Err(io::Error::other("the root file system has something there that is not a folder"));
        }
        self.root.create_folders(Path::new(folder))?;
        let target = self.root.open_path(Path::new(folder))?;
        Ok(move_mount(CWD, self.stage.join(folder), target.as_fd(), "", MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)?)
    }

    fn mount_tmpfs(&self, number: usize, tmpfs: &Tmpfs) -> io::Result<()> {
        let staged = self.stage.join(format!("tmpfs-{number}"));
        mount_new("tmpfs", "tmpfs", &tmpfs.options, &staged)?;
        self.root.create_folders(&tmpfs.destination)?;
        // A link of the image's leads nowhere near /proc, which must be a true one.
        let target = self.root.open_unmounted(&tmpfs.destination)?;
        Ok(move_mount(CWD, &staged, target.as_fd(), "", MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)?)
    }

    fn bind(&self, number: usize, file: &BoundFile) -> io::Result<()> {
        if file.yields && !self.root.is_empty_or_missing(&file.destination)? {
            return Ok(());
        }
        let source = self.stage.join(FILES).join(number.to_string());
        fs::write(&source, &file.text)?;
        let target = self.root.make_file(&file.destination)?;
        let mount = open_tree(CWD, &source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        if file.read_only {
            sys::set_mount_read_only(mount.as_fd())?;
        }
        let by_descriptors = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(mount.as_fd(), "", target.as_fd(), "", by_descriptors)?)
    }

    /// The root's mount, to set its attributes.
    pub fn mount(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    /// Makes the root this process' root; the old one is gone for it.
    pub fn enter(self) -> Result<(), Failure> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
        let entered = rustix::fs::open(self.stage.join(ROOT), flags, Mode::empty()).and_then(|folder| {
            fchdir(&folder)?;
            // Both on one another, so that no folder for the old root is needed. Source: pivot_root(2).
            pivot_root(".", ".")?;
            unmount(".", UnmountFlags::DETACH)?;
            chdir("/")
        });
        entered.map_err(|error| Failure::step("cannot enter the container's root", &error))
    }
}
