//! Where the kernel comes from: a Debian package, downloaded and unpacked but not installed, or files that were named.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// A kernel's files.
#[derive(Debug)]
pub struct KernelFiles {
    /// As `uname -r` prints it.
    pub version: String,
    /// vmlinux or a bzImage.
    pub image: PathBuf,
    /// The folder of its modules.
    pub modules: PathBuf,
}

impl KernelFiles {
    /// A kernel outside any package; the module folder's name is its version.
    ///
    /// # Errors
    /// When a path is missing or of the wrong kind.
    pub fn from_paths(image: &Path, modules: &Path) -> Result<Self> {
        ensure!(image.is_file(), "no kernel at {}", image.display());
        let modules = modules.canonicalize().with_context(|| format!("no module folder at {}", modules.display()))?;
        let version = modules.file_name().and_then(|name| name.to_str()).context("the module folder has no name")?;
        Ok(Self { version: version.to_owned(), image: image.to_path_buf(), modules: modules.clone() })
    }

    /// The one kernel of an unpacked package.
    fn in_package(folder: &Path) -> Result<Self> {
        let images = names_in(&folder.join("boot"), "vmlinuz-")?;
        let [name] = images.as_slice() else { bail!("{} holds {} kernels", folder.display(), images.len()) };
        let version = name.trim_start_matches("vmlinuz-").to_owned();
        // Debian 13 has /usr/lib/modules, Debian 12 /lib/modules.
        let folders = ["usr/lib/modules", "lib/modules"].map(|place| folder.join(place).join(&version));
        let modules = folders.into_iter().find(|place| place.is_dir()).context("the package has no module folder")?;
        Ok(Self { image: folder.join("boot").join(name), version, modules })
    }
}

/// The package that `boot/kernel-package` names: its first line that is no comment.
///
/// # Errors
/// When there is none.
pub fn default_package(text: &str) -> Result<String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.next().map(str::to_owned).context("boot/kernel-package names no package")
}

/// Downloads and unpacks a kernel package into the cache, or finds it there.
///
/// # Errors
/// When apt does not know the package, the network fails, or dpkg-deb refuses the file; each with what to do.
pub fn from_package(name: &str, cache: &Path) -> Result<KernelFiles> {
    let package = resolve(name)?;
    let folder = cache.join(format!("{}_{}", package.name, package.version.replace([':', '/'], "_")));
    if !folder.is_dir() {
        let archive = download(&package, cache)?;
        let partial = folder.with_extension(format!("part-{}", std::process::id()));
        run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&partial))?;
        fs::rename(&partial, &folder).with_context(|| format!("cannot name {}", folder.display()))?;
        fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    }
    KernelFiles::in_package(&folder)
}

/// A package that holds a kernel.
struct Package {
    name: String,
    version: String,
}

/// Follows a meta package, such as `linux-image-cloud-amd64`, to the kernel it stands for today.
fn resolve(name: &str) -> Result<Package> {
    if candidate(name)?.is_none() {
        // A fresh container or CI machine has no package lists.
        println!("apt knows no {name}: updating the package lists");
        run(Command::new("apt-get").args(["update", "--quiet"]).stdout(Stdio::null()))
            .context("cannot update the package lists (it takes root)")?;
    }
    let depends = output(Command::new("apt-cache").args(["depends", "--important", "--no-recommends", name]))?;
    let real = depends.lines().find_map(|line| {
        let name = line.trim().strip_prefix("Depends: ")?;
        (name.starts_with("linux-image-") && !name.contains('<')).then(|| name.to_owned())
    });
    let name = real.unwrap_or_else(|| name.to_owned());
    let version = candidate(&name)?.with_context(|| {
        format!("apt has no package {name}; name another one with --kernel-package, or use --kernel")
    })?;
    Ok(Package { name, version })
}

/// The version that apt would install.
fn candidate(name: &str) -> Result<Option<String>> {
    let policy = output(Command::new("apt-cache").args(["policy", name]))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(version.filter(|version| *version != "(none)").map(str::to_owned))
}

fn download(package: &Package, cache: &Path) -> Result<PathBuf> {
    let folder = cache.join(format!("download-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    println!("downloading {} {}", package.name, package.version);
    let request = format!("{}={}", package.name, package.version);
    // As root, apt would drop to a user who may not write here, and warn.
    let fetched = run(Command::new("apt-get")
        .args(["download", "--quiet", "-o", "APT::Sandbox::User=root", &request])
        .current_dir(&folder)
        .stdout(Stdio::null()));
    let archive = fetched.and_then(|()| {
        let names = names_in(&folder, "linux-image-")?;
        let [name] = names.as_slice() else { bail!("apt-get downloaded {} files", names.len()) };
        let kept = cache.join(name);
        fs::rename(folder.join(name), &kept)?;
        Ok(kept)
    });
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    archive.with_context(|| format!("cannot download {request}"))
}

fn names_in(folder: &Path, prefix: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    Ok(names.into_iter().filter(|name| name.starts_with(prefix)).collect())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::null())
        // Its words are read, so they may not be translated.
        .env("LC_ALL", "C")
        .output()
        .with_context(|| {
            format!("cannot run {:?}; the guest's kernel comes by apt on Debian", command.get_program())
        })?;
    // An unknown package is an error to apt-cache and an empty answer to us.
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_package_is_the_first_line() {
        assert_eq!(
            default_package("# a comment\n\n linux-image-cloud-amd64 \nother\n").unwrap(),
            "linux-image-cloud-amd64"
        );
        assert!(default_package("# nothing\n").is_err());
    }

    #[test]
    fn a_package_is_read_in_both_layouts() {
        for modules in ["lib/modules", "usr/lib/modules"] {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("boot")).unwrap();
            fs::create_dir_all(folder.path().join(modules).join("6.1.0-9-cloud-amd64")).unwrap();
            assert!(KernelFiles::in_package(folder.path()).is_err());
            fs::write(folder.path().join("boot/vmlinuz-6.1.0-9-cloud-amd64"), b"").unwrap();
            let files = KernelFiles::in_package(folder.path()).unwrap();
            assert_eq!(files.version, "6.1.0-9-cloud-amd64");
            assert!(files.modules.ends_with("6.1.0-9-cloud-amd64"));
        }
    }
}
