//! The image cases F1 to F31 of the security reference, each by its number: R refused before any side effect, B bounded and
//! then given up, N must work. Those that need a container, a worker or an engine stand elsewhere; the table in
//! docs/design/0010-conversion-worker.md says where.

use serde_json::{Value, json};

use crate::convert::{LayerError, convert};
use crate::erofs::FileType;
use crate::limits::Limits;
use crate::load::LoadError;
use crate::store::ImageStore;
use crate::testing::seen::Listing;
use crate::testing::{
    Files, GZIP_LAYER, OciLayout, PLAIN_LAYER, RawEntry, archive, config_of, docker_files, file, folder, gzip,
    hard_link, layer, reader, symlink, tar_of, zstd,
};
use crate::tree::EntryFault;
use crate::{StreamRefusal, TarError};

fn converted(stream: &[u8]) -> Result<Listing, LayerError> {
    converted_within(stream, &Limits::default())
}

fn converted_within(stream: &[u8], limits: &Limits) -> Result<Listing, LayerError> {
    let file = tempfile::tempfile().unwrap();
    let facts = convert(stream, file.try_clone().unwrap(), limits)?;
    let mut image = vec![0; usize::try_from(facts.file_bytes).unwrap()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut image, 0).unwrap();
    Ok(reader::read(&image).unwrap())
}

