//! What is mounted in a container beside its root: decided once, when it is made, and kept in its record.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Where the content of a mount comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A folder or file of the host.
    Bind,
    /// A volume of this engine.
    Volume,
    /// Memory.
    Tmpfs,
}

impl MountKind {
    /// Docker's word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Volume => "volume",
            Self::Tmpfs => "tmpfs",
        }
    }
}

/// What happens with what is mounted below the source of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Below {
    /// It is mounted too; of a read-only mount it is read-only where the kernel can do that (5.12).
    #[default]
    Follows,
    /// It is mounted too, and stays as writable as it is.
    StaysWritable,
    /// It is mounted too, and the container does not start where it cannot be made read-only.
    MustBeReadOnly,
    /// It is not mounted.
    Absent,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// Where its content comes from.
    pub kind: MountKind,
    /// The volume's name, empty for everything else.
    pub name: String,
    /// The folder or file on the host, empty for tmpfs.
    pub source: PathBuf,
    /// The folder or file in the container, absolute and without `..`.
    pub destination: PathBuf,
    /// What the client wrote behind the second colon of `-v`.
    pub mode: String,
    /// The container may write to it.
    pub writable: bool,
    /// `rprivate`, ..., empty for what cannot propagate.
    pub propagation: String,
    /// What is mounted below its source.
    pub below: Below,
    /// An empty volume gets what the image has at this place.
    pub copy: bool,
    /// The volume has no name that a client gave: it goes with the container, if that goes with its volumes.
    pub anonymous: bool,
    /// Only this part of the volume is mounted. Relative.
    pub subpath: Option<PathBuf>,
    /// A source that is not there is made, as a folder.
    pub create_source: bool,
    /// Options of tmpfs.
    pub tmpfs: Vec<String>,
}

impl MountPoint {
    /// A writable mount of this kind at a place, with everything else as it is by default.
    #[must_use]
    pub fn new(kind: MountKind, destination: PathBuf) -> Self {
        Self {
            kind,
            name: String::new(),
            source: PathBuf::new(),
            destination,
            mode: String::new(),
            writable: true,
            propagation: if kind == MountKind::Bind { "rprivate".into() } else { String::new() },
            below: Below::Follows,
            copy: kind == MountKind::Volume,
            anonymous: false,
            subpath: None,
            create_source: false,
            tmpfs: Vec::new(),
        }
    }

    /// One entry of `Mounts`.
    #[must_use]
    pub fn view(&self) -> Value {
        let mut view = json!({
            "Type": self.kind.word(), "Source": self.source, "Destination": self.destination, "Mode": self.mode,
            "RW": self.writable, "Propagation": self.propagation,
        });
        if self.kind == MountKind::Volume {
            view["Name"] = json!(self.name);
            view["Driver"] = json!("local");
        }
        view
    }

    /// What `docker ps` calls it: the volume's name, or the source.
    #[must_use]
    pub fn title(&self) -> String {
        if self.kind == MountKind::Volume { self.name.clone() } else { self.source.display().to_string() }
    }
}
