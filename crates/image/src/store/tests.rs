//! Names, removal, crashes.

mod damage;

use std::cell::RefCell;

use super::*;
use crate::import::{ImportError, ImportOptions};
use crate::testing::{archive, docker_files, file, gzip, layer, symlink, tar_of};

fn nobody(_: &Digest) -> Vec<ImageUse> {
    Vec::new()
}

fn used(running: bool) -> impl Fn(&Digest) -> Vec<ImageUse> {
    move |_| vec![ImageUse { container: "c0ffee".repeat(10), running }]
}

struct Fixture {
    folder: tempfile::TempDir,
    store: ImageStore,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&folder.path().join("images")).unwrap();
        Self { folder, store }
    }

    fn load(&self, layers: &[&[u8]], tags: &[&str]) -> Digest {
        let archive = archive(&docker_files(layers, tags));
        self.store.load(&archive[..], &mut |_| {}).unwrap().remove(0).id
    }

    fn reopen(self) -> Self {
        let Self { folder, store } = self;
        drop(store);
        let store = ImageStore::open(&folder.path().join("images")).unwrap();
        Self { folder, store }
    }

    fn files(&self, sub: &str) -> Vec<String> {
        let list = std::fs::read_dir(self.folder.path().join("images").join(sub)).unwrap();
        let mut names: Vec<_> = list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn names(&self) -> Vec<String> {
        self.store.list().into_iter().flat_map(|image| image.repo_tags).collect()
    }
}

#[test]
fn a_second_opener_is_refused() {
    let fixture = Fixture::new();
    let root = fixture.folder.path().join("images");
    let Err(error) = ImageStore::open(&root) else { panic!("opened twice") };
    assert!(error.to_string().contains(root.join("lock").to_str().unwrap()), "{error}");
    drop(fixture.reopen());
}

#[test]
fn everything_is_there_after_a_restart_and_rubbish_is_not() {
    let fixture = Fixture::new();
    let (a, b) = (layer("a", "1"), layer("b", "22"));
    let id = fixture.load(&[&a, &b], &["app:1", "app:2"]);
    let root = fixture.folder.path().join("images");
    std::fs::write(root.join("tmp/rubbish"), "x").unwrap();
    std::fs::write(root.join(format!("layers/{}.erofs", "0".repeat(64))), "x").unwrap();
    let fixture = fixture.reopen();
    assert_eq!((fixture.files("tmp").len(), fixture.files("layers").len()), (0, 2));
    let image = fixture.store.resolve("app:1").unwrap();
    assert_eq!((&image.id, image.size_bytes, image.layer_bytes.clone()), (&id, 3, vec![1, 2]));
    assert_eq!(image.created_unix(), 1_767_323_045);
    assert_eq!(fixture.store.find_tags(&id), ["app:1", "app:2"]);
    let files = fixture.store.layer_files(&image).unwrap();
    assert_eq!(files.iter().map(|file| file.diff_id.clone()).collect::<Vec<_>>(), image.diff_ids);
    assert!(files.iter().all(|file| file.path.metadata().unwrap().len().is_multiple_of(4096)));
    let history = fixture.store.history(&image);
    assert_eq!(history.iter().map(|step| step.size_bytes).collect::<Vec<_>>(), [2, 1]);
    assert_eq!((history[0].id.clone(), history[1].id.clone()), (Some(id), None));
}

#[test]
fn images_are_found_by_name_and_id() {
    let fixture = Fixture::new();
    let id = fixture.load(&[&layer("a", "1")], &["app:1"]);
    let reference: Reference = "localhost:5000/other".parse().unwrap();
    fixture.store.tag(&id.hex()[..12], &reference).unwrap();
    for text in [
        "app:1",
        "docker.io/library/app:1",
        "localhost:5000/other",
        id.as_str(),
        id.hex(),
        &id.hex()[..5],
        &id.as_str()[..15],
    ] {
        assert_eq!(fixture.store.resolve(text).unwrap().id, id, "{text}");
    }
    for text in ["app", "app:2", "", "sha256:", "../x", "zz", &"0".repeat(64), "APP"] {
        assert!(matches!(fixture.store.resolve(text), Err(ResolveError::NotFound { .. })), "{text}");
    }
    // 17 images have two whose ids begin alike.
    for index in 0..17 {
        fixture.load(&[&layer("f", &index.to_string())], &[]);
    }
    let ambiguous = (0..16).map(|digit| fixture.store.resolve(&format!("{digit:x}")));
    assert!(ambiguous.into_iter().any(|result| matches!(result, Err(ResolveError::Ambiguous { .. }))));
    assert!(matches!(fixture.store.tag("missing", &reference), Err(TagError::Resolve(_))));
    let pinned = format!("a@{id}").parse().unwrap();
    assert!(matches!(fixture.store.tag("app:1", &pinned), Err(TagError::Digest)));
}