fn tree_of(entries: &[RawEntry<'_>]) -> Listing {
    converted(&tar_of(entries)).unwrap()
}

#[track_caller]
fn refuse(entries: &[RawEntry<'_>], expected: EntryFault) {
    match converted(&tar_of(entries)) {
        Err(LayerError::Entry { fault, .. }) => assert_eq!(fault, expected),
        other => panic!("{other:?}"),
    }
}

fn names(tree: &Listing) -> Vec<&str> {
    tree.keys().filter(|path| !path.is_empty()).map(|path| std::str::from_utf8(path).unwrap()).collect()
}

fn is_opaque(tree: &Listing, path: &str) -> bool {
    tree[path.as_bytes()].xattrs.contains_key(&b"trusted.overlay.opaque"[..])
}

/// A store in a folder beside which files stand that nobody may touch.
struct Fixture {
    around: tempfile::TempDir,
    store: ImageStore,
}

impl Fixture {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let around = tempfile::tempdir().unwrap();
        for number in 0..20 {
            std::fs::write(around.path().join(format!("canary{number}")), number.to_string()).unwrap();
        }
        let store = ImageStore::with_limits(&around.path().join("store"), limits).unwrap();
        Self { around, store }
    }

    /// Everything outside the store.
    fn canaries(&self) -> Vec<(String, String)> {
        let list = std::fs::read_dir(self.around.path()).unwrap().map(|entry| entry.unwrap().path());
        let files = list.filter(|path| path.is_file());
        let mut found: Vec<_> =
            files.map(|path| (path.display().to_string(), std::fs::read_to_string(path).unwrap())).collect();
        found.sort();
        found
    }

    fn load(&self, bytes: &[u8]) -> Result<crate::Image, LoadError> {
        let id = self.store.load(bytes, &mut |_| {})?.remove(0).id;
        Ok(self.store.image(&id).unwrap())
    }

    /// Refuses an archive without a trace.
    #[track_caller]
    fn refuse(&self, bytes: &[u8]) -> LoadError {
        let before = self.canaries();
        let error = self.load(bytes).expect_err("it was loaded");
        assert!(!matches!(error, LoadError::Store(_)), "{error:?}");
        assert_eq!(self.canaries(), before);
        assert!(self.store.list().is_empty());
        for sub in ["layers", "tmp"] {
            assert_eq!(std::fs::read_dir(self.around.path().join("store").join(sub)).unwrap().count(), 0, "{sub}");
        }
        error
    }
}

/// What docker save makes of one layer, with something changed in the configuration.
fn with_config(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let a = layer("a", "1");
    let mut config: Value = serde_json::from_slice(&config_of(&[&a])).unwrap();
    change(&mut config);
    with_config_text(config.to_string().as_bytes())
}

fn with_config_text(config: &[u8]) -> Vec<u8> {
    let manifest = json!([{ "Config": "config", "RepoTags": ["app:1"], "Layers": ["layer.tar"] }]);
    let files: Files = vec![
        ("layer.tar".to_owned(), layer("a", "1")),
        ("config".to_owned(), config.to_vec()),
        ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
    ];
    archive(&files)
}

#[test]
fn f01_parent_components_are_refused_and_absolute_paths_stay_inside() {
    refuse(&[file("../x", "")], EntryFault::ParentComponent);
    refuse(&[folder("a"), file("a/../../x", "")], EntryFault::ParentComponent);
    assert_eq!(names(&tree_of(&[file("/abs", "")])), ["abs"]);
}

#[test]
fn f02_a_symlink_of_the_layer_is_followed_inside_it() {
    let tree =
        tree_of(&[symlink("s", "/etc"), file("s/passwd", "new"), symlink("up", "../../../.."), file("up/x", "")]);
    assert_eq!(names(&tree), ["etc", "etc/passwd", "s", "up", "x"]);
    assert_eq!(tree[&b"s"[..]].content, "/etc");
}

#[test]
fn f03_a_symlink_of_a_lower_layer_is_not_followed() {
    let lower = tree_of(&[symlink("s", "/etc")]);
    let upper = tree_of(&[file("s/passwd", "new")]);
    assert!(lower[&b"s"[..]].is(FileType::Symlink));
    // A folder of this layer's own, which hides the link.
    assert_eq!(names(&upper), ["s", "s/passwd"]);
    assert!(upper[&b"s"[..]].is(FileType::Directory));
}

#[test]
fn f04_hard_links_lead_to_files_of_the_layer_only() {
    refuse(&[hard_link("l", "../etc/passwd")], EntryFault::ParentComponent);
    refuse(&[hard_link("l", "/etc/passwd")], EntryFault::HardLinkTarget);
    refuse(&[symlink("s", "/etc"), hard_link("l", "s/passwd")], EntryFault::HardLinkTarget);
    // To a symbolic link itself: a second name of the link, which leads where it leads inside a container.
    let tree = tree_of(&[symlink("s", "/etc/passwd"), hard_link("l", "s")]);
    assert_eq!((tree[&b"l"[..]].content.as_str(), tree[&b"l"[..]].links), ("/etc/passwd", 2));
}

#[test]
fn f05_hard_links_to_what_the_layer_lacks_are_refused() {
    refuse(&[hard_link("l", "in-a-lower-layer")], EntryFault::HardLinkTarget);
    refuse(&[hard_link("l", "l")], EntryFault::HardLinkTarget);
    refuse(&[folder("d"), hard_link("l", "d")], EntryFault::HardLinkTarget);
}

#[test]
fn f06_loops_of_symlinks_are_refused() {
    refuse(&[symlink("a", "b"), symlink("b", "a"), file("a/x", "")], EntryFault::SymlinkLoop);
    refuse(&[symlink("a", "a"), file("a/x", "")], EntryFault::SymlinkLoop);
}

#[test]
fn f07_whiteouts_of_nothing_or_everything_are_refused() {
    for path in ["d/.wh.", ".wh..", ".wh...", ".wh.../x"] {
        refuse(&[file(path, "")], EntryFault::Whiteout);
    }
}

#[test]
fn f08_opaque_markers_hold_for_the_real_folder_in_any_order() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [3, 3, 0, 1]] {
        let entries = [folder("d"), file("d/new", ""), file("d/sub/f", ""), file("d/.wh..wh..opq", "")];
        let tree = tree_of(&order.map(|index| RawEntry { ..copy(&entries[index]) }));
        assert!(is_opaque(&tree, "d") && !is_opaque(&tree, ""));
    }
    let tree = tree_of(&[folder("real"), symlink("s", "real"), file("s/.wh..wh..opq", ""), folder("other")]);
    assert!(is_opaque(&tree, "real") && !is_opaque(&tree, "other"));
    assert!(tree[&b"s"[..]].is(FileType::Symlink));
    assert!(is_opaque(&tree_of(&[file(".wh..wh..opq", ""), file("f", "")]), ""));
}

