//! All that can be seen of a tree of files, by whomever: our own reader of EROFS, or a kernel.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::compression::digest_of;
use crate::erofs::FileType;

/// What is seen of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Type and permissions, as stat(2) gives them.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified: (i64, u32),
    pub links: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Length and digest of a file, a symbolic link's target.
    pub content: String,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Seen {
    /// With the permissions of a folder or file that nobody said more about.
    pub fn new(file_type: FileType, mode: u16) -> Self {
        Self {
            mode: u32::from(file_type.mode_bits() | mode),
            uid: 0,
            gid: 0,
            modified: (0, 0),
            links: 1,
            device: (0, 0),
            content: String::new(),
            xattrs: BTreeMap::new(),
        }
    }

    pub fn is(&self, file_type: FileType) -> bool {
        self.mode & 0o170_000 == u32::from(file_type.mode_bits())
    }
}

/// Path below the root, which is empty itself.
pub type Listing = BTreeMap<Vec<u8>, Seen>;

/// How a file's content is compared.
pub fn shown_content(bytes: &[u8]) -> String {
    format!("{} {}", bytes.len(), digest_of(bytes))
}

/// What this kernel shows below a folder.
pub fn on_disk(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let facts = path.symlink_metadata().unwrap();
        let content = if facts.is_symlink() {
            String::from_utf8_lossy(path.read_link().unwrap().as_os_str().as_bytes()).into_owned()
        } else if facts.is_file() {
            shown_content(&fs::read(&path).unwrap())
        } else {
            String::new()
        };
        let device = (rustix::fs::major(facts.rdev()), rustix::fs::minor(facts.rdev()));
        let seen = Seen {
            mode: facts.mode(),
            uid: facts.uid(),
            gid: facts.gid(),
            modified: (facts.mtime(), u32::try_from(facts.mtime_nsec()).unwrap()),
            links: u32::try_from(facts.nlink()).unwrap(),
            device,
            content,
            xattrs: xattrs_of(&path),
        };
        listing.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), seen);
        if facts.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    listing
}

fn xattrs_of(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0_u8; 65_536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0_u8; 65_536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        (name.to_vec(), value)
    };
    names.map(value).collect()
}
