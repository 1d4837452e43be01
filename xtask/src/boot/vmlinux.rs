//! Takes the uncompressed kernel out of a bzImage. QEMU boots the ELF file by its PVH entry without unpacking it again at
//! every boot, and the template's memory then shares its pages.
//!
//! Source: Linux Documentation/arch/x86/boot.rst (setup header, payload_offset, payload_length).

use anyhow::{Context, Result, bail, ensure};

use super::compression;

const ELF_MAGIC: &[u8] = b"\x7fELF";
const SECTOR_BYTES: usize = 512;
const SETUP_SECTORS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL_VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first boot protocol that says where the payload is.
const FIRST_PROTOCOL_WITH_PAYLOAD: u16 = 0x0208;

/// The ELF kernel in `image`, which may be one already.
///
/// # Errors
/// When it is neither an ELF file nor a bzImage with a payload of a known compression.
pub fn extract(image: &[u8]) -> Result<Vec<u8>> {
    if image.starts_with(ELF_MAGIC) {
        return Ok(image.to_vec());
    }
    ensure!(image.get(HEADER_MAGIC..HEADER_MAGIC + 4) == Some(b"HdrS"), "neither an ELF file nor a bzImage");
    let version = u16::from_le_bytes(field(image, PROTOCOL_VERSION)?);
    ensure!(version >= FIRST_PROTOCOL_WITH_PAYLOAD, "boot protocol {version:#x} is too old");
    let setup_sectors = match field::<1>(image, SETUP_SECTORS)? {
        [0] => 4,
        [sectors] => usize::from(sectors),
    };
    let begin = (setup_sectors + 1) * SECTOR_BYTES + length_field(image, PAYLOAD_OFFSET)?;
    let length = length_field(image, PAYLOAD_LENGTH)?;
    let payload = image.get(begin..begin + length).context("the payload lies outside the file")?;
    unpack_payload(payload)
}

/// The last four bytes of a payload are the size it unpacks to; gzip streams end with that themselves.
fn unpack_payload(payload: &[u8]) -> Result<Vec<u8>> {
    let (stream, size) = payload.split_last_chunk::<4>().context("the payload is empty")?;
    let is_gzip = stream.starts_with(&[0x1f, 0x8b]);
    let kernel = compression::unpack(if is_gzip { payload } else { stream })?;
    let size = usize::try_from(u32::from_le_bytes(*size))?;
    if kernel.len() != size {
        bail!("the payload unpacked to {} bytes and should have {size}", kernel.len());
    }
    ensure!(kernel.starts_with(ELF_MAGIC), "the payload is no ELF file");
    Ok(kernel)
}

fn field<const N: usize>(image: &[u8], offset: usize) -> Result<[u8; N]> {
    let bytes = image.get(offset..offset + N).context("the file ends within the setup header")?;
    Ok(bytes.try_into()?)
}

fn length_field(image: &[u8], offset: usize) -> Result<usize> {
    Ok(usize::try_from(u32::from_le_bytes(field(image, offset)?))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with one setup sector around `payload`.
    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR_BYTES];
        image[SETUP_SECTORS] = 1;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PROTOCOL_VERSION..PROTOCOL_VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend([0xee; 16]);
        image.extend(payload);
        image
    }

    fn zstd_payload(kernel: &[u8], claimed: u32) -> Vec<u8> {
        let mut payload = zstd::encode_all(kernel, 1).unwrap();
        payload.extend(claimed.to_le_bytes());
        payload
    }

    #[test]
    fn a_payload_is_found_and_checked() {
        let kernel = [ELF_MAGIC, &[7; 5000]].concat();
        assert_eq!(extract(&bz_image(&zstd_payload(&kernel, 5004))).unwrap(), kernel);
        assert_eq!(extract(&kernel).unwrap(), kernel);
    }

    #[test]
    fn a_wrong_size_a_wrong_content_and_a_short_file_are_errors() {
        let kernel = [ELF_MAGIC, &[7; 5000]].concat();
        assert!(extract(&bz_image(&zstd_payload(&kernel, 5000))).unwrap_err().to_string().contains("5004 bytes"));
        assert!(extract(&bz_image(&zstd_payload(b"text", 4))).is_err());
        let whole = bz_image(&zstd_payload(&kernel, 5004));
        assert!(extract(&whole[..whole.len() - 1]).is_err());
        assert!(extract(&whole[..0x210]).is_err());
        assert!(extract(b"#!/bin/sh").is_err());
    }
}
