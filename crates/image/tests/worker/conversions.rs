//! What comes out of a worker, and what it says when nothing does.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_image::limits::{Limits, MAX_LAYER_ENTRIES};
use bulkhead_image::{
    Converter, EntryFault, ImageStore, ImportError, ImportOptions, LayerError, StreamRefusal, TarError, WorkerFault,
};

use crate::Case;
use crate::archives::{Entries, entry, gzip, noise, stream};
use crate::jail::Watch;

pub const CASES: &[Case] = &[
    ("a_worker_writes_what_the_process_itself_would", a_worker_writes_what_the_process_itself_would),
    ("refusals_come_back_with_their_type", refusals_come_back_with_their_type),
    ("a_source_that_fails_is_told_as_such", a_source_that_fails_is_told_as_such),
    ("f15_a_million_entries_fit_the_memory", f15_a_million_entries_fit_the_memory),
    ("f15_more_names_than_memory_are_refused", f15_more_names_than_memory_are_refused),
    ("f16_bombs_end_soon", f16_bombs_end_soon),
    ("files_of_five_gibibytes_are_holes", files_of_five_gibibytes_are_holes),
    ("many_layers_convert_side_by_side", many_layers_convert_side_by_side),
];

/// A store whose layers go through workers.
pub struct Store {
    folder: tempfile::TempDir,
    pub images: ImageStore,
}

impl Store {
    pub fn new() -> Self {
        Self::with(Limits::default(), Converter::Workers)
    }

