//! The bytes that a fuzzer gives, as the numbers that they are taken for.

/// The bytes of one run, taken from the front.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    /// The next bytes; nothing when there are not so many.
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    /// The next byte.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The next 16 bits.
    pub(crate) fn half(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// The next 32 bits.
    pub(crate) fn word(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// A number, mostly a small one.
    pub(crate) fn number(&mut self) -> Option<u64> {
        match self.byte()? {
            0..=99 => self.byte().map(u64::from),
            100..=199 => self.half().map(u64::from),
            200..=239 => self.word().map(u64::from),
            240..=247 => self.byte().map(|small| u64::MAX - u64::from(small)),
            248..=255 => self.array().map(u64::from_le_bytes),
        }
    }

    /// At most `most` bytes.
    pub(crate) fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        head
    }
}
