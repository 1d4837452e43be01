//! What a test needs of the machine, and what happens when it is not there.

use std::path::PathBuf;

use crate::build::{Build, EngineKind, program};

/// Something that may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Containers need root.
    Root,
    /// The unmodified docker CLI.
    DockerCli,
    /// The binaries of this workspace, built in the profile of the tests (or dockerd, for the reference).
    Engine,
    /// QEMU and the guest image.
    UtilityVms,
    /// Debian's busybox-static, out of which the images are made.
    Busybox,
    /// Debian's docker-registry and openssl.
    Registry,
    /// Behaviour that the reference daemon has not.
    OwnEngine,
    /// The engine that can be told where to kill itself.
    Failpoints,
}

impl Need {
    /// Why it is missing and how to get it, or `None` when it is there.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Root => (!rustix::process::geteuid().is_root()).then(|| "needs root".to_owned()),
            Self::DockerCli => {
                program("docker").is_none().then(|| "needs the docker CLI (scripts/setup test)".to_owned())
            }
            Self::Engine => Build::of_this_test().missing_binaries(),
            Self::UtilityVms if EngineKind::of_this_run() == EngineKind::Reference => {
                Some("the reference daemon has no utility VMs".to_owned())
            }
            Self::UtilityVms => {
                let image = Build::of_this_test().guest_image;
                if program("qemu-system-x86_64").is_none() {
                    Some("needs QEMU (scripts/setup run)".to_owned())
                } else if !image.join("manifest.json").exists() {
                    Some(format!("needs the guest image in {} (cargo xtask boot)", image.display()))
                } else {
                    None
                }
            }
            Self::Busybox => {
                crate::archive::busybox().is_none().then(|| "needs busybox-static (scripts/setup run)".to_owned())
            }
            Self::Failpoints => {
                let binaries = Build::of_this_test().binaries;
                let programs = [crate::engine::FAILPOINTS_ENGINE, crate::engine::FAILPOINTS_SHIM];
                let missing = programs.into_iter().find(|name| !binaries.join(name).exists());
                missing.map(|name| format!("needs {name} (cargo xtask test --failpoints)"))
            }
            Self::Registry => ["docker-registry", "openssl"]
                .iter()
                .any(|name| program(name).is_none())
                .then(|| "needs docker-registry and openssl (scripts/setup test)".to_owned()),
            Self::OwnEngine => (EngineKind::of_this_run() == EngineKind::Reference)
                .then(|| "the reference daemon does not do this".to_owned()),
        }
    }
}

/// Says loudly that the running test is skipped, and counts it. With `BULKHEAD_E2E_REQUIRE=1` it fails instead.
///
/// # Panics
/// When nothing may be missing.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("unknown test");
    assert!(std::env::var_os("BULKHEAD_E2E_REQUIRE").is_none(), "{test} must run here, but {reason}");
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(folder) = std::env::var_os("BULKHEAD_E2E_SKIPS") {
        let file = PathBuf::from(folder).join(test.replace("::", "."));
        if let Err(error) = std::fs::write(&file, reason) {
            eprintln!("cannot count it in {}: {error}", file.display());
        }
    }
}
