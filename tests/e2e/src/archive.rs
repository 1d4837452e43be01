//! Images made out of Debian's busybox-static, and archives that no image tool would make.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest, Sha256};

/// The static busybox of this machine.
#[must_use]
pub fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.is_file())
}

/// A tar stream in memory.
pub struct Tar {
    builder: tar::Builder<Vec<u8>>,
}

impl Default for Tar {
    fn default() -> Self {
        Self::new()
    }
}

impl Tar {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self { builder: tar::Builder::new(Vec::new()) }
    }

    /// Adds a regular file, whatever its path is: `../` and absolute paths too.
    ///
    /// # Panics
    /// When the path has over 100 bytes.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(tar::EntryType::Regular, path, "", mode, content)
    }

    /// Adds a folder.
    #[must_use]
    pub fn folder(self, path: &str) -> Self {
        let mode = if path.trim_matches('/') == "tmp" { 0o1777 } else { 0o755 };
        self.entry(tar::EntryType::Directory, path, "", mode, &[])
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, path, target, 0o777, &[])
    }

    /// Adds a hard link.
    #[must_use]
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, path, target, 0o755, &[])
    }

    /// The path is written into the header's bytes: the tar crate refuses the paths that hostile archives have.
    fn entry(mut self, kind: tar::EntryType, path: &str, target: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.builder.append(&header, content).expect("memory takes every write");
        self
    }

    /// The stream's bytes.
    ///
    /// # Panics
    /// Never: memory takes every write.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        self.builder.into_inner().expect("memory takes every write")
    }
}

/// The root file system that nearly all tests use: busybox with its applets as links, and a user `app` (uid 1000).
///
/// # Panics
/// Without busybox; a test host has asked for it before.
#[must_use]
pub fn busybox_rootfs() -> Vec<u8> {
    let busybox = busybox().expect("busybox-static");
    let applets = Command::new(&busybox).arg("--list").output().expect("busybox runs").stdout;
    let content = std::fs::read(&busybox).expect("busybox is readable");
    let mut tar = Tar::new();
    for folder in ["bin/", "dev/", "etc/", "home/", "home/app/", "proc/", "root/", "sys/", "tmp/", "usr/", "usr/bin/"] {
        tar = tar.folder(folder);
    }
    tar = tar.file("bin/busybox", 0o755, &content);
    let applets = String::from_utf8_lossy(&applets).into_owned();
    for applet in applets.lines().filter(|&applet| applet != "busybox") {
        // Half of them this way, half that way: both kinds of link must work.
        tar = match applet.len() % 2 {
            0 => tar.hard_link(&format!("bin/{applet}"), "bin/busybox"),
            _ => tar.symlink(&format!("bin/{applet}"), "busybox"),
        };
    }
    tar.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\napp:x:1000:\nextra:x:2000:app\n")
        .file("etc/plain", 0o644, b"not a program\n")
        .bytes()
}

/// The busybox root file system in a file that all tests of a build share.
pub(crate) fn shared_busybox_tar(folder: &Path) -> PathBuf {
    let path = folder.join("busybox.tar");
    if !path.exists() {
        std::fs::create_dir_all(folder).expect("the build's folder is writable");
        let mut file = tempfile::NamedTempFile::new_in(folder).expect("the build's folder is writable");
        file.write_all(&busybox_rootfs()).expect("the build's folder has room");
        file.persist(&path).expect("a file can be renamed in its folder");
    }
    path
}

/// A `docker save` archive of one image with these layers, lowest first.
///
/// # Panics
/// Never: memory takes every write.
#[must_use]
pub fn saved_image(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let digest = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z",
        "config": { "Cmd": ["/bin/sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|l| format!("sha256:{}", digest(l))).collect::<Vec<_>>() },
        "history": layers.iter().map(|_| json!({"created": "2024-01-01T00:00:00Z", "created_by": "test"})).collect::<Vec<_>>(),
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let mut tar = Tar::new().file(&config_name, 0o644, config.as_bytes());
    let mut names = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let name = format!("layer{at}/layer.tar");
        tar = tar.folder(&format!("layer{at}/")).file(&name, 0o644, layer);
        names.push(name);
    }
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": names }]);
    tar.file("manifest.json", 0o644, manifest.to_string().as_bytes()).bytes()
}
