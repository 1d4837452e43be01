//! Leases, crashes of the host, damaged files and records.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;
use crate::content::LayerFault;

impl Fixture {
    fn root(&self) -> PathBuf {
        self.folder.path().join("images")
    }

    fn layer_path(&self, layer: &[u8]) -> PathBuf {
        self.store.content.layer_path(&crate::compression::digest_of(layer))
    }

    /// The host goes down while the store is open, and comes up again.
    fn crash_host(self, boot_id: &str) -> Self {
        let Self { folder, store } = self;
        drop(store);
        let root = folder.path().join("images");
        let records = Records::open(&root.join("images.redb")).unwrap();
        records.begin_run("the boot that crashed").unwrap();
        drop(records);
        let store = ImageStore::open_in_boot(&root, Limits::default(), Converter::InProcess, boot_id).unwrap();
        Self { folder, store }
    }
}

/// A layer whose file has content behind the first block.
fn long_layer() -> Vec<u8> {
    layer("a", &"content ".repeat(20_000))
}

fn flip(path: &std::path::Path, position: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 1], position).unwrap();
}

#[test]
fn a_leased_image_outlives_its_removal() {
    let fixture = Fixture::new();
    let id = fixture.load(&[&layer("a", "1")], &["app"]);
    let (image, lease) = fixture.store.lease("app").unwrap();
    let second = fixture.store.lease(id.hex()).unwrap().1;
    assert_eq!(fixture.store.remove("app", false, &nobody).unwrap().last(), Some(&Removed::Deleted(id.clone())));
    assert!(matches!(fixture.store.lease("app"), Err(ResolveError::NotFound { .. })));
    drop(lease);
    assert!(fixture.store.collect(&nobody).unwrap().is_empty());
    assert_eq!(fixture.store.layer_files(&image).unwrap().len(), 1);
    drop(second);
    assert_eq!(fixture.store.collect(&nobody).unwrap(), [id]);
    assert!(fixture.files("layers").is_empty());
}

#[test]
fn leases_and_removals_at_once_never_lose_a_file() {
    let fixture = Fixture::new();
    let archive_ = archive(&docker_files(&[&layer("a", "1"), &layer("b", "1")], &["app"]));
    std::thread::scope(|scope| {
        let user = scope.spawn(|| {
            let mut used = 0;
            for _ in 0..60 {
                fixture.store.load(&archive_[..], &mut |_| {}).unwrap();
                if let Ok((image, _lease)) = fixture.store.lease("app") {
                    assert_eq!(fixture.store.layer_files(&image).unwrap().len(), 2);
                    used += 1;
                }
            }
            used
        });
        while !user.is_finished() {
            drop(fixture.store.remove("app", true, &nobody));
            fixture.store.collect(&nobody).unwrap();
        }
        assert!(user.join().unwrap() > 0);
    });
}

#[test]
fn after_a_crash_of_the_host_a_layer_is_read_before_it_is_used() {
    let fixture = Fixture::new();
    let bytes = long_layer();
    let id = fixture.load(&[&bytes, &layer("b", "1")], &["app"]);
    let path = fixture.layer_path(&bytes);
    flip(&path, 70_000);
    // The engine alone was restarted: the first block is looked at, no more.
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.layer_files(&fixture.store.image(&id).unwrap()).unwrap().len(), 2);
    let fixture = fixture.crash_host("the next boot");
    assert_eq!(fixture.store.epoch, 1);
    let image = fixture.store.image(&id).unwrap();
    let error = fixture.store.layer_files(&image).unwrap_err();
    assert!(matches!(error.fault, LayerFault::Altered) && error.to_string().contains("load it again"), "{error}");
    assert!(matches!(fixture.store.layer_files(&image).unwrap_err().fault, LayerFault::Marked));
    assert_eq!(fixture.load(&[&bytes, &layer("b", "1")], &["app"]), id);
    assert_eq!(fixture.store.layer_files(&image).unwrap().len(), 2);
    // Verified once, it is not read again; that outlives a restart in order.
    let fixture = fixture.reopen();
    flip(&path, 70_000);
    assert_eq!(fixture.store.layer_files(&image).unwrap().len(), 2);
}

