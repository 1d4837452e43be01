//! The repositories that a repository has in it.

use std::collections::BTreeMap;
use std::io::Read;

use super::context::clean;
use super::git::Repository;
use crate::error::{ApiError, ApiResult};

/// Bytes of a repository's list of names, and of its `.gitmodules`.
const MAX_LIST: u64 = 128 << 20;
const MAX_MODULES: u64 = 1 << 20;

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Submodule {
    /// Where it is in the repository.
    pub path: String,
    /// Where it comes from, as git takes it.
    pub url: String,
    /// Its state, 40 or 64 digits.
    pub commit: String,
}

impl Repository<'_> {
    /// What a commit has. Shape: `remote` is where the repository itself comes from.
    pub(super) fn submodules(&self, commit: &str, remote: &str) -> ApiResult<Vec<Submodule>> {
        let what = "error reading the submodules";
        let bounded = |limit: u64| {
            move |from: &mut dyn Read| {
                let mut bytes = Vec::new();
                let read = from.take(limit + 1).read_to_end(&mut bytes);
                read.map_err(|error| ApiError::caused(what, &error))?;
                if bytes.len() as u64 > limit {
                    return Err(ApiError::invalid(format!("{what}: the repository's list of files is too long")));
                }
                Ok(bytes)
            }
        };
        let list = self.run(&["ls-tree", "-r", "-z", "--full-tree", commit], what, bounded(MAX_LIST))?;
        let links = links(&list);
        if links.is_empty() {
            return Ok(Vec::new());
        }
        let blob = format!("{commit}:.gitmodules");
        let words = ["config", "--null", "--blob", &blob, "--get-regexp", r"^submodule\..*\.(path|url)$"];
        let urls = urls(&self.run(&words, what, bounded(MAX_MODULES))?);
        let mut found = Vec::new();
        for (path, commit) in links {
            let missing = || ApiError::invalid(format!("no url found for submodule path '{path}' in .gitmodules"));
            let url = absolute(urls.get(&path).ok_or_else(missing)?, remote);
            found.push(Submodule { path, url, commit });
        }
        Ok(found)
    }
}

/// Paths and commits of what `git ls-tree -r -z` calls commits.
fn links(list: &[u8]) -> Vec<(String, String)> {
    let lines = list.split(|byte| *byte == 0).filter_map(|line| line.strip_prefix(b"160000 commit "));
    let lines = lines.filter_map(|line| std::str::from_utf8(line).ok()?.split_once('\t'));
    lines.map(|(commit, path)| (path.to_owned(), commit.to_owned())).collect()
}

/// URLs by path, of what `git config --null` lists.
fn urls(list: &[u8]) -> BTreeMap<String, String> {
    let (mut paths, mut urls) = (BTreeMap::new(), BTreeMap::new());
    for entry in String::from_utf8_lossy(list).split('\0') {
        let Some((key, value)) = entry.split_once('\n') else { continue };
        if let Some(name) = key.strip_suffix(".path") {
            paths.insert(name.to_owned(), clean(value).unwrap_or_default());
        } else if let Some(name) = key.strip_suffix(".url") {
            urls.insert(name.to_owned(), value.to_owned());
        }
    }
    paths.into_iter().filter_map(|(name, path)| Some((path, urls.remove(&name)?))).collect()
}

/// A URL that may be meant from where its repository is. Source: git-submodule(1), `add`.
fn absolute(url: &str, remote: &str) -> String {
    if !url.starts_with("./") && !url.starts_with("../") {
        return url.to_owned();
    }
    let (mut rest, mut base) = (url, remote.trim_end_matches('/'));
    loop {
        if let Some(after) = rest.strip_prefix("../") {
            rest = after;
            base = base.rfind(['/', ':']).map_or("", |at| &base[..at]);
        } else if let Some(after) = rest.strip_prefix("./") {
            rest = after;
        } else {
            return format!("{base}/{}", rest.trim_end_matches('/'));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let list = b"100644 blob aa\ta\x00160000 commit bb\tsub/b c\x00160000 commit cc\td\x00";
        assert_eq!(links(list), [("sub/b c".into(), "bb".into()), ("d".into(), "cc".into())]);
        let list = b"submodule.x.path\nsub/b c\0submodule.x.url\n../b.git\0submodule.y.path\nd/\0submodule.y.url\nhttps://h/d\0";
        let expected = [("d".to_owned(), "https://h/d".to_owned()), ("sub/b c".to_owned(), "../b.git".to_owned())];
        assert_eq!(urls(list), BTreeMap::from(expected));
    }

    #[test]
    fn urls_are_meant_from_the_repository() {
        for (url, remote, expected) in [
            ("../b.git", "https://h/o/a.git", "https://h/o/b.git"),
            ("./b", "https://h/o/a/", "https://h/o/a/b"),
            ("../../p/b", "https://h/o/a.git", "https://h/p/b"),
            ("https://x/y", "https://h/o/a.git", "https://x/y"),
        ] {
            assert_eq!(absolute(url, remote), expected, "{url}");
        }
    }
}
