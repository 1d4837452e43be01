//! The digest of a layer's file, by which damage is found that its first block does not tell.
//!
//! Holes and runs of zeros are the same to a reader and cost nothing here: only chunks that are not all zero are hashed,
//! each behind its position, and last the length.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use proto::Digest;
use rustix::fs::{SeekFrom, seek};
use sha2::{Digest as _, Sha256};

/// Bytes hashed at once. Part of what the digest means: never changed.
const CHUNK: usize = 64 << 10;
static ZEROS: [u8; CHUNK] = [0; CHUNK];

/// Reads the whole file. When: nobody writes to it. Moves the file's own position.
pub(crate) fn seal(file: &File) -> io::Result<Digest> {
    let length = file.metadata()?.len();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while position < length {
        let data = match seek(file, SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        position = data - data % CHUNK as u64;
        let count = usize::try_from(length - position).map_or(CHUNK, |left| left.min(CHUNK));
        let chunk = &mut buffer[..count];
        file.read_exact_at(chunk, position)?;
        if *chunk != ZEROS[..count] {
            hash.update(position.to_le_bytes());
            hash.update(&*chunk);
        }
        position += count as u64;
    }
    hash.update(length.to_le_bytes());
    Ok(Digest::from_sha256(&hash.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(parts: &[(u64, &[u8])], length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (position, bytes) in parts {
            file.write_all_at(bytes, *position).unwrap();
        }
        file
    }

    #[test]
    fn a_hole_is_zeros_and_every_byte_counts() {
        let sparse = file_of(&[(1 << 20, b"x")], 4 << 20);
        let full = file_of(&[(0, &vec![0; 4 << 20]), (1 << 20, b"x")], 4 << 20);
        assert_eq!(seal(&sparse).unwrap(), seal(&full).unwrap());
        let others = [
            file_of(&[(1 << 20, b"y")], 4 << 20),
            file_of(&[((1 << 20) + 1, b"x")], 4 << 20),
            file_of(&[(1 << 20, b"x")], (4 << 20) + 1),
            file_of(&[], 0),
        ];
        for other in &others {
            assert_ne!(seal(&sparse).unwrap(), seal(other).unwrap());
        }
        assert_eq!(seal(&file_of(&[], 0)).unwrap(), seal(&file_of(&[], 0)).unwrap());
    }
}