#[test]
fn a_check_finds_all_damage_and_says_what_helps() {
    let fixture = Fixture::new();
    let (flipped, cut, gone, good) = (long_layer(), layer("cut", "1"), layer("gone", "1"), layer("good", "1"));
    let first = fixture.load(&[&good, &flipped], &["flipped"]);
    fixture.load(&[&good, &cut], &["cut"]);
    let gone_id = fixture.load(&[&good, &gone], &["gone"]);
    let pulled = Change::PutName(format!("example.com/gone@{gone_id}"), gone_id);
    fixture.store.change(&mut fixture.store.index(), vec![pulled]).unwrap();
    let clean = fixture.store.check(true).unwrap();
    assert_eq!((clean.layers, clean.images, clean.findings), (4, 3, Vec::new()));
    flip(&fixture.layer_path(&flipped), 70_000);
    File::options().write(true).open(fixture.layer_path(&cut)).unwrap().set_len(4096).unwrap();
    fs::remove_file(fixture.layer_path(&gone)).unwrap();
    fs::write(fixture.root().join("layers/strange"), "x").unwrap();
    for repair in [false, true] {
        let report = fixture.store.check(repair).unwrap();
        let of = |subject: &str| report.findings.iter().find(|finding| finding.subject.contains(subject)).unwrap();
        assert_eq!(report.findings.len(), 4, "{report:#?}");
        for (layer, name, remedy) in [
            (&flipped, "flipped:latest", Remedy::Load),
            (&cut, "cut:latest", Remedy::Load),
            (
                &gone,
                "gone:latest",
                Remedy::Pull(fixture.store.find_digests(&fixture.store.resolve("gone").unwrap().id)[0].clone()),
            ),
        ] {
            let finding = of(crate::compression::digest_of(layer).hex());
            assert_eq!((&finding.images[..], &finding.remedy), (&[name.to_owned()][..], &remedy));
        }
        assert_eq!((of("strange").remedy.clone(), of("strange").repaired), (Remedy::Remove, repair));
    }
    // Marked layers are made anew by a load, the good one is not.
    let image = fixture.store.image(&first).unwrap();
    assert!(matches!(fixture.store.layer_files(&image).unwrap_err().fault, LayerFault::Marked));
    let mut exists = 0;
    for (own, name) in [(&flipped, "flipped"), (&cut, "cut"), (&gone, "gone")] {
        let archive = archive(&docker_files(&[&good, own], &[name]));
        let mut count = |event| exists += usize::from(matches!(event, crate::LoadEvent::LayerExists { .. }));
        fixture.store.load(&archive[..], &mut count).unwrap();
    }
    assert_eq!((exists, fixture.store.check(false).unwrap().findings), (3, Vec::new()));
}

#[test]
fn a_check_removes_what_nobody_has() {
    let fixture = Fixture::new();
    let bytes = layer("a", "1");
    let id = fixture.load(&[&bytes], &["app"]);
    fixture.store.change(&mut fixture.store.index(), vec![Change::DropImage(id)]).unwrap();
    let report = fixture.store.check(true).unwrap();
    let kinds: Vec<_> = report.findings.iter().map(|finding| (finding.kind, finding.remedy.clone())).collect();
    assert_eq!(kinds, [("layer", Remedy::Remove), ("name", Remedy::Remove)]);
    assert_eq!((fixture.files("layers").len(), fixture.names()), (0, Vec::new()));
}

/// F117: whatever becomes of the records, opening them is refused or gives whole images, and nothing panics.
#[test]
fn damaged_records_are_refused_or_whole() {
    let fixture = Fixture::new();
    let older = fixture.root().join("images.redb");
    fixture.load(&[&layer("a", "1")], &["first"]);
    let Fixture { folder, store } = fixture;
    drop(store);
    let copy_of_one = fs::read(&older).unwrap();
    let fixture = Fixture { store: ImageStore::open(&folder.path().join("images")).unwrap(), folder };
    fixture.load(&[&layer("b", "1")], &["second"]);
    let Fixture { folder, store } = fixture;
    drop(store);
    let root = folder.path().join("images");
    let good = fs::read(&older).unwrap();
    let open = |bytes: &[u8]| {
        fs::write(&older, bytes).unwrap();
        ImageStore::open(&root).map(|store| store.list().len())
    };
    for length in [0, 1, 100, 4096, 8192, good.len() / 2, good.len() - 1] {
        assert!(open(&good[..length]).is_err(), "cut to {length}");
    }
    // Most of the file is empty; what is not is flipped here and there.
    let used: Vec<usize> = (0..good.len()).filter(|&at| good[at] != 0).collect();
    for (turn, &position) in used.iter().step_by(used.len() / 100).enumerate() {
        let mut flipped = good.clone();
        flipped[position] ^= 1 << (turn % 8);
        let count = open(&flipped);
        assert!(count.is_err() || matches!(count, Ok(2)), "flipped at {position}: {count:?}");
        if count.is_err() {
            assert!(fs::read(&older).unwrap() == flipped, "flipped at {position}: a refused file was written to");
        }
    }
    fs::remove_file(&older).unwrap();
    assert!(matches!(ImageStore::open(&root), Err(OpenError::RecordsLost { .. })));
    assert_eq!(fs::read_dir(root.join("layers")).unwrap().count(), 2, "nothing is cleared away by a refused opening");
    // An older copy knows less: the layers that it does not know are cleared away.
    assert_eq!(open(&copy_of_one).unwrap(), 1);
    assert_eq!(fs::read_dir(root.join("layers")).unwrap().count(), 1);
    assert!(open(b"no database at all, of some length").is_err());
}
