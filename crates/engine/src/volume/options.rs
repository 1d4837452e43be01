//! The options of the driver `local`: what is to be mounted on a volume's folder while it is used.
//!
//! Source: moby `volume/local/local_unix.go`; docker-volume-create(1).

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_remount, unmount};

/// Names of options, and those that each of them needs.
const OPTIONS: [(&str, &[&str]); 4] =
    [("type", &["device"]), ("device", &["type"]), ("o", &["device", "type"]), ("size", &[])];
/// Words of `o` that are flags of a mount.
const FLAGS: [(&str, MountFlags); 10] = [
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
];
/// Words of `o` that change nothing.
const DEFAULTS: [&str; 8] = ["rw", "defaults", "suid", "dev", "exec", "atime", "diratime", "async"];

/// What is mounted on a volume's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A folder of the host.
    Bind {
        /// Which.
        source: PathBuf,
        /// With what is mounted below it.
        recursive: bool,
        /// How.
        flags: MountFlags,
    },
    /// Memory.
    Tmpfs {
        /// How.
        flags: MountFlags,
        /// tmpfs' own options.
        data: String,
    },
}

impl Backing {
    /// Understands the options; none means that nothing is mounted.
    ///
    /// # Errors
    /// What is wrong with them, in dockerd's words where dockerd has this error.
    pub fn parse(options: &BTreeMap<String, String>) -> Result<Option<Self>, String> {
        for name in options.keys() {
            if !OPTIONS.iter().any(|(known, _)| known == name) {
                return Err(format!("invalid option: {name:?}"));
            }
        }
        if options.contains_key("size") {
            return Err("quota size requested but no quota support".into());
        }
        for (_, needed) in OPTIONS.iter().filter(|(name, _)| options.contains_key(*name)) {
            if let Some(missing) = needed.iter().find(|needed| options.get(**needed).is_none_or(String::is_empty)) {
                return Err(format!("missing required option: {missing:?}"));
            }
        }
        let (Some(kind), Some(device)) = (options.get("type"), options.get("device")) else { return Ok(None) };
        let words = Words::parse(options.get("o").map_or("", String::as_str));
        if words.bind {
            if !Path::new(device).is_absolute() {
                return Err(format!("the device of a bound volume must be an absolute path: {device:?}"));
            }
            if !words.data.is_empty() {
                return Err(format!("a bound volume takes no option {:?}", words.data));
            }
            return Ok(Some(Self::Bind { source: device.into(), recursive: words.recursive, flags: words.flags }));
        }
        match kind.as_str() {
            "tmpfs" => {
                crate::spec::tmpfs_options(&words.data)?;
                Ok(Some(Self::Tmpfs { flags: words.flags, data: words.data }))
            }
            other => Err(format!(
                "volumes of type {other:?} are not supported by this version of Bulkhead: only tmpfs, and folders by o=bind"
            )),
        }
    }

