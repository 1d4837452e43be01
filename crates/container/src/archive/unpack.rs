//! A tar stream, unpacked into a folder of a container.
//!
//! The folder that an entry belongs to is looked up in the container's root; everything else happens by name in that open
//! folder, and follows no link. What is there is replaced, but for folders, which are merged.
//!
//! Source: moby, pkg/archive, `Unpack`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxFlags, Timespec, Timestamps, Uid,
    chownat, fchmod, fchown, fstatvfs, futimens, linkat, makedev, mkdirat, mknodat, openat, openat2, statat, statx,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::attributes;
use super::entry::{Entry, Kind, Time, is_folder};
use super::error::{ArchiveError, shown};
use super::pack::{MOST_DEPTH, names};
use super::path::behind_links;
use super::reader::TarReader;
use crate::rootpath::Root;
use crate::user::{Accounts, UserError};

/// Folders whose times are set at the end.
const MOST_FOLDERS: usize = 1_000_000;

/// What unpacking may not do.
#[derive(Default)]
pub(super) struct Rules {
    /// A folder is not replaced by something else, nor something else by a folder.
    pub keep_kinds: bool,
    /// Only what is mounted in the container is written to.
    pub root_read_only: bool,
}

/// Unpacks a stream. Shape: `folder` is the container's path of a folder that is there.
pub(super) fn unpack(root: &Root, folder: &str, rules: &Rules, from: impl Read) -> Result<(), ArchiveError> {
    let lost = |error: Errno| ArchiveError::at("find", folder.as_bytes())(error);
    let base = behind_links(root, Path::new(folder)).map_err(lost)?;
    match root.resolve(&base, OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOTDIR) => return Err(ArchiveError::NotAFolder),
        other => check_writable(root, &other.map_err(lost)?, rules.root_read_only)?,
    }
    Unpacking { root, base, keep_kinds: rules.keep_kinds, owner: None, parent: None, times: Vec::new() }.run(from, None)
}

/// A mount says itself that it is read-only; that the root is, only the container's configuration says.
fn check_writable(root: &Root, folder: &OwnedFd, root_read_only: bool) -> Result<(), ArchiveError> {
    let looked = |folder: BorrowedFd<'_>| statx(folder, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    let mounts = looked(root.folder()).and_then(|root| Ok((root.stx_mnt_id, looked(folder.as_fd())?.stx_mnt_id)));
    let (of_root, of_folder) = mounts.map_err(|error| ArchiveError::Confine(error.into()))?;
    if of_root == of_folder {
        return if root_read_only { Err(ArchiveError::ReadOnlyRoot) } else { Ok(()) };
    }
    let facts = fstatvfs(folder).map_err(|error| ArchiveError::Confine(error.into()))?;
    if facts.f_flag.contains(StatVfsMountFlags::RDONLY) { Err(ArchiveError::ReadOnlyMount) } else { Ok(()) }
}

/// What `COPY` of a Dockerfile says about where its files go.
pub(super) struct Placing<'a> {
    pub path: &'a str,
    pub folder: bool,
    pub owner: Option<&'a str>,
}

/// Unpacks a stream as [`proto::files::FilesRequest::Place`] says. Source: moby, builder/dockerfile, `performCopyForInfo`.
pub(super) fn place(root: &Root, placing: &Placing<'_>, from: impl Read) -> Result<(), ArchiveError> {
    let owner = placing.owner.map(|text| numbers(root, text)).transpose()?;
    let lost = |error: Errno| ArchiveError::at("find", placing.path.as_bytes())(error);
    let base = behind_links(root, Path::new(placing.path)).map_err(lost)?;
    let is_folder = match root.resolve(&base, OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOTDIR) if placing.folder => {
            return Err(ArchiveError::at("place files in", placing.path.as_bytes())(Errno::NOTDIR));
        }
        Err(Errno::NOENT | Errno::NOTDIR) => placing.folder,
        other => other.map(|_| true).map_err(lost)?,
    };
    let (base, name) = match base.file_name().map(ToOwned::to_owned) {
        Some(name) if !is_folder => (base.parent().unwrap_or(Path::new("/")).to_owned(), Some(name)),
        _ => (base, None),
    };
    let made = root.create_folders_of(&base, owner.map(|(user, group)| (Uid::from_raw(user), Gid::from_raw(group))));
    made.map_err(|error| ArchiveError::at("create", base.as_os_str().as_bytes())(error))?;
    Unpacking { root, base, keep_kinds: false, owner, parent: None, times: Vec::new() }.run(from, name)
}

/// `USER[:GROUP]` as `COPY --chown` has it: a group that is not given has the user's name.
fn numbers(root: &Root, text: &str) -> Result<(u32, u32), ArchiveError> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    let unknown = |error: UserError| {
        ArchiveError::Owner(match error {
            UserError::NoUser(name) => format!("can't find uid for user {name}: no such user: {name}"),
            UserError::NoGroup(name) => format!("can't find gid for group {name}: no such group: {name}"),
            other => other.to_string(),
        })
    };
    let accounts = Accounts::read(root).map_err(unknown)?;
    let user = accounts.resolve(user).map_err(unknown)?.user_id;
    Ok((user, accounts.group_id(group).map_err(unknown)?))
}

