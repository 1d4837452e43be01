//! What the container of a utility VM's rehearsal is made of: a root file system with one program that ends at once, with status 0.
//! Nothing of it is anybody's.
//!
//! Why there are rehearsals: docs/design/0005-standby.md.

use std::fs::File;
use std::io;

use proto::Digest;

use crate::convert::LayerError;
use crate::worker::{Converter, convert_layer};

/// The program below is machine code of this architecture.
pub const AVAILABLE: bool = cfg!(target_arch = "x86_64");
/// Where the program is in the container.
pub const PROGRAM: &str = "/rehearsal";
/// Folders that every image has.
const FOLDERS: [&str; 6] = ["dev", "proc", "sys", "etc", "tmp", "run"];

/// Address at which the program is loaded, as linkers choose it for programs without relocation.
const BASE: u64 = 0x40_0000;
const ELF_HEADER_BYTES: u16 = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;
/// `exit_group(0)`. Source: System V ABI, AMD64; Linux, `arch/x86/entry/syscalls/syscall_64.tbl`.
const CODE: [u8; 12] = [
    0xbf, 0, 0, 0, 0, // mov edi, 0
    0xb8, 231, 0, 0, 0, // mov eax, 231 (exit_group)
    0x0f, 0x05, // syscall
];

/// A static program for Linux on x86-64: an ELF header, one segment that is the whole file, and [`CODE`].
///
/// Source: elf(5).
#[must_use]
pub fn program() -> Vec<u8> {
    let headers = u64::from(ELF_HEADER_BYTES + PROGRAM_HEADER_BYTES);
    let length = headers + CODE.len() as u64;
    let mut file = Vec::new();
    // e_ident: 64 bits, little-endian, version 1, System V; padding.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2_u16.to_le_bytes()); // e_type: ET_EXEC
    file.extend(62_u16.to_le_bytes()); // e_machine: EM_X86_64
    file.extend(1_u32.to_le_bytes()); // e_version
    file.extend((BASE + headers).to_le_bytes()); // e_entry
    file.extend(u64::from(ELF_HEADER_BYTES).to_le_bytes()); // e_phoff
    file.extend(0_u64.to_le_bytes()); // e_shoff: no sections
    file.extend(0_u32.to_le_bytes()); // e_flags
    // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    for half in [ELF_HEADER_BYTES, PROGRAM_HEADER_BYTES, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes()); // p_type: PT_LOAD
    file.extend(5_u32.to_le_bytes()); // p_flags: PF_R | PF_X
    // p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    for word in [0, BASE, BASE, length, length, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(CODE);
    file
}

/// The root file system as a tar stream.
fn root_file_system() -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content)
    };
    for folder in FOLDERS {
        add(folder, tar::EntryType::Directory, &[])?;
    }
    add(PROGRAM.trim_start_matches('/'), tar::EntryType::Regular, &program())?;
    archive.into_inner()
}

/// Writes the layer. Shape: `file` is empty, and open for reading and writing; gives the layer's diffID. Nothing is synced.
///
/// # Errors
/// The file cannot be written.
pub fn write_layer(file: &File) -> Result<Digest, LayerError> {
    let archive = root_file_system().map_err(LayerError::Write)?;
    // Every byte of it was made here, so that no wall is needed.
    convert_layer(Converter::InProcess, archive.as_slice(), file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_program_runs_and_ends_with_status_0() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rehearsal");
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(program().len(), 132);
        // Another test's child may hold the file open for writing for a moment (ETXTBSY).
        let run = || (0..50).find_map(|_| Command::new(&path).status().ok().or_else(|| pause(20)));
        assert_eq!(run().unwrap().code(), Some(0));
    }

    #[cfg(target_arch = "x86_64")]
    fn pause<T>(milliseconds: u64) -> Option<T> {
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        None
    }

    #[test]
    fn the_layer_is_whole_blocks_and_made_twice_the_same() {
        let make = || {
            let file = tempfile::NamedTempFile::new().unwrap();
            let diff_id = write_layer(file.as_file()).unwrap();
            (diff_id, std::fs::read(file.path()).unwrap())
        };
        let (first, second) = (make(), make());
        assert_eq!(first, second);
        let (_, content) = first;
        assert!(!content.is_empty() && content.len().is_multiple_of(4096));
        assert!(content.windows(9).any(|window| window == b"rehearsal"));
    }
}
