//! Archives, good and hostile.

use serde_json::json;

use super::*;
use crate::compression::digest_of;
use crate::limits::Limits;
use crate::testing::{
    Files, GZIP_LAYER, INDEX_TYPE, MANIFEST_TYPE, OciLayout, PLAIN_LAYER, RawEntry, archive, config_of, docker_files,
    file, gzip, hard_link, layer, symlink, tar_of, zstd,
};

struct Fixture {
    folder: tempfile::TempDir,
    store: ImageStore,
}

fn fixture_with(limits: Limits) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::with_limits(folder.path(), limits).unwrap();
    Fixture { folder, store }
}

impl Fixture {
    fn load(&self, archive: &[u8]) -> Result<Vec<LoadedImage>, LoadError> {
        self.store.load(archive, &mut |_| {})
    }

    /// Loads what must be refused; nothing may stay.
    fn refuse(&self, archive: &[u8], what: &str) -> LoadError {
        let Err(error) = self.load(archive) else { panic!("{what} was loaded") };
        assert!(self.store.list().is_empty(), "{what}");
        for sub in ["tmp", "layers"] {
            assert_eq!(std::fs::read_dir(self.folder.path().join(sub)).unwrap().count(), 0, "{what}: {sub}");
        }
        error
    }
}

fn fixture() -> Fixture {
    fixture_with(Limits::default())
}

/// The archive with one file changed.
fn with(mut files: Files, name: &str, content: &[u8]) -> Vec<u8> {
    files.retain(|(other, _)| other != name);
    files.push((name.to_owned(), content.to_vec()));
    archive(&files)
}

#[test]
fn archives_of_docker_save_are_loaded() {
    let (a, b) = (layer("a", "1"), layer("b", "1"));
    let plain = archive(&docker_files(&[&a, &b], &["app:1", "me/app"]));
    for bytes in [plain.clone(), gzip(&plain), zstd(&plain)] {
        let fixture = fixture();
        let mut events = Vec::new();
        let loaded = fixture.store.load(&bytes[..], &mut |event| events.push(event)).unwrap();
        assert_eq!(loaded[0].names, ["app:1", "me/app:latest"]);
        assert_eq!(fixture.store.resolve("app:1").unwrap().diff_ids, [digest_of(&a), digest_of(&b)]);
        assert!(events.contains(&LoadEvent::LayerDone { diff_id: digest_of(&b) }));
        events.clear();
        fixture.store.load(&bytes[..], &mut |event| events.push(event)).unwrap();
        assert!(events.contains(&LoadEvent::LayerExists { diff_id: digest_of(&b) }));
    }
}

#[test]
fn compressed_layers_and_links_between_layers_are_taken() {
    let (a, b) = (layer("a", "1"), layer("b", "1"));
    let mut files = docker_files(&[&a, &b], &["app"]);
    files[0].1 = gzip(&a);
    files[1].1 = zstd(&b);
    fixture().load(&archive(&files)).unwrap();

    // docker save links a layer that occurs twice to its first file.
    let files = docker_files(&[&a, &a, &a], &["app"]);
    let entries: Vec<_> = files
        .iter()
        .map(|(name, content)| match name.as_str() {
            "layer1/layer.tar" => symlink(name, "../layer0/layer.tar"),
            "layer2/layer.tar" => hard_link(name, "layer0/layer.tar"),
            _ => RawEntry { path: name.as_bytes(), content, ..RawEntry::default() },
        })
        .collect();
    fixture().load(&tar_of(&entries)).unwrap();
}

#[test]
fn a_name_moves_to_the_new_image() {
    let fixture = fixture();
    let first = fixture.load(&archive(&docker_files(&[&layer("a", "1")], &["app"]))).unwrap().remove(0).id;
    let mut events = Vec::new();
    let second = archive(&docker_files(&[&layer("a", "2")], &["app"]));
    fixture.store.load(&second[..], &mut |event| events.push(event)).unwrap();
    assert!(events.contains(&LoadEvent::NameMoved { name: "app:latest".to_owned(), from: first.clone() }));
    assert!(fixture.store.find_tags(&first).is_empty());
}

