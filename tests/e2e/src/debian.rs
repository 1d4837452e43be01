//! An image of Debian with the programs that people run: PostgreSQL, nginx and Redis, as Debian packages them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::build::{Build, program};

/// What it is made of.
const SUITE: &str = "bookworm";
const PACKAGES: &str = "postgresql,nginx-light,redis-server";
/// Files that nobody here reads; the compiler of PostgreSQL's queries, which it does without, is half of the image.
const LEFT_OUT: [&str; 7] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "*/libLLVM*",
    "*/llvmjit*",
    "/usr/lib/postgresql/*/lib/bitcode/*",
];
/// Clusters are made where they are wanted, and not while the image is.
const NO_CLUSTER: &str = "mkdir -p \"$1/etc/postgresql-common\" && \
    echo create_main_cluster = false > \"$1/etc/postgresql-common/createcluster.conf\"";

/// Its root file system as a tar stream, made once for all tests of a build. `Err` says what is missing.
///
/// # Errors
/// mmdebstrap is missing, or cannot make it: it needs a Debian mirror once.
pub fn applications() -> Result<PathBuf, String> {
    let shared = Build::of_this_test().shared;
    let path = shared.join("applications.tar");
    if path.exists() {
        return Ok(path);
    }
    if program("mmdebstrap").is_none() {
        return Err("needs mmdebstrap (scripts/setup test)".to_owned());
    }
    std::fs::create_dir_all(&shared).map_err(|error| error.to_string())?;
    // Tests that run at the same time wait for the first.
    let lock = std::fs::File::create(shared.join("applications.lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if !path.exists() {
        make(&path)?;
    }
    Ok(path)
}

fn make(path: &Path) -> Result<(), String> {
    let unfinished = path.with_extension("unfinished.tar");
    let mut command = Command::new(program("mmdebstrap").ok_or("no mmdebstrap")?);
    command.args(["--quiet", "--variant=essential", "--mode=root", &format!("--include={PACKAGES}")]);
    command.args(LEFT_OUT.map(|glob| format!("--dpkgopt=path-exclude={glob}")));
    command.arg(format!("--essential-hook={NO_CLUSTER}")).arg(SUITE).arg(&unfinished);
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("mmdebstrap does not start: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = said.lines().rev().take(3).collect();
        return Err(format!("mmdebstrap cannot make the image: {}", last.join("; ")));
    }
    std::fs::rename(&unfinished, path).map_err(|error| error.to_string())
}
