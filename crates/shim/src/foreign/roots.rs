//! The folders that a snapshotter's mounts are made of.
//!
//! Source: containerd snapshots/overlay/overlay.go, snapshots/native/native.go.

use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use proto::{ErrorKind, Status};

/// A folder with a part of a root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootPart {
    /// Of an image; never written again.
    Committed(PathBuf),
    /// The container's own.
    Own(PathBuf),
}

/// The parts of a root. Shape: lowest first, at least one; `folder` is the root when there are no mounts.
///
/// # Errors
/// `NotImplemented` for mounts that are put together otherwise.
pub fn parts(mounts: &[Mount], folder: &Path) -> Result<Vec<RootPart>, Status> {
    match mounts {
        [] => Ok(vec![RootPart::Own(folder.to_owned())]),
        [one] if one.type_ == "overlay" => overlay(one),
        [one] if one.type_ == "bind" => Ok(vec![RootPart::Own(one.source.clone().into())]),
        _ => {
            let kinds: Vec<&str> = mounts.iter().map(|mount| mount.type_.as_str()).collect();
            let what = format!("a root of {} cannot be given to a utility VM", kinds.join(" and "));
            Err(Status::new(ErrorKind::NotImplemented, what))
        }
    }
}

fn overlay(mount: &Mount) -> Result<Vec<RootPart>, Status> {
    let option = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
    let lower = option("lowerdir").unwrap_or_default();
    // The topmost comes first.
    let lower =
        lower.split(':').filter(|folder| !folder.is_empty()).rev().map(|folder| RootPart::Committed(folder.into()));
    let mut parts: Vec<RootPart> = lower.collect();
    parts.extend(option("upperdir").map(|folder| RootPart::Own(folder.into())));
    if parts.is_empty() {
        return Err(Status::new(ErrorKind::InvalidArgument, "an overlay without folders"));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(ToString::to_string).collect();
        Mount { type_: kind.to_owned(), source: source.to_owned(), options, ..Mount::default() }
    }

    #[test]
    fn an_overlays_folders_are_lowest_first() {
        let options = ["index=off", "workdir=/3/work", "upperdir=/3/fs", "lowerdir=/2/fs:/1/fs"];
        let found = parts(&[mount("overlay", "overlay", &options)], Path::new("/r")).unwrap();
        let expected =
            [RootPart::Committed("/1/fs".into()), RootPart::Committed("/2/fs".into()), RootPart::Own("/3/fs".into())];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_bind_and_a_plain_folder_are_the_containers_own() {
        let bound = parts(&[mount("bind", "/n/1", &["rbind", "rw"])], Path::new("/r")).unwrap();
        assert_eq!(bound, [RootPart::Own("/n/1".into())]);
        assert_eq!(parts(&[], Path::new("/r")).unwrap(), [RootPart::Own("/r".into())]);
        assert_eq!(
            parts(&[mount("ext4", "/dev/x", &[])], Path::new("/r")).unwrap_err().kind,
            ErrorKind::NotImplemented
        );
        assert!(parts(&[mount("overlay", "overlay", &[])], Path::new("/r")).is_err());
    }
}
