//! A layer as the tar stream it came as.

use std::fs::File;
use std::io::{self, Read};

use proto::Digest;
use sha2::{Digest as _, Sha256};

use crate::content::FileError;
use crate::recipe::RecipeReader;
use crate::store::{ImageStore, StoreError};

/// The tar stream of a layer, uncompressed: the very bytes whose digest is the layer's diffID. Made by
/// [`ImageStore::layer_tar`]. When: the last read, the one that gives nothing, fails with
/// [`io::ErrorKind::InvalidData`] if the bytes before had another digest; until then they are not to be trusted.
pub struct LayerTar {
    source: RecipeReader,
    hash: Sha256,
    diff_id: Digest,
    verified: bool,
}

impl Read for LayerTar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hash.update(&buffer[..count]);
        if count == 0 && !buffer.is_empty() && !self.verified {
            let found = Digest::from_sha256(&self.hash.clone().finalize().into());
            if found != self.diff_id {
                let text = format!("the stored layer {} has the digest {found}: its file is damaged", self.diff_id);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            self.verified = true;
        }
        Ok(count)
    }
}

impl ImageStore {
    /// A layer's tar stream, uncompressed, byte for byte as it was when the layer was added. Shape: reading it to its end
    /// verifies it against `diff_id`. When: goes on if the layer is removed meanwhile.
    ///
    /// # Errors
    /// [`StoreError::File`]: there is no such layer, or its file has no recipe of its stream (layers of stores before 0.2;
    /// load or pull the image again).
    pub fn layer_tar(&self, diff_id: &Digest) -> Result<LayerTar, StoreError> {
        let path = self.content.layer_path(diff_id);
        let file = File::open(&path).map_err(FileError::new("open", &path))?;
        let source = RecipeReader::open(file).map_err(FileError::new("read the tar stream of", &path))?;
        Ok(LayerTar { source, hash: Sha256::new(), diff_id: diff_id.clone(), verified: false })
    }

    /// Length of the stream that [`ImageStore::layer_tar`] gives, as unverified as that.
    ///
    /// # Errors
    /// As [`ImageStore::layer_tar`].
    pub fn layer_tar_bytes(&self, diff_id: &Digest) -> Result<u64, StoreError> {
        let path = self.content.layer_path(diff_id);
        let file = File::open(&path).map_err(FileError::new("open", &path))?;
        let bytes = RecipeReader::open(file).and_then(RecipeReader::stream_bytes);
        Ok(bytes.map_err(FileError::new("read the tar stream of", &path))?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;
    use crate::import::ImportOptions;
    use crate::testing::{RawEntry, file, folder, gzip, hard_link, pax_record, symlink, tar_of};

    fn stored(tar: &[u8]) -> (tempfile::TempDir, ImageStore, Digest) {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(folder.path()).unwrap();
        let id = store.import(tar, &ImportOptions::default()).unwrap();
        let diff_id = store.image(&id).unwrap().diff_ids[0].clone();
        (folder, store, diff_id)
    }

    fn read(store: &ImageStore, diff_id: &Digest) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        store.layer_tar(diff_id).unwrap().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn assert_same(tar: &[u8]) {
        let (_folder, store, diff_id) = stored(tar);
        let again = read(&store, &diff_id).unwrap();
        assert_eq!(again.len(), tar.len());
        assert_eq!(store.layer_tar_bytes(&diff_id).unwrap(), tar.len() as u64);
        assert!(again == tar, "the stream differs");
    }

    #[test]
    fn every_kind_of_entry_comes_back_byte_for_byte() {
        let long = "x".repeat(9000);
        let block = "y".repeat(8192);
        let many: Vec<String> = (0..300).map(|n| format!("many/{n:0200}")).collect();
        let mut entries = vec![
            folder("a"),
            file("a/empty", ""),
            file("a/tail", &long),
            file("a/blocks", &block),
            file("a/tail", "written twice: both contents are in the stream"),
            symlink("a/link", "../b"),
            hard_link("a/hard", "a/blocks"),
            file("a/.wh.gone", "a whiteout with content"),
            file("./", "the root with content that nobody wants"),
            file("a/.wh..wh..opq", ""),
            RawEntry { path: b"dev", kind: b'3', device: (1, 3), ..RawEntry::default() },
            RawEntry { path: b"caps", pax: &[("SCHILY.xattr.user.x", b"a\nb")], content: b"c", ..RawEntry::default() },
        ];
        entries.remove(8);
        entries.extend(many.iter().map(|name| file(name, "same length")));
        let mut tar = tar_of(&entries);
        // Tar writers pad to their own record size.
        tar.resize(tar.len().next_multiple_of(10_240), 0);
        assert_same(&tar);
    }

    #[test]
    fn sparse_files_and_global_headers_come_back() {
        let map = b"2\n4096\n3\n8192\n5\n";
        let mut content = map.to_vec();
        content.resize(512, 0);
        content.extend(b"abcdefgh");
        let pax: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"9000"),
        ];
        let sparse = RawEntry { path: b"GNUSparseFile.0/sparse", content: &content, pax: &pax, ..RawEntry::default() };
        let comment = pax_record("comment", b"global");
        let global = RawEntry { path: b"g", kind: b'g', content: &comment, ..RawEntry::default() };
        assert_same(&tar_of(&[global, sparse, file("after", "it")]));
    }

    #[test]
    fn streams_without_an_end_and_with_incompressible_headers_come_back() {
        let tar = tar_of(&[file("a", "b")]);
        assert_same(&tar[..tar.len() - 1024]);
        // More headers than one chunk of the recipe holds.
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8 | 1
        })
        .take(600_000)
        .collect();
        let pax: [(&str, &[u8]); 1] = [("comment", &noise)];
        let entries: Vec<_> =
            (0..3).map(|_| RawEntry { path: b"n", content: b"x", pax: &pax, ..RawEntry::default() }).collect();
        assert_same(&tar_of(&entries));
    }

    #[test]
    fn the_compression_is_not_part_of_it() {
        let tar = tar_of(&[file("a", "b")]);
        let (_folder, store, diff_id) = stored(&gzip(&tar));
        assert_eq!(read(&store, &diff_id).unwrap(), tar);
    }

    #[test]
    fn a_damaged_layer_is_noticed_at_the_end_of_the_stream() {
        let content = "z".repeat(4096);
        let (folder, store, diff_id) = stored(&tar_of(&[file("a", &content)]));
        let path = folder.path().join(format!("layers/{}.erofs", diff_id.hex()));
        let mut layer = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let at = std::fs::read(&path).unwrap().windows(4).position(|bytes| bytes == b"zzzz").unwrap();
        layer.seek(SeekFrom::Start(at as u64)).unwrap();
        layer.write_all(b"Z").unwrap();
        assert_eq!(read(&store, &diff_id).unwrap_err().kind(), io::ErrorKind::InvalidData);
        layer.seek(SeekFrom::Start(0)).unwrap();
        layer.write_all(b"no recipe").unwrap();
        assert!(store.layer_tar(&diff_id).is_err());
    }
}
