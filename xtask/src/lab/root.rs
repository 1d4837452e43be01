//! The lab machine's root file system: the files of Debian packages, in an EROFS image. Nothing is installed: apt says
//! which packages belong together as if none was there, and each is unpacked.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::workspace;

/// What is large and that nobody misses in there.
const LEFT_OUT: [&str; 11] = [
    "usr/bin/dnet",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/sbin/dockerd",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/iso-codes",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/perl",
    "usr/share/xml",
];
/// Files that maintainer scripts would have made.
const FILES: [(&str, &str); 4] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost lab\n"),
    ("etc/hostname", "lab\n"),
];
/// Folders to mount on.
const FOLDERS: [&str; 7] = ["dev", "lab", "proc", "root", "run", "sys", "tmp"];

/// The image and what is needed from it outside.
#[derive(Debug)]
pub struct RootImage {
    /// The EROFS file.
    pub image: PathBuf,
    /// Debian's static busybox.
    pub busybox: PathBuf,
}

/// Makes the image, or finds it made from the same packages. Shape: `list` has the words of `tests/lab/packages`; the image
/// lies in a folder below `cache` that is named after its inputs.
///
/// # Errors
/// When apt does not know a package, the network fails, or a file operation fails.
pub fn find_or_make(list: &str, cache: &Path) -> Result<RootImage> {
    let apt = Apt::open(cache)?;
    let entries = parse(list);
    let known = apt.known(&entries.concat())?;
    let packages = choose(&entries, |name| known.contains(name))?;
    let plan = apt.plan(&packages)?;
    let folder = cache.join(format!("root-{}", key(&plan)));
    let root = RootImage { image: folder.join("root.erofs"), busybox: folder.join("busybox") };
    if root.image.exists() {
        return Ok(root);
    }
    println!("making the lab's root file system from {} Debian packages", plan.len());
    let work = tempfile::Builder::new().prefix("making-").tempdir_in(cache).context("cannot make a work folder")?;
    let archives = apt.download(&packages, work.path())?;
    let tree = work.path().join("tree");
    begin_tree(&tree)?;
    for archive in &archives {
        unpack(archive, &tree)?;
    }
    finish_tree(&tree)?;
    let made = work.path().join("made");
    fs::create_dir(&made)?;
    fs::copy(tree.join("bin/busybox"), made.join("busybox")).context("busybox-static has no /bin/busybox")?;
    erofs(&tree, &made.join("root.erofs"))?;
    remove_older(cache)?;
    fs::rename(&made, &folder).with_context(|| format!("cannot name {}", folder.display()))?;
    Ok(root)
}

/// Packs a folder; everything in it belongs to root. Same content, same bytes.
///
/// # Errors
/// When mkfs.erofs is missing or fails.
pub fn erofs(tree: &Path, image: &Path) -> Result<()> {
    let mut command = Command::new("mkfs.erofs");
    command.args(["-T0", "-U00000000-0000-0000-0000-000000000000", "--all-root"]);
    quiet(command.arg(image).arg(tree)).context("mkfs.erofs comes with Debian's erofs-utils")
}

/// One entry a line: a package, or several with `|` between them, of which the first that there is.
fn parse(list: &str) -> Vec<Vec<&str>> {
    let lines = list.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(|line| line.split('|').map(str::trim).collect()).collect()
}

fn choose<'a>(entries: &[Vec<&'a str>], knows: impl Fn(&str) -> bool) -> Result<Vec<&'a str>> {
    let first = |names: &Vec<&'a str>| {
        let found = names.iter().copied().find(|name| knows(name));
        found.with_context(|| format!("apt has no package {} (apt-get update?)", names.join(" or ")))
    };
    entries.iter().map(first).collect()
}

/// Debian's package tools, over the package lists of this machine but as if nothing was installed.
struct Apt {
    /// For the empty list of installed packages, and for what apt keeps between two calls.
    folder: PathBuf,
}

