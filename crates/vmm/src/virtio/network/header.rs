//! The header before each frame, in the guest's buffers and on the tap.
//!
//! Source: virtio 1.2 §5.1.6, "Device Operation"; Linux Documentation/networking/tuntap.rst.

use super::{CHECKSUM, HOST_TSO};

/// Its length.
pub(super) const HEADER: usize = 12;
/// Where it says over how many buffers a frame is spread: always one.
pub(super) const BUFFERS: std::ops::Range<usize> = 10..12;

/// The checksum is missing: from `start` on everything is to be summed up, and put `offset` further.
const NEEDS_CHECKSUM: u8 = 1;
/// How the data is to be cut.
const WHOLE: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
/// A bit beside the two: congestion is told by a bit of the frame's own, which has to be dealt with while cutting.
const ECN: u8 = 0x80;
/// The shortest piece that TCP's data is cut into. Source: RFC 879, less what options take.
const LEAST_PIECE: u16 = 88;
/// Two addresses and a kind; then at least 20 bytes each of IP and of TCP.
const LEAST_HEADERS: u16 = 14 + 20 + 20;

/// What is said of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    checksum: Option<(u16, u16)>,
    kind: u8,
    headers: u16,
    piece: u16,
}

impl Header {
    /// What the guest says of a frame, header in front, if it can be and the driver chose to say it.
    pub(super) fn sent(frame: &[u8], features: u64) -> Option<Self> {
        let &[flags, kind, h0, h1, p0, p1, s0, s1, o0, o1, _, _, ref content @ ..] = frame else { return None };
        let [headers, piece, start, offset] = [[h0, h1], [p0, p1], [s0, s1], [o0, o1]].map(u16::from_le_bytes);
        let checksum = (flags & NEEDS_CHECKSUM != 0).then_some((start, offset));
        if let Some((start, offset)) = checksum {
            let end = usize::from(start) + usize::from(offset) + 2;
            if features & CHECKSUM == 0 || end > content.len() {
                return None;
            }
        }
        let header = match kind & !ECN {
            WHOLE => Self { checksum, kind: WHOLE, headers: 0, piece: 0 },
            TCP4 | TCP6 => {
                let within = LEAST_HEADERS <= headers && usize::from(headers) <= content.len();
                if features & HOST_TSO == 0 || checksum.is_none() || piece < LEAST_PIECE || !within {
                    return None;
                }
                Self { checksum, kind, headers, piece }
            }
            _ => return None,
        };
        Some(header)
    }

    /// As the tap takes it.
    pub(super) fn bytes(self) -> [u8; HEADER] {
        let (start, offset) = self.checksum.unwrap_or_default();
        let flags = if self.checksum.is_some() { NEEDS_CHECKSUM } else { 0 };
        let [h, p, s, o] = [self.headers, self.piece, start, offset].map(u16::to_le_bytes);
        [flags, self.kind, h[0], h[1], p[0], p[1], s[0], s[1], o[0], o[1], 0, 0]
    }
}

