//! A real tree goes through tar and conversion and is compared: by `fsck.erofs`, and, as root, through the kernel.

mod random;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::convert::convert;
use crate::limits::Limits;
use crate::testing::{self, RawEntry, folder, hard_link, tar_of};

/// Path below the root -> everything that can be seen of it.
type Listing = BTreeMap<Vec<u8>, String>;

fn list(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let facts = path.symlink_metadata().unwrap();
        let content = if facts.is_symlink() {
            format!("{:?}", path.read_link().unwrap())
        } else if facts.is_file() {
            crate::compression::digest_of(&fs::read(&path).unwrap()).to_string()
        } else {
            String::new()
        };
        let size = if facts.is_dir() { 0 } else { facts.len() };
        let links = if facts.is_dir() { 0 } else { facts.nlink() };
        let xattrs = xattrs_of(&path);
        let line = format!(
            "{:o} {}:{} {}.{:09} links {links} size {size} dev {} {content} {xattrs:?}",
            facts.mode(),
            facts.uid(),
            facts.gid(),
            facts.mtime(),
            facts.mtime_nsec(),
            facts.rdev()
        );
        listing.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), line);
        if facts.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    listing
}

fn xattrs_of(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0_u8; 65_536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let name = String::from_utf8(name.to_vec()).unwrap();
        let mut value = vec![0_u8; 65_536];
        let length = rustix::fs::lgetxattr(path, &name, &mut value[..]).unwrap();
        value.truncate(length);
        (name, value)
    };
    names.map(value).collect()
}

fn missing(program: &str) -> bool {
    let missing = Command::new(program).arg("-V").output().is_err();
    if missing {
        eprintln!("SKIPPED: {program} is not installed (package erofs-utils)");
    }
    missing
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: mounting needs root");
    }
    root
}

fn fsck(image: &Path) {
    if missing("fsck.erofs") {
        return;
    }
    let output = Command::new("fsck.erofs").arg(image).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Mounts while `look` runs.
fn mounted<T>(image: &Path, look: impl FnOnce(&Path) -> T) -> Option<T> {
    let point = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(image).arg(point.path()).output();
    let mounted = mounted.unwrap();
    if !mounted.status.success() && String::from_utf8_lossy(&mounted.stderr).contains("unknown filesystem") {
        eprintln!("SKIPPED: this kernel knows no erofs");
        return None;
    }
    assert!(mounted.status.success(), "{mounted:?}");
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(point.path())));
    assert!(Command::new("umount").arg(point.path()).status().unwrap().success());
    Some(result.unwrap())
}

fn converted(tar: &[u8], image: &Path) -> crate::convert::Converted {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(image).unwrap();
    convert(tar, file, &Limits::default()).unwrap()
}

