//! Recognizing and undoing compression, within bounds, inside this process: no `unpigz` or `xz` program is ever run, as
//! an image could bring its own (CVE-2026-41567).

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use sha2::{Digest as _, Sha256};

use crate::limits::{Limits, MAX_XZ_KIB, MAX_ZSTD_WINDOW_LOG};
use proto::Digest;

const READ_BUFFER: usize = 128 << 10;
/// Bytes that tell how a stream is compressed.
pub(crate) const HEAD_BYTES: usize = 8;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

/// Formats that are known and not undone, with the program that does.
const UNSUPPORTED: [(&[u8], &str); 1] = [(b"\x04\x22\x4d\x18", "lz4")];

impl Compression {
    /// Recognizes a format by its first bytes. `Err` names a format that is known and not supported.
    pub fn of(head: &[u8]) -> Result<Self, &'static str> {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            // A skippable frame may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Ok(Self::Xz),
            // Then the first block, or the end: a tar stream may begin with a name like BZh9, too.
            [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A', b'Y', ..] => Ok(Self::Bzip2),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, ..] => Ok(Self::Bzip2),
            _ => match UNSUPPORTED.iter().find(|(magic, _)| head.starts_with(magic)) {
                Some((_, program)) => Err(program),
                None => Ok(Self::None),
            },
        }
    }
}

/// Why a compressed stream was given up; travels inside an [`io::Error`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamRefusal {
    /// It gives out more than anybody needs.
    #[error("the stream is longer than {limit} bytes")]
    TooLong {
        /// The limit that was passed.
        limit: u64,
    },
    /// It gives out out of proportion to what went in.
    #[error("{output} bytes out of {input} compressed bytes look like a decompression bomb")]
    Bomb {
        /// Compressed bytes read.
        input: u64,
        /// Bytes given out.
        output: u64,
    },
    /// Known, not supported.
    #[error("{program} compression is not supported: decompress it first, such as with `{program} -dc`")]
    Unsupported {
        /// The program that undoes it.
        program: &'static str,
    },
}

impl StreamRefusal {
    fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self)
    }
}

/// A stream as it was before it was compressed. Reading fails with a [`StreamRefusal`] inside when a bound is passed.
pub(crate) struct Decompressed<R: Read> {
    decoder: Decoder<Looked<R>>,
    input: Arc<AtomicU64>,
    output: u64,
    limits: Limits,
    /// Bytes that may be given out at all.
    max_output: u64,
}

/// Undoes the compression of a stream that somebody sends, as its first bytes say: gzip, zstd, xz, bzip2 or none. It is bounded: reading
/// fails when it gives out far more than it was fed, or more than an archive may have.
///
/// # Errors
/// The first bytes cannot be read; inside is a [`StreamRefusal`] for a format that is not supported.
pub fn decompressed(source: impl Read) -> io::Result<impl Read> {
    let limits = Limits::default();
    Decompressed::new(source, &limits, limits.archive_bytes).map(|(stream, _)| stream)
}