fn copy<'a>(entry: &RawEntry<'a>) -> RawEntry<'a> {
    RawEntry {
        path: entry.path,
        kind: entry.kind,
        link: entry.link,
        content: entry.content,
        mode: entry.mode,
        uid: entry.uid,
        device: entry.device,
        pax: entry.pax,
    }
}

#[test]
fn f09_a_whiteout_may_be_a_file_or_a_hard_link_and_nothing_else() {
    for entry in [file(".wh.a", ""), hard_link(".wh.a", "missing")] {
        let tree = tree_of(&[entry]);
        assert!(tree[&b"a"[..]].is(FileType::CharacterDevice));
        assert_eq!((tree[&b"a"[..]].device, names(&tree)), ((0, 0), vec!["a"]));
    }
    refuse(&[folder(".wh.a")], EntryFault::Whiteout);
    refuse(&[symlink(".wh.a", "x")], EntryFault::Whiteout);
    refuse(&[RawEntry { kind: b'3', device: (1, 3), ..file(".wh.a", "") }], EntryFault::Whiteout);
}

#[test]
fn f10_the_last_of_equal_names_counts() {
    let tree = tree_of(&[file("f", "1"), file("f", "22")]);
    assert!(tree[&b"f"[..]].content.starts_with("2 "));
    let flips = [folder("p"), file("p/in", ""), file("p", "x"), symlink("p", "q")];
    assert!(tree_of(&flips)[&b"p"[..]].is(FileType::Symlink));
    assert_eq!(names(&tree_of(&flips)), ["p"]);
    // A folder over a link is a folder, and nothing is written through the link.
    assert_eq!(names(&tree_of(&[symlink("p", "q"), folder("p"), file("p/in", "")])), ["p", "p/in"]);
}

#[test]
fn f11_devices_and_pipes_are_kept_and_forged_whiteouts_refused() {
    let special = |kind, device| RawEntry { kind, device, ..RawEntry::default() };
    assert_eq!(tree_of(&[special(b'3', (1, 3))])[&b"f"[..]].device, (1, 3));
    assert!(tree_of(&[special(b'6', (0, 0))])[&b"f"[..]].is(FileType::Fifo));
    refuse(&[special(b'3', (0, 0))], EntryFault::Device);
    refuse(&[special(b'4', (4096, 0))], EntryFault::Device);
    // A tar stream has no type for sockets.
    assert!(matches!(converted(&tar_of(&[special(b's', (0, 0))])), Err(LayerError::Tar(TarError::Header(_)))));
}

#[test]
fn f12_overlayfs_own_attributes_are_left_out_and_too_many_refused() {
    let names: [(&str, &[u8]); 4] = [
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.overlay.metacopy", b"y"),
        ("SCHILY.xattr.user.kept", b"1"),
    ];
    let tree = tree_of(&[RawEntry { pax: &names, ..folder("d") }]);
    assert_eq!(tree[&b"d"[..]].xattrs.keys().collect::<Vec<_>>(), [b"user.kept"]);
    let many: Vec<String> = (0..10_000).map(|number| format!("SCHILY.xattr.user.{number}")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|key| (key.as_str(), &b"x"[..])).collect();
    let stream = tar_of(&[RawEntry { pax: &many, ..file("f", "") }]);
    assert!(converted(&stream).is_err());
    let large = vec![0; 64 << 10];
    refuse(&[RawEntry { pax: &[("SCHILY.xattr.user.x", &large)], ..file("f", "") }], EntryFault::Xattrs);
}

