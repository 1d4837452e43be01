//! Files of this machine as a tar stream, and a tar stream from a container as files of this machine.
//!
//! The stream is hostile: nothing of it is written through a link, nor outside of where it belongs.

use std::fs::{self, FileTimes, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use tar::{Archive, Builder, Entry, EntryType, HeaderMode};

/// Writes a file or a folder with everything in it. Shape: it is called `name` in the stream; without a name, only what is in
/// the folder is written. Gives the stream's length.
pub(super) fn pack(to: impl Write, from: &Path, name: Option<&str>, follow: bool) -> io::Result<u64> {
    let mut builder = Builder::new(Counting { to, bytes: 0 });
    builder.mode(HeaderMode::Complete);
    builder.sparse(false);
    builder.follow_symlinks(follow && !from.is_dir());
    let name = name.unwrap_or(".");
    if from.is_dir() && (follow || !from.is_symlink() || from.as_os_str().to_string_lossy().ends_with('/')) {
        builder.follow_symlinks(false);
        builder.append_dir_all(name, from)?;
    } else {
        builder.append_path_with_name(from, name)?;
    }
    let mut counting = builder.into_inner()?;
    counting.flush()?;
    Ok(counting.bytes)
}

struct Counting<W> {
    to: W,
    bytes: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Unpacks a stream at `target`. Shape: with `top`, the first name of every path stands for the target. Gives the bytes of
/// the files.
pub(super) fn unpack(from: impl Read, target: &Path, top: bool, owners: bool) -> io::Result<u64> {
    let mut archive = Archive::new(from);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(owners && rustix::process::geteuid().is_root());
    let (mut folders, mut bytes) = (Vec::new(), 0);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = place(target, &entry.path_bytes(), top)?;
        check_folders(target, &path)?;
        bytes += entry.size();
        if entry.header().entry_type() == EntryType::Directory {
            make_folder(&path)?;
            folders.push((path, entry.header().mode()?, entry.header().mtime()?));
        } else {
            write(&mut entry, target, &path, top)?;
        }
    }
    // A folder that may not be written to is filled first.
    for (path, mode, modified) in folders.into_iter().rev() {
        let folder = fs::File::open(&path)?;
        folder.set_permissions(Permissions::from_mode(mode & 0o7777))?;
        folder.set_times(FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(modified)))?;
    }
    // The rest of the stream, so that whoever sends it comes to an end.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(bytes)
}

fn write<R: Read>(entry: &mut Entry<'_, R>, target: &Path, path: &Path, top: bool) -> io::Result<()> {
    if path.is_dir() && !path.is_symlink() {
        return Err(io::Error::other(format!("cannot overwrite the folder {} with a file", path.display())));
    }
    if entry.header().entry_type() != EntryType::Link {
        return entry.unpack(path).map(drop);
    }
    let linked = entry.link_name_bytes().ok_or(io::ErrorKind::InvalidData)?;
    let linked = place(target, &linked, top)?;
    check_folders(target, &linked)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::hard_link(linked, path)
}

/// Where an entry belongs.
fn place(target: &Path, path: &[u8], top: bool) -> io::Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let mut names = path.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir));
    if top {
        names.next();
    }
    let mut place = target.to_owned();
    for name in names {
        match name {
            Component::Normal(name) => place.push(name),
            _ => return Err(io::Error::other(format!("the archive leads out of its folder: {}", path.display()))),
        }
    }
    Ok(place)
}

/// Makes sure that no folder between the target and a path is a link, which the archive may have brought along.
fn check_folders(target: &Path, path: &Path) -> io::Result<()> {
    let between = path.ancestors().skip(1).take_while(|folder| folder.starts_with(target));
    match between.filter(|folder| *folder != target || target.is_symlink()).find(|folder| folder.is_symlink()) {
        Some(link) => Err(io::Error::other(format!("{} is a link: nothing is written through it", link.display()))),
        None => Ok(()),
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_is_copied_and_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/file"), "text").unwrap();
        fs::hard_link(from.join("sub/file"), from.join("sub/other")).unwrap();
        symlink("sub/file", from.join("link")).unwrap();
        fs::set_permissions(from.join("sub"), Permissions::from_mode(0o555)).unwrap();
        let mut stream = Vec::new();
        pack(&mut stream, &from, Some("name"), false).unwrap();
        let to = folder.path().join("to");
        assert!(unpack(&stream[..], &to, true, false).unwrap() >= 4);
        assert_eq!(fs::read_to_string(to.join("link")).unwrap(), "text");
        assert_eq!(to.join("sub").metadata().unwrap().permissions().mode() & 0o777, 0o555);
        fs::set_permissions(from.join("sub"), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(to.join("sub"), Permissions::from_mode(0o755)).unwrap();
        let mut content = Vec::new();
        pack(&mut content, &from, None, false).unwrap();
        let flat = folder.path().join("flat");
        unpack(&content[..], &flat, false, false).unwrap();
        assert!(flat.join("sub/file").exists());
    }

    #[test]
    fn a_hostile_stream_stays_where_it_belongs() {
        let folder = tempfile::tempdir().unwrap();
        let archive = |entries: &[(&str, Option<&str>)]| {
            let mut builder = Builder::new(Vec::new());
            for (path, link) in entries {
                let mut header = tar::Header::new_ustar();
                header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
                if let Some(link) = link {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_link_name(link).unwrap();
                }
                header.set_mode(0o644);
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, &[][..]).unwrap();
            }
            builder.into_inner().unwrap()
        };
        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        let target = folder.path().join("target");
        let through = archive(&[("t/link", Some("../out")), ("t/link/file", None)]);
        fs::create_dir(&target).unwrap();
        assert!(unpack(&through[..], &target, true, false).is_err());
        let up = archive(&[("t/../../out/file", None)]);
        assert!(unpack(&up[..], &target, true, false).is_err());
        let replaced = archive(&[("t", Some("out")), ("t/file", None)]);
        assert!(unpack(&replaced[..], &folder.path().join("new"), true, false).is_err());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    }
}
