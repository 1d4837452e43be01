//! The list of what is over a limit for a reason.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};

/// What may be over a limit, and by how much. Shape: lines `KEY = MEASURE  # reason`.
pub struct Exceptions {
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    measure: usize,
    seen: Option<usize>,
}

impl Exceptions {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut entries = BTreeMap::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let Some((entry, reason)) = line.split_once('#') else { bail!("exception without a reason: {line}") };
            let (key, measure) = entry.split_once('=').with_context(|| format!("exception without '=': {line}"))?;
            let measure = measure.trim().parse().with_context(|| format!("no number: {line}"))?;
            if reason.trim().is_empty() {
                bail!("exception without a reason: {line}");
            }
            entries.insert(key.trim().to_owned(), Entry { measure, seen: None });
        }
        Ok(Self { entries })
    }

    /// True if the list allows `key` to measure this much.
    pub fn allows(&mut self, key: &str, measure: usize) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return false };
        entry.seen = Some(measure);
        measure <= entry.measure
    }

    /// One line for each entry that nothing needs any more, or that allows more than is there.
    pub fn unused(&self) -> Vec<String> {
        self.entries
            .iter()
            .filter_map(|(key, entry)| match entry.seen {
                None => Some(format!("exception '{key}' is not needed any more: delete it")),
                Some(seen) if seen < entry.measure => {
                    Some(format!("exception '{key}' allows {}, {seen} is enough: lower it", entry.measure))
                }
                Some(_) => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_only_shrinks() {
        let mut list =
            Exceptions::parse("# head\n\nfile a.rs = 700 # a table\nfile b.rs = 800 # a table\nfile c.rs = 9 # x")
                .unwrap();
        assert!(list.allows("file a.rs", 700));
        assert!(list.allows("file b.rs", 650));
        assert!(!list.allows("file d.rs", 1));
        assert_eq!(list.unused().len(), 2, "{:?}", list.unused());
        assert!(!list.allows("file a.rs", 701));
    }

    #[test]
    fn an_entry_needs_a_reason() {
        assert!(Exceptions::parse("file a.rs = 700").is_err());
        assert!(Exceptions::parse("file a.rs = 700 #  ").is_err());
        assert!(Exceptions::parse("file a.rs # why").is_err());
    }
}