/// Prepares a frame from the tap, header in front, for the guest: it is told that the checksum is missing, or `finish`ed.
pub(super) fn received(frame: &mut [u8], finish: bool) {
    let Some((header, content)) = frame.split_first_chunk_mut::<HEADER>() else { return };
    let [flags, _, _, _, _, _, s0, s1, o0, o1, _, _] = *header;
    header.fill(0);
    let [start, offset] = [[s0, s1], [o0, o1]].map(|bytes| usize::from(u16::from_le_bytes(bytes)));
    if flags & NEEDS_CHECKSUM == 0 || start + offset + 2 > content.len() {
        return;
    }
    if finish {
        let sum = !sum(&content[start..]);
        // Zero would say that there is none; both mean the same. Source: RFC 768.
        let sum = if sum == 0 { u16::MAX } else { sum };
        content[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    } else {
        header[0] = NEEDS_CHECKSUM;
        (header[6], header[7], header[8], header[9]) = (s0, s1, o0, o1);
    }
}

/// The sum of 16-bit numbers, carries added. Source: RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let pairs = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)));
    let whole: u32 = pairs.sum();
    let folded = (whole >> 16) + (whole & 0xffff);
    let folded = (folded >> 16) + (folded & 0xffff);
    u16::try_from(folded).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::GUEST_CHECKSUM;
    use super::*;

    const ALL: u64 = CHECKSUM | GUEST_CHECKSUM | HOST_TSO;

    fn frame(flags: u8, kind: u8, fields: [u16; 4], length: usize) -> Vec<u8> {
        let fields = fields.map(u16::to_le_bytes).concat();
        [vec![flags, kind], fields, vec![0xff; 2], vec![7; length]].concat()
    }

    #[test]
    fn f94_what_a_guest_says_of_a_frame_is_true_or_the_frame_is_lost() {
        let tcp = [54, 1448, 34, 16];
        for (flags, kind, fields, length, good) in [
            (0, 0, [0; 4], 60, true),
            (1, 0, [0, 0, 34, 16], 60, true),
            // The last two bytes, and one more.
            (1, 0, [0, 0, 34, 24], 60, true),
            (1, 0, [0, 0, 34, 25], 60, false),
            (1, 0, [0, 0, u16::MAX, u16::MAX], 60, false),
            (1, 0, [0, 0, 0, u16::MAX], 65_535, false),
            (1, 1, tcp, 4000, true),
            (1, 4, [74, 1428, 54, 16], 4000, true),
            (1, 0x81, tcp, 4000, true),
            // Cut without a checksum, into nothing, with headers that are none or longer than the frame.
            (0, 1, tcp, 4000, false),
            (1, 1, [54, 0, 34, 16], 4000, false),
            (1, 1, [54, 1, 34, 16], 4000, false),
            (1, 1, [53, 1448, 34, 16], 4000, false),
            (1, 1, [4001, 1448, 34, 16], 4000, false),
            // UDP, and what is nothing.
            (1, 3, tcp, 4000, false),
            (1, 5, tcp, 4000, false),
            (1, 2, tcp, 4000, false),
            (1, 0xff, tcp, 4000, false),
        ] {
            let said = Header::sent(&frame(flags, kind, fields, length), ALL);
            assert_eq!(said.is_some(), good, "{flags} {kind} {fields:?} {length}");
            let Some(said) = said else { continue };
            // What reaches the kernel is what was checked, and no flag that is not known.
            let again = [said.bytes().to_vec(), vec![7; length]].concat();
            assert_eq!(Header::sent(&again, ALL), Some(said));
            assert_eq!(said.bytes()[10..], [0, 0]);
        }
        assert_eq!(Header::sent(&frame(0xfe, 0, [9; 4], 60), ALL).unwrap().bytes(), [0; HEADER]);
        assert_eq!(Header::sent(&[0; HEADER - 1], ALL), None);
    }

    #[test]
    fn f94_what_was_not_chosen_is_not_said() {
        assert_eq!(Header::sent(&frame(1, 0, [0, 0, 34, 16], 60), HOST_TSO), None);
        assert_eq!(Header::sent(&frame(1, 1, [54, 1448, 34, 16], 4000), CHECKSUM), None);
        assert!(Header::sent(&frame(0, 0, [0; 4], 60), 0).is_some());
    }

    #[test]
    fn a_missing_checksum_is_told_or_made() {
        let mut told = frame(1, 0, [1, 2, 4, 6], 20);
        received(&mut told, false);
        assert_eq!(told, frame(1, 0, [0, 0, 4, 6], 20).tap_zero());
        // RFC 1071's own example, and the place is zero before.
        let mut made = frame(1, 0, [0, 0, 2, 8], 0);
        made.extend([9, 9, 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7, 0, 0]);
        received(&mut made, true);
        assert_eq!((made[..HEADER].to_vec(), &made[made.len() - 2..]), (vec![0; HEADER], &[0x22, 0x0d][..]));
        // A kernel that says what cannot be is not followed.
        let mut wrong = frame(1, 0, [0, 0, 60, 60], 60);
        received(&mut wrong, true);
        assert_eq!(wrong, [vec![0; HEADER], vec![7; 60]].concat());
        received(&mut [0; 3], true);
    }

    trait TapZero {
        fn tap_zero(self) -> Self;
    }

    impl TapZero for Vec<u8> {
        /// With nothing in the last field.
        fn tap_zero(mut self) -> Self {
            self[BUFFERS].fill(0);
            self
        }
    }
}
