//! A template: a utility VM that was booted once and frozen before anything specific to a container happened.
//!
//! Its bytes never change. Each fork compares size, inode and times of both files with the seal; where they differ, and
//! at the first use after the host has booted, the digests are compared as well.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use proto::TemplateId;
use proto::control::Accelerator;
use serde::{Deserialize, Serialize};
use vmm::protocol::PageRun;

use crate::digest::{sha256_of_reader, sha256_of_sparse};
use crate::hypervisor::FrozenMachine;
use crate::record;
use crate::working_set::{self, Recording};

pub(crate) const MEMORY_FILE: &str = "memory";
pub(crate) const STATE_FILE: &str = "state";
const MANIFEST_FILE: &str = "manifest.json";
const WORKING_SET_FILE: &str = "working-set.json";
const SEAL_FILE: &str = "seal.json";
const HOST_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    /// A file is not there or cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The manifest is no manifest, or another template's.
    #[error("its manifest is damaged: {0}")]
    Manifest(String),
    /// A file is shorter or longer than it was.
    #[error("its {file} file has {found} bytes instead of {expected}")]
    Size { file: &'static str, found: u64, expected: u64 },
    /// A file's content has changed.
    #[error("its {file} file was altered")]
    Altered { file: &'static str },
}

/// What a template is, written once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) id: TemplateId,
    pub(crate) created_at_ns: i64,
    pub(crate) accelerator: Accelerator,
    pub(crate) backend: String,
    pub(crate) kernel_version: String,
    pub(crate) memory_bytes: u64,
    pub(crate) vcpus: u32,
    pub(crate) boot_ms: u64,
    /// Digest over the parts of the memory file that are not zero.
    pub(crate) memory_sha256: String,
    pub(crate) state_bytes: u64,
    pub(crate) state_sha256: String,
}

impl Manifest {
    pub(crate) fn read(folder: &Path) -> Result<Self, Damage> {
        let text = fs::read(folder.join(MANIFEST_FILE))?;
        serde_json::from_slice(&text).map_err(|error| Damage::Manifest(error.to_string()))
    }
}

/// What a file looked like when its content was last compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Ok(Self {
            inode: found.ino(),
            bytes: found.size(),
            modified_ns: nanoseconds(found.mtime(), found.mtime_nsec()),
            changed_ns: nanoseconds(found.ctime(), found.ctime_nsec()),
        })
    }
}

/// When the content was last compared with the manifest: in which run of the host, and what the files looked like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seal {
    host_boot_id: String,
    memory: Stamp,
    state: Stamp,
}

impl Seal {
    fn of(memory: &File, state: &File) -> io::Result<Self> {
        let host_boot_id = fs::read_to_string(HOST_BOOT_ID)?.trim().to_owned();
        Ok(Self { host_boot_id, memory: Stamp::of(memory)?, state: Stamp::of(state)? })
    }
}

/// A sound template, its files open.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) manifest: Manifest,
    memory: File,
    state: File,
    folder: PathBuf,
}

impl Template {
    /// Opens a template and makes sure that it is as it was made. When: blocking; microseconds, or 0.2 s when the
    /// content must be compared.
    pub(crate) fn open(folder: &Path, id: &TemplateId) -> Result<Self, Damage> {
        let memory = File::open(folder.join(MEMORY_FILE))?;
        let state = File::open(folder.join(STATE_FILE))?;
        let manifest = Manifest::read(folder)?;
        if manifest.id != *id {
            return Err(Damage::Manifest(format!("it names template {}", manifest.id)));
        }
        let template = Self { manifest, memory, state, folder: folder.to_owned() };
        let seal = Seal::of(&template.memory, &template.state)?;
        let sealed = record::read::<Seal>(&folder.join(SEAL_FILE));
        template.compare_sizes(&seal)?;
        if sealed.as_ref() != Some(&seal) {
            template.compare_content()?;
            // Failing only means that the next start compares again.
            if let Err(error) = record::write(&folder.join(SEAL_FILE), &seal) {
                tracing::warn!(%id, %error, "cannot renew a template's seal");
            }
        }
        Ok(template)
    }

    /// Hands the files over to a fork. The state is read by sequence, so each fork has an open file of its own.
    pub(crate) fn into_frozen(self) -> FrozenMachine {
        FrozenMachine { memory: self.memory, state: self.state, working_set: Vec::new() }
    }

    /// What a fork writes first of all, or what records it, if nobody has.
    pub(crate) fn working_set(&self) -> io::Result<(Vec<PageRun>, Option<Recording>)> {
        let path = self.folder.join(WORKING_SET_FILE);
        match working_set::read(&path, self.manifest.memory_bytes) {
            Some(pages) => Ok((pages, None)),
            None => Ok((Vec::new(), Some(Recording { memory: self.memory.try_clone()?, path }))),
        }
    }

    fn compare_sizes(&self, seal: &Seal) -> Result<(), Damage> {
        let sizes = [
            (MEMORY_FILE, seal.memory.bytes, self.manifest.memory_bytes),
            (STATE_FILE, seal.state.bytes, self.manifest.state_bytes),
        ];
        match sizes.into_iter().find(|(_, found, expected)| found != expected) {
            Some((file, found, expected)) => Err(Damage::Size { file, found, expected }),
            None => Ok(()),
        }
    }