struct Unpacking<'a> {
    root: &'a Root,
    base: PathBuf,
    keep_kinds: bool,
    /// Owner of everything, whatever the entries say.
    owner: Option<(u32, u32)>,
    /// The folder of the entry before, which is most often that of the next one too.
    parent: Option<(PathBuf, OwnedFd)>,
    times: Vec<(PathBuf, Time)>,
}

/// Where an entry is made.
struct Target<'a> {
    folder: BorrowedFd<'a>,
    name: OsString,
    path: Vec<u8>,
}

impl Unpacking<'_> {
    /// Unpacks the whole stream. Shape: `name` is what its only entry is called, if it is to be called otherwise.
    fn run(mut self, from: impl Read, name: Option<OsString>) -> Result<(), ArchiveError> {
        let mut tar = TarReader::new(from);
        let mut only = name.map(OsString::into_vec);
        let single = only.is_some();
        while let Some(mut entry) = tar.next_entry()? {
            if single {
                entry.path = only.take().ok_or(ArchiveError::Format("one entry was expected"))?;
            }
            if let Some((user, group)) = self.owner {
                (entry.uid, entry.gid) = (user, group);
            }
            self.entry(&entry, &mut tar)?;
        }
        tar.finish()?;
        self.finish()
    }

    fn entry<R: Read>(&mut self, entry: &Entry, content: &mut TarReader<R>) -> Result<(), ArchiveError> {
        let relative = plain(&entry.path)?;
        // The folder itself stays as it is.
        let Some(name) = relative.file_name().map(ToOwned::to_owned) else { return Ok(()) };
        let parent = relative.parent().unwrap_or(Path::new("")).to_owned();
        let path = self.base.join(&relative).into_os_string().into_vec();
        if self.parent.as_ref().is_none_or(|(known, _)| *known != parent) {
            let opened = self.open(&parent, &path)?;
            self.parent = Some((parent, opened));
        }
        let linked = match entry.kind {
            Kind::HardLink => Some(self.link_target(entry)?),
            _ => None,
        };
        let Some((_, folder)) = &self.parent else { return Ok(()) };
        let target = Target { folder: folder.as_fd(), name, path };
        target.make_room(&relative, entry.kind, self.keep_kinds)?;
        target.make(entry, content, linked.as_ref())?;
        if entry.kind == Kind::Directory {
            if self.times.len() == MOST_FOLDERS {
                return Err(ArchiveError::Format("it has too many folders"));
            }
            self.times.push((self.base.join(relative), entry.modified));
        }
        Ok(())
    }

    /// Opens the folder of an entry, making it if it is not there.
    fn open(&self, parent: &Path, path: &[u8]) -> Result<OwnedFd, ArchiveError> {
        let folder = self.base.join(parent);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.root.resolve(&folder, flags) {
            Err(Errno::NOENT) => {
                self.root.create_folders(&folder).map_err(ArchiveError::at("create the folder of", path))?;
                self.root.resolve(&folder, flags).map_err(ArchiveError::at("open the folder of", path))
            }
            other => other.map_err(ArchiveError::at("open the folder of", path)),
        }
    }

    /// The folder and the name of what a hard link names.
    fn link_target(&self, entry: &Entry) -> Result<(OwnedFd, OsString), ArchiveError> {
        let relative = plain(&entry.link)?;
        let name = relative.file_name().ok_or(ArchiveError::Format("a hard link without a target"))?;
        let folder = self.base.join(relative.parent().unwrap_or(Path::new("")));
        let folder = self.root.resolve(&folder, OFlags::PATH | OFlags::DIRECTORY);
        Ok((folder.map_err(ArchiveError::at("find", &entry.link))?, name.to_owned()))
    }

    /// Sets the folders' times, which what was made in them has changed.
    fn finish(self) -> Result<(), ArchiveError> {
        for (path, time) in self.times.iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let set = self.root.resolve(path, flags).and_then(|folder| futimens(&folder, &times(*time)));
            match set {
                // The container has taken it away meanwhile.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(ArchiveError::at("set the time of", path.as_os_str().as_bytes())(error)),
            }
        }
        Ok(())
    }
}