#[test]
fn names_may_stand_in_the_older_file_only() {
    let mut files = docker_files(&[&layer("a", "1")], &[]);
    files.push(("repositories".to_owned(), br#"{"old/app":{"v1":"0123"}}"#.to_vec()));
    assert_eq!(fixture().load(&archive(&files)).unwrap()[0].names, ["old/app:v1"]);
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn hostile_docker_archives_are_refused() {
    let (a, b) = (layer("a", "1"), layer("b", "1"));
    let files = || docker_files(&[&a], &["app"]);
    let config_name = files().iter().find(|(name, _)| name.ends_with(".json")).unwrap().0.clone();
    let manifest = |value: serde_json::Value| with(files(), "manifest.json", value.to_string().as_bytes());
    let item = |config: &str, layers: serde_json::Value| manifest(json!([{ "Config": config, "Layers": layers }]));
    let entry_and_image = |entry: RawEntry<'_>| [entry.bytes(), archive(&files())].concat();
    let link_layer = |target: &str| {
        let files = files();
        let mut entries: Vec<_> = files
            .iter()
            .filter(|(name, _)| !name.starts_with("layer"))
            .map(|(name, content)| RawEntry { path: name.as_bytes(), content, ..RawEntry::default() })
            .collect();
        entries.push(symlink("layer0/layer.tar", target));
        tar_of(&entries)
    };
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let many_layers: Vec<&[u8]> = vec![&a; 501];
    let fixture = fixture();
    for (what, bytes) in [
        ("nothing", Vec::new()),
        ("no archive", b"hello".repeat(200)),
        ("cut", archive(&files())[..2000].to_vec()),
        ("cut gzip", gzip(&archive(&files()))[..200].to_vec()),
        ("a root file system", tar_of(&[file("bin/sh", "")])),
        ("F31 traversal", entry_and_image(file("../x", ""))),
        ("F31 link out", link_layer("../../etc/shadow")),
        ("F31 absolute link", link_layer("/etc/shadow")),
        ("F31 dangling link", link_layer("nothing")),
        ("F31 circular link", link_layer("layer.tar")),
        ("a device", entry_and_image(RawEntry { kind: b'3', device: (1, 3), ..file("null", "") })),
        ("F31 21 MiB of JSON", with(files(), "manifest.json", &vec![b' '; 21 << 20])),
        ("F29 depth", with(files(), "manifest.json", deep.as_bytes())),
        (
            "F29 keys twice",
            with(
                files(),
                "manifest.json",
                format!(r#"[{{"Config":"{config_name}","Config":"x","Layers":[]}}]"#).as_bytes(),
            ),
        ),
        ("no images", manifest(json!([]))),
        ("no list", manifest(json!({}))),
        ("F19 zero layers", item(&config_name, json!([]))),
        ("F31 layer path out", item(&config_name, json!(["../../etc/shadow"]))),
        ("missing layer", item(&config_name, json!(["x"]))),
        ("F31 config path out", item("/../etc/passwd", json!(["layer0/layer.tar"]))),
        (
            "bad name",
            manifest(json!([{ "Config": config_name, "RepoTags": ["../x"], "Layers": ["layer0/layer.tar"] }])),
        ),
        ("altered configuration", with(files(), &config_name, &config_of(&[&b]))),
        ("F18 altered layer", with(files(), "layer0/layer.tar", &b)),
        ("a layer that is no tar", with(files(), "layer0/layer.tar", b"\x7fELF")),
        ("a bad entry in the layer", archive(&docker_files(&[&tar_of(&[file("../x", "")])], &["app"]))),
        ("F19 no layers at all", archive(&docker_files(&[], &["app"]))),
        ("F20 501 layers", archive(&docker_files(&many_layers, &["app"]))),
        ("xz", b"\xfd7zXZ\0".to_vec()),
    ] {
        let error = fixture.refuse(&bytes, what);
        assert!(!matches!(error, LoadError::Store(_)), "{what}: {error:?}");
    }
}

#[test]
fn bombs_are_refused() {
    let limits =
        Limits { archive_bytes: 1 << 20, layer_bytes: 1 << 20, decompression_free_bytes: 1 << 19, ..Limits::default() };
    let zeros = vec![0; 4 << 20];
    let fixture = fixture_with(limits);
    fixture.refuse(&gzip(&zeros), "outer bomb");
    let large = vec![b'x'; 2 << 20];
    let inner = tar_of(&[RawEntry { content: &large, ..RawEntry::default() }]);
    let files = docker_files(&[&inner], &["app"]);
    let compressed = gzip(&inner);
    fixture.refuse(&with(files, "layer0/layer.tar", &compressed), "inner bomb");
}

#[test]
fn oci_layouts_are_loaded() {
    let a = layer("a", "1");
    let mut layout = OciLayout::default();
    let mut named = layout.image(&config_of(&[&a]), GZIP_LAYER, &gzip(&a));
    named["annotations"] =
        json!({ "io.containerd.image.name": "docker.io/library/app:1", "org.opencontainers.image.ref.name": "1" });
    let mut second_name = named.clone();
    second_name["annotations"] = json!({ "org.opencontainers.image.ref.name": "example.com/app:2" });
    let fixture = fixture();
    let loaded = fixture.load(&layout.archive(&[named, second_name])).unwrap();
    assert_eq!(
        loaded,
        [LoadedImage {
            id: digest_of(&config_of(&[&a])),
            names: vec!["app:1".to_owned(), "example.com/app:2".to_owned()]
        }]
    );
}

#[test]
fn names_are_taken_from_the_index_where_the_manifest_has_none() {
    let a = layer("a", "1");
    let mut layout = OciLayout::default();
    let mut named = layout.image(&config_of(&[&a]), PLAIN_LAYER, &a);
    named["annotations"] = json!({ "io.containerd.image.name": "app:1" });
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest_of(bytes).hex());
    let manifest = json!([{ "Config": blob(&config_of(&[&a])), "RepoTags": null, "Layers": [blob(&a)] }]);
    layout.files.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
    assert_eq!(fixture().load(&layout.archive(&[named])).unwrap()[0].names, ["app:1"]);
}

#[test]
fn the_hosts_platform_is_chosen_from_nested_indexes() {
    let (ours, theirs) = (layer("a", "ours"), layer("a", "theirs"));
    let mut layout = OciLayout::default();
    let platform = |mut descriptor: serde_json::Value, os: &str, architecture: &str| {
        descriptor["platform"] = json!({ "os": os, "architecture": architecture });
        descriptor
    };
    let right = layout.image(&config_of(&[&ours]), PLAIN_LAYER, &ours);
    let right = platform(right, "linux", crate::config::host_architecture());
    let wrong = layout.image(&config_of(&[&theirs]), PLAIN_LAYER, &theirs);
    let foreign = platform(wrong.clone(), "linux", "s390x");
    let attestation = platform(wrong, "unknown", "unknown");
    let index = layout.index(&[attestation.clone(), foreign.clone(), right.clone()]);
    let nested = layout.index(std::slice::from_ref(&index));
    let loads = |layout: &OciLayout, top: &[serde_json::Value]| {
        fixture().load(&layout.archive(top)).map(|loaded| loaded[0].id.clone())
    };
    let expected = digest_of(&config_of(&[&ours]));
    for top in [vec![index], vec![nested.clone()], vec![foreign.clone(), right.clone(), attestation.clone()]] {
        assert_eq!(loads(&layout, &top).unwrap(), expected);
    }
    let only_foreign = layout.index(&[foreign]);
    let error = loads(&layout, &[only_foreign]).unwrap_err();
    assert!(error.to_string().contains("linux/s390x"), "{error}");
    let mut deep = nested;
    for _ in 0..4 {
        deep = layout.index(&[deep]);
    }
    assert!(fixture().load(&layout.archive(&[deep])).is_err(), "indexes nested too deep");
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn hostile_layouts_are_refused() {
    let (a, b) = (layer("a", "1"), layer("b", "1"));
    let config = config_of(&[&a]);
    let one = |build: &dyn Fn(&mut OciLayout) -> serde_json::Value| {
        let mut layout = OciLayout::default();
        let top = build(&mut layout);
        layout.archive(&[top])
    };
    let changed = |key: &'static str, value: serde_json::Value| {
        one(&|layout| {
            let mut top = layout.image(&config, PLAIN_LAYER, &a);
            top[key] = value.clone();
            top
        })
    };
    let manifest = |value: &dyn Fn(&mut OciLayout) -> serde_json::Value| {
        one(&|layout| {
            let manifest = value(layout).to_string();
            layout.blob(MANIFEST_TYPE, manifest.as_bytes())
        })
    };
    let blobs = |layout: &mut OciLayout| (layout.blob("config", &config), layout.blob(PLAIN_LAYER, &a));
    let fixture = fixture();
    let sized = |delta: i64| {
        manifest(&move |layout: &mut OciLayout| {
            let (config, mut layer) = blobs(layout);
            layer["size"] = (layer["size"].as_i64().unwrap() + delta).into();
            json!({ "config": config, "layers": [layer] })
        })
    };
    for (what, bytes) in [
        ("F17 says gzip, is plain", one(&|layout| layout.image(&config, GZIP_LAYER, &a))),
        ("F17 says plain, is gzip", one(&|layout| layout.image(&config, PLAIN_LAYER, &gzip(&a)))),
        ("F17 says gzip, is zstd", one(&|layout| layout.image(&config, GZIP_LAYER, &zstd(&a)))),
        ("F17 unknown", one(&|layout| layout.image(&config, "application/x-erofs", &a))),
        ("F18 wrong diffID", one(&|layout| layout.image(&config, PLAIN_LAYER, &b))),
        ("F32 short by 1", sized(1)),
        ("F32 long by 1", sized(-1)),
        ("F33 manifest's length", changed("size", json!(1))),
        ("F34 type confusion", changed("mediaType", json!(INDEX_TYPE))),
        (
            "F34 both at once",
            manifest(&|layout| {
                let (config, layer) = blobs(layout);
                json!({ "config": config, "layers": [layer], "manifests": [] })
            }),
        ),
        (
            "F34 its own type",
            manifest(&|layout| {
                let (config, layer) = blobs(layout);
                json!({ "mediaType": INDEX_TYPE, "config": config, "layers": [layer] })
            }),
        ),
        (
            "F19 no layers",
            manifest(&|layout| {
                let (config, _) = blobs(layout);
                json!({ "config": config, "layers": [] })
            }),
        ),
        ("F35 path", changed("digest", json!("sha256:../.."))),
        ("F35 upper case", changed("digest", json!(digest_of(b"x").to_string().to_uppercase()))),
        ("F35 md5", changed("digest", json!("md5:d41d8cd98f00b204e9800998ecf8427e"))),
        ("F35 empty", changed("digest", json!(""))),
        ("missing manifest", changed("digest", json!(digest_of(b"missing")))),
        ("bad name", changed("annotations", json!({ "io.containerd.image.name": "../x" }))),
        (
            "F36 10,000 manifests",
            OciLayout::default().archive(&vec![json!({ "digest": digest_of(b""), "size": 0 }); 10_000]),
        ),
        ("no manifests", OciLayout::default().archive(&[])),
    ] {
        fixture.refuse(&bytes, what);
    }
    // A blob that is not what its name says.
    let mut layout = OciLayout::default();
    let top = layout.image(&config, PLAIN_LAYER, &a);
    for index in 0..layout.files.len() {
        let mut altered = OciLayout { files: layout.files.clone() };
        let last = altered.files[index].1.len() - 1;
        altered.files[index].1[last] ^= 1;
        fixture.refuse(&altered.archive(std::slice::from_ref(&top)), "F32 altered blob");
    }
}

#[test]
fn several_images_come_or_none_does() {
    let (a, b) = (layer("a", "1"), layer("b", "1"));
    let (mut files, second) = (docker_files(&[&a], &["one"]), docker_files(&[&b], &["two"]));
    let item = |files: &Files| -> serde_json::Value {
        let text = &files.iter().find(|(name, _)| name == "manifest.json").unwrap().1;
        serde_json::from_slice::<serde_json::Value>(text).unwrap()[0].clone()
    };
    let (one, mut two) = (item(&files), item(&second));
    two["Layers"] = json!(["second.tar"]);
    files.push((two["Config"].as_str().unwrap().to_owned(), config_of(&[&b])));
    files.push(("second.tar".to_owned(), b.clone()));
    let manifest = json!([one, two]).to_string();
    let good = with(files.clone(), "manifest.json", manifest.as_bytes());
    assert_eq!(fixture().load(&good).unwrap().len(), 2);
    files.retain(|(name, _)| name != "second.tar");
    fixture().refuse(&with(files, "manifest.json", manifest.as_bytes()), "one bad image of two");
}
