//! The program `bulkhead-vmm` that is installed on this host.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::hypervisor::HypervisorError;

const PROGRAM: &str = "bulkhead-vmm";
/// Names another program, for tests.
const VARIABLE: &str = "BULKHEAD_VMM";

/// One program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmmInstallation {
    program: PathBuf,
    fingerprint: String,
}

impl VmmInstallation {
    /// Finds it: beside this process's own program, where an installation has it, or in the path.
    pub(crate) fn find() -> Result<Self, HypervisorError> {
        let missing = HypervisorError::NoVmm { program: PROGRAM };
        candidates().into_iter().find_map(Self::of).ok_or(missing)
    }

    fn of(program: PathBuf) -> Option<Self> {
        let found =
            fs::metadata(&program).ok().filter(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)?;
        let fingerprint = format!("{}:{}.{}:{}", found.size(), found.mtime(), found.mtime_nsec(), found.ino());
        Some(Self { program, fingerprint })
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Tells one installed program from another: size, time, inode.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

fn candidates() -> Vec<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE) {
        return vec![named.into()];
    }
    let beside = env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    beside.into_iter().chain(env::split_paths(&path).map(|folder| folder.join(PROGRAM))).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_a_program_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PROGRAM);
        assert_eq!(VmmInstallation::of(path.clone()), None);
        fs::write(&path, b"#!").unwrap();
        assert_eq!(VmmInstallation::of(path.clone()), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let found = VmmInstallation::of(path.clone()).unwrap();
        fs::write(&path, b"#!other").unwrap();
        assert_ne!(VmmInstallation::of(path).unwrap().fingerprint(), found.fingerprint());
    }
}
