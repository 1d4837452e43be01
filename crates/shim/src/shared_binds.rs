//! Binds below which the container's mounts are to be seen on the host (`shared`, `rshared`).
//!
//! The shim's mounts are apart from the host's, and whatever is bound from them stays so. Such a bind's source is therefore taken
//! out of the host's mount namespace, where its copy is of the same peer group, and put where the specification then says.
//!
//! Source: mount_namespaces(7), "SHARED SUBTREES"; open_tree(2), move_mount(2).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use proto::{ErrorKind, Status};
use rustix::fs::{CWD, FileType, fstat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::shares;

/// Puts the source of each into a folder of the bundle. Answers true when that changed the specification. When: in a mount
/// namespace that ends with this process.
///
/// # Errors
/// `InvalidArgument` for a source that is not there; the kernel's.
pub fn bring(spec: &mut Spec, bundle: &Path) -> Result<bool, Status> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let mut brought = 0;
    for mount in mounts.iter_mut().filter(|mount| is_shared(mount)) {
        let Some(source) = mount.source().clone() else { continue };
        let point = place(&source, bundle, brought).map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::NotFound => ErrorKind::InvalidArgument,
                _ => ErrorKind::Internal,
            };
            let message = format!("cannot share {} with the host", source.display());
            Status { kind, message, causes: vec![error.to_string()] }
        })?;
        mount.set_source(Some(point));
        brought += 1;
    }
    spec.set_mounts(Some(mounts));
    Ok(brought > 0)
}

fn is_shared(mount: &Mount) -> bool {
    let has = |words: &[&str]| mount.options().iter().flatten().any(|option| words.contains(&option.as_str()));
    has(&["bind", "rbind"]) && has(&["shared", "rshared"])
}

fn place(source: &Path, bundle: &Path, number: usize) -> io::Result<PathBuf> {
    let wanted = source.to_owned();
    let tree = shares::in_host_mounts(move || {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(open_tree(CWD, &wanted, flags)?)
    })?;
    let folder = bundle.canonicalize()?.join("binds");
    fs::create_dir_all(&folder)?;
    let point = folder.join(number.to_string());
    make_point(&tree, &point)?;
    move_mount(&tree, "", CWD, &point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(point)
}

fn make_point(tree: &OwnedFd, point: &Path) -> io::Result<()> {
    if FileType::from_raw_mode(fstat(tree)?.st_mode) == FileType::Directory {
        return fs::create_dir_all(point);
    }
    fs::File::create(point).map(drop)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    #[test]
    fn only_binds_that_share_are_brought() {
        let shared = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
            is_shared(&MountBuilder::default().destination("/x").source("/y").options(options).build().unwrap())
        };
        assert!(shared(&["rbind", "rshared"]) && shared(&["bind", "shared", "ro"]));
        assert!(!shared(&["rbind", "rslave"]) && !shared(&["rbind"]) && !shared(&["rshared"]));
    }
}
