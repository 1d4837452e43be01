//! Builds `bulkhead-guest`, static and in a target folder of its own: its flags would rebuild everything else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Where Debian's libseccomp-dev has the static library.
const LIBSECCOMP_FOLDER: &str = "/usr/lib/x86_64-linux-gnu";

/// The program's bytes.
///
/// # Errors
/// When cargo fails or libseccomp's static library is not installed.
pub fn build(profile: &str) -> Result<Vec<u8>> {
    let library = std::env::var("LIBSECCOMP_LIB_PATH").unwrap_or_else(|_| LIBSECCOMP_FOLDER.to_owned());
    ensure!(
        Path::new(&library).join("libseccomp.a").exists(),
        "no libseccomp.a in {library}; install Debian's libseccomp-dev, or set LIBSECCOMP_LIB_PATH"
    );
    let target_folder = workspace::target_dir().join("guest");
    let status = workspace::cargo()
        .args(["build", "--locked", "--package", "bulkhead-guest", "--target", TARGET, "--profile", profile])
        .arg("--target-dir")
        .arg(&target_folder)
        .env("RUSTFLAGS", rust_flags(&workspace::root()))
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", &library)
        // What cargo told xtask about itself is not for the guest.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the guest's program does not build ({status})");
    stripped(&target_folder.join(TARGET).join(profile_folder(profile)).join("bulkhead-guest"))
}

/// The program without its symbols, which stay beside the image for whoever has to read an address.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let copy = program.with_extension("stripped");
    workspace::run_checked(Command::new("strip").arg("--strip-all").arg("-o").arg(&copy).arg(program))
        .context("strip comes with Debian's binutils")?;
    fs::read(&copy).with_context(|| format!("cannot read {}", copy.display()))
}

/// Static, and without the names of this machine's folders, so that the same sources give the same bytes elsewhere.
///
/// At fixed addresses: an emulator keeps translated code by address, and the program runs as several processes, each of
/// which would otherwise be translated by itself. Nothing is lost by it, since all forks of a template have the addresses
/// that its boot chose.
fn rust_flags(root: &Path) -> String {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"), PathBuf::from);
    format!(
        "-C target-feature=+crt-static -C relocation-model=static --remap-path-prefix={}=/bulkhead --remap-path-prefix={}=/cargo",
        root.display(),
        cargo_home.display()
    )
}

/// Cargo names the folder after the profile, save for the built-in development profile.
fn profile_folder(profile: &str) -> &str {
    if profile == "dev" { "debug" } else { profile }
}
