//! Which build, and which daemon, the running tests are about.

use std::path::{Path, PathBuf};

/// Which daemon the tests run over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// Ours.
    Own,
    /// Docker's, to prove the tests.
    Reference,
}

impl EngineKind {
    /// The one that `BULKHEAD_E2E_REFERENCE` asks for.
    #[must_use]
    pub fn of_this_run() -> Self {
        if std::env::var_os("BULKHEAD_E2E_REFERENCE").is_some() { Self::Reference } else { Self::Own }
    }
}

/// Where the binaries are that the tests start.
#[derive(Debug)]
pub struct Build {
    /// Folder of `bulkheadd`, the shim and the CLI.
    pub binaries: PathBuf,
    /// Folder of the guest image.
    pub guest_image: PathBuf,
    /// Folder for what the tests of a build share: the image's tar stream, templates.
    pub shared: PathBuf,
}

impl Build {
    /// The build that the running test belongs to: `target/PROFILE/deps/TEST` tests `target/PROFILE/bulkheadd`.
    ///
    /// # Panics
    /// Never: a program knows its own path.
    #[must_use]
    pub fn of_this_test() -> Self {
        let test = std::env::current_exe().expect("a test knows its own path");
        let deps = test.parent().unwrap_or(Path::new("/"));
        let profile = if deps.ends_with("deps") { deps.parent().unwrap_or(deps) } else { deps };
        let target = profile.parent().unwrap_or(profile);
        let folder = |variable: &str, default: PathBuf| std::env::var_os(variable).map_or(default, PathBuf::from);
        Self {
            binaries: folder("BULKHEAD_E2E_BIN", profile.to_path_buf()),
            guest_image: folder("BULKHEAD_E2E_BOOT", target.join("boot")),
            shared: target.join("e2e"),
        }
    }

    pub(crate) fn missing_binaries(&self) -> Option<String> {
        if EngineKind::of_this_run() == EngineKind::Reference {
            return program("dockerd").is_none().then(|| "needs dockerd (scripts/setup test)".to_owned());
        }
        ["bulkheadd", "containerd-shim-bulkhead-v2", "bulkhead"]
            .map(|name| self.binaries.join(name))
            .into_iter()
            .find(|path| !path.exists())
            .map(|path| format!("{} is not built (make build)", path.display()))
    }
}

/// Looks a program up in `PATH` and in the folders of system programs.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
