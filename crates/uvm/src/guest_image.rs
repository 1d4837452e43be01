//! The guest image: kernel and initramfs of every utility VM, made by `make build`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use proto::ErrorKind;
use serde::Deserialize;

use crate::digest::sha256_of_reader;

/// What went wrong with the guest image.
#[derive(Debug, thiserror::Error)]
pub enum GuestImageError {
    /// There is none.
    #[error("no guest image in {}: `make build` makes it (or name its folder with --guest-image)", .folder.display())]
    Missing {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A file of it cannot be read.
    #[error("cannot read the guest image's {}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The manifest is not one.
    #[error("the guest image's {} is damaged: make it again with `make build`", .path.display())]
    Manifest {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Its program and this one are of different builds. Shape: an image that does not say which protocol it speaks is asked when it runs, see
    /// [`crate::PersonalizeError::Version`].
    #[error(
        "the guest image in {} speaks version {found} of the protocol, and this program version {}: install both from one build \
         (`make build` makes both)",
        .folder.display(),
        proto::gcs::VERSION
    )]
    Version {
        /// Where it is.
        folder: PathBuf,
        /// What it speaks.
        found: u32,
    },
    /// A file is not the one that the manifest names.
    #[error("{} is not the file that the guest image's manifest names: make it again with `make build`", .path.display())]
    Altered {
        /// Which file.
        path: PathBuf,
    },
}

impl GuestImageError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } => ErrorKind::NotFound,
            Self::Read { .. } | Self::Manifest { .. } | Self::Version { .. } | Self::Altered { .. } => {
                ErrorKind::FailedPrecondition
            }
        }
    }
}

/// `manifest.json` in the guest image's folder.
#[derive(Debug, Clone, Deserialize)]
struct Manifest {
    protocol: Option<u32>,
    kernel_version: String,
    kernel_sha256: String,
    initramfs_sha256: String,
}

/// Kernel and initramfs that utility VMs boot from.
///
/// Shape: a folder with `vmlinux` (an ELF with a PVH entry), `initramfs.cpio` and `manifest.json`.
#[derive(Debug, Clone)]
pub struct GuestImage {
    folder: PathBuf,
    manifest: Manifest,
}

impl GuestImage {
    /// Opens the image in `folder`. Reads the manifest only; [`GuestImage::verify`] reads the rest.
    ///
    /// # Errors
    /// [`GuestImageError`] when there is none, its manifest is damaged, or it is of another build.
    pub fn open(folder: &Path) -> Result<Self, GuestImageError> {
        let path = folder.join("manifest.json");
        let text = fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => GuestImageError::Missing { folder: folder.to_owned() },
            _ => GuestImageError::Read { path: path.clone(), source },
        })?;
        let mut manifest: Manifest =
            serde_json::from_slice(&text).map_err(|source| GuestImageError::Manifest { path, source })?;
        if let Some(found) = manifest.protocol.filter(|&protocol| protocol != proto::gcs::VERSION) {
            return Err(GuestImageError::Version { folder: folder.to_owned(), found });
        }
        for digest in [&mut manifest.kernel_sha256, &mut manifest.initramfs_sha256] {
            *digest = digest.strip_prefix("sha256:").unwrap_or(digest).to_ascii_lowercase();
        }
        // The hypervisor has another working folder.
        let absolute =
            std::path::absolute(folder).map_err(|source| GuestImageError::Read { path: folder.to_owned(), source })?;
        let image = Self { folder: absolute, manifest };
        for path in [image.kernel(), image.initramfs()] {
            if !path.is_file() {
                return Err(GuestImageError::Missing { folder: folder.to_owned() });
            }
        }
        Ok(image)
    }

    /// Compares both files with the digests of the manifest. When: before a template is booted; it reads 60 MB.
    ///
    /// # Errors
    /// [`GuestImageError::Altered`] or [`GuestImageError::Read`].
    pub fn verify(&self) -> Result<(), GuestImageError> {
        let files =
            [(self.kernel(), &self.manifest.kernel_sha256), (self.initramfs(), &self.manifest.initramfs_sha256)];
        for (path, expected) in files {
            let found = File::open(&path)
                .and_then(sha256_of_reader)
                .map_err(|source| GuestImageError::Read { path: path.clone(), source })?;
            if found != *expected {
                return Err(GuestImageError::Altered { path });
            }
        }
        Ok(())
    }

    /// The uncompressed kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The first file system, with the guest compute service.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs.cpio")
    }

    /// Version of the kernel as `uname -r` says it.
    #[must_use]
    pub fn kernel_version(&self) -> &str {
        &self.manifest.kernel_version
    }

    /// Digests of kernel and initramfs, 64 hexadecimal digits each.
    pub(crate) fn digests(&self) -> [&str; 2] {
        [&self.manifest.kernel_sha256, &self.manifest.initramfs_sha256]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, kernel_sha256: &str) {
        fs::write(folder.join("vmlinux"), b"kernel").unwrap();
        fs::write(folder.join("initramfs.cpio"), b"initramfs").unwrap();
        let initramfs = sha256_of_reader(&b"initramfs"[..]).unwrap();
        let manifest = serde_json::json!({"kernel_version": "6.1", "kernel_sha256": kernel_sha256,
            "initramfs_sha256": initramfs, "modules": []});
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    }

    #[test]
    fn a_missing_image_says_how_to_make_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = GuestImage::open(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("make build"), "{error}");
    }

    #[test]
    fn an_altered_kernel_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &sha256_of_reader(&b"kernel"[..]).unwrap());
        let image = GuestImage::open(folder.path()).unwrap();
        image.verify().unwrap();
        fs::write(image.kernel(), b"Kernel").unwrap();
        assert!(matches!(image.verify(), Err(GuestImageError::Altered { path }) if path.ends_with("vmlinux")));
    }

    #[test]
    fn an_image_of_another_protocol_is_refused_before_it_is_booted() {
        let folder = tempfile::tempdir().unwrap();
        let open = |protocol: Option<u32>| {
            write(folder.path(), &"0".repeat(64));
            let path = folder.path().join("manifest.json");
            let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            if let Some(protocol) = protocol {
                manifest["protocol"] = protocol.into();
            }
            fs::write(path, manifest.to_string()).unwrap();
            GuestImage::open(folder.path())
        };
        open(Some(proto::gcs::VERSION)).unwrap();
        // It does not say.
        open(None).unwrap();
        for other in [proto::gcs::VERSION - 1, proto::gcs::VERSION + 1] {
            let error = open(Some(other)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
            let said = error.to_string();
            let words = [format!("version {other} "), format!("version {}:", proto::gcs::VERSION), "make build".into()];
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
        }
    }

    #[test]
    fn a_damaged_manifest_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("manifest.json"), b"{").unwrap();
        assert!(matches!(GuestImage::open(folder.path()), Err(GuestImageError::Manifest { .. })));
    }
}
