//! The disk of a run: the first program, the job, and the part of this workspace's target folder that the job needs, at
//! the place where it is outside, since tests know it by path.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::root;

/// Folders of the target folder that are mounted on: what tests of this build share is written there.
pub const WRITTEN: [&str; 3] = ["tmp", "e2e", "shim-test-templates"];

/// What goes onto the disk.
#[derive(Debug)]
pub struct Payload<'a> {
    /// Scripts by name: the machine's first program `init`, the `job` that it runs, and what that one runs.
    pub scripts: &'a [(&'a str, &'a str)],
    /// The target folder outside, absolute.
    pub target: &'a Path,
    /// Files below it, absolute.
    pub files: &'a [PathBuf],
}

impl Payload<'_> {
    /// Packs it into `image`, by way of the folder `tree`, which must not exist yet.
    ///
    /// # Errors
    /// When a file is missing or lies elsewhere, or a file operation fails.
    pub fn pack(&self, tree: &Path, image: &Path) -> Result<()> {
        let target = tree.join("target");
        for folder in WRITTEN {
            fs::create_dir_all(target.join(folder)).context("cannot make the payload's folders")?;
        }
        for (name, text) in self.scripts {
            let path = tree.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        for file in self.files {
            let below = file.strip_prefix(self.target).with_context(|| {
                format!("{} does not lie in the target folder {}", file.display(), self.target.display())
            })?;
            let copy = target.join(below);
            fs::create_dir_all(copy.parent().unwrap_or(&target))?;
            // A link is enough for a file that is only read; the target folder may be spread over file systems.
            if fs::hard_link(file, &copy).is_err() {
                fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
            }
        }
        root::erofs(tree, image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_from_elsewhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let files = [PathBuf::from("/etc/passwd")];
        let payload = Payload { scripts: &[], target: &folder.path().join("target"), files: &files };
        let error = payload.pack(&folder.path().join("tree"), &folder.path().join("image")).unwrap_err();
        assert!(error.to_string().contains("/etc/passwd does not lie in the target folder"), "{error}");
    }
}