    fn compare_content(&self) -> Result<(), Damage> {
        let mut state = &self.state;
        if sha256_of_reader(&mut state)? != self.manifest.state_sha256 {
            return Err(Damage::Altered { file: STATE_FILE });
        }
        io::Seek::rewind(&mut state)?;
        if sha256_of_sparse(&self.memory)? != self.manifest.memory_sha256 {
            return Err(Damage::Altered { file: MEMORY_FILE });
        }
        Ok(())
    }
}

/// Digests of a build's files, for its manifest.
pub(crate) struct Digests {
    pub(crate) memory_sha256: String,
    pub(crate) state_bytes: u64,
    pub(crate) state_sha256: String,
}

impl Digests {
    pub(crate) fn of(folder: &Path) -> io::Result<Self> {
        let state = File::open(folder.join(STATE_FILE))?;
        Ok(Self {
            memory_sha256: sha256_of_sparse(&File::open(folder.join(MEMORY_FILE))?)?,
            state_bytes: state.metadata()?.len(),
            state_sha256: sha256_of_reader(state)?,
        })
    }
}

/// Completes a build: files read-only and on disk, manifest and seal beside them.
pub(crate) fn seal(folder: &Path, manifest: &Manifest) -> io::Result<()> {
    let path = folder.join(MANIFEST_FILE);
    fs::write(&path, serde_json::to_vec_pretty(manifest)?)?;
    for name in [MEMORY_FILE, STATE_FILE, MANIFEST_FILE] {
        let file = File::open(folder.join(name))?;
        file.set_permissions(Permissions::from_mode(0o400))?;
        file.sync_all()?;
    }
    let seal = Seal::of(&File::open(folder.join(MEMORY_FILE))?, &File::open(folder.join(STATE_FILE))?)?;
    record::write(&folder.join(SEAL_FILE), &seal)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    pub(crate) fn manifest(id: &TemplateId) -> Manifest {
        Manifest {
            id: id.clone(),
            created_at_ns: 1,
            accelerator: Accelerator::Tcg,
            backend: "qemu 7.2".into(),
            kernel_version: "6.1".into(),
            memory_bytes: 8192,
            vcpus: 1,
            boot_ms: 3000,
            memory_sha256: String::new(),
            state_bytes: 5,
            state_sha256: String::new(),
        }
    }

    fn made() -> (tempfile::TempDir, TemplateId) {
        let folder = tempfile::tempdir().unwrap();
        let id: TemplateId = "a".repeat(64).parse().unwrap();
        fs::write(folder.path().join(MEMORY_FILE), vec![1; 8192]).unwrap();
        fs::write(folder.path().join(STATE_FILE), b"state").unwrap();
        let digests = Digests::of(folder.path()).unwrap();
        let manifest = Manifest {
            memory_sha256: digests.memory_sha256,
            state_bytes: digests.state_bytes,
            state_sha256: digests.state_sha256,
            ..manifest(&id)
        };
        seal(folder.path(), &manifest).unwrap();
        (folder, id)
    }

    fn writable(folder: &Path, name: &str) -> File {
        let path = folder.join(name);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        File::options().write(true).open(path).unwrap()
    }

    #[test]
    fn a_sealed_template_opens_and_its_files_are_read_only() {
        let (folder, id) = made();
        Template::open(folder.path(), &id).unwrap();
        for name in [MEMORY_FILE, STATE_FILE, MANIFEST_FILE] {
            let mode = fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o400, "{name}");
        }
    }

    #[test]
    fn one_flipped_byte_is_found() {
        for (name, at) in [(MEMORY_FILE, 5000), (STATE_FILE, 2)] {
            let (folder, id) = made();
            writable(folder.path(), name).write_all_at(b"!", at).unwrap();
            let damage = Template::open(folder.path(), &id).unwrap_err();
            assert!(matches!(damage, Damage::Altered { file } if file == name), "{damage}");
        }
    }

    #[test]
    fn truncation_is_found_without_reading() {
        let (folder, id) = made();
        writable(folder.path(), MEMORY_FILE).set_len(4096).unwrap();
        let damage = Template::open(folder.path(), &id).unwrap_err();
        assert!(matches!(damage, Damage::Size { found: 4096, expected: 8192, .. }), "{damage}");
    }

    #[test]
    fn a_touched_but_equal_template_is_compared_and_sealed_again() {
        let (folder, id) = made();
        writable(folder.path(), MEMORY_FILE).write_all_at(&[1], 0).unwrap();
        let before = fs::read(folder.path().join(SEAL_FILE)).unwrap();
        Template::open(folder.path(), &id).unwrap();
        assert_ne!(before, fs::read(folder.path().join(SEAL_FILE)).unwrap());
    }

    #[test]
    fn after_a_boot_of_the_host_the_content_is_compared_once() {
        let (folder, id) = made();
        let path = folder.path().join(SEAL_FILE);
        let mut seal: Seal = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let own = std::mem::replace(&mut seal.host_boot_id, "another boot".into());
        record::write(&path, &seal).unwrap();
        Template::open(folder.path(), &id).unwrap();
        let renewed: Seal = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(renewed.host_boot_id, own);
    }

    #[test]
    fn another_templates_folder_is_refused() {
        let (folder, _) = made();
        let other = "b".repeat(64).parse().unwrap();
        assert!(matches!(Template::open(folder.path(), &other), Err(Damage::Manifest(_))));
    }
}
