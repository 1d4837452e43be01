//! What the store knows, on disk: images, their names, their layers. All changes of one operation are one transaction.

use std::path::Path;
use std::{fs, io, panic};

use proto::Digest;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::failpoint;

/// Image id -> [`ImageRecord`] as JSON.
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
/// Full reference -> image id.
const NAMES: TableDefinition<'_, &str, &str> = TableDefinition::new("names");
/// What the store knows of itself: [`EPOCH`] and [`OPENED_IN`].
const STATE: TableDefinition<'_, &str, &str> = TableDefinition::new("state");
/// How often the host has crashed under the open store.
const EPOCH: &str = "epoch";
/// Boot id of the host on which the store is open; not there when it was closed in order.
const OPENED_IN: &str = "opened-in";
/// diffID -> [`LayerRecord`] as JSON.
const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers");

/// The records cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The database failed.
    #[error("the image records cannot be read or written")]
    Database(#[source] Box<redb::Error>),
    /// The database's file is not as the database left it.
    #[error("the file of the image records is damaged")]
    Altered,
    /// A record is not what was written.
    #[error("the image record of {key} is damaged")]
    Damaged {
        /// Whose.
        key: String,
    },
}

impl RecordsError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> proto::ErrorKind {
        proto::ErrorKind::Internal
    }

    fn damaged(key: &str) -> Self {
        Self::Damaged { key: key.to_owned() }
    }
}

impl<E: Into<redb::Error>> From<E> for RecordsError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// What is kept of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// The configuration, byte for byte.
    pub config: String,
    /// Nanoseconds since the epoch.
    pub added_at_ns: i64,
    /// Removed by name and id, and kept for containers that still use it.
    pub detached: bool,
    /// The image that a build step made it from, for the build cache.
    #[serde(default)]
    pub parent: Option<Digest>,
}

/// What is kept of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Length of its EROFS file.
    pub file_bytes: u64,
    /// Length of its regular files.
    pub content_bytes: u64,
    /// Entries of its tar stream.
    pub entries: u64,
    /// Hides all that is below it.
    pub root_opaque: bool,
    /// Digest of its EROFS file (see [`crate::seal`]).
    #[serde(default)]
    pub file_digest: Option<Digest>,
    /// The last epoch (see [`Records::begin_run`]) in which its file was found to be as its digest says.
    #[serde(default)]
    pub verified_in: u64,
    /// Its file was found to be another: it is to be made anew.
    #[serde(default)]
    pub damaged: bool,
}

/// One step of a transaction.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    PutImage(Digest, ImageRecord),
    DropImage(Digest),
    PutName(String, Digest),
    DropName(String),
    PutLayer(Digest, LayerRecord),
    DropLayer(Digest),
}

/// All that is recorded.
#[derive(Debug, Default)]
pub(crate) struct Everything {
    pub images: Vec<(Digest, ImageRecord)>,
    pub names: Vec<(String, Digest)>,
    pub layers: Vec<(Digest, LayerRecord)>,
}

/// The database.
pub(crate) struct Records {
    database: Database,
}

impl Records {
    pub fn open(path: &Path) -> Result<Self, RecordsError> {
        verify(path)?;
        let database = Database::create(path)?;
        let transaction = database.begin_write()?;
        transaction.open_table(IMAGES)?;
        transaction.open_table(NAMES)?;
        transaction.open_table(LAYERS)?;
        transaction.open_table(STATE)?;
        transaction.commit()?;
        Ok(Self { database })
    }

    /// Notes that the store is open; gives the epoch, which grows when the host, and not only the engine, went down under
    /// an open store: what was written then may not be what is on the disk.
    pub fn begin_run(&self, boot_id: &str) -> Result<u64, RecordsError> {
        let transaction = self.database.begin_write()?;
        let epoch = {
            let mut state = transaction.open_table(STATE)?;
            let text = |value: Option<redb::AccessGuard<'_, &str>>| value.map(|value| value.value().to_owned());
            let recorded = text(state.get(EPOCH)?).map_or(Ok(0), |epoch| epoch.parse());
            let recorded: u64 = recorded.map_err(|_| RecordsError::damaged(EPOCH))?;
            let left_open = text(state.get(OPENED_IN)?);
            let crashed = left_open.as_ref().is_some_and(|opened_in| opened_in != boot_id);
            if left_open.is_some() {
                tracing::info!(host_went_down = crashed, "the image store was not closed in order");
            }
            let epoch = recorded + u64::from(crashed);
            state.insert(EPOCH, epoch.to_string().as_str())?;
            state.insert(OPENED_IN, boot_id)?;
            epoch
        };
        transaction.commit()?;
        Ok(epoch)
    }

