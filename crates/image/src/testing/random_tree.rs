//! Random trees: what they are, and a tar stream that says so.

use std::collections::BTreeMap;

use super::seen::{Listing, Seen, shown_content};
use super::{RawEntry, tar_of};
use crate::erofs::FileType;

/// Numbers by a seed: xorshift64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..4).for_each(|_| {
            random.next();
        });
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<'v, T>(&mut self, values: &'v [T]) -> &'v T {
        &values[self.below(values.len())]
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

/// Lengths around every boundary of the layout.
const LENGTHS: [usize; 18] =
    [0, 1, 11, 31, 32, 33, 3900, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 20_000, 70_000];
const NAMES: [&str; 12] = ["a", "b", "bin", ".hidden", "...", "!", "~", "-x", "with space", "\u{e4}\u{f6}", "A", "lib"];
/// `user::rwx,user:1:r--,group::r-x,mask::rwx,other::r--`. Source: Linux, include/uapi/linux/posix_acl_xattr.h.
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x04\0\x01\0\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x07\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
const CAPABILITY: &[u8] = b"\x01\x00\x00\x02\x0a\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

/// An entry with all its texts.
#[derive(Default)]
struct Owned {
    path: Vec<u8>,
    kind: u8,
    link: Vec<u8>,
    content: Vec<u8>,
    mode: u32,
    device: (u32, u32),
    pax: Vec<(String, Vec<u8>)>,
}

/// Makes a tree; gives what must be seen of it, and a tar stream of it.
pub fn tree(random: &mut Random) -> (Listing, Vec<u8>) {
    let mut maker =
        Maker { random, listing: Listing::new(), entries: Vec::new(), targets: BTreeMap::new(), whiteouts: 0 };
    maker.folder(b"./", &[], 0);
    let Maker { mut listing, entries, whiteouts, .. } = maker;
    for seen in listing.values_mut().filter(|seen| seen.is(FileType::CharacterDevice) && seen.device == (0, 0)) {
        seen.links = whiteouts;
    }
    let pax: Vec<Vec<(&str, &[u8])>> = entries
        .iter()
        .map(|entry| entry.pax.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect())
        .collect();
    let entries: Vec<RawEntry<'_>> = entries
        .iter()
        .zip(&pax)
        .map(|(entry, pax)| RawEntry {
            path: &entry.path,
            kind: entry.kind,
            link: &entry.link,
            content: &entry.content,
            mode: entry.mode,
            device: entry.device,
            pax,
            ..RawEntry::default()
        })
        .collect();
    (listing, tar_of(&entries))
}

struct Maker<'r> {
    random: &'r mut Random,
    listing: Listing,
    entries: Vec<Owned>,
    /// Further names of files, and the first ones.
    targets: BTreeMap<Vec<u8>, Vec<u8>>,
    whiteouts: u32,
}

