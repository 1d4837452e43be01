//! The QEMU that is installed on this host.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::hypervisor::HypervisorError;
use crate::record;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// Where distributions put a QEMU that is not in the path.
const OTHER_PLACES: [&str; 1] = ["/usr/libexec/qemu-kvm"];

/// One QEMU program and its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QemuInstallation {
    program: PathBuf,
    fingerprint: String,
    version: String,
}

impl QemuInstallation {
    /// Finds QEMU and asks it for its version, which takes 30 ms.
    pub(crate) fn find() -> Result<Self, HypervisorError> {
        let (program, fingerprint) = locate(&search_path()).ok_or_else(not_installed)?;
        Self::ask(program, fingerprint)
    }

    /// As [`QemuInstallation::find`], but asks only if `cache` does not know this very program.
    pub(crate) fn find_cached(cache: &Path) -> Result<Self, HypervisorError> {
        let (program, fingerprint) = locate(&search_path()).ok_or_else(not_installed)?;
        let known = record::read::<Self>(cache);
        if let Some(known) = known.filter(|known| known.program == program && known.fingerprint == fingerprint) {
            return Ok(known);
        }
        let found = Self::ask(program, fingerprint)?;
        if let Err(error) = record::write(cache, &found) {
            tracing::warn!(%error, "cannot remember qemu's version; each start asks for it");
        }
        Ok(found)
    }

    fn ask(program: PathBuf, fingerprint: String) -> Result<Self, HypervisorError> {
        let output = Command::new(&program)
            .arg("--version")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .map_err(|source| HypervisorError::Spawn { program: program.clone(), source })?;
        let text = String::from_utf8_lossy(&output.stdout);
        match parse_version(&text) {
            Some(version) => Ok(Self { program, fingerprint, version: version.to_owned() }),
            None => Err(HypervisorError::UnknownVersion { program, output: text.chars().take(200).collect() }),
        }
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Tells one installed program from another: size, time, inode.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Version, such as `7.2.22`.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// True when it can map a read-only file as private, writable memory. Source: QEMU 8.2, "VM templating".
    pub(crate) fn maps_read_only_files(&self) -> bool {
        let mut numbers = self.version.split('.').map_while(|number| number.parse::<u32>().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (8, 2)
    }
}

fn not_installed() -> HypervisorError {
    HypervisorError::NotInstalled { program: PROGRAM, package: PACKAGE }
}

fn search_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let folders = env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    folders.chain(OTHER_PLACES.map(PathBuf::from)).collect()
}

fn locate(candidates: &[PathBuf]) -> Option<(PathBuf, String)> {
    candidates.iter().find_map(|program| {
        let found = fs::metadata(program).ok().filter(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)?;
        let fingerprint = format!("{}:{}.{}:{}", found.size(), found.mtime(), found.mtime_nsec(), found.ino());
        Some((program.clone(), fingerprint))
    })
}

/// Takes `7.2.22` out of `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
fn parse_version(text: &str) -> Option<&str> {
    let version = text.lines().next()?.split("version ").nth(1)?.split(' ').next()?;
    version.starts_with(|first: char| first.is_ascii_digit()).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022\n";
        assert_eq!(parse_version(text), Some("7.2.22"));
        assert_eq!(parse_version("something else"), None);
        for (version, new) in [("7.2.22", false), ("8.1.0", false), ("8.2.0", true), ("10.0.2", true)] {
            let found = QemuInstallation { program: "q".into(), fingerprint: String::new(), version: version.into() };
            assert_eq!(found.maps_read_only_files(), new, "{version}");
        }
    }

    #[test]
    fn a_missing_qemu_names_the_package() {
        assert_eq!(locate(&["/nonexistent/qemu".into()]), None);
        assert!(not_installed().to_string().contains("apt-get install qemu-system-x86"));
    }

    #[test]
    fn a_known_program_is_not_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("qemu.json");
        let Some((program, fingerprint)) = locate(&search_path()) else {
            eprintln!("SKIPPED a_known_program_is_not_asked_again: qemu is not installed");
            return;
        };
        let planted = QemuInstallation { program, fingerprint, version: "1.2.3-planted".into() };
        record::write(&cache, &planted).unwrap();
        assert_eq!(QemuInstallation::find_cached(&cache).unwrap(), planted);
        let stale = QemuInstallation { fingerprint: "other".into(), ..planted.clone() };
        record::write(&cache, &stale).unwrap();
        assert_ne!(QemuInstallation::find_cached(&cache).unwrap().version, planted.version);
    }
}