#[test]
fn removal_follows_dockers_rules() {
    let (a, b, c) = (layer("a", "1"), layer("b", "1"), layer("c", "1"));
    let untagged = |name: &str| Removed::Untagged(name.to_owned());
    let fixture = Fixture::new();
    let first = fixture.load(&[&a, &b], &["app:1", "app:2"]);
    let second = fixture.load(&[&a, &c], &["other"]);
    let chains = fixture.store.resolve("app:1").unwrap().chain_ids();

    let remove = |name: &str, force| fixture.store.remove(name, force, &nobody);
    assert!(matches!(remove("missing", true), Err(RemoveError::Resolve(ResolveError::NotFound { .. }))));
    assert!(matches!(remove(first.hex(), false), Err(RemoveError::ManyNames { .. })));
    // With the last tag of a repository its digests go too; those of another repository stay.
    let pin = |name: &str| {
        Change::PutName(format!("docker.io/library/{name}@{}", "sha256:".to_owned() + &"ab".repeat(32)), first.clone())
    };
    fixture.store.change(&mut fixture.store.index(), vec![pin("app"), pin("elsewhere")]).unwrap();
    assert_eq!(remove("app:1", false).unwrap(), [untagged("app:1")]);
    let digest = format!("@sha256:{}", "ab".repeat(32));
    assert_eq!(remove("app:2", false).unwrap(), [untagged("app:2"), untagged(&format!("app{digest}"))]);
    assert_eq!(fixture.store.find_digests(&first), [format!("elsewhere{digest}")]);
    for name in ["app:1", "app:2"] {
        fixture.store.tag(first.hex(), &name.parse().unwrap()).unwrap();
    }
    assert_eq!(remove(&format!("elsewhere{digest}"), false).unwrap(), [untagged(&format!("elsewhere{digest}"))]);
    // One of several names goes even while a container runs.
    assert_eq!(fixture.store.remove("app:1", false, &used(true)).unwrap(), [untagged("app:1")]);
    // The last name takes the image along, but not the layer that another image has too.
    let removed = remove("app:2", false).unwrap();
    assert_eq!(removed, [untagged("app:2"), Removed::Deleted(first), Removed::Deleted(chains[1].clone())]);
    assert_eq!((fixture.names(), fixture.files("layers").len()), (vec!["other:latest".to_owned()], 2));
    let removed = remove(second.hex(), false).unwrap();
    assert_eq!((removed.len(), removed[0].clone()), (4, untagged("other:latest")));
    assert!(fixture.files("layers").is_empty() && fixture.reopen().store.list().is_empty());
}

#[test]
fn containers_keep_their_image() {
    let fixture = Fixture::new();
    let id = fixture.load(&[&layer("a", "1")], &["app"]);
    let remove = |name: &str, force, running| fixture.store.remove(name, force, &used(running));
    assert!(matches!(remove("app", false, false), Err(RemoveError::NameInUse { .. })));
    assert!(matches!(remove(id.hex(), false, false), Err(RemoveError::Stopped { .. })));
    assert!(matches!(remove(id.hex(), true, true), Err(RemoveError::Running { .. })));
    // Forced, a running container's image loses its name only.
    assert_eq!(remove("app", true, true).unwrap(), [Removed::Untagged("app:latest".to_owned())]);
    assert_eq!(fixture.store.resolve(id.hex()).unwrap().id, id);
    // A stopped container's image goes out of sight, its layers stay until the container is gone.
    assert_eq!(remove(id.hex(), true, false).unwrap(), [Removed::Deleted(id.clone())]);
    let fixture = fixture.reopen();
    assert!(fixture.store.resolve(id.hex()).is_err() && fixture.store.list().is_empty());
    assert!(fixture.store.collect(&used(false)).unwrap().is_empty());
    let image = fixture.store.image(&id).unwrap();
    assert_eq!(fixture.store.layer_files(&image).unwrap().len(), 1);
    assert_eq!(fixture.store.collect(&nobody).unwrap(), [id]);
    assert!(fixture.files("layers").is_empty());
}

#[test]
fn a_removed_image_that_is_loaded_again_is_back() {
    let fixture = Fixture::new();
    let layers = layer("a", "1");
    let id = fixture.load(&[&layers], &["app"]);
    fixture.store.remove(id.hex(), true, &used(false)).unwrap();
    assert_eq!(fixture.load(&[&layers], &["app"]), id);
    assert_eq!(fixture.names(), ["app:latest"]);
    assert!(fixture.store.collect(&nobody).unwrap().is_empty());
}

