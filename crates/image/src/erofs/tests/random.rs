//! Random trees and random damage.
//!
//! A few of each in every run; `BULKHEAD_RANDOM_TREES=1000` and `BULKHEAD_FUZZ_SECONDS=60` ask for more, and the first
//! also has every tree checked by fsck.erofs and, as root, mounted and read through the kernel.

use std::fs;
use std::time::{Duration, Instant};

use super::{fsck, is_root, mounted};
use crate::convert::{Converted, LayerError, convert};
use crate::limits::Limits;
use crate::testing::random_tree::{Random, tree};
use crate::testing::seen::{Listing, on_disk};
use crate::testing::{gzip, reader, zstd};

fn asked_for(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

fn converted(bytes: &[u8], limits: &Limits) -> Result<(Converted, Vec<u8>), LayerError> {
    let file = tempfile::tempfile().unwrap();
    let facts = convert(bytes, file.try_clone().unwrap(), limits)?;
    let mut image = vec![0; usize::try_from(facts.file_bytes).unwrap()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut image, 0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), facts.file_bytes);
    Ok((facts, image))
}

#[track_caller]
fn assert_same(who: &str, seed: u64, expected: &Listing, found: &Listing) {
    for (path, seen) in expected {
        let path_shown = String::from_utf8_lossy(path);
        assert_eq!(found.get(path), Some(seen), "{who}, tree {seed}, {path_shown}");
    }
    assert_eq!(expected.len(), found.len(), "{who}, tree {seed}");
}

#[test]
fn random_trees_come_back_as_they_were() {
    let asked = asked_for("BULKHEAD_RANDOM_TREES");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let (mut names, mut mounts) = (0, 0);
    for seed in 1..=asked.unwrap_or(40) {
        let (expected, tar) = tree(&mut Random::new(seed));
        let (_, image) = converted(&tar, &Limits::default()).unwrap();
        assert_same("our reader", seed, &expected, &reader::read(&image).unwrap());
        names += expected.len();
        if asked.is_none() {
            continue;
        }
        fs::write(&path, &image).unwrap();
        fsck(&path);
        if is_root() {
            mounted(&path, |point| assert_same("the kernel", seed, &expected, &on_disk(point)));
            mounts += 1;
        }
    }
    println!("{} trees with {names} names are the same, {mounts} of them through the kernel", asked.unwrap_or(40));
}

/// Memory that this process has, bytes.
fn resident() -> u64 {
    let pages: u64 = fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Streams that are nearly right, or not at all: whatever comes out comes as a value, and what is taken can be read.
#[test]
fn damaged_streams_are_refused_or_make_a_file_system() {
    let budget = asked_for("BULKHEAD_FUZZ_SECONDS").map_or(Duration::from_millis(200), Duration::from_secs);
    let limits = Limits { layer_bytes: 4 << 20, decompression_free_bytes: 8 << 20, ..Limits::default() };
    let (began, mut random) = (Instant::now(), Random::new(asked_for("BULKHEAD_FUZZ_SEED").unwrap_or(7)));
    let (mut runs, mut taken, mut memory) = (0_u64, 0_u64, 0);
    let mut good: Vec<u8> = Vec::new();
    // A busy machine does few in the time; fewer than these say nothing.
    while began.elapsed() < budget || runs < 60 {
        if runs.is_multiple_of(50) {
            good = tree(&mut random).1;
            if good.len() > 300_000 {
                good = tree(&mut random).1;
            }
        }
        let mut bytes = good.clone();
        for _ in 0..=random.below(6) {
            damage(&mut bytes, &mut random);
        }
        let bytes = match random.below(8) {
            0 => gzip(&bytes),
            1 => zstd(&bytes),
            2 => {
                let mut compressed = gzip(&bytes);
                damage(&mut compressed, &mut random);
                compressed
            }
            3 => {
                let mut compressed = zstd(&bytes);
                damage(&mut compressed, &mut random);
                compressed
            }
            _ => bytes,
        };
        if let Ok((_, image)) = converted(&bytes, &limits) {
            taken += 1;
            reader::read(&image).unwrap();
        }
        runs += 1;
        if runs == 200 {
            memory = resident();
        }
    }
    println!("{runs} damaged streams, {taken} of them still good");
    assert!(taken > 0 && taken < runs);
    assert!(runs < 400 || resident() < memory + (64 << 20), "memory grows: {memory} to {} bytes", resident());
}

fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.len() < 1024 {
        return;
    }
    let block = random.below(bytes.len() / 512) * 512;
    match random.below(10) {
        0 => bytes.truncate(block),
        1 => drop(bytes.drain(block..block + 512)),
        2 => {
            let copy = bytes[block..block + 512].to_vec();
            let to = random.below(bytes.len() / 512) * 512;
            drop(bytes.splice(to..to, copy));
        }
        3 => {
            let at = random.below(bytes.len());
            bytes[at] = random.next().to_le_bytes()[0];
        }
        _ => {
            // Most changes hit headers, whose checksum is then made right again.
            let interesting = [0, b'0', b'/', b'.', b'9', 0xff, 0x80, b'1', b'5', b'x', b'L', b'S', b'2', b' ', b'='];
            let field =
                [0, 1, 100, 124, 124, 125, 130, 136, 156, 156, 157, 257, 329, 345, 386, 482, 483][random.below(17)];
            bytes[block + field] = interesting[random.below(interesting.len())];
            let mut header = bytes[block..block + 512].to_vec();
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            bytes[block + 148..block + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
}
