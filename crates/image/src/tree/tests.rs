//! What hostile layers do to names.

use std::fs::File;

use super::*;
use crate::convert::{Converted, LayerError, convert};
use crate::limits::Limits;
use crate::testing::{RawEntry, file, folder, hard_link, symlink, tar_of};

fn convert_with(entries: &[RawEntry<'_>], limits: &Limits) -> Result<Converted, LayerError> {
    convert(&tar_of(entries)[..], tempfile::tempfile().unwrap(), limits)
}

fn fault(entries: &[RawEntry<'_>]) -> Option<EntryFault> {
    match convert_with(entries, &Limits::default()) {
        Ok(_) => None,
        Err(LayerError::Entry { fault, .. }) => Some(fault),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn hostile_entries_are_refused() {
    use EntryFault as Fault;
    let special = |kind, device| RawEntry { kind, device, ..RawEntry::default() };
    let owner = |uid: &'static [u8]| RawEntry { uid, ..RawEntry::default() };
    let named = |path: &'static [u8]| RawEntry { path, ..RawEntry::default() };
    let deep = "d/".repeat(2100);
    let long_name = "n".repeat(256);
    let many: Vec<(String, Vec<u8>)> = (0..600).map(|i| (format!("SCHILY.xattr.user.{i}"), b"x".to_vec())).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
    let large = vec![0; 65_536];
    let long_target = "t/".repeat(2100);
    for (what, entries, expected) in [
        ("F1 parent", vec![file("../x", "")], Fault::ParentComponent),
        ("F1 inner parent", vec![file("a/../../x", "")], Fault::ParentComponent),
        ("F1 harmless parent", vec![file("a/../x", "")], Fault::ParentComponent),
        ("F4 link outside", vec![hard_link("l", "../etc/passwd")], Fault::ParentComponent),
        ("F4 absolute link", vec![hard_link("l", "/etc/passwd")], Fault::HardLinkTarget),
        (
            "F4 through a symlink",
            vec![folder("d"), file("d/f", ""), symlink("s", "d"), hard_link("l", "s/f")],
            Fault::HardLinkTarget,
        ),
        ("F5 missing", vec![hard_link("l", "missing")], Fault::HardLinkTarget),
        ("F5 itself", vec![hard_link("l", "l")], Fault::HardLinkTarget),
        ("F5 folder", vec![folder("d"), hard_link("l", "d")], Fault::HardLinkTarget),
        ("F6 loop", vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "")], Fault::SymlinkLoop),
        ("F6 own loop", vec![symlink("a", "a/a"), file("a/x", "")], Fault::SymlinkLoop),
        ("F7 bare", vec![file("d/.wh.", "")], Fault::Whiteout),
        ("F7 dot", vec![file(".wh..", "")], Fault::Whiteout),
        ("F7 dots", vec![file(".wh...", "")], Fault::Whiteout),
        ("F7 folder", vec![file(".wh.../x", "")], Fault::Whiteout),
        ("F7 in the middle", vec![file(".wh.a/x", "")], Fault::Whiteout),
        ("F7 by a symlink", vec![symlink("s", ".wh.a"), file("s/x", "")], Fault::Whiteout),
        ("F9 folder", vec![folder(".wh.a")], Fault::Whiteout),
        ("F9 symlink", vec![symlink(".wh.a", "b")], Fault::Whiteout),
        ("F9 opaque device", vec![RawEntry { path: b".wh..wh..opq", ..special(b'3', (1, 3)) }], Fault::Whiteout),
        ("F10 below a file", vec![file("a", ""), file("a/b", "")], Fault::ParentNotFolder),
        ("F11 forged whiteout", vec![special(b'3', (0, 0))], Fault::Device),
        ("F11 device number", vec![special(b'4', (5000, 0))], Fault::Device),
        ("F12 many attributes", vec![RawEntry { pax: &many, ..RawEntry::default() }], Fault::Xattrs),
        (
            "F12 large attribute",
            vec![RawEntry { pax: &[("SCHILY.xattr.user.x", &large)], ..RawEntry::default() }],
            Fault::Xattrs,
        ),
        (
            "F12 root's attributes",
            vec![RawEntry { pax: &[("SCHILY.xattr.user.x", &large[..3000])], ..folder("./") }],
            Fault::Xattrs,
        ),
        ("F14 owner -1", vec![owner(&[0xff; 8])], Fault::Owner),
        ("F14 owner 2^32-1", vec![owner(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])], Fault::Owner),
        ("F14 long name", vec![file(&long_name, "")], Fault::PathTooLong),
        ("F14 long path", vec![file(&deep, "")], Fault::PathTooLong),
        ("file as root", vec![named(b"./")], Fault::NotARoot),
        ("empty name", vec![named(b"")], Fault::NotARoot),
        ("empty target", vec![symlink("s", "")], Fault::SymlinkTarget),
        ("long target", vec![symlink("s", &long_target)], Fault::SymlinkTarget),
    ] {
        assert_eq!(fault(&entries), Some(expected), "{what}");
    }
}

#[test]
fn unusual_entries_are_taken() {
    for (what, entries) in [
        ("absolute", vec![file("/abs", "")]),
        ("F2 symlink out of the layer", vec![symlink("s", "/etc"), file("s/passwd", "")]),
        ("F2 symlink above the root", vec![symlink("s", "../../../etc"), file("s/passwd", "")]),
        ("F4 link to a symlink", vec![symlink("s", "/etc/passwd"), hard_link("l", "s")]),
        ("F8 opaque twice", vec![file(".wh..wh..opq", ""), file(".wh..wh..opq", "")]),
        ("F9 hard link as whiteout", vec![hard_link(".wh.a", "missing")]),
        (
            "F10 flips",
            vec![folder("a"), file("a/b", ""), file("a", "1"), symlink("a", "x"), folder("a"), file("a/c", "")],
        ),
        (
            "F11 device and pipe",
            vec![
                RawEntry { kind: b'3', device: (1, 3), ..RawEntry::default() },
                RawEntry { kind: b'6', ..file("p", "") },
            ],
        ),
        ("aufs bookkeeping", vec![file(".wh..wh.aufs", ""), folder(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "")]),
        (
            "F23 system folders as symlinks",
            vec![symlink("proc", "/proc"), symlink("etc", "/etc"), symlink("dev", "/dev")],
        ),
        ("bytes that are no text", vec![RawEntry { path: b"\xff\xfe", ..RawEntry::default() }]),
    ] {
        assert_eq!(fault(&entries), None, "{what}");
    }
}

#[test]
fn symbolic_links_are_followed_inside_the_layer_only() {
    let mut tree = Tree::new();
    let mut put_link = |at: &str, target: &str| {
        let Ok(Place::Name { folder, name }) = tree.locate(at.as_bytes()) else { panic!("{at}") };
        let leaf = Leaf { inode: 0, file_type: FileType::Symlink, target: Some(target.as_bytes().into()) };
        tree.put_leaf(folder, &name, &leaf).unwrap();
    };
    put_link("a/up", "../../../x");
    put_link("a/absolute", "/y/z");
    put_link("a/sibling", "./b//c");
    put_link("a/chain", "sibling/../../up");
    let mut path_of = |path: &str| {
        let Ok(Place::Name { mut folder, name }) = tree.locate(path.as_bytes()) else { panic!("{path}") };
        let mut parts = vec![String::from_utf8(name.to_vec()).unwrap()];
        while folder != ROOT {
            let node = tree.nodes.iter().find(|node| node.child() == Some(Child::Folder(folder))).unwrap();
            parts.insert(0, String::from_utf8(tree.name(node).to_vec()).unwrap());
            folder = tree.folders[folder].parent as usize;
        }
        parts.join("/")
    };
    assert_eq!(path_of("a/up/f"), "x/f");
    assert_eq!(path_of("/a/absolute/f"), "y/z/f");
    assert_eq!(path_of("a/sibling/d/f"), "a/b/c/d/f");
    assert_eq!(path_of("./a/chain/f"), "x/f");
    assert_eq!(path_of("a/up"), "a/up", "the last component is not followed");
}

#[test]
fn whiteouts_mean_the_same_in_any_order() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let entries = [file("d/.wh.gone", ""), file("d/.wh.kept", ""), file("d/kept/x", "")];
        let mut tree = Tree::new();
        for index in order {
            match tree.locate(entries[index].path).unwrap() {
                Place::Whiteout { folder, name } => tree.hide(folder, &name).unwrap(),
                Place::Name { folder, name } => {
                    tree.put_leaf(folder, &name, &Leaf { inode: 0, file_type: FileType::Regular, target: None })
                        .unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        let tree = tree.settle();
        let order: Vec<usize> = tree.order().collect();
        let [_, d, kept] = order[..] else { panic!("{order:?}") };
        let hidden: Vec<_> = tree.names(d).filter(|(_, target)| *target == Target::Hidden).collect();
        assert_eq!(hidden, [(&b"gone"[..], Target::Hidden)]);
        assert!(tree.is_opaque(kept) && !tree.is_opaque(d));
    }
}

#[test]
fn an_opaque_root_is_told() {
    let convert = |entries: &[RawEntry<'_>]| convert_with(entries, &Limits::default()).unwrap().root_opaque;
    assert!(convert(&[file("f", ""), file("./.wh..wh..opq", "")]));
    assert!(!convert(&[folder("d"), file("d/.wh..wh..opq", "")]));
}

#[test]
fn bounds_hold() {
    let limits = Limits { layer_entries: 10, layer_bytes: 1 << 20, ..Limits::default() };
    let names: Vec<String> = (0..11).map(|index| index.to_string()).collect();
    let entries: Vec<_> = names.iter().map(|name| file(name, "")).collect();
    assert!(convert_with(&entries[..10], &limits).is_ok());
    assert!(matches!(convert_with(&entries, &limits), Err(LayerError::TooManyEntries { limit: 10 })));
    let large = "x".repeat(2 << 20);
    assert!(matches!(convert_with(&[file("f", &large)], &limits), Err(LayerError::Refused(_))));
    // A file of a terabyte that is one hole.
    let holes = RawEntry {
        pax: &[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"1000000000000")],
        content: b"x",
        ..file("h", "")
    };
    assert!(matches!(convert_with(&[holes], &limits), Err(LayerError::Refused(_))));
    // Symbolic links make paths deeper than their text.
    let deep = "d/".repeat(1000);
    let step = format!("{deep}s");
    let deeper = format!("{step}/{deep}f");
    let links = [symlink(&step, &deep), file(&deeper, "")];
    assert!(matches!(
        convert_with(&links, &Limits::default()),
        Err(LayerError::Entry { fault: EntryFault::PathTooLong, .. })
    ));
}

#[test]
fn names_cannot_take_all_memory() {
    let small = || Tree { budget_bytes: 1 << 20, ..Tree::new() };
    // Each path implies 2,000 folders that are not there yet.
    let mut tree = small();
    let fault = (0..100).find_map(|index| tree.locate(format!("{index}/{}f", "d/".repeat(2000)).as_bytes()).err());
    assert_eq!(fault, Some(EntryFault::LayerTooLarge));
    // One folder says something else of itself again and again.
    let mut xattrs = Xattrs::default();
    xattrs.push(b"user.x", &[0; 60_000]);
    let facts = FolderFacts { xattrs, ..FolderFacts::default() };
    let mut tree = small();
    let fault = (0..100).find_map(|_| tree.put_folder(ROOT, b"d", facts.clone()).err());
    assert_eq!(fault, Some(EntryFault::LayerTooLarge));
}

#[test]
fn a_failing_disk_is_told_apart_from_a_failing_stream() {
    let read_only = File::open("/dev/null").unwrap();
    let result = convert(&tar_of(&[file("f", "x")])[..], read_only, &Limits::default());
    assert!(matches!(result, Err(LayerError::Write(_))), "{result:?}");
}

/// Streams that are nearly right: whatever comes out, it comes as a value, and what is taken passes for a file system.
#[test]
fn altered_streams_never_panic() {
    let good = tar_of(&[
        folder("d"),
        file("d/f", &"x".repeat(5000)),
        symlink("s", "d"),
        hard_link("h", "d/f"),
        file("s/y", "z"),
        file("d/.wh.gone", ""),
        RawEntry { pax: &[("SCHILY.xattr.user.x", b"value"), ("mtime", b"1.5")], ..file("p", "q") },
        RawEntry { pax: &[("GNU.sparse.map", b"0,1,5,1"), ("GNU.sparse.size", b"9")], ..file("sparse", "ab") },
    ]);
    let limits = Limits { layer_bytes: 1 << 20, ..Limits::default() };
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let mut taken = 0;
    for _ in 0..400 {
        let mut bytes = good.clone();
        for _ in 0..=random(3) {
            // Most changes hit headers, whose checksum is then made right again.
            let block = random(bytes.len() / 512) * 512;
            bytes[block + random(512)] = [0, b'0', b'/', b'.', b'9', 0xff, b'1'][random(7)];
            let mut header = bytes[block..block + 512].to_vec();
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            if random(4) > 0 {
                bytes[block + 148..block + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
        }
        bytes.truncate(bytes.len() - random(2) * random(2000));
        let output = tempfile::tempfile().unwrap();
        if let Ok(converted) = convert(&bytes[..], output.try_clone().unwrap(), &limits) {
            taken += 1;
            assert_eq!(output.metadata().unwrap().len(), converted.file_bytes);
        }
    }
    assert!(taken > 25, "only {taken} of 400 altered streams are still good");
}