enum Decoder<R: Read> {
    None(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(zstd::Decoder<'static, R>),
    Xz(Box<XzReader<R>>),
    Bzip2(Box<MultiBzDecoder<R>>),
}

/// A stream whose first bytes were read.
type Looked<R> = BufReader<io::Chain<io::Cursor<Vec<u8>>, Counting<R>>>;

impl<R: Read> Decompressed<R> {
    /// Looks at the first bytes of `source` and undoes what they say, or nothing.
    pub fn new(source: R, limits: &Limits, max_output: u64) -> io::Result<(Self, Compression)> {
        let input = Arc::new(AtomicU64::new(0));
        let mut counting = Counting { source, count: Arc::clone(&input) };
        // However small the pieces are that it comes in.
        let mut head = Vec::with_capacity(HEAD_BYTES);
        counting.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head)?;
        let compression = Compression::of(&head).map_err(|program| StreamRefusal::Unsupported { program }.into_io())?;
        let buffered = BufReader::with_capacity(READ_BUFFER, io::Cursor::new(head).chain(counting));
        let decoder = match compression {
            Compression::None => Decoder::None(buffered),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(buffered))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(buffered)?;
                decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
                Decoder::Zstd(decoder)
            }
            Compression::Xz => Decoder::Xz(Box::new(XzReader::new_mem_limit(buffered, true, MAX_XZ_KIB))),
            Compression::Bzip2 => Decoder::Bzip2(Box::new(MultiBzDecoder::new(buffered))),
        };
        Ok((Self { decoder, input, output: 0, limits: *limits, max_output }, compression))
    }

    fn check(&self) -> io::Result<()> {
        if self.output > self.max_output {
            return Err(StreamRefusal::TooLong { limit: self.max_output }.into_io());
        }
        let input = self.input.load(Ordering::Relaxed);
        let proportionate = input.saturating_mul(self.limits.decompression_max_ratio);
        if self.output > self.limits.decompression_free_bytes.max(proportionate) {
            return Err(StreamRefusal::Bomb { input, output: self.output }.into_io());
        }
        Ok(())
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.decoder {
            Decoder::None(plain) => plain.read(buffer)?,
            Decoder::Gzip(decoder) => decoder.read(buffer)?,
            Decoder::Zstd(decoder) => decoder.read(buffer)?,
            Decoder::Xz(decoder) => decoder.read(buffer)?,
            Decoder::Bzip2(decoder) => decoder.read(buffer)?,
        };
        self.output += count as u64;
        self.check()?;
        Ok(count)
    }
}