    pub fn with(limits: Limits, converter: Converter) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let images = ImageStore::with_converter(folder.path(), limits, converter).unwrap();
        Self { folder, images }
    }

    pub fn at(folder: tempfile::TempDir) -> Self {
        let images = ImageStore::with_converter(folder.path(), Limits::default(), Converter::Workers).unwrap();
        Self { folder, images }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The bytes of the one layer that an import makes.
    pub fn import(&self, tar: impl Read) -> Result<Vec<u8>, LayerError> {
        let path = self.import_file(tar)?;
        Ok(fs::read(path).unwrap())
    }

    pub fn import_file(&self, tar: impl Read) -> Result<std::path::PathBuf, LayerError> {
        match self.images.import(tar, &ImportOptions::default()) {
            Ok(id) => Ok(self.images.layer_files(&self.images.image(&id).unwrap()).unwrap().remove(0).path),
            Err(ImportError::Layer(error)) => Err(error),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Nothing of a failed import is left.
    pub fn assert_empty(&self) {
        for sub in ["layers", "tmp"] {
            let left: Vec<_> = fs::read_dir(self.path().join(sub)).unwrap().collect();
            assert!(left.is_empty(), "{sub}: {left:?}");
        }
    }
}

fn a_worker_writes_what_the_process_itself_would() {
    let tar = stream(&[entry("d", b'5', b""), entry("d/f", b'0', &noise(300_000)), entry("empty", b'0', b"")]);
    let expected = Store::with(Limits::default(), Converter::InProcess).import(&tar[..]).unwrap();
    let store = Store::new();
    for (what, bytes) in
        [("plain", tar.clone()), ("gzip", gzip(&tar)), ("zstd", zstd::encode_all(&tar[..], 3).unwrap())]
    {
        assert!(store.import(&bytes[..]).unwrap() == expected, "{what}");
    }
}

fn refusals_come_back_with_their_type() {
    let limits =
        Limits { layer_entries: 10, layer_bytes: 1 << 20, decompression_free_bytes: 1 << 19, ..Limits::default() };
    let store = Store::with(limits, Converter::Workers);
    let good = stream(&[entry("f", b'0', b"x")]);
    let refused = |bytes: &[u8]| {
        let error = store.import(bytes).unwrap_err();
        store.assert_empty();
        error
    };
    let long = stream(&[entry("f", b'0', &noise(2 << 20))]);
    let bomb = zstd::encode_all(&vec![0; 1 << 20][..], 3).unwrap();
    let many: Vec<_> = (0..11).map(|number| entry(&number.to_string(), b'0', b"")).collect();
    let mut bad_crc = gzip(&good);
    let at = bad_crc.len() - 6;
    bad_crc[at] ^= 1;
    assert!(matches!(refused(&long), LayerError::Refused(StreamRefusal::TooLong { limit }) if limit == 1 << 20));
    assert!(matches!(refused(&gzip(&long)), LayerError::Refused(StreamRefusal::TooLong { .. })));
    assert!(matches!(refused(&bomb), LayerError::Refused(StreamRefusal::Bomb { .. })));
    assert!(matches!(refused(b"\x04\x22\x4d\x18"), LayerError::Refused(StreamRefusal::Unsupported { program: "lz4" })));
    assert!(matches!(refused(&stream(&many)), LayerError::TooManyEntries { limit: 10 }));
    assert!(matches!(refused(&[7; 2000]), LayerError::Tar(TarError::Reported(_))));
    assert!(matches!(refused(&good[..700]), LayerError::Tar(TarError::Read(_))), "cut");
    assert!(matches!(refused(&bad_crc), LayerError::Tar(TarError::Read(_))), "checksum");
    assert!(matches!(refused(&gzip(&good)[..30]), LayerError::Tar(TarError::Read(_))), "cut gzip");
    let trailing = [&good[..], b"x"].concat();
    assert!(matches!(refused(&trailing), LayerError::Tar(TarError::TrailingData)));
    let error = refused(&stream(&[entry("../x", b'0', b"")]));
    assert!(matches!(error, LayerError::Entry { ref path, fault: EntryFault::ParentComponent } if path == "../x"));
    // A refusal long before the end of a long stream.
    let early = [entry("../x", b'0', b""), vec![0; 900_000]].concat();
    assert!(matches!(refused(&gzip(&early)), LayerError::Entry { .. }));
}

fn a_source_that_fails_is_told_as_such() {
    struct Failing(usize);
    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or_else(|| std::io::Error::other("the line broke"))?;
            buffer.fill(0);
            Ok(buffer.len())
        }
    }
    let store = Store::new();
    let head = entry("f", b'0', &noise(10_000))[..5000].to_vec();
    for (what, head) in [("plain", head.clone()), ("gzip", gzip(&head)[..4000].to_vec())] {
        let error = store.import(head.chain(Failing(3))).unwrap_err();
        assert!(
            matches!(&error, LayerError::Tar(TarError::Read(cause)) if cause.to_string() == "the line broke"),
            "{what}: {error:?}"
        );
        store.assert_empty();
    }
}

fn f15_a_million_entries_fit_the_memory() {
    type Name = fn(u64) -> String;
    let names: [(&str, u8, Name); 2] = [
        ("one folder", b'0', |number| format!("d/an-ordinary-name-{number:07}.txt")),
        ("folders", b'5', |number| format!("{}/f{number:07}", number / 2000)),
    ];
    for (what, kind, name) in names {
        let store = Store::new();
        let watch = Watch::start();
        let layer =
            store.import_file(Entries::new(MAX_LAYER_ENTRIES, |number| entry(&name(number), kind, b""))).unwrap();
        let peak = watch.peak_bytes();
        assert!(peak > 20 << 20 && peak < 128 << 20, "{what}: {} MiB", peak >> 20);
        crate::jail::fsck(&layer);
    }
    let store = Store::new();
    let one_more = Entries::new(MAX_LAYER_ENTRIES + 1, |_| entry("same", b'0', b""));
    assert!(matches!(store.import(one_more).unwrap_err(), LayerError::TooManyEntries { .. }));
}

fn f15_more_names_than_memory_are_refused() {
    let store = Store::new();
    let long = "n".repeat(90);
    let watch = Watch::start();
    let endless = Entries::new(MAX_LAYER_ENTRIES, |number| {
        entry(&format!("{number}/{}", &long[..90 - number.to_string().len()]), b'0', b"")
    });
    let error = store.import(endless).unwrap_err();
    assert!(matches!(error, LayerError::Entry { fault: EntryFault::LayerTooLarge, .. }), "{error:?}");
    assert!(watch.peak_bytes() < 128 << 20);
    store.assert_empty();
}