impl Maker<'_> {
    /// Facts that every kind has; gives the entry that says so.
    fn describe(&mut self, seen: &mut Seen, path: &[u8], kind: u8) -> Owned {
        let random = &mut *self.random;
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        seen.uid = *random.pick(&[0, 1, 1000, 65_534, 70_000, 4_000_000_000]);
        seen.gid = *random.pick(&[0, 5, 100, 2_097_152]);
        let seconds = *random.pick(&[0_i64, 1, 1_700_000_000, 5_000_000_000, -1]);
        let nanoseconds = *random.pick(&[0, 1, 123_456_789, 999_999_999]);
        // -1 with a fraction is written as the fraction before zero.
        seen.modified = if seconds < 0 { (-1, 0) } else { (seconds, nanoseconds) };
        let time = format!("{}.{:09}", seen.modified.0, seen.modified.1);
        pax.push(("mtime".to_owned(), time.into_bytes()));
        pax.push(("uid".to_owned(), seen.uid.to_string().into_bytes()));
        pax.push(("gid".to_owned(), seen.gid.to_string().into_bytes()));
        let may_have_xattrs = seen.is(FileType::Regular) || seen.is(FileType::Directory);
        if may_have_xattrs && random.one_in(3) {
            let length = *random.pick(&[0, 1, 3, 4, 100, 700]);
            let value = random.bytes(length);
            seen.xattrs.insert(b"user.n\xc3\xa4me".to_vec(), value);
        }
        if seen.is(FileType::Regular) && random.one_in(6) {
            seen.xattrs.insert(b"security.capability".to_vec(), CAPABILITY.to_vec());
        }
        if may_have_xattrs && random.one_in(6) {
            seen.xattrs.insert(b"system.posix_acl_access".to_vec(), ACL.to_vec());
        }
        if seen.is(FileType::Directory) && random.one_in(6) {
            seen.xattrs.insert(b"system.posix_acl_default".to_vec(), ACL.to_vec());
        }
        for (name, value) in &seen.xattrs {
            pax.push((format!("SCHILY.xattr.{}", String::from_utf8_lossy(name)), value.clone()));
        }
        Owned { path: path.to_vec(), kind, mode: seen.mode & 0o7777, pax, ..Owned::default() }
    }

    fn folder(&mut self, written: &[u8], path: &[u8], depth: usize) {
        let mode = *self.random.pick(&[0o755, 0o700, 0o1777, 0o2775]);
        let mut seen = Seen::new(FileType::Directory, mode);
        let entry = self.describe(&mut seen, written, b'5');
        self.entries.push(entry);
        let count = if depth == 0 { 3 + self.random.below(12) } else { self.random.below(7) };
        let many = if depth == 1 && self.random.one_in(8) { 150 } else { 0 };
        seen.links = 2;
        let join = |name: &str| if path.is_empty() { name.into() } else { [path, b"/", name.as_bytes()].concat() };
        for index in 0..count + many {
            let mut name = (*self.random.pick(&NAMES)).to_owned();
            if index >= count || self.random.one_in(3) {
                name = format!("{name}{}{}", index, "n".repeat(self.random.below(200)));
            }
            let below = join(&name);
            if self.listing.contains_key(&below) {
                continue;
            }
            if self.random.one_in(15) {
                self.whiteout(path, &name, below);
            } else if depth < 4 && index < count && self.random.one_in(4) {
                seen.links += 1;
                // Something else had the name first.
                if self.random.one_in(4) {
                    self.entries.push(Owned {
                        path: below.clone(),
                        kind: b'0',
                        content: b"decoy".to_vec(),
                        ..Owned::default()
                    });
                }
                self.folder(&[&below[..], b"/"].concat(), &below, depth + 1);
            } else {
                self.leaf(&below);
            }
        }
        // A root that hides everything is left out of what the test mounts; folders may.
        if depth > 0 && self.random.one_in(6) {
            self.entries.push(Owned { path: join(".wh..wh..opq"), kind: b'0', ..Owned::default() });
            seen.xattrs.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
        }
        self.listing.insert(path.to_vec(), seen);
    }

    fn whiteout(&mut self, folder: &[u8], name: &str, below: Vec<u8>) {
        let name = format!(".wh.{name}");
        // What begins like aufs' own names would be ignored.
        if name.starts_with(".wh..wh.") || name.len() > 255 || matches!(name.as_str(), ".wh.." | ".wh...") {
            return;
        }
        let path = if folder.is_empty() { name.into_bytes() } else { [folder, b"/", name.as_bytes()].concat() };
        self.entries.push(Owned { path, kind: b'0', ..Owned::default() });
        self.whiteouts += 1;
        self.listing.insert(below, Seen::new(FileType::CharacterDevice, 0));
    }

    fn leaf(&mut self, path: &[u8]) {
        match self.random.below(12) {
            0 | 1 => {
                let length = *self.random.pick(&[1, 10, 99, 101, 900]);
                let mut seen = Seen::new(FileType::Symlink, 0o777);
                seen.content = "t".repeat(length);
                let link = seen.content.clone().into_bytes();
                let entry = self.describe(&mut seen, path, b'2');
                self.put(path, seen, Owned { link, ..entry });
            }
            2 => {
                let (kind, file_type) =
                    *self.random.pick(&[(b'3', FileType::CharacterDevice), (b'4', FileType::BlockDevice)]);
                let mut seen = Seen::new(file_type, 0o660);
                seen.device = *self.random.pick(&[(1, 3), (259, 70_000), (4095, 1_048_575), (8, 0)]);
                let device = seen.device;
                let entry = self.describe(&mut seen, path, kind);
                self.put(path, seen, Owned { device, ..entry });
            }
            3 => {
                let mut seen = Seen::new(FileType::Fifo, 0o600);
                let entry = self.describe(&mut seen, path, b'6');
                self.put(path, seen, entry);
            }
            4 | 5 if self.hard_link(path) => {}
            6 => self.sparse(path),
            _ => {
                let length = *self.random.pick(&LENGTHS);
                let content = if self.random.one_in(5) { vec![0; length] } else { self.random.bytes(length) };
                let mode = *self.random.pick(&[0o644, 0o755, 0o4755, 0o2711, 0o600, 0]);
                let mut seen = Seen::new(FileType::Regular, mode);
                seen.content = shown_content(&content);
                let entry = self.describe(&mut seen, path, b'0');
                self.put(path, seen, Owned { content, ..entry });
            }
        }
    }

    fn put(&mut self, path: &[u8], seen: Seen, entry: Owned) {
        self.entries.push(entry);
        self.listing.insert(path.to_vec(), seen);
    }

    /// A further name for some file; false if there is none.
    fn hard_link(&mut self, path: &[u8]) -> bool {
        let files: Vec<Vec<u8>> = self
            .listing
            .iter()
            .filter(|(name, seen)| seen.is(FileType::Regular) && !self.targets.contains_key(*name))
            .map(|(name, _)| name.clone())
            .collect();
        if files.is_empty() {
            return false;
        }
        let target = self.random.pick(&files).clone();
        let Some(linked) = self.listing.get_mut(&target) else { return false };
        linked.links += 1;
        let seen = linked.clone();
        let mut names: Vec<Vec<u8>> = vec![target.clone()];
        names.extend(self.targets.iter().filter(|(_, of)| **of == target).map(|(name, _)| name.clone()));
        for name in names {
            if let Some(other) = self.listing.get_mut(&name) {
                other.links = seen.links;
            }
        }
        self.targets.insert(path.to_vec(), target.clone());
        self.put(path, seen, Owned { path: path.to_vec(), kind: b'1', link: target, ..Owned::default() });
        true
    }

    /// A file with holes, PAX format 0.1.
    fn sparse(&mut self, path: &[u8]) {
        let (mut map, mut stored, mut content) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.random.below(5) {
            content.resize(content.len() + *self.random.pick(&[0, 1, 4095, 4096, 100_000]), 0);
            let length = *self.random.pick(&[1, 512, 4096, 5000]);
            let data = self.random.bytes(length);
            map.push(format!("{},{length}", content.len()));
            content.extend(&data);
            stored.extend(data);
        }
        content.resize(content.len() + *self.random.pick(&[0, 1, 200_000]), 0);
        let mut seen = Seen::new(FileType::Regular, 0o640);
        seen.content = shown_content(&content);
        let mut entry = self.describe(&mut seen, path, b'0');
        if map.is_empty() {
            map.push("0,0".to_owned());
        }
        entry.pax.push(("GNU.sparse.map".to_owned(), map.join(",").into_bytes()));
        entry.pax.push(("GNU.sparse.size".to_owned(), content.len().to_string().into_bytes()));
        self.put(path, seen, Owned { content: stored, ..entry });
    }
}
