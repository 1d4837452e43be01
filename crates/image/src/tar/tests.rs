//! Hostile and unusual tar streams.

use std::io::Read;
use std::process::Command;

use super::*;
use crate::testing::{RawEntry, file, folder, pax_record, tar_of};

type Read1 = (String, EntryKind, Vec<u8>);

fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut stream = TarStream::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = stream.next_entry()? {
        let mut content = Vec::new();
        stream.read_to_end(&mut content).map_err(TarError::Read)?;
        assert_eq!(content.len() as u64, entry.size);
        entries.push((entry, content));
    }
    stream.finish()?;
    Ok(entries)
}

fn names(bytes: &[u8]) -> Vec<Read1> {
    let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    read_all(bytes).unwrap().into_iter().map(|(entry, content)| (text(&entry.path), entry.kind, content)).collect()
}

/// A header with other bytes at one place, its checksum right again.
fn patched(mut bytes: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes[148..156].copy_from_slice(b"        ");
    let sum: u32 = bytes[..512].iter().map(|b| u32::from(*b)).sum();
    bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    bytes
}

#[test]
fn long_names_come_in_three_ways() {
    let long = "d/".repeat(120) + "f";
    let gnu = RawEntry { path: b"././@LongLink", kind: b'L', content: long.as_bytes(), ..RawEntry::default() };
    let pax = RawEntry { path: long.as_bytes(), ..RawEntry::default() };
    for bytes in [tar_of(&[gnu, file("short", "x")]), tar_of(&[RawEntry { content: b"x", ..pax }])] {
        assert_eq!(names(&bytes), [(long.clone(), EntryKind::Regular, b"x".to_vec())]);
    }
    let prefixed = patched(tar_of(&[file("f", "x")]), 345, b"some/prefix");
    assert_eq!(names(&prefixed)[0].0, "some/prefix/f");
}

#[test]
fn pax_records_override_the_header_and_keep_binary_values() {
    let value = b"a\nb\0=c\n12 x=y\n";
    let pax: &[(&str, &[u8])] = &[
        ("uid", b"1"),
        ("uid", b"4000000000"),
        ("mtime", b"1700000000.123456789"),
        ("SCHILY.xattr.user.x", value),
        ("path", b"other"),
        ("comment", b"ignored"),
        ("size", b"3"),
    ];
    let (entry, content) =
        read_all(&tar_of(&[RawEntry { pax, content: b"abc", ..RawEntry::default() }])).unwrap().remove(0);
    assert_eq!((entry.uid, entry.path.as_slice(), content.as_slice()), (4_000_000_000, &b"other"[..], &b"abc"[..]));
    assert_eq!(entry.modified, Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 });
    assert_eq!(entry.xattrs, [(b"user.x".to_vec(), value.to_vec())]);
}

#[test]
fn global_headers_and_content_of_links_are_skipped() {
    let global = RawEntry { kind: b'g', content: &pax_record("path", b"evil"), ..RawEntry::default() };
    let old_folder = RawEntry { path: b"old/", kind: 0, ..RawEntry::default() };
    let bytes = tar_of(&[global, file("a", "1"), old_folder, folder("d")]);
    let found = names(&bytes);
    assert_eq!(found.iter().map(|one| one.0.as_str()).collect::<Vec<_>>(), ["a", "old/", "d"]);
    assert_eq!(found[1].1, EntryKind::Directory);
    // A folder whose header claims content has none, so that what would be its content is the next header.
    let folder_with_size = patched(folder("d").bytes(), 124, b"00000001000");
    let bytes = [folder_with_size, tar_of(&[file("a", "1")])].concat();
    assert_eq!(names(&bytes).len(), 2);
}

#[test]
fn numbers_may_be_binary_and_negative() {
    let base = || file("f", "").bytes();
    let negative = patched(base(), 136, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]);
    let large_uid = patched(base(), 108, &[0x80, 0, 0, 0, 0xee, 0x6b, 0x28, 0]);
    let minus_one = patched(base(), 108, &[0xff; 8]);
    assert_eq!(read_all(&negative).unwrap()[0].0.modified.seconds, -2);
    assert_eq!(read_all(&large_uid).unwrap()[0].0.uid, 4_000_000_000);
    assert_eq!(read_all(&minus_one).unwrap()[0].0.uid, -1);
}