#[test]
fn f13_set_id_files_are_out_of_reach_for_users_of_the_host() {
    use std::os::unix::fs::PermissionsExt;
    let set_id = tar_of(&[RawEntry { mode: 0o4755, ..file("su", "x") }]);
    let fixture = Fixture::new();
    let image = fixture.load(&archive(&docker_files(&[&set_id], &["app"]))).unwrap();
    let path = fixture.store.layer_files(&image).unwrap().remove(0).path;
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
}

#[test]
fn f14_hostile_headers_are_refused_or_bounded() {
    let pax = |key: &str, value: &[u8]| tar_of(&[RawEntry { pax: &[(key, value)], ..file("f", "x") }]);
    let refused = |stream: &[u8], what: &str| assert!(converted(stream).is_err(), "{what}");
    refused(&pax("path", &vec![b'p'; 1 << 20]), "a path of a mebibyte");
    refused(&pax("path", b"a\0b"), "NUL in a path");
    refused(&pax("size", b"-1"), "a negative size");
    refused(&pax("size", b"1000000"), "a size beyond the stream");
    refused(&pax("size", b"18446744073709551615"), "a size of 2^64-1");
    refused(&pax("uid", b"-1"), "owner -1");
    refused(&pax("gid", b"4294967295"), "group 2^32-1");
    refused(&pax("mtime", b"99999999999999999999"), "a time beyond 2^63");
    refused(&pax("GNU.sparse.map", b"0,5,3,5"), "segments that overlap");
    for (time, seconds) in [(&b"9223372036854775807"[..], i64::MAX), (b"-9223372036854775808", i64::MIN)] {
        assert_eq!(converted(&pax("mtime", time)).unwrap()[&b"f"[..]].modified, (seconds, 0));
    }
    let tree = tree_of(&[RawEntry { path: b"\xff\xfe", ..RawEntry::default() }]);
    assert!(tree.contains_key(&b"\xff\xfe"[..]), "a name is bytes");
    let mut negative = tar_of(&[file("f", "x")]);
    negative[124..136].fill(0xff);
    let sum: u32 = negative[..512]
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    negative[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    refused(&negative, "a negative size in base 256");
}

#[test]
fn f15_entries_and_depth_are_bounded() {
    // A million entries, in one folder and in many: tests/worker, in the worker's own memory.
    let limits = Limits { layer_entries: 100, ..Limits::default() };
    let entries: Vec<RawEntry<'_>> = (0..101).map(|_| file("f", "")).collect();
    assert!(matches!(converted_within(&tar_of(&entries), &limits), Err(LayerError::TooManyEntries { limit: 100 })));
    let deep = "d/".repeat(4096);
    assert!(matches!(
        converted(&tar_of(&[file(&deep, "")])),
        Err(LayerError::Entry { fault: EntryFault::PathTooLong, .. })
    ));
}

#[test]
fn f16_bombs_and_broken_compression_are_refused() {
    let limits = Limits { decompression_free_bytes: 1 << 18, ..Limits::default() };
    let zeros = vec![0; 8 << 20];
    let endless = zstd(&zeros[..1 << 18]).repeat(100);
    let mut densest = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut densest, &zeros).unwrap();
    for bomb in [densest.finish().unwrap(), zstd(&zeros), endless] {
        let outcome = converted_within(&bomb, &limits);
        assert!(matches!(outcome, Err(LayerError::Refused(StreamRefusal::Bomb { .. }))), "{outcome:?}");
    }
    // A frame that wants a window of two gibibytes.
    assert!(converted(&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00]).is_err());
    let good = layer("f", "x");
    for good in [gzip(&good), zstd(&good)] {
        assert!(converted(&good).is_ok());
        assert!(converted(&good[..good.len() - 3]).is_err(), "cut");
        assert!(converted(&[&good[..], b"garbage"].concat()).is_err(), "trailing garbage");
    }
    let mut bad_crc = gzip(&good);
    let at = bad_crc.len() - 6;
    bad_crc[at] ^= 1;
    assert!(converted(&bad_crc).is_err());
}