impl Apt {
    fn open(cache: &Path) -> Result<Self> {
        let folder = cache.join("apt");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::write(folder.join("status"), "").with_context(|| format!("cannot write into {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// Those of the names that are packages which could be installed. All are asked for at once: apt reads its lists each time.
    fn known(&self, names: &[&str]) -> Result<BTreeSet<String>> {
        let output = self.command("apt-cache").arg("policy").args(names).output().context("cannot run apt-cache")?;
        Ok(candidates(&String::from_utf8_lossy(&output.stdout)))
    }

    /// File names of the packages and all they depend on, with versions in them.
    fn plan(&self, packages: &[&str]) -> Result<Vec<String>> {
        let output = self.install(packages).arg("--print-uris").output().context("cannot run apt-get")?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "apt-get cannot put {} together: {words}", packages.join(" "));
        let text = String::from_utf8_lossy(&output.stdout);
        let mut plan: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with('\''))
            .filter_map(|line| line.split(' ').nth(1).map(str::to_owned))
            .collect();
        plan.sort();
        ensure!(!plan.is_empty(), "apt-get named no files for {}", packages.join(" "));
        Ok(plan)
    }

    fn download(&self, packages: &[&str], work: &Path) -> Result<Vec<PathBuf>> {
        let folder = work.join("archives");
        fs::create_dir_all(folder.join("partial"))?;
        let place = format!("Dir::Cache::archives={}", folder.display());
        quiet(self.install(packages).args(["--download-only", "-o", &place]))
            .context("cannot download the lab's packages")?;
        let names = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path()));
        let mut archives: Vec<PathBuf> = names.collect::<Result<_>>()?;
        archives.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        archives.sort();
        Ok(archives)
    }

    fn install(&self, packages: &[&str]) -> Command {
        let mut command = self.command("apt-get");
        command.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(packages);
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        command.arg("-o").arg(format!("Dir::State::status={folder}/status"));
        command.arg("-o").arg(format!("Dir::Cache={folder}"));
        // Nothing is locked since nothing is installed; as root, apt would drop to a user who may not write here.
        command.args(["-o", "Debug::NoLocking=true", "-o", "APT::Sandbox::User=root"]);
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command
    }
}

/// Reads what `apt-cache policy` prints: a line with a name, then indented ones, of which one is `Candidate: VERSION`.
fn candidates(policy: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut package = "";
    for line in policy.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            package = name;
        } else if line.trim().strip_prefix("Candidate: ").is_some_and(|version| version != "(none)") {
            found.insert(package.to_owned());
        }
    }
    found
}

/// Of the packages' versions, and of the code that puts them together.
fn key(plan: &[String]) -> String {
    let mut hash = Sha256::new();
    for part in plan.iter().map(String::as_str).chain([include_str!("root.rs")]) {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())[..16].to_owned()
}

/// The links that a Debian system has since 12 and that no package holds; all packages' files then go below /usr.
fn begin_tree(tree: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(tree.join("usr").join(name)).context("cannot make the root's folders")?;
        symlink(format!("usr/{name}"), tree.join(name)).context("cannot make the root's links")?;
    }
    Ok(())
}

/// As `dpkg-deb -x`, but into the folder that a link leads to instead of replacing the link.
fn unpack(archive: &Path, tree: &Path) -> Result<()> {
    let failed = || format!("cannot unpack {}", archive.display());
    let mut tar = Command::new("dpkg-deb");
    let mut tar = tar.arg("--fsys-tarfile").arg(archive).stdout(Stdio::piped()).spawn().with_context(failed)?;
    let stream = tar.stdout.take().with_context(failed)?;
    let unpacked = Command::new("tar")
        .args(["-x", "--keep-directory-symlink", "--no-same-owner", "-C"])
        .arg(tree)
        .stdin(stream)
        .status();
    let read = tar.wait().with_context(failed)?;
    ensure!(read.success() && unpacked.with_context(failed)?.success(), failed());
    Ok(())
}

fn finish_tree(tree: &Path) -> Result<()> {
    for path in LEFT_OUT.map(|path| tree.join(path)) {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    for folder in FOLDERS {
        fs::create_dir_all(tree.join(folder))?;
    }
    for (name, text) in FILES {
        fs::write(tree.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    if !tree.join("bin/sh").exists() {
        symlink("dash", tree.join("bin/sh")).context("cannot make /bin/sh")?;
    }
    Ok(())
}

fn remove_older(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("root-")) {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Runs a command whose output matters only if it fails.
///
/// # Errors
/// When it cannot be run or fails; with what it said.
pub fn quiet(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let shown = workspace::shown(command);
        bail!("{shown} ended with {}: {}", output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_package_that_there_is_is_chosen() {
        let entries = parse("# comment\n\nqemu # emulator\n docker-cli | docker.io\n");
        assert_eq!(entries, [vec!["qemu"], vec!["docker-cli", "docker.io"]]);
        assert_eq!(choose(&entries, |name| name != "docker-cli").unwrap(), ["qemu", "docker.io"]);
        assert_eq!(choose(&entries, |_| true).unwrap(), ["qemu", "docker-cli"]);
        assert!(choose(&entries, |name| name != "qemu").unwrap_err().to_string().contains("no package qemu"));
    }

    #[test]
    fn a_package_without_a_candidate_is_not_known() {
        let policy = "qemu:\n  Installed: (none)\n  Candidate: 7.2\n  Version table:\n     7.2 500\n        500 http://deb/ main Packages\n\
                      docker-cli:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n";
        assert_eq!(candidates(policy).into_iter().collect::<Vec<_>>(), ["qemu"]);
    }

    #[test]
    fn another_version_is_another_image() {
        let plan = |names: &[&str]| key(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        assert_eq!(plan(&["a_1_all.deb"]), plan(&["a_1_all.deb"]));
        assert_ne!(plan(&["a_1_all.deb"]), plan(&["a_2_all.deb"]));
        assert_ne!(plan(&["a", "bc"]), plan(&["ab", "c"]));
    }
}
