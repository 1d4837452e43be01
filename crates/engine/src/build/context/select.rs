//! Finding what COPY and ADD name.

use std::collections::VecDeque;
use std::ops::Bound;

use proto::ignore::Pattern;
use sha2::{Digest, Sha256};

use super::{Context, Kind, Node};

/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;

/// Something that is to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Where it is, links followed.
    pub path: Vec<u8>,
    /// What it is called in a folder: the last part of the path as it was asked for.
    pub name: Vec<u8>,
    /// Its content goes into the destination, and not itself.
    pub is_folder: bool,
    /// `file:` or `dir:` and what its content and attributes are, for the cache.
    pub hash: String,
}

impl Context {
    /// What a source of COPY names: as it is or, with wildcards, everything that fits. Shape: `Ok` and empty when nothing
    /// fits a pattern.
    ///
    /// # Errors
    /// Nothing is called so, or the pattern is none; in dockerd's words.
    pub fn select(&self, source: &str) -> Result<Vec<Selected>, String> {
        if !Pattern::has_wildcards(source) {
            let missing = || format!("stat {}: file does not exist", clean(source).unwrap_or_default());
            return Ok(vec![self.one(clean(source)?.as_bytes()).ok_or_else(missing)?]);
        }
        let pattern = Pattern::of_names(&clean(source)?).map_err(|_| "syntax error in pattern".to_owned())?;
        let all = self.nodes.keys().filter(|path| !path.is_empty());
        let fitting = all.filter(|path| pattern.fits(&String::from_utf8_lossy(path)));
        Ok(fitting.filter_map(|path| self.one(path)).collect())
    }

    pub(super) fn one(&self, path: &[u8]) -> Option<Selected> {
        let (found, node) = self.find(path)?;
        let is_folder = node.kind == Kind::Folder;
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
        let mut hash = Sha256::new();
        note(&mut hash, if is_folder { b"" } else { &name }, node);
        for (below, node) in self.below(&found) {
            note(&mut hash, &below[found.len()..], node);
        }
        let word = if is_folder { "dir" } else { "file" };
        Some(Selected { path: found, name, is_folder, hash: format!("{word}:{}", hex::encode(hash.finalize())) })
    }

    /// Follows a path and the links on it, within the root.
    pub(super) fn find(&self, path: &[u8]) -> Option<(Vec<u8>, &Node)> {
        let names = |path: &[u8]| -> VecDeque<Vec<u8>> {
            path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec).collect()
        };
        let mut ahead = names(path);
        let (mut at, mut links) = (Vec::new(), 0);
        while let Some(name) = ahead.pop_front() {
            if name == b".." {
                at.truncate(at.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            let before = at.len();
            if before > 0 {
                at.push(b'/');
            }
            at.extend_from_slice(&name);
            match &self.nodes.get(&at)?.kind {
                Kind::Folder => {}
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return None;
                    }
                    at.truncate(if target.first() == Some(&b'/') { 0 } else { before });
                    names(target).into_iter().rev().for_each(|name| ahead.push_front(name));
                }
                _ if ahead.is_empty() => {}
                _ => return None,
            }
        }
        let node = self.nodes.get(&at)?;
        Some((at, node))
    }

    /// Everything in a folder.
    pub(super) fn below<'a>(&'a self, folder: &[u8]) -> impl Iterator<Item = (&'a Vec<u8>, &'a Node)> + use<'a> {
        let mut prefix = folder.to_vec();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        let from = if prefix.is_empty() { Bound::Excluded(Vec::new()) } else { Bound::Included(prefix.clone()) };
        self.nodes.range((from, Bound::Unbounded)).take_while(move |(path, _)| path.starts_with(&prefix))
    }
}

/// Everything that makes a copy another one; not when it was changed.
fn note(hash: &mut Sha256, path: &[u8], node: &Node) {
    let mut text = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    text(path);
    text(format!("{:o} {} {}", node.mode, node.uid, node.gid).as_bytes());
    for (name, value) in &node.xattrs {
        text(name.as_bytes());
        text(value);
    }
    match &node.kind {
        Kind::Folder => text(b"folder"),
        Kind::File { hash, .. } => text(hash),
        Kind::Symlink(target) => text(&[b"link ", &target[..]].concat()),
        Kind::Fifo => text(b"fifo"),
        Kind::Device { block, number } => text(format!("device {block} {number:?}").as_bytes()),
    }
}

/// A source's path from the root of the context, without what means nothing.
///
/// # Errors
/// It leads out; in dockerd's words.
pub fn clean(source: &str) -> Result<String, String> {
    let plain = plain(source.as_bytes());
    let plain = plain.ok_or_else(|| format!("forbidden path outside the build context: {source} ()"))?;
    Ok(String::from_utf8_lossy(&plain).into_owned())
}

/// A path without `.` and `..`; `None` if it leads out.
pub(super) fn plain(path: &[u8]) -> Option<Vec<u8>> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    Some(names.join(&b'/'))
}
