//! Digests of the files that templates are made from and consist of.

use std::fs::File;
use std::io::{self, Read};

use rustix::fs::{SeekFrom, seek};
use sha2::{Digest as _, Sha256};

const CHUNK_BYTES: usize = 64 * 1024;

/// SHA-256 of everything that `reader` gives, as 64 hexadecimal digits.
pub(crate) fn sha256_of_reader(mut reader: impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match reader.read(&mut chunk)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            length => hasher.update(&chunk[..length]),
        }
    }
}

/// SHA-256 over a sparse file's length and every 64 KiB piece that is not all zero, each with its offset: holes and
/// zeros are the same to it, so it costs what the data costs, and a copy that filled the holes compares equal.
pub(crate) fn sha256_of_sparse(file: &File) -> io::Result<String> {
    let length = file.metadata()?.len();
    let mut hasher = Sha256::new();
    hasher.update(length.to_le_bytes());
    let mut chunk = vec![0; CHUNK_BYTES];
    let step = CHUNK_BYTES as u64;
    let mut offset = 0;
    while offset < length {
        let data = match seek(file, SeekFrom::Data(offset)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        offset = data / step * step;
        let wanted = usize::try_from((length - offset).min(step)).unwrap_or(CHUNK_BYTES);
        let piece = &mut chunk[..wanted];
        std::os::unix::fs::FileExt::read_exact_at(file, piece, offset)?;
        if piece.iter().any(|&byte| byte != 0) {
            hasher.update(offset.to_le_bytes());
            hasher.update(&piece);
        }
        offset += step;
    }
    Ok(hex::encode(hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn sparse(length: u64, pieces: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    #[test]
    fn holes_and_zeros_have_one_digest_and_every_other_change_another() {
        let length = 3 * 1024 * 1024 + 17;
        let plain = sha256_of_sparse(&sparse(length, &[(1_000_000, b"x")])).unwrap();
        let filled = vec![0; 500_000];
        assert_eq!(plain, sha256_of_sparse(&sparse(length, &[(1_000_000, b"x"), (2_000_000, &filled)])).unwrap());
        assert_ne!(plain, sha256_of_sparse(&sparse(length, &[(1_000_001, b"x")])).unwrap());
        assert_ne!(plain, sha256_of_sparse(&sparse(length, &[(1_000_000, b"y")])).unwrap());
        assert_ne!(plain, sha256_of_sparse(&sparse(length + 1, &[(1_000_000, b"x")])).unwrap());
        assert_ne!(plain, sha256_of_sparse(&sparse(length, &[(1_000_000, b"x"), (length - 1, b"x")])).unwrap());
    }
}
