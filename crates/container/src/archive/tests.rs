//! The operations over folders of this machine, without the confinement that needs root: what stays inside does so by itself.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::files::{ChangeLine, FilesRequest, FrameReceiver, FrameSender, PathStat};

use super::serve::operate;
use super::{ArchiveError, ContainerFiles, Root};

fn files(root: &Path) -> ContainerFiles {
    ContainerFiles { merged: Root::open(root).unwrap(), upper: None, lower: None, mounts: Vec::new() }
}

/// What an operation sends, a stat left out.
fn output(files: &ContainerFiles, request: &FilesRequest) -> Result<Vec<u8>, ArchiveError> {
    let mut sent = Vec::new();
    let mut sender = FrameSender::new(&mut sent);
    operate(request, files, &mut FrameReceiver::new(&[][..]), &mut sender)?;
    sender.end(&Ok(())).unwrap();
    let mut receiver = FrameReceiver::new(&sent[..]);
    if matches!(request, FilesRequest::Read { .. }) {
        receiver.message::<PathStat>().unwrap();
    }
    let mut bytes = Vec::new();
    receiver.read_to_end(&mut bytes).unwrap();
    Ok(bytes)
}

fn read(root: &Path, path: &str) -> Result<Vec<u8>, ArchiveError> {
    output(&files(root), &FilesRequest::Read { path: path.into(), mounts: Vec::new() })
}

fn write(root: &Path, path: &str, keep_kinds: bool, tar: &[u8]) -> Result<(), ArchiveError> {
    let mut sent = Vec::new();
    let mut sender = FrameSender::new(&mut sent);
    sender.write_all(tar).unwrap();
    sender.end(&Ok(())).unwrap();
    let request = FilesRequest::Write { path: path.into(), keep_kinds, root_read_only: false, mounts: Vec::new() };
    operate(&request, &files(root), &mut FrameReceiver::new(&sent[..]), &mut FrameSender::new(Vec::new()))
}

fn paths(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap();
    entries.map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap()).collect()
}

/// A tar stream of files (content) and links (`-> target`).
fn tar_of(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o644);
        header.set_uid(u64::from(nix::unistd::getuid().as_raw()));
        header.set_gid(u64::from(nix::unistd::getgid().as_raw()));
        let (kind, content) = match content.split_at_checked(3) {
            Some(("-> ", target)) => (tar::EntryType::Symlink, target),
            Some(("=> ", target)) => (tar::EntryType::Link, target),
            _ if path.ends_with('/') => (tar::EntryType::Directory, ""),
            _ => (tar::EntryType::Regular, *content),
        };
        header.set_entry_type(kind);
        let is_link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
        if is_link {
            header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
        }
        let content = if is_link { "" } else { content };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tree = from.path().join("tree");
    fs::create_dir_all(tree.join("folder/empty")).unwrap();
    fs::write(tree.join("folder/file"), "content").unwrap();
    fs::hard_link(tree.join("folder/file"), tree.join("folder/other")).unwrap();
    fs::set_permissions(tree.join("folder/file"), fs::Permissions::from_mode(0o4750)).unwrap();
    symlink("../nowhere", tree.join("link")).unwrap();
    nix::unistd::mkfifo(&tree.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    let mut sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(5 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 2 << 20).unwrap();
    sparse.flush().unwrap();
    let time =
        fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_600_000_000, 123_456_789));
    fs::File::open(tree.join("folder/file")).unwrap().set_times(time).unwrap();
    let attributes = |path: &Path| {
        let mut value = [0; 16];
        let length = rustix::fs::getxattr(path, "user.mine", &mut value[..]).unwrap_or(0);
        value[..length].to_vec()
    };
    let (file, flags) = (tree.join("folder/file"), rustix::fs::XattrFlags::empty());
    if rustix::fs::setxattr(&file, "user.mine", b"a\nb\0", flags).is_err() {
        eprintln!("SKIPPED: this file system has no attributes");
    }
    fs::File::open(tree.join("folder")).unwrap().set_times(time).unwrap();

    let tar = read(from.path(), "/tree").unwrap();
    assert_eq!(paths(&tar)[..3], ["tree/", "tree/fifo", "tree/folder/"]);
    assert!(tar.len() < 2 << 20, "holes are left out: {} bytes", tar.len());
    write(to.path(), "/", true, &tar).unwrap();
    let copy = to.path().join("tree");
    let (before, after) = (tree.join("folder/file").metadata().unwrap(), copy.join("folder/file").metadata().unwrap());
    assert_eq!((after.mode(), after.nlink(), after.size()), (before.mode(), 2, 7));
    assert_eq!(attributes(&copy.join("folder/file")), attributes(&tree.join("folder/file")));
    assert_eq!((after.mtime(), after.mtime_nsec()), (1_600_000_000, 123_456_789));
    assert_eq!(copy.join("folder").metadata().unwrap().mtime_nsec(), 123_456_789);
    assert_eq!(copy.join("folder/other").metadata().unwrap().ino(), after.ino());
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("../nowhere"));
    assert_eq!(copy.join("fifo").symlink_metadata().unwrap().mode() & 0o170_777, 0o010_640);
    let sparse = copy.join("sparse").metadata().unwrap();
    assert_eq!(sparse.len(), 5 << 20);
    assert!(sparse.blocks() * 512 < 1 << 20, "{} bytes are stored", sparse.blocks() * 512);
    assert_eq!(fs::read(copy.join("sparse")).unwrap(), fs::read(tree.join("sparse")).unwrap());
    // Again, over what is there.
    write(to.path(), "/", true, &tar).unwrap();
}

