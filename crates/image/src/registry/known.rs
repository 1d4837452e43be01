//! Which blobs in which repositories are known to hold which layers, so that a push need not send them again.
//!
//! A cache in a database of its own: what it says is asked of the registry again, and losing it costs time only.

use std::error::Error;
use std::fs;
use std::path::Path;

use proto::Digest;
use redb::{Database, ReadableDatabase, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::records::{self, RecordsError};

/// diffID -> list of [`KnownBlob`] as JSON.
const BLOBS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("blobs");
/// Entries kept for one layer.
const MAX_KNOWN: usize = 32;

/// A layer as a gzip blob in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownBlob {
    pub digest: Digest,
    pub size: u64,
    /// The registry as names have it.
    pub domain: String,
    pub path: String,
}

/// The cache.
pub(super) struct KnownBlobs(Database);

impl KnownBlobs {
    pub fn open(path: &Path) -> Result<Self, RecordsError> {
        if let Err(error) = records::verify(path) {
            tracing::warn!(error = &error as &dyn Error, "the cache of known blobs is damaged and begun anew");
            fs::remove_file(path).map_err(redb::Error::Io)?;
        }
        let database = Database::create(path)?;
        let transaction = database.begin_write()?;
        transaction.open_table(BLOBS)?;
        transaction.commit()?;
        Ok(Self(database))
    }

    /// What is known of a layer, the newest first.
    pub fn of(&self, diff_id: &Digest) -> Result<Vec<KnownBlob>, RecordsError> {
        let transaction = self.0.begin_read()?;
        let table = transaction.open_table(BLOBS)?;
        let row = table.get(diff_id.as_str())?;
        // A row that cannot be read is as good as none.
        Ok(row.and_then(|row| serde_json::from_slice(row.value()).ok()).unwrap_or_default())
    }

    /// Remembers blobs with the layers that they hold.
    pub fn remember(&self, found: &[(Digest, KnownBlob)]) -> Result<(), RecordsError> {
        let mut news = Vec::new();
        for (diff_id, blob) in found {
            let mut known = self.of(diff_id)?;
            if known.first() != Some(blob) {
                known.retain(|one| one != blob);
                known.insert(0, blob.clone());
                known.truncate(MAX_KNOWN);
                news.push((diff_id, serde_json::to_vec(&known).expect("texts and numbers are always JSON")));
            }
        }
        if news.is_empty() {
            return Ok(());
        }
        let transaction = self.0.begin_write()?;
        {
            let mut table = transaction.open_table(BLOBS)?;
            for (diff_id, json) in news {
                table.insert(diff_id.as_str(), &json[..])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::digest_of;

    #[test]
    fn the_newest_is_first_and_nothing_stands_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("known.redb");
        let layer = digest_of(b"layer");
        let blob = |path: &str| KnownBlob {
            digest: digest_of(b"blob"),
            size: 1,
            domain: "docker.io".into(),
            path: path.into(),
        };
        let known = KnownBlobs::open(&path).unwrap();
        for name in ["a", "b", "a"] {
            known.remember(&[(layer.clone(), blob(name))]).unwrap();
        }
        drop(known);
        let known = KnownBlobs::open(&path).unwrap();
        assert_eq!(known.of(&layer).unwrap(), [blob("a"), blob("b")]);
        assert_eq!(known.of(&digest_of(b"other")).unwrap(), []);
    }

    #[test]
    fn a_damaged_cache_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("known.redb");
        drop(KnownBlobs::open(&path).unwrap());
        let length = path.metadata().unwrap().len();
        fs::File::options().write(true).open(&path).unwrap().set_len(length / 2).unwrap();
        let known = KnownBlobs::open(&path).unwrap();
        assert_eq!(known.of(&digest_of(b"layer")).unwrap(), []);
    }
}