fn oci(media_type: &str, blob: &[u8], uncompressed: &[u8]) -> Vec<u8> {
    let mut layout = OciLayout::default();
    let top = layout.image(&config_of(&[uncompressed]), media_type, blob);
    layout.archive(&[top])
}

#[test]
fn f17_a_media_type_that_lies_or_is_unknown_is_refused() {
    let (a, fixture) = (layer("a", "1"), Fixture::new());
    for (media_type, blob) in
        [(GZIP_LAYER, a.clone()), (PLAIN_LAYER, gzip(&a)), (GZIP_LAYER, zstd(&a)), ("application/x-new", a.clone())]
    {
        fixture.refuse(&oci(media_type, &blob, &a));
    }
    fixture.load(&oci(GZIP_LAYER, &gzip(&a), &a)).unwrap();
}

#[test]
fn f18_a_wrong_diff_id_is_refused_though_the_blobs_digest_is_right() {
    let error = Fixture::new().refuse(&oci(PLAIN_LAYER, &layer("a", "1"), &layer("b", "1")));
    assert!(matches!(error, LoadError::DigestMismatch { .. }), "{error:?}");
}

#[test]
fn f19_no_layers_are_refused_and_an_empty_one_is_an_empty_folder() {
    let fixture = Fixture::new();
    fixture.refuse(&archive(&docker_files(&[], &["app"])));
    let mut layout = OciLayout::default();
    let config = layout.blob("application/vnd.oci.image.config.v1+json", &config_of(&[]));
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [] });
    let top = layout.blob(crate::testing::MANIFEST_TYPE, manifest.to_string().as_bytes());
    fixture.refuse(&layout.archive(&[top]));
    let image = fixture.load(&archive(&docker_files(&[&tar_of(&[])], &["app"]))).unwrap();
    let files = fixture.store.layer_files(&image).unwrap();
    assert_eq!(files.len(), 1, "a file of the store's, never what was there before");
    let tree = reader::read(&std::fs::read(&files[0].path).unwrap()).unwrap();
    assert_eq!(names(&tree), Vec::<&str>::new());
}

#[test]
fn f20_two_hundred_layers_are_taken_and_ten_thousand_refused() {
    let layers: Vec<Vec<u8>> = (0..200).map(|number| layer("f", &number.to_string())).collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let fixture = Fixture::new();
    fixture.refuse(&archive(&docker_files(&layers.repeat(50), &["app"])));
    let image = fixture.load(&archive(&docker_files(&layers, &["app"]))).unwrap();
    assert_eq!(fixture.store.layer_files(&image).unwrap().len(), 200);
}

#[test]
fn f21_a_layer_that_is_listed_twice_is_mounted_once() {
    let (a, b) = (layer("a", "1"), layer("b", "1"));
    let fixture = Fixture::new();
    let image = fixture.load(&archive(&docker_files(&[&a, &b, &a], &["app"]))).unwrap();
    let files = fixture.store.layer_files(&image).unwrap();
    assert_eq!(image.diff_ids.len(), 3);
    assert_eq!(files.iter().map(|file| &file.diff_id).collect::<Vec<_>>(), [&image.diff_ids[1], &image.diff_ids[2]]);
}

#[test]
fn f22_file_systems_made_by_others_are_refused() {
    let fixture = Fixture::new();
    let output = tempfile::NamedTempFile::new().unwrap();
    convert(&layer("f", "x")[..], output.reopen().unwrap(), &Limits::default()).unwrap();
    let erofs = std::fs::read(output.path()).unwrap();
    for bytes in [erofs, b"no file system ".repeat(300)] {
        for media_type in ["application/vnd.erofs.layer.v1", "application/vnd.oci.image.layer.v1.erofs", PLAIN_LAYER] {
            fixture.refuse(&oci(media_type, &bytes, &bytes));
        }
        fixture.refuse(&archive(&docker_files(&[&bytes], &["app"])));
    }
}

