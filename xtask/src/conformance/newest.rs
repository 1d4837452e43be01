//! The newest Docker that Debian has, in its unstable distribution: unpacked, never installed. It needs nothing that Debian's stable
//! distribution has not but runc, and takes the machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::Folders;
use crate::workspace;

/// dockerd, containerd with its shim, and the second docker-compose.
const PACKAGES: [&str; 3] = ["docker.io", "containerd", "docker-compose"];
const SOURCE: &str =
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian unstable main\n";

fn home(folders: &Folders) -> PathBuf {
    folders.root.join("newest")
}

/// The folder of its programs.
pub fn programs(folders: &Folders) -> PathBuf {
    home(folders).join("tree/usr/bin")
}

/// Its daemon, without options.
pub fn dockerd(folders: &Folders) -> Command {
    let tree = home(folders).join("tree/usr");
    let mut command = Command::new(tree.join("sbin/dockerd"));
    command.arg("--userland-proxy-path").arg(tree.join("sbin/docker-proxy"));
    command.arg("--init-path").arg(tree.join("bin/docker-init"));
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", tree.join("bin").display()));
    command
}

/// Fetches and unpacks it, once.
///
/// # Errors
/// apt cannot reach Debian, or does not have the packages; a package cannot be unpacked.
pub fn prepare(folders: &Folders) -> anyhow::Result<()> {
    let home = home(folders);
    let stamp = home.join("ready");
    if stamp.exists() {
        return Ok(());
    }
    if home.exists() {
        fs::remove_dir_all(&home).with_context(|| format!("cannot clear {}", home.display()))?;
    }
    for folder in ["lists/partial", "cache/archives/partial", "debs", "tree"] {
        fs::create_dir_all(home.join(folder)).with_context(|| format!("cannot make {}", home.display()))?;
    }
    fs::write(home.join("sources.list"), SOURCE).context("cannot write the list of sources")?;
    fs::write(home.join("status"), "").context("cannot write the list of installed packages")?;
    workspace::run_checked(apt_get(&home).arg("update"))?;
    workspace::run_checked(apt_get(&home).arg("download").args(PACKAGES).current_dir(home.join("debs")))?;
    let mut versions = Vec::new();
    for entry in fs::read_dir(home.join("debs")).context("cannot list the packages")? {
        let package = entry.context("cannot list the packages")?.path();
        workspace::run_checked(Command::new("dpkg-deb").arg("-x").arg(&package).arg(home.join("tree")))?;
        versions.push(package.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    }
    if versions.len() != PACKAGES.len() {
        bail!("apt-get has downloaded {versions:?}");
    }
    versions.sort_unstable();
    println!("the newest Docker: {}", versions.join(", "));
    fs::write(&stamp, versions.join("\n")).with_context(|| format!("cannot write {}", stamp.display()))
}

/// apt with lists and a cache of its own: the machine's stay as they are.
fn apt_get(home: &Path) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "-o", "APT::Sandbox::User=root", "-o", "Dir::Etc::SourceParts=/dev/null"]);
    for (option, name) in [
        ("Dir::Etc::SourceList", "sources.list"),
        ("Dir::State::Lists", "lists"),
        ("Dir::State::status", "status"),
        ("Dir::Cache", "cache"),
    ] {
        command.arg("-o").arg(format!("{option}={}", home.join(name).display()));
    }
    command.stdout(Stdio::null());
    command
}