/// Files around every boundary of the layout, many names, long names, links, set-id bits, binary attributes.
fn make_tree(root: &Path) {
    for size in [0, 1, 31, 32, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 12_288 + 4032, 1 << 20, 3_000_001]
    {
        let content: Vec<u8> = (0..size).map(|at: usize| u8::try_from(at * 7 % 251).unwrap()).collect();
        fs::write(root.join(format!("size-{size}")), content).unwrap();
    }
    fs::write(root.join("zeros"), vec![0; 300_000]).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for index in 0..400 {
        fs::write(root.join(format!("many/{index}-{}", "n".repeat(index % 240))), format!("{index}")).unwrap();
    }
    let deep = root.join("a/b/c/d/e/f/g/h");
    fs::create_dir_all(&deep).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    for name in ["!before-dot", "-also", ".hidden", "...", "~last", "\u{fc}nicode"] {
        fs::write(root.join(name), name).unwrap();
    }
    symlink("a/b", root.join("short-link")).unwrap();
    symlink("x/".repeat(2000), root.join("long-link")).unwrap();
    fs::hard_link(root.join("size-4097"), deep.join("same")).unwrap();
    fs::hard_link(root.join("size-1"), root.join("many/one")).unwrap();
    fs::set_permissions(root.join("size-32"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
}

fn tar_tree(root: &Path) -> Vec<u8> {
    let output = Command::new("tar")
        .args(["--format=posix", "--xattrs", "--xattrs-include=*", "--sort=name", "-C"])
        .arg(root)
        .args(["-cf", "-", "."])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn a_real_tree_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, image) = (folder.path().join("tree"), folder.path().join("image"));
    fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    for (name, value) in [("user.text", &b"x"[..]), ("user.binary", b"a\nb\0=c\n"), ("user.large", &[7; 3000])] {
        let set = rustix::fs::setxattr(tree.join("size-4033"), name, value, rustix::fs::XattrFlags::empty());
        if set.is_err() {
            eprintln!("SKIPPED in part: no user attributes on this file system");
        }
    }
    if rustix::process::geteuid().is_root() {
        let made = Command::new("mknod").arg(tree.join("device")).args(["b", "259", "70000"]).status().unwrap();
        assert!(made.success() && Command::new("mkfifo").arg(tree.join("pipe")).status().unwrap().success());
        rustix::fs::chown(tree.join("size-31"), Some(rustix::fs::Uid::from_raw(4_000_000_000)), None).unwrap();
    }
    let tar = tar_tree(&tree);
    let facts = converted(&tar, &image);
    assert_eq!(facts.diff_id, crate::compression::digest_of(&tar));
    let bytes = fs::read(&image).unwrap();
    assert_eq!(bytes.len() as u64, facts.file_bytes);
    assert_eq!(bytes.len() % 4096, 0);
    let again = folder.path().join("again");
    converted(&testing::gzip(&tar), &again);
    assert!(bytes == fs::read(&again).unwrap(), "equal streams give equal bytes");
    fsck(&image);
    if is_root() {
        mounted(&image, |point| {
            let (expected, found) = (list(&tree), list(point));
            for (path, line) in &expected {
                assert_eq!(found.get(path), Some(line), "{}", String::from_utf8_lossy(path));
            }
            assert_eq!(expected.len(), found.len());
            assert_eq!(point.metadata().unwrap().nlink(), tree.metadata().unwrap().nlink());
        });
    }
}

#[test]
fn large_attributes_and_odd_owners_survive() {
    let folder_ = tempfile::tempdir().unwrap();
    let image = folder_.path().join("image");
    let (large, capability) =
        (vec![b'v'; 20_000], b"\x01\x00\x00\x02\x0a\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00");
    let tar = tar_of(&[
        RawEntry { pax: &[("SCHILY.xattr.user.root", b"r")], ..folder("./") },
        RawEntry { pax: &[("SCHILY.xattr.user.large", &large)], content: &[b'c'; 5000], ..RawEntry::default() },
        RawEntry { path: b"cap", pax: &[("SCHILY.xattr.security.capability", capability)], ..RawEntry::default() },
        RawEntry {
            path: b"opq",
            pax: &[
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.user.overlay.x", b"y"),
                ("SCHILY.xattr.weird.name", b"y"),
            ],
            ..folder("opq")
        },
        RawEntry { path: b"old", pax: &[("mtime", b"-1.25"), ("uid", b"4294967294")], ..RawEntry::default() },
        hard_link("f2", "./f"),
    ]);
    converted(&tar, &image);
    fsck(&image);
    if is_root() {
        mounted(&image, |point| {
            assert_eq!(xattrs_of(point)["user.root"], b"r");
            assert_eq!(xattrs_of(&point.join("f"))["user.large"], large);
            assert_eq!(fs::read(point.join("f2")).unwrap(), [b'c'; 5000]);
            assert_eq!(xattrs_of(&point.join("cap"))["security.capability"], capability);
            assert_eq!(xattrs_of(&point.join("opq")), BTreeMap::new());
            let old = point.join("old").metadata().unwrap();
            assert_eq!((old.mtime(), old.mtime_nsec(), old.uid()), (-2, 750_000_000, u32::MAX - 1));
        });
    }
}

#[test]
fn overlayfs_honours_our_whiteouts() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (lower, upper) = (scratch.path().join("lower"), scratch.path().join("upper"));
    let file = testing::file;
    converted(
        &tar_of(&[
            file("gone", "1"),
            file("kept", "1"),
            file("replaced", "1"),
            folder("dir"),
            file("dir/old", "1"),
            folder("cleared"),
            file("cleared/old", "1"),
            folder("removed"),
            file("removed/x", "1"),
            file("dir/gone", "1"),
            folder("again"),
            file("again/old", "1"),
        ]),
        &lower,
    );
    converted(
        &tar_of(&[
            file(".wh.gone", ""),
            file("replaced", "2"),
            file(".wh.replaced", ""),
            file("dir/.wh.gone", ""),
            file("dir/new", "2"),
            file("cleared/new", "2"),
            file("cleared/.wh..wh..opq", ""),
            file(".wh.removed", ""),
            file(".wh.again", ""),
            folder("again"),
            file("again/new", "2"),
        ]),
        &upper,
    );
    fsck(&upper);
    mounted(&lower, |low| {
        mounted(&upper, |up| {
            let point = tempfile::tempdir().unwrap();
            let layers = format!("lowerdir={}:{}", up.display(), low.display());
            let mount =
                Command::new("mount").args(["-t", "overlay", "overlay", "-o", &layers]).arg(point.path()).output();
            assert!(mount.unwrap().status.success());
            let found: Vec<String> =
                list(point.path()).into_keys().map(|path| String::from_utf8(path).unwrap()).collect();
            let replaced = fs::read_to_string(point.path().join("replaced"));
            assert!(Command::new("umount").arg(point.path()).status().unwrap().success());
            assert_eq!(
                found,
                ["", "again", "again/new", "cleared", "cleared/new", "dir", "dir/new", "dir/old", "kept", "replaced"]
            );
            assert_eq!(replaced.unwrap(), "2");
        })
    });
}

#[test]
fn a_damaged_first_block_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let facts = converted(&testing::layer("f", "x"), &image);
    let uuid = crate::convert::layer_uuid(&facts.diff_id);
    let bytes = fs::read(&image).unwrap();
    let check = |change: &dyn Fn(&mut [u8; 4096]), uuid, length| {
        let mut block: [u8; 4096] = bytes[..4096].try_into().unwrap();
        change(&mut block);
        super::read_superblock(&block, uuid, length)
    };
    use super::SuperblockFault as Fault;
    assert_eq!(check(&|_| {}, uuid, facts.file_bytes), Ok(()));
    assert_eq!(check(&|block| block[1024] = 0, uuid, facts.file_bytes), Err(Fault::Magic));
    assert_eq!(check(&|block| block[1160] ^= 1, uuid, facts.file_bytes), Err(Fault::Checksum));
    assert_eq!(check(&|_| {}, [0; 16], facts.file_bytes), Err(Fault::Identity));
    assert_eq!(check(&|_| {}, uuid, facts.file_bytes + 4096), Err(Fault::Length));
}
