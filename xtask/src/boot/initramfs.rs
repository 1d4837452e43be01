//! The guest's first file system: `/init`, the modules, the folders to mount on. No shell, no tools. (The lab's machine
//! has one of the same form, with a shell in it.)
//!
//! The archive is not compressed: the host has it in the page cache, and unpacking it would be emulated.
//!
//! Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.

use std::io::Write;

use anyhow::{Context, Result};
use cpio::newc::{self, Builder, ModeFileType};

use super::modules::Module;

/// Folders of the archive, parents first.
const FOLDERS: [&str; 9] = ["dev", "etc", "later", "modules", "proc", "root", "run", "sys", "tmp"];

/// The archive. Shape: folders, `/dev/console`, `/init`, `/modules/<name>.ko` and `/modules/order` (one name a line, in
/// load order), the same in `/later` for what is loaded later, `/bin/<name>` for each of `tools`; owner 0, time 0, numbered as they come, so that the same content gives
/// the same bytes.
///
/// # Errors
/// When a file is larger than the format can say (4 GiB).
pub fn build(program: &[u8], modules: &[Module], tools: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut archive = Archive { bytes: Vec::new(), next_inode: 1 };
    for folder in FOLDERS {
        archive.add(folder, |entry| entry.mode(0o755).set_mode_file_type(ModeFileType::Directory).nlink(2), &[])?;
    }
    // The kernel opens it as the first program's standard streams; 5:1 is the console.
    archive.add(
        "dev/console",
        |entry| entry.mode(0o600).set_mode_file_type(ModeFileType::Char).rdev_major(5).rdev_minor(1),
        &[],
    )?;
    archive.add_file("init", 0o755, program)?;
    for (folder, later) in [("later", true), ("modules", false)] {
        let mut these: Vec<&Module> = modules.iter().filter(|module| module.later == later).collect();
        let order: String = these.iter().flat_map(|module| [module.name.as_str(), "\n"]).collect();
        archive.add_file(&format!("{folder}/order"), 0o444, order.as_bytes())?;
        these.sort_by(|a, b| a.name.cmp(&b.name));
        for module in these {
            archive.add_file(&format!("{folder}/{}.ko", module.name), 0o444, &module.bytes)?;
        }
    }
    if !tools.is_empty() {
        archive.add("bin", |entry| entry.mode(0o755).set_mode_file_type(ModeFileType::Directory).nlink(2), &[])?;
    }
    for (name, tool) in tools {
        archive.add_file(&format!("bin/{name}"), 0o755, tool)?;
    }
    archive.finish()
}

struct Archive {
    bytes: Vec<u8>,
    next_inode: u32,
}

impl Archive {
    fn add_file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.add(name, |entry| entry.mode(mode).set_mode_file_type(ModeFileType::Regular), content)
    }

    fn add(&mut self, name: &str, shape: impl FnOnce(Builder) -> Builder, content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large for an initramfs"))?;
        let entry = shape(Builder::new(name).uid(0).gid(0).mtime(0).ino(self.next_inode));
        self.next_inode += 1;
        let mut writer = entry.write(std::mem::take(&mut self.bytes), size);
        writer.write_all(content)?;
        self.bytes = writer.finish()?;
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(newc::trailer(self.bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn modules(names: &[&str]) -> Vec<Module> {
        names
            .iter()
            .map(|name| Module { name: (*name).to_owned(), bytes: name.as_bytes().to_vec(), later: *name == "vsock" })
            .collect()
    }

    fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut rest = archive;
        let mut found = Vec::new();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            found.push((reader.entry().name().to_owned(), reader.entry().mode(), content));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        let first = build(b"program", &modules(&["virtio", "erofs"]), &[]).unwrap();
        let second = build(b"program", &modules(&["virtio", "erofs"]), &[]).unwrap();
        assert_eq!(first, second);
        assert_ne!(first, build(b"program", &modules(&["erofs", "virtio"]), &[]).unwrap());
    }

    #[test]
    fn everything_is_in_it_and_nothing_else() {
        let found = entries(&build(b"program", &modules(&["virtio", "erofs", "vsock"]), &[]).unwrap());
        let files: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).skip(FOLDERS.len()).collect();
        let modules = ["later/order", "later/vsock.ko", "modules/order", "modules/erofs.ko", "modules/virtio.ko"];
        assert_eq!(files[..2], ["dev/console", "init"]);
        assert_eq!(files[2..], modules);
        let content = |name: &str| found.iter().find(|entry| entry.0 == name).map(|entry| (entry.1, entry.2.clone()));
        assert_eq!(content("modules/order"), Some((0o100_444, b"virtio\nerofs\n".to_vec())));
        assert_eq!(content("init"), Some((0o100_755, b"program".to_vec())));
        assert_eq!(content("proc"), Some((0o040_755, Vec::new())));
    }

    #[test]
    fn tools_come_in_a_folder_of_their_own() {
        let found = entries(&build(b"#!/bin/sh", &modules(&["virtio"]), &[("sh", b"shell")]).unwrap());
        let last: Vec<&str> = found.iter().rev().take(2).map(|(name, ..)| name.as_str()).collect();
        assert_eq!(last, ["bin/sh", "bin"], "the folder before what is in it");
    }
}