struct Counting<R> {
    source: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Hashes and counts what is read through it.
pub(crate) struct Hashing<R> {
    source: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> Hashing<R> {
    pub fn new(source: R) -> Self {
        Self { source, hash: Sha256::new(), bytes: 0 }
    }

    /// Reads the rest, and gives the digest and the length of all.
    pub fn finish(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((Digest::from_sha256(&self.hash.finalize().into()), self.bytes))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

/// The digest of bytes in memory.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// 5000 bytes of "some text ", by `xz -6`.
    const XZ: &str = "fd377a585a000004e6d6b4460200210116000000742fe5a3e0138700295d00399bc9f2e750b8c5e25cb595e83cb7160849ce4\
        4693494cc4fddf194be394e1e1b272d1d57b07bf50000000000f6265f6314147c6a0001458827000000d623b320b1c467fb020000000004595a";

    fn xz() -> Vec<u8> {
        hex::decode(XZ).unwrap()
    }

    fn zstd_of(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).unwrap()
    }

    fn unpack(bytes: &[u8], limits: &Limits, max_output: u64) -> io::Result<(Vec<u8>, Compression)> {
        let (mut stream, compression) = Decompressed::new(bytes, limits, max_output)?;
        let mut output = Vec::new();
        stream.read_to_end(&mut output)?;
        Ok((output, compression))
    }

    fn refusal(error: &io::Error) -> Option<StreamRefusal> {
        error.get_ref().and_then(|inner| inner.downcast_ref()).cloned()
    }

    #[test]
    fn every_format_is_recognized_and_undone() {
        let text = b"some text ".repeat(1000);
        let joined = [gzip(&text[..5000]), gzip(&text[5000..])].concat();
        let frames = [zstd_of(&text[..5000]), zstd_of(&text[5000..])].concat();
        for (bytes, expected) in [
            (text.clone(), Compression::None),
            (gzip(&text), Compression::Gzip),
            (joined, Compression::Gzip),
            (zstd_of(&text), Compression::Zstd),
            (frames, Compression::Zstd),
            (xz().repeat(2), Compression::Xz),
            (bzip2(&text), Compression::Bzip2),
            ([bzip2(&text[..5000]), bzip2(&text[5000..])].concat(), Compression::Bzip2),
        ] {
            assert_eq!(unpack(&bytes, &Limits::default(), 1 << 20).unwrap(), (text.clone(), expected));
        }
        for (bytes, expected) in [(Vec::new(), Compression::None), (bzip2(b""), Compression::Bzip2)] {
            assert_eq!(unpack(&bytes, &Limits::default(), 0).unwrap(), (Vec::new(), expected));
        }
        assert_eq!(Compression::of(b"BZh9.txt"), Ok(Compression::None), "a name in a tar stream");
    }

    #[test]
    fn a_stream_is_recognized_in_whatever_pieces_it_comes() {
        struct Drops<'a>(&'a [u8]);
        impl Read for Drops<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = buffer.len().min(1);
                self.0.read(&mut buffer[..count])
            }
        }
        let bytes = gzip(b"text");
        let (mut stream, compression) = Decompressed::new(Drops(&bytes), &Limits::default(), 100).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!((compression, text.as_str()), (Compression::Gzip, "text"));
    }

    #[test]
    fn damaged_streams_fail() {
        let text: Vec<u8> = (0..10_000_u32).flat_map(u32::to_le_bytes).collect();
        for good in [gzip(&text), zstd_of(&text), xz(), bzip2(&text)] {
            assert!(unpack(&good[..good.len() - 3], &Limits::default(), 1 << 20).is_err(), "cut");
            assert!(unpack(&[&good[..], b"garbage"].concat(), &Limits::default(), 1 << 20).is_err(), "trailing");
        }
        let mut bad_crc = gzip(&text);
        let at = bad_crc.len() - 6;
        bad_crc[at] ^= 1;
        assert!(unpack(&bad_crc, &Limits::default(), 1 << 20).is_err(), "wrong CRC");
    }

    #[test]
    fn bombs_and_foreign_formats_are_refused() {
        let limits = Limits { decompression_free_bytes: 100_000, decompression_max_ratio: 200, ..Limits::default() };
        let zeros = vec![0; 2 << 20];
        for bomb in [gzip(&zeros), bzip2(&zeros), zstd_of(&zeros), zstd_of(&[0; 50_000]).repeat(1000)] {
            let error = unpack(&bomb, &limits, u64::MAX).unwrap_err();
            assert!(matches!(refusal(&error), Some(StreamRefusal::Bomb { .. })), "{error}");
        }
        let error = unpack(&gzip(&zeros), &Limits::default(), 1 << 20).unwrap_err();
        assert_eq!(refusal(&error), Some(StreamRefusal::TooLong { limit: 1 << 20 }));
        let error = unpack(b"\x04\x22\x4d\x18...", &limits, 100).unwrap_err();
        assert_eq!(refusal(&error), Some(StreamRefusal::Unsupported { program: "lz4" }));
    }

    #[test]
    fn an_xz_dictionary_of_four_gibibytes_is_refused() {
        let mut bytes = xz();
        // The block header: size, flags, filter LZMA2 with one byte of properties, its dictionary; then a CRC.
        bytes[16] = 40;
        let mut crc = flate2::Crc::new();
        crc.update(&bytes[12..20]);
        bytes[20..24].copy_from_slice(&crc.sum().to_le_bytes());
        assert!(unpack(&bytes, &Limits::default(), 1 << 20).is_err());
        bytes[16] = 24;
        let mut crc = flate2::Crc::new();
        crc.update(&bytes[12..20]);
        bytes[20..24].copy_from_slice(&crc.sum().to_le_bytes());
        assert!(unpack(&bytes, &Limits::default(), 1 << 20).is_ok(), "16 MiB");
    }

    #[test]
    fn a_zstd_window_of_two_gibibytes_is_refused() {
        // Frame header: no single segment, window descriptor with exponent 21 (2^31 bytes), then an empty last block.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
        assert!(unpack(&frame, &Limits::default(), 100).is_err());
    }
}