#[test]
fn a_layer_that_occurs_twice_or_hides_all_is_stacked_right() {
    let (a, b) = (layer("a", "1"), layer("b", "1"));
    let opaque = tar_of(&[file("c", "1"), file(".wh..wh..opq", "")]);
    let fixture = Fixture::new();
    for (layers, expected) in
        [(vec![&a, &b, &a], vec![&b, &a]), (vec![&a, &b, &b], vec![&a, &b]), (vec![&a, &opaque, &b], vec![&opaque, &b])]
    {
        let layers: Vec<&[u8]> = layers.into_iter().map(Vec::as_slice).collect();
        let id = fixture.load(&layers, &[]);
        let image = fixture.store.image(&id).unwrap();
        assert_eq!(image.diff_ids.len(), 3);
        let files: Vec<_> = fixture.store.layer_files(&image).unwrap().into_iter().map(|file| file.diff_id).collect();
        let expected: Vec<_> = expected.into_iter().map(|layer| crate::compression::digest_of(layer)).collect();
        assert_eq!(files, expected);
    }
}

#[test]
fn damaged_layers_are_noticed_and_healed() {
    let fixture = Fixture::new();
    let layers = layer("a", "1");
    let id = fixture.load(&[&layers], &["app"]);
    let image = fixture.store.resolve("app").unwrap();
    let path = fixture.store.layer_files(&image).unwrap().remove(0).path;
    for damage in [Vec::new(), vec![0; 8192], b"x".to_vec()] {
        std::fs::write(&path, damage).unwrap();
        let error = fixture.store.layer_files(&image).unwrap_err();
        assert!(error.to_string().contains("load it again"), "{error}");
        assert_eq!(fixture.load(&[&layers], &["app"]), id);
        assert!(fixture.store.layer_files(&image).is_ok());
    }
    std::fs::remove_file(&path).unwrap();
    assert!(fixture.store.layer_files(&image).is_err());
}

#[test]
fn a_root_file_system_becomes_an_image() {
    let fixture = Fixture::new();
    let rootfs = tar_of(&[file("bin/sh", "#!"), symlink("etc/x", "y")]);
    let options = ImportOptions {
        reference: Some("mine:1".parse().unwrap()),
        changes: vec!["CMD [\"sh\"]".to_owned(), "ENV A=1".to_owned()],
        message: "by test".to_owned(),
        ..ImportOptions::default()
    };
    let id = fixture.store.import(&gzip(&rootfs)[..], &options).unwrap();
    let image = fixture.store.resolve("mine:1").unwrap();
    assert_eq!((&image.id, crate::compression::digest_of(&image.config_json)), (&id, id.clone()));
    assert_eq!(image.diff_ids, [crate::compression::digest_of(&rootfs)]);
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.cmd().as_deref().unwrap(), ["sh"]);
    assert_eq!(config.env().as_deref().unwrap(), ["A=1"]);
    assert_eq!(fixture.store.history(&image)[0].comment, "by test");
    assert!((image.created_unix() - config_time(Some("2026-01-01T00:00:00Z"))) > 0);
    // The other image keeps its id and loses its name.
    let again = fixture.store.import(&rootfs[..], &ImportOptions { changes: Vec::new(), ..options.clone() }).unwrap();
    assert_eq!((fixture.store.resolve("mine:1").unwrap().id, fixture.store.list().len()), (again, 2));

    let import = |tar: &[u8], options: &ImportOptions| fixture.store.import(tar, options).unwrap_err();
    let bad_change = ImportOptions { changes: vec!["RUN x".to_owned()], ..ImportOptions::default() };
    assert!(matches!(import(&rootfs, &bad_change), ImportError::Change(_)));
    assert!(matches!(import(b"", &ImportOptions::default()), ImportError::Empty));
    assert!(matches!(import(&tar_of(&[]), &ImportOptions::default()), ImportError::Empty));
    assert!(matches!(import(b"no tar", &ImportOptions::default()), ImportError::Layer(_)));
    let pinned = ImportOptions { reference: Some(format!("a@{id}").parse().unwrap()), ..ImportOptions::default() };
    assert!(matches!(import(&rootfs, &pinned), ImportError::Digest));
    assert!(fixture.files("tmp").is_empty());
}

#[test]
fn loads_and_removals_at_once_leave_whole_images() {
    let fixture = Fixture::new();
    let (shared, own) = (layer("a", &"1".repeat(10_000)), layer("b", "1"));
    let archive_ = archive(&docker_files(&[&shared, &own], &["app"]));
    let failures = RefCell::new(0);
    std::thread::scope(|scope| {
        let load = || (0..20).filter(|_| fixture.store.load(&archive_[..], &mut |_| {}).is_err()).count();
        let loaders = [scope.spawn(load), scope.spawn(load)];
        let removed = (0..200).filter(|_| fixture.store.remove("app", true, &nobody).is_ok()).count();
        for loader in loaders {
            *failures.borrow_mut() += loader.join().unwrap();
        }
        assert!(removed <= 40);
    });
    assert_eq!(*failures.borrow(), 0);
    fixture.store.load(&archive_[..], &mut |_| {}).unwrap();
    let image = fixture.store.resolve("app").unwrap();
    assert_eq!(fixture.store.layer_files(&image).unwrap().len(), 2);
    assert_eq!((fixture.files("layers").len(), fixture.files("tmp").len()), (2, 0));
}