fn f16_bombs_end_soon() {
    // 4 GiB of zeros in 4 MiB, and 128 GiB in frames that repeat.
    let megabyte = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, &vec![0; 1 << 20]).unwrap();
        encoder.finish().unwrap()
    };
    let frame = zstd::encode_all(&vec![0; 16 << 20][..], 19).unwrap();
    let gzip_bomb = Entries::new(4096, move |_| megabyte.clone());
    let zstd_bomb = Entries::new(8192, move |_| frame.clone());
    let store = Store::new();
    let began = Instant::now();
    let header = gzip(&entry("f", b'0', b"")[..512]);
    for (what, error) in [("gzip", store.import(header.chain(gzip_bomb))), ("zstd", store.import(zstd_bomb))]
        .map(|(what, result)| (what, result.unwrap_err()))
    {
        // Zeros end an archive, and behind the end only zeros may follow: either way nothing is taken.
        assert!(matches!(error, LayerError::Refused(StreamRefusal::Bomb { .. })), "{what}: {error:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    store.assert_empty();
}

fn files_of_five_gibibytes_are_holes() {
    // PAX sparse format 1.0: the map stands before the content.
    let (size, last) = (5_u64 << 30, (5_u64 << 30) - 5);
    let mut map = format!("2\n0\n5\n{last}\n5\n").into_bytes();
    map.resize(512, 0);
    let content = [&map[..], b"beginend!!"].concat();
    let record = |key: &str, value: &str| {
        let body = format!(" {key}={value}\n");
        let length = (body.len()..).find(|length| length - length.to_string().len() == body.len()).unwrap();
        format!("{length}{body}")
    };
    let pax = ["GNU.sparse.major=1", "GNU.sparse.minor=0"].map(|pair| pair.split_once('=').unwrap());
    let size_text = size.to_string();
    let records: String = pax
        .into_iter()
        .chain([("GNU.sparse.name", "sparse"), ("GNU.sparse.realsize", size_text.as_str())])
        .map(|(key, value)| record(key, value))
        .collect();
    let tar = stream(&[entry("pax", b'x', records.as_bytes()), entry("GNUSparseFile.0/sparse", b'0', &content)]);
    let store = Store::new();
    let layer = store.import_file(&tar[..]).unwrap();
    let facts = std::os::unix::fs::MetadataExt::blocks(&layer.metadata().unwrap());
    assert!(facts < 2048, "{facts} blocks on the disk");
    crate::jail::mounted(&layer, |point| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::open(point.join("sparse")).unwrap();
        let mut ends = [0; 10];
        file.read_exact_at(&mut ends[..5], 0).unwrap();
        file.read_exact_at(&mut ends[5..], last).unwrap();
        assert_eq!((&ends, file.metadata().unwrap().len()), (b"beginend!!", size));
    });
}

fn many_layers_convert_side_by_side() {
    let store = Store::new();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let store = &store;
            scope.spawn(move || {
                let tar = stream(&[entry(&number.to_string(), b'0', &noise(100_000 + number))]);
                let bytes = if number % 2 == 0 { tar } else { gzip(&tar) };
                store.import(&bytes[..]).unwrap();
            });
        }
    });
    assert_eq!(fs::read_dir(store.path().join("layers")).unwrap().count(), 8);
    // One bad layer among good ones spoils nobody else's.
    std::thread::scope(|scope| {
        let bad = scope.spawn(|| store.import(&[7_u8; 4096][..]).unwrap_err());
        assert!(store.import(&stream(&[entry("good", b'0', b"x")])[..]).is_ok());
        assert!(!matches!(bad.join().unwrap(), LayerError::Worker(fault) if !matches!(*fault, WorkerFault::Memory)));
    });
}