#[test]
fn f23_system_folders_may_be_symlinks_and_stay_text() {
    let tree = tree_of(&[symlink("etc", "/../../etc"), symlink("dev", "/dev"), symlink("proc", "/proc")]);
    assert!(tree.iter().all(|(path, seen)| path.is_empty() || seen.is(FileType::Symlink)));
    // What a container makes of them: tests/e2e, and crates/container.
}

#[test]
fn f27_reserved_labels_are_not_inherited() {
    for label in ["containerd.io/restart.loguri", "io.cri-containerd.image", "dev.bulkhead.isolation"] {
        assert!(crate::is_reserved_label(label), "{label}");
    }
    assert!(!crate::is_reserved_label("org.example.io.containerd"));
}

#[test]
fn f28_texts_that_no_program_can_be_given_are_refused() {
    let fixture = Fixture::new();
    for (key, value) in [
        ("Env", json!(["A=\u{0}"])),
        ("Cmd", json!(["a\u{0}b"])),
        ("Entrypoint", json!(["\u{0}"])),
        ("User", json!("a\u{0}")),
        ("WorkingDir", json!("/\u{0}")),
    ] {
        fixture.refuse(&with_config(|config| config["config"][key] = value));
    }
}

#[test]
fn f29_hostile_configurations_are_refused() {
    let fixture = Fixture::new();
    let good = serde_json::from_slice::<Value>(&config_of(&[&layer("a", "1")])).unwrap().to_string();
    fixture.refuse(&with_config_text(&[&b"["[..]].concat().repeat(10_000)));
    fixture.refuse(&with_config_text(good.replacen('{', r#"{"os":"linux","#, 1).as_bytes()));
    let long = format!("{good}{}", " ".repeat(9 << 20));
    fixture.refuse(&with_config_text(long.as_bytes()));
    fixture.refuse(&with_config(|config| config["os"] = json!("windows")));
    fixture.refuse(&with_config(|config| config["rootfs"]["diff_ids"] = json!(["sha256:../../etc"])));
    fixture.load(&with_config_text(good.as_bytes())).unwrap();
}

#[test]
fn f31_archives_that_lead_out_of_themselves_or_swell_are_refused() {
    let fixture = Fixture::new();
    let (a, canary) = (layer("a", "1"), fixture.around.path().join("canary1").display().to_string());
    let good = || docker_files(&[&a], &["app"]);
    let linked = |target: &str| {
        let files = good();
        let others = files.iter().filter(|(name, _)| !name.ends_with("layer.tar"));
        let mut entries: Vec<_> =
            others.map(|(name, content)| RawEntry { path: name.as_bytes(), content, ..RawEntry::default() }).collect();
        entries.push(symlink("layer0/layer.tar", target));
        tar_of(&entries)
    };
    for target in [canary.as_str(), "../../canary1", "layer.tar", "missing"] {
        fixture.refuse(&linked(target));
    }
    let manifest = |value: Value| {
        let mut files = good();
        files.retain(|(name, _)| name != "manifest.json");
        files.push(("manifest.json".to_owned(), value.to_string().into_bytes()));
        archive(&files)
    };
    fixture.refuse(&[file("../canary1", "overwritten").bytes(), archive(&good())].concat());
    fixture.refuse(&manifest(json!([{ "Config": "../canary1", "Layers": ["layer0/layer.tar"] }])));
    fixture.refuse(&manifest(json!([{ "Config": "x", "Layers": [canary] }])));
    let mut files = good();
    files.retain(|(name, _)| name != "manifest.json");
    files.push(("manifest.json".to_owned(), vec![b' '; 21 << 20]));
    fixture.refuse(&archive(&files));
}