#[test]
fn names_are_as_docker_has_them() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("a/b")).unwrap();
    fs::write(root.path().join("a/b/f"), "").unwrap();
    symlink("a", root.path().join("l")).unwrap();
    for (path, expected) in [
        ("/a/b", &["b/", "b/f"][..]),
        ("/a/b/", &["b/", "b/f"]),
        ("/a/b/.", &["./", "./f"]),
        ("/a/b/f", &["f"]),
        ("/l", &["l"]),
        ("/l/", &["l/", "l/b/", "l/b/f"]),
        ("/", &["/", "/a/", "/a/b/", "/a/b/f", "/l"]),
    ] {
        assert_eq!(paths(&read(root.path(), path).unwrap()), expected, "{path}");
    }
    let export = output(&files(root.path()), &FilesRequest::Export).unwrap();
    assert_eq!(paths(&export), ["a/", "a/b/", "a/b/f", "l"]);
}

#[test]
fn nothing_is_written_outside() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    fs::create_dir_all(root.join("in/etc")).unwrap();
    fs::write(outer.path().join("canary"), "unchanged").unwrap();
    symlink("../../..", root.join("in/up")).unwrap();
    symlink(outer.path(), root.join("in/absolute")).unwrap();
    symlink("/etc", root.join("in/link")).unwrap();
    let try_write = |path: &str, entries: &[(&str, &str)]| write(&root, path, false, &tar_of(entries));
    // `..` of the root is the root.
    try_write("/in/up", &[("canary", "inside")]).unwrap();
    assert_eq!(fs::read_to_string(root.join("canary")).unwrap(), "inside");
    try_write("/in", &[("up/canary", "again")]).unwrap();
    try_write("/../../in/etc", &[("x", "1")]).unwrap();
    assert!(root.join("in/etc/x").exists());
    assert!(try_write("/in/absolute", &[("canary", "inside")]).is_err(), "that path is not there inside");
    assert!(try_write("/in", &[("absolute/canary", "inside")]).is_err());
    assert!(try_write("/in", &[("../canary", "inside")]).is_err());
    assert!(try_write("/in", &[("a/../../../canary", "inside")]).is_err());
    assert!(try_write("/in", &[("hard", "=> ../../canary")]).is_err());
    assert!(try_write("/in", &[("hard", "=> absolute/canary")]).is_err());
    // A link that the archive brings along leads inside, too.
    assert!(try_write("/in", &[("out", &format!("-> {}", outer.path().display())), ("out/canary", "x")]).is_err());
    try_write("/in", &[("deep", "-> ../../../.."), ("deep/brought", "x")]).unwrap();
    assert!(root.join("brought").exists());
    // What a link names is not written through when the link itself is meant.
    symlink(outer.path().join("canary"), root.join("in/file")).unwrap();
    try_write("/in", &[("file", "replaced")]).unwrap();
    assert!(!root.join("in/file").is_symlink());
    assert_eq!(fs::read_to_string(outer.path().join("canary")).unwrap(), "unchanged");
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2);
}

#[test]
fn kinds_are_kept_where_asked_for() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("folder/in")).unwrap();
    fs::write(root.path().join("file"), "old").unwrap();
    for (entries, there) in [(&[("folder", "x")][..], "directory"), (&[("file/", "")], "non-directory")] {
        let error = write(root.path(), "/", true, &tar_of(entries)).unwrap_err();
        assert!(matches!(&error, ArchiveError::KeepKinds { there: word, .. } if *word == there), "{error}");
    }
    write(root.path(), "/", false, &tar_of(&[("folder", "now a file"), ("file/", "")])).unwrap();
    assert!(root.path().join("folder").is_file() && root.path().join("file").is_dir());
    assert!(matches!(write(root.path(), "/folder", true, &tar_of(&[])), Err(ArchiveError::NotAFolder)));
    assert!(write(root.path(), "/none", true, &tar_of(&[])).is_err());
}