#[test]
fn malformed_streams_are_refused() {
    let base = || file("f", "content").bytes();
    let sparse =
        |records: &[(&str, &[u8])]| tar_of(&[RawEntry { pax: records, content: b"abc", ..RawEntry::default() }]);
    let pax = |content: &[u8]| tar_of(&[RawEntry { kind: b'x', content, ..RawEntry::default() }, file("f", "")]);
    let huge = RawEntry { kind: b'x', content: &vec![b'x'; 2 << 20], ..RawEntry::default() }.bytes();
    let mut bad_sum = base();
    bad_sum[0] = b'g';
    for (what, bytes) in [
        ("checksum", bad_sum),
        ("cut in the content", base()[..515].to_vec()),
        ("cut in the padding", base()[..600].to_vec()),
        ("cut in the header", base()[..300].to_vec()),
        ("negative size", patched(base(), 124, &[0xff; 12])),
        ("size of 2^63", patched(base(), 124, &[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0])),
        ("size beyond the stream", patched(base(), 124, b"77777777777\0")),
        ("digits of another base", patched(base(), 124, b"00000000009\0")),
        ("text for a number", patched(base(), 100, b"rw-r--r")),
        ("unknown type", patched(base(), 156, b"V")),
        ("socket type of nobody", patched(base(), 156, b"s")),
        ("one block of zeros", [base(), vec![0; 512], base()].concat()),
        ("data behind the end", [tar_of(&[file("f", "")]), vec![1]].concat()),
        ("extension of 2 MiB", huge),
        ("extension of nothing", [pax(&pax_record("path", b"x"))[..1024].to_vec(), vec![0; 1024]].concat()),
        ("record without length", pax(b"path=x\n")),
        ("record longer than the header", pax(b"99 path=x\n")),
        ("record without line feed", pax(b"9 path=xy")),
        ("record of length 0", pax(b"0 \n")),
        ("NUL in a path", pax(&pax_record("path", b"a\0b"))),
        ("signed size", pax(&pax_record("size", b"-1"))),
        ("size of 2^64", pax(&pax_record("size", b"18446744073709551616"))),
        ("time that is no number", pax(&pax_record("mtime", b"1e400"))),
        ("overlapping segments", sparse(&[("GNU.sparse.map", b"0,2,1,1"), ("GNU.sparse.size", b"9")])),
        ("segments beyond the file", sparse(&[("GNU.sparse.map", b"0,3"), ("GNU.sparse.size", b"2")])),
        ("segments of another length", sparse(&[("GNU.sparse.map", b"0,2"), ("GNU.sparse.size", b"9")])),
        ("segment at 2^64", sparse(&[("GNU.sparse.map", b"18446744073709551615,3"), ("GNU.sparse.size", b"9")])),
        ("unknown sparse format", sparse(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")])),
        (
            "embedded map without end",
            sparse(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1")]),
        ),
    ] {
        assert!(read_all(&bytes).is_err(), "{what}");
    }
}

#[test]
fn an_archive_may_end_without_its_marker() {
    assert_eq!(names(&file("f", "content").bytes()).len(), 1);
    assert_eq!(names(b"").len(), 0);
    assert_eq!(names(&vec![0; 10_240]).len(), 0);
}

#[test]
fn sparse_files_of_gnu_tar_are_filled_with_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holes");
    let file = std::fs::File::create(&path).unwrap();
    let mut expected = vec![0; 1_000_000];
    for at in (0..40).map(|step| step * 24_576) {
        use std::os::unix::fs::FileExt;
        file.write_all_at(b"data", at as u64).unwrap();
        expected[at..at + 4].copy_from_slice(b"data");
    }
    file.set_len(1_000_000).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let output =
            Command::new("tar").args(format).args(["-S", "-cf", "-", "-C"]).arg(folder.path()).arg("holes").output();
        let tar = output.unwrap().stdout;
        assert!(tar.len() < 400_000, "{format:?}: tar made no sparse file");
        let found = names(&tar);
        assert_eq!(found[0].0, "holes", "{format:?}");
        assert!(found[0].2 == expected, "{format:?}");
    }
}
