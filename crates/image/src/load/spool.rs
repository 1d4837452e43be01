//! An archive's files, in one temporary file that has no name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;

use proto::{Digest, ErrorKind};
use sha2::{Digest as _, Sha256};

use super::{LoadError, LoadEvent, Reporting};
use crate::failpoint;
use crate::limits::{MAX_ARCHIVE_FILES, MAX_JSON_BYTES, MAX_SYMLINKS};
use crate::tar::{EntryKind, TarError, TarStream};

const COPY_BUFFER: usize = 1 << 20;

/// Why a file of an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum SpoolFault {
    /// Its name, or where it links to, leads out of the archive.
    #[error("its name or its target leads out of the archive")]
    Outside,
    /// A name that is no text.
    #[error("its name is not UTF-8")]
    NotText,
    /// Devices and pipes have no business in an archive.
    #[error("it is neither a file nor a folder nor a link")]
    Special,
    /// More files than [`MAX_ARCHIVE_FILES`].
    #[error("the archive has more than {MAX_ARCHIVE_FILES} files")]
    TooManyFiles,
    /// It is named and not there.
    #[error("it is missing")]
    Missing,
    /// A JSON file longer than [`MAX_JSON_BYTES`].
    #[error("it has {bytes} bytes, more than {MAX_JSON_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: u64,
    },
    /// The temporary file failed.
    #[error("the temporary file failed")]
    Temporary(#[source] io::Error),
}

impl SpoolFault {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::TooManyFiles | Self::TooLarge { .. } => ErrorKind::ResourceExhausted,
            Self::Temporary(error) if error.kind() == io::ErrorKind::StorageFull => ErrorKind::ResourceExhausted,
            Self::Temporary(_) => ErrorKind::Internal,
            _ => ErrorKind::InvalidArgument,
        }
    }
}

enum Spooled {
    /// Where its bytes are.
    File { offset: u64, length: u64 },
    /// A link to another file of the archive. `docker save` makes them for layers that occur twice.
    Link(String),
}

/// The files of an archive by their names in it, `.` and leading slashes taken away.
pub(super) struct Spool {
    file: File,
    files: BTreeMap<String, Spooled>,
}

