//! Recognizes a compressed stream by its first bytes and unpacks it: kernels and modules come in what their distribution
//! likes.

use std::io::Read;

use anyhow::{Context, Result, bail};

/// How a stream is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Gzip,
    Xz,
    Zstd,
    Lz4,
    /// LZ4's first frame format, which the kernel still uses for its own image.
    Lz4Legacy,
}

const FORMATS: [(Format, &[u8]); 5] = [
    (Format::Gzip, &[0x1f, 0x8b]),
    (Format::Xz, &[0xfd, b'7', b'z', b'X', b'Z', 0]),
    (Format::Zstd, &[0x28, 0xb5, 0x2f, 0xfd]),
    (Format::Lz4, &[0x04, 0x22, 0x4d, 0x18]),
    (Format::Lz4Legacy, &[0x02, 0x21, 0x4c, 0x18]),
];

/// Unpacks one stream. Shape: `bytes` begins with the stream; what follows its end is ignored, save that nothing may
/// follow a legacy LZ4 stream, which has no end mark.
///
/// # Errors
/// When the format is unknown (bzip2, lzma and lzo kernels are old) or the stream is damaged.
pub fn unpack(bytes: &[u8]) -> Result<Vec<u8>> {
    let Some((format, _)) = FORMATS.iter().find(|(_, magic)| bytes.starts_with(magic)) else {
        let head = hex::encode(&bytes[..bytes.len().min(6)]);
        bail!("unknown compression (first bytes {head}); known are gzip, xz, zstd and lz4");
    };
    let mut unpacked = Vec::with_capacity(bytes.len() * 4);
    match format {
        Format::Gzip => flate2::read::GzDecoder::new(bytes).read_to_end(&mut unpacked),
        Format::Xz => lzma_rust2::XzReader::new(bytes, false).read_to_end(&mut unpacked),
        Format::Zstd => zstd::stream::read::Decoder::with_buffer(bytes)?.single_frame().read_to_end(&mut unpacked),
        Format::Lz4 | Format::Lz4Legacy => lz4_flex::frame::FrameDecoder::new(bytes).read_to_end(&mut unpacked),
    }
    .with_context(|| format!("damaged {format:?} stream"))?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_format_is_recognized_and_unpacked() {
        let text = b"the same bytes, again and again and again and again".repeat(100);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(&text).unwrap();
        let zstd = zstd::encode_all(&text[..], 1).unwrap();
        let mut legacy = vec![0x02, 0x21, 0x4c, 0x18];
        let block = lz4_flex::block::compress(&text);
        legacy.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
        legacy.extend(&block);
        for packed in [gzip.finish().unwrap(), lz4.finish().unwrap(), zstd, legacy] {
            assert_eq!(unpack(&packed).unwrap(), text);
        }
    }

    #[test]
    fn xz_is_unpacked() {
        // printf bulkhead | xz -9
        let packed = hex::decode(concat!(
            "fd377a585a000004e6d6b446020021011c00000010cf58cc01000762756c6b6865616400",
            "b51030ba1f18900000012008bb19d9bb1fb6f37d010000000004595a",
        ))
        .unwrap();
        assert_eq!(unpack(&packed).unwrap(), b"bulkhead");
        assert!(unpack(&packed[..packed.len() - 20]).is_err(), "a cut stream is an error and no short result");
    }

    #[test]
    fn junk_and_damage_are_errors() {
        assert!(unpack(b"BZh91AY").unwrap_err().to_string().contains("425a68393141"));
        assert!(unpack(&[0x1f, 0x8b, 8, 0, 1, 2]).is_err());
    }
}