#[test]
fn a_tree_that_changes_all_the_time_stays_inside() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    fs::create_dir_all(root.join("real")).unwrap();
    fs::write(root.join("real/secret"), "inside").unwrap();
    fs::write(outer.path().join("secret"), "outside").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (place, spare) = (root.join("place"), root.join("spare"));
            while !stop.load(Ordering::Relaxed) {
                // A write may have made the place meanwhile: then one of these fails, and the next round goes on.
                for target in [outer.path(), Path::new("../.."), Path::new("real")] {
                    drop(symlink(target, &spare));
                    drop(fs::rename(&spare, &place));
                    drop(fs::remove_file(&place));
                }
                drop(fs::remove_dir_all(&place));
                drop(fs::create_dir(&place));
                drop(fs::write(place.join("secret"), "inside"));
                drop(fs::remove_dir_all(&place));
            }
        });
        let tar = tar_of(&[("secret", "inside"), ("place/secret", "inside")]);
        for _ in 0..400 {
            // Most of these fail, one way or the other: what is asked for is hardly ever there.
            drop(write(&root, "/place", false, &tar));
            drop(write(&root, "/", false, &tar));
            if let Ok(read) = read(&root, "/place/secret") {
                assert!(!read.windows(7).any(|window| window == b"outside"));
            }
            drop(read(&root, "/place/"));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read_to_string(outer.path().join("secret")).unwrap(), "outside");
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2);
}

fn whiteout(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).unwrap();
}

/// Fills two folders as an overlay has them. False where that takes root.
fn upper_and_lower(upper: &Path, lower: &Path) -> bool {
    for path in ["a/kept", "b", "opaque/old", "etc"] {
        fs::create_dir_all(lower.join(path)).unwrap();
    }
    for path in ["a", "new/sub", "opaque", "etc", "proc"] {
        fs::create_dir_all(upper.join(path)).unwrap();
    }
    for (tree, path, text) in [
        (lower, "a/changed", "old"),
        (lower, "a/copied", "same"),
        (lower, "a/gone", "x"),
        (upper, "a/changed", "newer"),
        (upper, "a/copied", "same"),
        (upper, "new/sub/file", "1"),
        (upper, "etc/hosts", ""),
        (upper, "etc/own", "mine"),
    ] {
        fs::write(tree.join(path), text).unwrap();
    }
    let modified = lower.join("a/copied").metadata().unwrap().modified().unwrap();
    fs::File::open(upper.join("a/copied")).unwrap().set_modified(modified).unwrap();
    whiteout(&upper.join("a/gone"));
    whiteout(&upper.join("a/never"));
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(upper.join("opaque"), "trusted.overlay.opaque", b"y", flags).is_ok()
}

#[test]
fn changes_and_the_layer_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let (upper, lower) = (folder.path().join("upper"), folder.path().join("lower"));
    if !upper_and_lower(&upper, &lower) {
        return eprintln!("SKIPPED: folders that hide what is below them take root");
    }
    let files = ContainerFiles {
        merged: Root::open(&upper).unwrap(),
        upper: Some(Root::open(&upper).unwrap()),
        lower: Some(Root::open(&lower).unwrap()),
        mounts: Vec::new(),
    };
    let own: Vec<String> = ["/etc/hosts", "/etc", "/proc"].map(str::to_owned).into();
    let lines = output(&files, &FilesRequest::Changes { own: own.clone() }).unwrap();
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut lines: Vec<String> = lines
        .map(|line| serde_json::from_slice::<ChangeLine>(line).unwrap())
        .map(|line| format!("{} {}", line.kind, line.path))
        .collect();
    lines.sort_unstable_by_key(|line| line[2..].to_owned());
    assert_eq!(
        lines,
        [
            "0 /a",
            "0 /a/changed",
            "2 /a/gone",
            "0 /etc",
            "1 /etc/own",
            "1 /new",
            "1 /new/sub",
            "1 /new/sub/file",
            "0 /opaque",
            "2 /opaque/old",
        ]
    );
    let layer = output(&files, &FilesRequest::Layer { own, freeze: false }).unwrap();
    assert_eq!(
        paths(&layer),
        [
            "./",
            "a/",
            "a/changed",
            "a/copied",
            "a/.wh.gone",
            "a/.wh.never",
            "etc/",
            "etc/own",
            "new/",
            "new/sub/",
            "new/sub/file",
            "opaque/",
            "opaque/.wh..wh..opq",
        ]
    );
    fs::write(upper.join("a/.wh.x"), "").unwrap();
    let refused = output(&files, &FilesRequest::Layer { own: Vec::new(), freeze: false }).unwrap_err();
    assert!(matches!(refused, ArchiveError::Name(_)), "{refused}");
}
