//! Memory that only grows, in equal pieces: nothing is moved or reserved twice, so that a budget means what it says.

use std::ops::{Index, IndexMut};

/// Bytes of one piece.
const PIECE_BYTES: usize = 1 << 20;

/// Values by number.
pub(super) struct Arena<T> {
    pieces: Vec<Vec<T>>,
}

impl<T> Arena<T> {
    const PIECE: usize = PIECE_BYTES / size_of::<T>();

    /// Adds a value; gives its number.
    pub fn push(&mut self, value: T) -> usize {
        match self.pieces.last_mut() {
            Some(piece) if piece.len() < Self::PIECE => piece.push(value),
            _ => {
                let mut piece = Vec::with_capacity(Self::PIECE);
                piece.push(value);
                self.pieces.push(piece);
            }
        }
        self.len() - 1
    }

    pub fn len(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * Self::PIECE + last.len())
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten()
    }
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { pieces: Vec::new() }
    }
}

impl<T> Index<usize> for Arena<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.pieces[index / Self::PIECE][index % Self::PIECE]
    }
}

impl<T> IndexMut<usize> for Arena<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.pieces[index / Self::PIECE][index % Self::PIECE]
    }
}

/// Short texts by position.
#[derive(Default)]
pub(super) struct Bytes {
    pieces: Vec<Vec<u8>>,
}

impl Bytes {
    /// Adds a text, which is far shorter than a piece; gives its position.
    pub fn push(&mut self, text: &[u8]) -> u32 {
        if self.pieces.last().is_none_or(|piece| PIECE_BYTES - piece.len() < text.len()) {
            self.pieces.push(Vec::with_capacity(PIECE_BYTES));
        }
        let last = self.pieces.len() - 1;
        let at = last * PIECE_BYTES + self.pieces[last].len();
        self.pieces[last].extend_from_slice(text);
        u32::try_from(at).expect("bounded by MAX_TREE_BYTES")
    }

    pub fn get(&self, at: u32, length: usize) -> &[u8] {
        let (piece, start) = (at as usize / PIECE_BYTES, at as usize % PIECE_BYTES);
        &self.pieces[piece][start..start + length]
    }
}