    /// Notes that the store is closed in order.
    pub fn end_run(&self) -> Result<(), RecordsError> {
        let transaction = self.database.begin_write()?;
        transaction.open_table(STATE)?.remove(OPENED_IN)?;
        transaction.commit()?;
        Ok(())
    }

    pub fn read(&self) -> Result<Everything, RecordsError> {
        let transaction = self.database.begin_read()?;
        let mut everything = Everything::default();
        for row in transaction.open_table(IMAGES)?.iter()? {
            let (key, value) = row?;
            everything.images.push((digest(key.value())?, decode(key.value(), value.value())?));
        }
        for row in transaction.open_table(NAMES)?.iter()? {
            let (key, value) = row?;
            everything.names.push((key.value().to_owned(), digest(value.value())?));
        }
        for row in transaction.open_table(LAYERS)?.iter()? {
            let (key, value) = row?;
            everything.layers.push((digest(key.value())?, decode(key.value(), value.value())?));
        }
        Ok(everything)
    }

    /// All changes or none; they are on the disk when this returns.
    pub fn commit(&self, changes: &[Change]) -> Result<(), RecordsError> {
        failpoint::reach("records.begin");
        let transaction = self.database.begin_write()?;
        {
            let mut images = transaction.open_table(IMAGES)?;
            let mut names = transaction.open_table(NAMES)?;
            let mut layers = transaction.open_table(LAYERS)?;
            for change in changes {
                match change {
                    Change::PutImage(id, record) => drop(images.insert(id.as_str(), &encode(record)[..])?),
                    Change::DropImage(id) => drop(images.remove(id.as_str())?),
                    Change::PutName(name, id) => drop(names.insert(name.as_str(), id.as_str())?),
                    Change::DropName(name) => drop(names.remove(name.as_str())?),
                    Change::PutLayer(id, record) => drop(layers.insert(id.as_str(), &encode(record)[..])?),
                    Change::DropLayer(id) => drop(layers.remove(id.as_str())?),
                }
            }
        }
        failpoint::reach("records.written");
        transaction.commit()?;
        failpoint::reach("records.committed");
        Ok(())
    }
}

/// Reads a copy of the database in memory, every page of it against its checksum, so that a damaged file is refused before
/// anything is written to it. The database takes a file that was closed in order to be as it wrote it, and panics at some
/// damage: that is caught here, where nothing but the copy is lost with it.
///
/// # Errors
/// [`RecordsError::Altered`] or what the database says; [`RecordsError::Database`] too for a file that cannot be read.
pub(crate) fn verify(path: &Path) -> Result<(), RecordsError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(redb::Error::Io(error).into()),
    };
    if bytes.is_empty() {
        return Ok(());
    }
    let whole = panic::catch_unwind(|| -> Result<bool, redb::Error> {
        let copy = InMemoryBackend::new();
        copy.set_len(bytes.len() as u64)?;
        copy.write(0, &bytes)?;
        let mut database = Database::builder().create_with_backend(copy)?;
        Ok(database.check_integrity()?)
    });
    match whole {
        Ok(Ok(true)) => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Ok(Ok(false)) | Err(_) => Err(RecordsError::Altered),
    }
}

fn encode(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("texts and numbers are always JSON")
}

fn decode<T: for<'de> Deserialize<'de>>(key: &str, json: &[u8]) -> Result<T, RecordsError> {
    serde_json::from_slice(json).map_err(|_| RecordsError::damaged(key))
}

fn digest(text: &str) -> Result<Digest, RecordsError> {
    text.parse().map_err(|_| RecordsError::damaged(text))
}