impl Spool {
    /// Reads a tar stream to its end.
    pub fn fill(stream: impl Read, file: File, progress: &mut dyn FnMut(LoadEvent)) -> Result<Self, LoadError> {
        let report = |bytes| progress(LoadEvent::Received { bytes });
        let mut tar = TarStream::new(Reporting { source: stream, bytes: 0, reported: 0, report });
        let archive = |error| match error {
            TarError::Read(error) => LoadError::from_stream(error),
            other => LoadError::Archive(other),
        };
        let mut files = BTreeMap::new();
        let (mut output, mut offset) = (BufWriter::with_capacity(COPY_BUFFER, &file), 0);
        while let Some(entry) = tar.next_entry().map_err(archive)? {
            let refuse = |fault| LoadError::File {
                name: String::from_utf8_lossy(&entry.path).chars().take(200).collect(),
                fault,
            };
            let name = plain_name(&entry.path).map_err(refuse)?;
            let spooled = match entry.kind {
                EntryKind::Directory => continue,
                EntryKind::Regular => {
                    let start = offset;
                    offset += entry.size;
                    copy(&mut tar, &mut output).map_err(|error| match error {
                        CopyFault::Input(error) => LoadError::from_stream(error),
                        CopyFault::Output(error) => refuse(SpoolFault::Temporary(error)),
                    })?;
                    Spooled::File { offset: start, length: entry.size }
                }
                EntryKind::Symlink => Spooled::Link(link_target(&name, &entry.link).map_err(refuse)?),
                EntryKind::HardLink => Spooled::Link(plain_name(&entry.link).map_err(refuse)?),
                EntryKind::CharacterDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                    return Err(refuse(SpoolFault::Special));
                }
            };
            if files.len() >= MAX_ARCHIVE_FILES {
                return Err(refuse(SpoolFault::TooManyFiles));
            }
            files.insert(name, spooled);
            failpoint::reach("load.spooling");
        }
        tar.finish().map_err(archive)?;
        let flushed = output.flush();
        drop(output);
        flushed.map_err(|error| LoadError::File { name: String::new(), fault: SpoolFault::Temporary(error) })?;
        Ok(Self { file, files })
    }

    pub fn contains(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Opens a file by its name in the archive, following links inside it.
    pub fn open(&self, name: &str) -> Result<SpooledFile<'_>, LoadError> {
        let refuse = |fault| LoadError::File { name: name.chars().take(200).collect(), fault };
        let mut at = plain_name(name.as_bytes()).map_err(refuse)?;
        for _ in 0..MAX_SYMLINKS {
            match self.files.get(&at) {
                Some(Spooled::File { offset, length }) => {
                    return Ok(SpooledFile {
                        file: &self.file,
                        position: *offset,
                        start: *offset,
                        end: offset + length,
                    });
                }
                Some(Spooled::Link(target)) => at.clone_from(target),
                None => break,
            }
        }
        Err(refuse(SpoolFault::Missing))
    }

    /// A JSON file's bytes.
    pub fn read_json(&self, name: &str) -> Result<Vec<u8>, LoadError> {
        let mut file = self.open(name)?;
        let refuse = |fault| LoadError::File { name: name.to_owned(), fault };
        if file.len() > MAX_JSON_BYTES {
            return Err(refuse(SpoolFault::TooLarge { bytes: file.len() }));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|error| refuse(SpoolFault::Temporary(error)))?;
        Ok(bytes)
    }

    /// A JSON blob of an OCI layout, whose digest must be right.
    pub fn read_blob_json(&self, digest: &Digest) -> Result<Vec<u8>, LoadError> {
        let name = blob_name(digest);
        let bytes = self.read_json(&name)?;
        super::check_digest(&name, Some(digest), &Digest::from_sha256(&Sha256::digest(&bytes).into()))?;
        Ok(bytes)
    }
}

/// Where an OCI layout has a blob. Source: OCI image-spec, image-layout.md#blobs.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// One file of a spool.
pub(super) struct SpooledFile<'s> {
    file: &'s File,
    position: u64,
    start: u64,
    end: u64,
}

impl SpooledFile<'_> {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// The first bytes, up to 8.
    pub fn head(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.len().min(8)).expect("at most 8");
        let mut head = vec![0; length];
        self.file.read_exact_at(&mut head, self.start)?;
        Ok(head)
    }
}

impl Read for SpooledFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end - self.position;
        let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read_at(&mut buffer[..wanted], self.position)?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        Ok(count)
    }
}

enum CopyFault {
    Input(io::Error),
    Output(io::Error),
}

fn copy(input: &mut dyn Read, output: &mut dyn Write) -> Result<(), CopyFault> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => output.write_all(&buffer[..count]).map_err(CopyFault::Output)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(CopyFault::Input(error)),
        }
    }
}

/// A name without `.`, empty components and leading slashes; one with `..` is refused.
fn plain_name(path: &[u8]) -> Result<String, SpoolFault> {
    let text = std::str::from_utf8(path).map_err(|_| SpoolFault::NotText)?;
    join("", text, |_| Err(SpoolFault::Outside))
}

/// Where a symbolic link in an archive leads: to another name in it, or it is refused.
fn link_target(name: &str, target: &[u8]) -> Result<String, SpoolFault> {
    let text = std::str::from_utf8(target).map_err(|_| SpoolFault::NotText)?;
    if text.starts_with('/') {
        return Err(SpoolFault::Outside);
    }
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    join(folder, text, |parts| parts.pop().map(drop).ok_or(SpoolFault::Outside))
}

fn join<'a>(
    folder: &'a str,
    path: &'a str,
    on_parent: impl Fn(&mut Vec<&'a str>) -> Result<(), SpoolFault>,
) -> Result<String, SpoolFault> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => on_parent(&mut parts)?,
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}
