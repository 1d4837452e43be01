//! The 512-byte header in its v7, ustar, star and GNU forms.

use super::TarError;
use crate::timestamp::Timestamp;

pub(super) const BLOCK: usize = 512;
/// A run of stored content in a sparse file: offset and length.
pub(super) type Segment = (u64, u64);

/// A header whose checksum is right.
pub(super) struct RawHeader([u8; BLOCK]);

#[derive(PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl RawHeader {
    pub fn new(block: [u8; BLOCK]) -> Result<Self, TarError> {
        let stored = number(&block[148..156])?;
        // Old writers summed signed bytes.
        let (mut unsigned, mut signed) = (8 * i64::from(b' '), 8 * i64::from(b' '));
        for byte in block[..148].iter().chain(&block[156..]) {
            unsigned += i64::from(*byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored != unsigned && stored != signed {
            return Err(TarError::Header("wrong checksum"));
        }
        Ok(Self(block))
    }

    pub fn kind(&self) -> u8 {
        self.0[156]
    }

    fn format(&self) -> Format {
        match (&self.0[257..263], &self.0[263..265], &self.0[508..512]) {
            (b"ustar\0", _, b"tar\0") => Format::Star,
            (b"ustar\0", _, _) => Format::Ustar,
            (b"ustar ", b" \0", _) => Format::Gnu,
            _ => Format::V7,
        }
    }

    pub fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = match self.format() {
            Format::Ustar => until_nul(&self.0[345..500]),
            Format::Star => until_nul(&self.0[345..476]),
            Format::Gnu | Format::V7 => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub fn link(&self) -> &[u8] {
        until_nul(&self.0[157..257])
    }

    pub fn size(&self) -> Result<u64, TarError> {
        u64::try_from(number(&self.0[124..136])?).map_err(|_| TarError::Header("negative size"))
    }

    pub fn mode(&self) -> Result<u16, TarError> {
        // Some writers put the file type above the permission bits.
        u16::try_from(number(&self.0[100..108])? & 0o7777).map_err(|_| TarError::Header("mode out of range"))
    }

    pub fn uid(&self) -> Result<i64, TarError> {
        number(&self.0[108..116])
    }

    pub fn gid(&self) -> Result<i64, TarError> {
        number(&self.0[116..124])
    }

    pub fn modified(&self) -> Result<Timestamp, TarError> {
        Ok(Timestamp { seconds: number(&self.0[136..148])?, nanoseconds: 0 })
    }

    pub fn device(&self) -> Result<(i64, i64), TarError> {
        match self.format() {
            Format::V7 => Ok((0, 0)),
            _ => Ok((number(&self.0[329..337])?, number(&self.0[337..345])?)),
        }
    }

    /// The map of an old GNU sparse file as far as the header holds it, and whether more blocks of it follow.
    pub fn sparse_segments(&self) -> Result<(Vec<Segment>, bool), TarError> {
        if self.format() != Format::Gnu {
            return Err(TarError::Header("sparse file without a GNU header"));
        }
        let mut segments = Vec::new();
        read_segments(&self.0[386..482], &mut segments)?;
        Ok((segments, self.0[482] != 0))
    }

    pub fn sparse_real_size(&self) -> Result<u64, TarError> {
        offset(&self.0[483..495])
    }
}

/// Takes the segments of a further block of an old GNU sparse map; true if one more follows.
pub(super) fn extend_sparse_segments(block: &[u8; BLOCK], segments: &mut Vec<Segment>) -> Result<bool, TarError> {
    read_segments(&block[..504], segments)?;
    Ok(block[504] != 0)
}

fn read_segments(fields: &[u8], segments: &mut Vec<Segment>) -> Result<(), TarError> {
    for pair in fields.chunks_exact(24).take_while(|pair| pair[0] != 0) {
        segments.push((offset(&pair[..12])?, offset(&pair[12..])?));
    }
    super::sparse::check_count(segments.len())
}

fn offset(field: &[u8]) -> Result<u64, TarError> {
    u64::try_from(number(field)?).map_err(|_| TarError::Header("negative offset"))
}

pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// An octal number, or, with the top bit of the first byte set, a big-endian two's complement one.
fn number(field: &[u8]) -> Result<i64, TarError> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let fill = if negative { 0xff } else { 0 };
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let (high, low) = field.split_at(field.len() - 8);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(low);
        let value = if high.is_empty() {
            bytes[0] = if negative { field[0] } else { first };
            i64::from_be_bytes(bytes)
        } else {
            let rest_fits = first == fill && high[1..].iter().all(|b| *b == fill) && (low[0] & 0x80 != 0) == negative;
            if !rest_fits {
                return Err(TarError::Header("number out of range"));
            }
            i64::from_be_bytes(bytes)
        };
        return Ok(value);
    }
    let digits = until_nul(field).trim_ascii();
    if digits.is_empty() {
        return Ok(0);
    }
    let text = std::str::from_utf8(digits).map_err(|_| TarError::Header("malformed number"))?;
    match text.bytes().all(|b| b.is_ascii_digit()) {
        true => i64::from_str_radix(text, 8).map_err(|_| TarError::Header("malformed number")),
        false => Err(TarError::Header("malformed number")),
    }
}
