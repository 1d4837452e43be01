//! PAX extended headers: records `length key=value\n`. Source: POSIX.1-2024, pax, "pax Extended Header".

use std::collections::BTreeMap;

use super::TarError;
use super::header::Segment;
use crate::timestamp::Timestamp;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const MALFORMED: TarError = TarError::Header("malformed PAX record");

/// The records of one extended header; of equal keys the last.
#[derive(Default)]
pub(super) struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// GNU sparse format 0.0 repeats two keys instead of having a map.
    repeated_segments: Vec<Segment>,
}

impl Records {
    pub fn parse(mut data: &[u8]) -> Result<Self, TarError> {
        let mut records = Self::default();
        let mut segment_offset = None;
        // Some writers pad with NULs.
        while !data.is_empty() && data[0] != 0 {
            let space = data.iter().take(20).position(|b| *b == b' ').ok_or(MALFORMED)?;
            let length = usize::try_from(decimal(&data[..space])?).map_err(|_| MALFORMED)?;
            if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
                return Err(MALFORMED);
            }
            let record = &data[space + 1..length - 1];
            let equals = record.iter().position(|b| *b == b'=').ok_or(MALFORMED)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"" => return Err(MALFORMED),
                b"path" | b"linkpath" if value.contains(&0) => return Err(MALFORMED),
                b"GNU.sparse.offset" => segment_offset = Some(decimal(value)?),
                b"GNU.sparse.numbytes" => {
                    records.repeated_segments.push((segment_offset.take().ok_or(MALFORMED)?, decimal(value)?));
                }
                // An empty value takes a record back; an attribute may well be empty.
                _ if value.is_empty() && !key.starts_with(XATTR_PREFIX) => drop(records.values.remove(key)),
                _ => drop(records.values.insert(key.to_vec(), value.to_vec())),
            }
            data = &data[length..];
        }
        Ok(records)
    }

    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice)
    }

    pub fn repeated_segments(&self) -> &[Segment] {
        &self.repeated_segments
    }

    pub fn size(&self) -> Result<Option<u64>, TarError> {
        self.get(b"size").map(decimal).transpose()
    }

    /// A number that may be negative.
    pub fn number(&self, key: &[u8]) -> Result<Option<i64>, TarError> {
        self.get(key).map(signed_decimal).transpose()
    }

    pub fn modified(&self) -> Result<Option<Timestamp>, TarError> {
        let Some(text) = self.get(b"mtime") else { return Ok(None) };
        let (whole, fraction) = match text.iter().position(|b| *b == b'.') {
            Some(dot) => (&text[..dot], &text[dot + 1..]),
            None => (text, &b""[..]),
        };
        if !fraction.iter().all(u8::is_ascii_digit) {
            return Err(MALFORMED);
        }
        let digits: Vec<u8> = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9).collect();
        let nanoseconds = u32::try_from(decimal(&digits)?).map_err(|_| MALFORMED)?;
        let seconds = signed_decimal(whole)?;
        // -1.25 is 0.25 before -1, and so 0.75 behind -2.
        if whole.starts_with(b"-") && nanoseconds > 0 {
            let seconds = seconds.checked_sub(1).ok_or(MALFORMED)?;
            return Ok(Some(Timestamp { seconds, nanoseconds: 1_000_000_000 - nanoseconds }));
        }
        Ok(Some(Timestamp { seconds, nanoseconds }))
    }

    pub fn into_xattrs(self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let name = |key: Vec<u8>| key.strip_prefix(XATTR_PREFIX).map(<[u8]>::to_vec);
        self.values.into_iter().filter_map(|(key, value)| name(key).map(|name| (name, value))).collect()
    }
}

/// Digits only, no sign.
pub(super) fn decimal(text: &[u8]) -> Result<u64, TarError> {
    match text.iter().all(u8::is_ascii_digit) {
        true => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(MALFORMED),
        false => Err(MALFORMED),
    }
}

fn signed_decimal(text: &[u8]) -> Result<i64, TarError> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    decimal(digits)?;
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(MALFORMED)
}
