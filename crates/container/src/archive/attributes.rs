//! Extended attributes of open files and folders, the only nodes on which programs keep any.

use std::ffi::CString;
use std::os::fd::AsFd;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, flistxattr_query, fsetxattr};
use rustix::io::Errno;

/// Longest list of names, and longest value. Source: Linux `XATTR_LIST_MAX`, `XATTR_SIZE_MAX`.
const MOST_BYTES: usize = 65_536;
/// overlayfs' own, which say nothing about the container.
const OVERLAY: &[u8] = b"trusted.overlay.";
const OPAQUE: &str = "trusted.overlay.opaque";

/// Which attributes belong into an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// File capabilities, access control lists and the users' own.
    Portable,
    /// All but overlayfs' own.
    All,
}

impl Wanted {
    fn takes(self, name: &[u8]) -> bool {
        match self {
            Self::Portable => [&b"security.capability"[..], b"user.", b"system.posix_acl_"]
                .iter()
                .any(|prefix| name.starts_with(prefix)),
            Self::All => !name.starts_with(OVERLAY),
        }
    }
}

/// Reads the attributes, in the order of their names.
pub(super) fn read(file: impl AsFd, wanted: Wanted) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // Most have none: no room is made for them.
    let length = match flistxattr_query(&file) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other?.min(MOST_BYTES),
    };
    // It may have grown meanwhile.
    let mut list = vec![0; length.clamp(4096, MOST_BYTES)];
    let length = flistxattr(&file, &mut list[..])?;
    let mut attributes = Vec::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty() && wanted.takes(name)) {
        let mut value = vec![0; MOST_BYTES];
        let Ok(c_name) = CString::new(name) else { continue };
        match fgetxattr(&file, c_name.as_c_str(), &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                value.shrink_to_fit();
                attributes.push((name.to_vec(), value));
            }
            // Gone meanwhile.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    attributes.sort_unstable();
    Ok(attributes)
}

/// Sets attributes; what the file system does not know is left out, as tar(1) and Docker do.
pub(super) fn write(file: impl AsFd, attributes: &[(Vec<u8>, Vec<u8>)]) -> rustix::io::Result<()> {
    for (name, value) in attributes.iter().filter(|(name, _)| !name.starts_with(b"trusted.")) {
        let Ok(name) = CString::new(&name[..]) else { return Err(Errno::INVAL) };
        match fsetxattr(&file, name.as_c_str(), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// True when the folder of an upper tree hides what is below it.
pub(super) fn is_opaque(folder: impl AsFd) -> rustix::io::Result<bool> {
    let mut value = [0; 1];
    match fgetxattr(folder, OPAQUE, &mut value) {
        Ok(length) => Ok(length == 1 && value == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error),
    }
}
