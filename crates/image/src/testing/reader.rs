//! A reader of the EROFS that we write, for tests. It checks as it reads: places inside the file, names in order, links
//! that are counted right. Source: Linux, fs/erofs/erofs_fs.h.

use std::collections::BTreeMap;

use super::seen::{Listing, Seen, shown_content};
use crate::erofs::FileType;

const BLOCK: usize = 4096;

/// What is wrong with a file system.
pub type Wrong = String;

/// Lists a file system.
pub fn read(image: &[u8]) -> Result<Listing, Wrong> {
    let reader = Reader(image);
    let root = u64::from(reader.u16(1024 + 14)?);
    let mut listing = Listing::new();
    let mut names: BTreeMap<u64, (u32, u32)> = BTreeMap::new();
    let mut pending = vec![(Vec::new(), root, root)];
    while let Some((path, number, parent)) = pending.pop() {
        let (seen, content) = reader.inode(number)?;
        let counted = names.entry(number).or_insert((0, seen.links));
        counted.0 += 1;
        if seen.is(FileType::Directory) {
            let mut subfolders = 0;
            for (name, child, kind) in reader.entries(&content)? {
                let expected = match &name[..] {
                    b"." => Some(number),
                    b".." => Some(parent),
                    _ => None,
                };
                if let Some(expected) = expected {
                    check(child == expected && kind == 2, "'.' or '..'")?;
                    continue;
                }
                subfolders += u32::from(kind == 2);
                let below = if path.is_empty() { name } else { [&path[..], b"/", &name].concat() };
                check(below.len() < 100_000, "endless path")?;
                pending.push((below, child, number));
            }
            check(seen.links == subfolders + 2, "links of a folder")?;
            counted.1 = 1;
        }
        check(listing.insert(path, seen).is_none(), "a path twice")?;
    }
    check(names.values().all(|(found, said)| found == said), "links of a file")?;
    Ok(listing)
}

fn check(good: bool, what: &str) -> Result<(), Wrong> {
    if good { Ok(()) } else { Err(what.to_owned()) }
}

struct Reader<'i>(&'i [u8]);

impl<'i> Reader<'i> {
    fn bytes(&self, at: usize, length: usize) -> Result<&'i [u8], Wrong> {
        self.0.get(at..at + length).ok_or(format!("{length} bytes at {at} are outside the file"))
    }

    fn u16(&self, at: usize) -> Result<u16, Wrong> {
        Ok(u16::from_le_bytes(self.bytes(at, 2)?.try_into().unwrap()))
    }

    fn u32(&self, at: usize) -> Result<u32, Wrong> {
        Ok(u32::from_le_bytes(self.bytes(at, 4)?.try_into().unwrap()))
    }

    fn u64(&self, at: usize) -> Result<u64, Wrong> {
        Ok(u64::from_le_bytes(self.bytes(at, 8)?.try_into().unwrap()))
    }

    /// An inode and its content.
    fn inode(&self, number: u64) -> Result<(Seen, Vec<u8>), Wrong> {
        let at = usize::try_from(number).unwrap() * 32;
        let (format, count, mode) = (self.u16(at)?, usize::from(self.u16(at + 2)?), self.u16(at + 4)?);
        check(format & 1 == 1 && format >> 1 <= 2, "format of an inode")?;
        let size = usize::try_from(self.u64(at + 8)?).unwrap();
        let address = self.u32(at + 16)?;
        let xattr_bytes = if count == 0 { 0 } else { 12 + (count - 1) * 4 };
        let xattrs = self.xattrs(self.bytes(at + 64, xattr_bytes)?)?;
        let mut seen = Seen {
            mode: mode.into(),
            uid: self.u32(at + 24)?,
            gid: self.u32(at + 28)?,
            modified: (self.u64(at + 32)?.cast_signed(), self.u32(at + 40)?),
            links: self.u32(at + 44)?,
            device: (0, 0),
            content: String::new(),
            xattrs,
        };
        if seen.is(FileType::CharacterDevice) || seen.is(FileType::BlockDevice) || seen.is(FileType::Fifo) {
            seen.device = ((address & 0xf_ff00) >> 8, (address & 0xff) | ((address >> 12) & 0xf_ff00));
            return Ok((seen, Vec::new()));
        }
        let inline = format >> 1 == 2;
        let in_blocks = if inline { size - size % BLOCK } else { size };
        let mut content = self.bytes(address as usize * BLOCK, in_blocks)?.to_vec();
        if inline {
            let tail = at + 64 + xattr_bytes;
            check(tail / BLOCK == (tail + size % BLOCK - 1) / BLOCK, "a tail across blocks")?;
            content.extend(self.bytes(tail, size % BLOCK)?);
        }
        if seen.is(FileType::Regular) {
            seen.content = shown_content(&content);
        } else if seen.is(FileType::Symlink) {
            seen.content = String::from_utf8_lossy(&content).into_owned();
        }
        Ok((seen, content))
    }

    fn xattrs(&self, body: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Wrong> {
        let mut found = BTreeMap::new();
        let mut rest = body.get(12..).unwrap_or_default();
        while rest.len() >= 4 {
            let (name, value) = (usize::from(rest[0]), usize::from(u16::from_le_bytes([rest[2], rest[3]])));
            let prefix: &[u8] = match rest[1] {
                1 => b"user.",
                2 => b"system.posix_acl_access",
                3 => b"system.posix_acl_default",
                4 => b"trusted.",
                6 => b"security.",
                other => return Err(format!("prefix {other} of an attribute")),
            };
            let end = 4 + name + value;
            check(end <= rest.len(), "an attribute outside its inode")?;
            let key = [prefix, &rest[4..4 + name]].concat();
            check(found.insert(key, rest[4 + name..end].to_vec()).is_none(), "an attribute twice")?;
            rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(found)
    }

    fn entries(&self, content: &[u8]) -> Result<Vec<(Vec<u8>, u64, u8)>, Wrong> {
        let mut entries: Vec<(Vec<u8>, u64, u8)> = Vec::new();
        for block in content.chunks(BLOCK) {
            let reader = Reader(block);
            let count = usize::from(reader.u16(8)?) / 12;
            for index in 0..count {
                let start = usize::from(reader.u16(index * 12 + 8)?);
                let end = match index + 1 < count {
                    true => usize::from(reader.u16((index + 1) * 12 + 8)?),
                    false => block.len(),
                };
                check(start <= end, "a name that ends before it begins")?;
                let name = reader.bytes(start, end - start)?;
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
                check(!name.is_empty() && !name.contains(&b'/'), "a name")?;
                check(entries.last().is_none_or(|(before, _, _)| *before < name), "the order of names")?;
                entries.push((name, reader.u64(index * 12)?, block[index * 12 + 10]));
            }
        }
        Ok(entries)
    }
}
