//! `manifest.json`: what the guest image is made of. It is written last, so an image with a manifest is whole.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::kernel::KernelFiles;
use super::modules::Module;

const FILE_NAME: &str = "manifest.json";

/// The file's content. Digests are SHA-256, 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the protocol that its program speaks.
    pub protocol: u32,
    /// As the guest's `uname -r` prints it.
    pub kernel_version: String,
    /// Of `vmlinux`.
    pub kernel_sha256: String,
    /// Of `initramfs.cpio`.
    pub initramfs_sha256: String,
    /// Of the program in it.
    pub guest_sha256: String,
    /// Names of the kernel modules in load order.
    pub modules: Vec<String>,
    /// Of everything the image was made from.
    pub inputs_sha256: String,
}

impl Manifest {
    /// The manifest of an image that was made from these inputs and has not been changed since.
    ///
    /// # Errors
    /// When the files are there and cannot be read.
    pub fn read_current(folder: &Path, inputs_sha256: &str) -> Result<Option<Self>> {
        let Ok(text) = fs::read(folder.join(FILE_NAME)) else { return Ok(None) };
        let Ok(manifest) = serde_json::from_slice::<Self>(&text) else { return Ok(None) };
        if manifest.inputs_sha256 != inputs_sha256 {
            return Ok(None);
        }
        for (name, digest) in [("vmlinux", &manifest.kernel_sha256), ("initramfs.cpio", &manifest.initramfs_sha256)] {
            let path = folder.join(name);
            if !path.exists() {
                return Ok(None);
            }
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if sha256(&[&bytes]) != *digest {
                return Ok(None);
            }
        }
        Ok(Some(manifest))
    }

    /// Writes it into the folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        super::replace(&folder.join(FILE_NAME), &text)
    }
}

/// What an image is made from.
pub struct Inputs<'a> {
    /// The kernel's files.
    pub kernel: &'a KernelFiles,
    /// The guest's program.
    pub program: &'a [u8],
    /// The version of the protocol that it speaks.
    pub protocol: u32,
    /// The modules in load order.
    pub modules: &'a [Module],
}

impl Inputs<'_> {
    /// The digest of all of it, and of the code that puts it together.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn digest(&self) -> Result<String> {
        let image = &self.kernel.image;
        let kernel = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
        let own_code = [include_str!("initramfs.rs"), include_str!("vmlinux.rs"), include_str!("manifest.rs")];
        let mut parts: Vec<&[u8]> = own_code.iter().map(|code| code.as_bytes()).collect();
        parts.extend([self.kernel.version.as_bytes(), &kernel, self.program]);
        parts.extend(
            self.modules
                .iter()
                .flat_map(|module| [module.name.as_bytes(), &module.bytes, if module.later { b"later" } else { b"" }]),
        );
        Ok(sha256(&parts))
    }

    /// The manifest of the image made from them.
    pub fn manifest(&self, inputs_sha256: String, vmlinux: &[u8], initramfs: &[u8]) -> Manifest {
        Manifest {
            protocol: self.protocol,
            kernel_version: self.kernel.version.clone(),
            kernel_sha256: sha256(&[vmlinux]),
            initramfs_sha256: sha256(&[initramfs]),
            guest_sha256: sha256(&[self.program]),
            modules: self.modules.iter().map(|module| module.name.clone()).collect(),
            inputs_sha256,
        }
    }
}

/// One part alone is hashed as it is (as sha256sum does); several are told apart by their lengths.
fn sha256(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        if parts.len() > 1 {
            hash.update(part.len().to_le_bytes());
        }
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_current_until_a_file_or_an_input_changes() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = Manifest {
            protocol: 1,
            kernel_version: "6.1".into(),
            kernel_sha256: sha256(&[b"kernel"]),
            initramfs_sha256: sha256(&[b"archive"]),
            guest_sha256: sha256(&[b"program"]),
            modules: vec!["virtio".into()],
            inputs_sha256: "inputs".into(),
        };
        assert_eq!(Manifest::read_current(folder.path(), "inputs").unwrap(), None);
        fs::write(folder.path().join("vmlinux"), b"kernel").unwrap();
        fs::write(folder.path().join("initramfs.cpio"), b"archive").unwrap();
        manifest.write(folder.path()).unwrap();
        assert_eq!(Manifest::read_current(folder.path(), "inputs").unwrap(), Some(manifest));
        assert_eq!(Manifest::read_current(folder.path(), "other").unwrap(), None);
        fs::write(folder.path().join("vmlinux"), b"kernel, cut").unwrap();
        assert_eq!(Manifest::read_current(folder.path(), "inputs").unwrap(), None);
    }

    #[test]
    fn parts_are_told_apart() {
        assert_ne!(sha256(&[b"ab", b"c"]), sha256(&[b"a", b"bc"]));
        assert_eq!(sha256(&[b""]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