impl Target<'_> {
    /// Takes away what is in the way. `relative` is its path below the folder.
    fn make_room(&self, relative: &Path, given: Kind, keep_kinds: bool) -> Result<(), ArchiveError> {
        let there = match statat(self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(ArchiveError::at("look at", &self.path))?,
        };
        let (was_folder, becomes_folder) = (is_folder(&there), given == Kind::Directory);
        if was_folder && becomes_folder {
            return Ok(());
        }
        if keep_kinds && was_folder != becomes_folder {
            let word = |is_folder: bool| if is_folder { "directory" } else { "non-directory" };
            let (there, given) = (word(was_folder), word(becomes_folder));
            return Err(ArchiveError::KeepKinds { there, path: shown(&self.path), given });
        }
        remove(self.folder, &self.name, 0).map_err(|error| match error {
            Errno::BUSY | Errno::XDEV => ArchiveError::MountPoint(shown(relative.as_os_str().as_bytes())),
            error => ArchiveError::at("replace", &self.path)(error),
        })
    }

    fn make<R: Read>(
        &self,
        entry: &Entry,
        content: &mut TarReader<R>,
        linked: Option<&(OwnedFd, OsString)>,
    ) -> Result<(), ArchiveError> {
        let failed = |what| move |error: Errno| ArchiveError::at(what, &self.path)(error);
        let (folder, name) = (self.folder, &self.name);
        match entry.kind {
            Kind::Directory => {
                match mkdirat(folder, name, Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(failed("create")(error)),
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = openat(folder, name, flags, Mode::empty()).map_err(failed("open"))?;
                set_open(&opened, entry).map_err(failed("set the owner of"))
            }
            Kind::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(folder, name, flags, Mode::from_raw_mode(0o600)).map_err(failed("create"))?;
                let mut file = File::from(file);
                copy(content, &mut file, &self.path)?;
                set_open(&file, entry).map_err(failed("set the owner of"))?;
                futimens(&file, &times(entry.modified)).map_err(failed("set the time of"))
            }
            Kind::HardLink => {
                let Some((from, from_name)) = linked else {
                    return Err(ArchiveError::Format("a link without a target"));
                };
                linkat(from, from_name, folder, name, AtFlags::empty()).map_err(failed("link"))
            }
            Kind::Symlink => {
                symlinkat(&entry.link[..], folder, name).map_err(failed("create"))?;
                self.set_unopened(entry)
            }
            Kind::CharacterDevice | Kind::BlockDevice | Kind::Fifo => {
                let kind = match entry.kind {
                    Kind::CharacterDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = makedev(entry.device.0, entry.device.1);
                // This thread has no mask.
                let made = mknodat(folder, name, kind, Mode::from_raw_mode(entry.mode), device);
                made.map_err(failed("create"))?;
                self.set_unopened(entry)
            }
        }
    }

    fn set_unopened(&self, entry: &Entry) -> Result<(), ArchiveError> {
        let failed = |error: Errno| ArchiveError::at("set the owner of", &self.path)(error);
        let (uid, gid) = owner(entry).map_err(failed)?;
        chownat(self.folder, &self.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        utimensat(self.folder, &self.name, &times(entry.modified), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }
}

/// The mode after the owner, whose change takes set-id bits away, and the attributes last, for the same reason.
fn set_open(file: impl AsFd, entry: &Entry) -> rustix::io::Result<()> {
    let (uid, gid) = owner(entry)?;
    fchown(&file, Some(uid), Some(gid))?;
    fchmod(&file, Mode::from_raw_mode(entry.mode))?;
    attributes::write(&file, &entry.xattrs)
}

/// 2^32 - 1 means "nobody" to chown(2) and is no owner.
fn owner(entry: &Entry) -> rustix::io::Result<(Uid, Gid)> {
    if entry.uid == u32::MAX || entry.gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    Ok((Uid::from_raw(entry.uid), Gid::from_raw(entry.gid)))
}

fn times(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

/// Copies content; which side failed decides what the error says. What is a hole in a sparse file becomes one.
fn copy<R: Read>(content: &mut TarReader<R>, file: &mut File, path: &[u8]) -> Result<(), ArchiveError> {
    let mut buffer = vec![0; 128 << 10];
    let (sparse, mut length) = (content.is_sparse(), 0);
    loop {
        let count = match content.read(&mut buffer) {
            Ok(0) if sparse => return file.set_len(length).map_err(ArchiveError::at("write", path)),
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ArchiveError::Stream(error)),
        };
        length += count as u64;
        if sparse && buffer[..count].iter().all(|byte| *byte == 0) {
            io::Seek::seek(file, io::SeekFrom::Start(length)).map_err(ArchiveError::at("write", path))?;
        } else {
            io::Write::write_all(file, &buffer[..count]).map_err(ArchiveError::at("write", path))?;
        }
    }
}

/// Removes a name with everything below it; what is mounted there is not touched, and ends it.
fn remove(folder: BorrowedFd<'_>, name: &OsString, depth: usize) -> rustix::io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    if depth == MOST_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat2(folder, name, flags, Mode::empty(), ResolveFlags::NO_XDEV)?;
    for below in names(&opened)? {
        remove(opened.as_fd(), &below, depth + 1)?;
    }
    unlinkat(folder, name, AtFlags::REMOVEDIR)
}

/// An entry's path below the folder, `..` taken away with the name before it.
fn plain(path: &[u8]) -> Result<PathBuf, ArchiveError> {
    if path.contains(&0) {
        return Err(ArchiveError::Format("a path with a zero byte"));
    }
    let mut names = PathBuf::new();
    for component in Path::new(std::ffi::OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => {
                if !names.pop() {
                    return Err(ArchiveError::Outside(shown(path)));
                }
            }
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    Ok(names)
}