    /// Mounts it, unless it is mounted already.
    ///
    /// # Errors
    /// dockerd's text.
    pub fn mount(&self, folder: &Path) -> Result<(), String> {
        if is_mount_point(folder) {
            return Ok(());
        }
        let mounted = match self {
            Self::Bind { source, recursive, flags } => {
                let bound = if *recursive { mount_bind_recursive(source, folder) } else { mount_bind(source, folder) };
                bound.and_then(|()| match *flags {
                    flags if flags.is_empty() => Ok(()),
                    flags => mount_remount(folder, MountFlags::BIND | flags, c""),
                })
            }
            Self::Tmpfs { flags, data } => match CString::new(data.as_str()) {
                Ok(data) => mount("tmpfs", folder, "tmpfs", *flags, data.as_c_str()),
                Err(_) => Err(rustix::io::Errno::INVAL),
            },
        };
        mounted.map_err(|error| {
            let (shown, flags) = match self {
                Self::Bind { source, flags, .. } => (source.as_path(), MountFlags::BIND | *flags),
                Self::Tmpfs { flags, .. } => (Path::new("tmpfs"), *flags),
            };
            let error = io::Error::from(error).to_string();
            let error = error.split(" (os error").next().unwrap_or_default().to_lowercase();
            // What was mounted before a failure is of no use.
            let _ = unmount(folder, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            format!(
                "error while mounting volume '{}': failed to mount local volume: mount {}:{}, flags: {:#x}: {error}",
                folder.display(),
                shown.display(),
                folder.display(),
                flags.bits(),
            )
        })
    }
}

/// Unmounts what was mounted on a volume's folder; nothing mounted is no error.
///
/// # Errors
/// The kernel's.
pub fn release(folder: &Path) -> io::Result<()> {
    while is_mount_point(folder) {
        unmount(folder, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

/// Something is mounted on the folder: its mount is not that of the folder it lies in.
fn is_mount_point(folder: &Path) -> bool {
    let mount_id = |path: &Path| {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::statx(rustix::fs::CWD, path, flags, rustix::fs::StatxFlags::MNT_ID).map(|facts| facts.stx_mnt_id)
    };
    let Some(parent) = folder.parent() else { return false };
    matches!((mount_id(folder), mount_id(parent)), (Ok(inside), Ok(outside)) if inside != outside)
}

struct Words {
    bind: bool,
    recursive: bool,
    flags: MountFlags,
    data: String,
}

impl Words {
    fn parse(text: &str) -> Self {
        let mut words = Self { bind: false, recursive: false, flags: MountFlags::empty(), data: String::new() };
        for word in text.split(',').filter(|word| !word.is_empty()) {
            if let Some((_, flag)) = FLAGS.iter().find(|(known, _)| *known == word) {
                words.flags |= *flag;
            } else if matches!(word, "bind" | "rbind") {
                words.bind = true;
                words.recursive |= word == "rbind";
            } else if !DEFAULTS.contains(&word) {
                if !words.data.is_empty() {
                    words.data.push(',');
                }
                words.data.push_str(word);
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[(&str, &str)]) -> Result<Option<Backing>, String> {
        Backing::parse(&options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn wrong_options_are_refused_as_dockerd_refuses_them() {
        for (options, text) in [
            (&[("foo", "bar")][..], "invalid option: \"foo\""),
            (&[("type", "tmpfs")], "missing required option: \"device\""),
            (&[("device", "tmpfs")], "missing required option: \"type\""),
            (&[("o", "x")], "missing required option: \"device\""),
            (&[("size", "1m")], "quota size requested but no quota support"),
        ] {
            assert_eq!(parse(options).unwrap_err(), text);
        }
        for odd in [
            &[("type", "nfs"), ("device", ":/x"), ("o", "addr=1.2.3.4")][..],
            &[("type", "overlay"), ("device", "overlay"), ("o", "lowerdir=/etc")],
            &[("type", "none"), ("device", "rel"), ("o", "bind")],
            &[("type", "tmpfs"), ("device", "tmpfs"), ("o", "nonsense=1")],
        ] {
            assert!(parse(odd).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn folders_and_memory_are_understood() {
        assert_eq!(parse(&[]), Ok(None));
        let bound = parse(&[("type", "none"), ("o", "bind,ro"), ("device", "/srv")]).unwrap().unwrap();
        let expected = Backing::Bind { source: "/srv".into(), recursive: false, flags: MountFlags::RDONLY };
        assert_eq!(bound, expected);
        let memory = parse(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m,nosuid,uid=7")]).unwrap().unwrap();
        assert_eq!(memory, Backing::Tmpfs { flags: MountFlags::NOSUID, data: "size=1m,uid=7".into() });
    }

    #[test]
    fn a_folder_is_told_from_a_mount_point() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_mount_point(folder.path()) && is_mount_point(Path::new("/proc")));
        release(folder.path()).unwrap();
    }
}
