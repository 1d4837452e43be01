//! A frozen machine without its memory, as a file: what wrote it, how long it is, and all devices and processors.
//!
//! A template is a cache keyed by all its inputs, so there is one version, and another one's file is refused.

use std::fs::File;
use std::io::{self, Read as _, Write as _};

use kvm_bindings::{kvm_clock_data, kvm_irqchip};
use serde::{Deserialize, Serialize};

use crate::ports::PortsState;
use crate::processor::registers::ProcessorState;
use crate::protocol::MachineSpec;
use crate::virtio::console::ConsoleState;
use crate::virtio::transport::TransportState;

const MAGIC: [u8; 8] = *b"bulkvmm\0";
/// Counts up with every change of what follows.
const VERSION: u32 = 4;
pub(crate) const HEADER_BYTES: usize = 8 + 4 + 4;
/// Many times what 64 processors need.
const MOST_BYTES: u32 = 8 << 20;

/// A state file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be written or read.
    #[error("cannot access the state file")]
    Io(#[from] io::Error),
    /// It is none.
    #[error("this is no state of a machine")]
    Foreign,
    /// Another build made it.
    #[error("the state has version {0} instead of {VERSION}")]
    Version(u32),
    /// It is shorter or longer than it says.
    #[error("the state is cut or too long")]
    Length,
    /// What is in it is none.
    #[error("the state is damaged")]
    Damaged(#[source] postcard::Error),
    /// It is another machine's.
    #[error("the state is another machine's: {0}")]
    OtherMachine(&'static str),
    /// A device cannot be in that state.
    #[error("{0}")]
    Device(String),
    /// The machine is too large.
    #[error("the state has {0} bytes, which is too much")]
    TooLarge(usize),
}

/// Everything but memory.
#[derive(Serialize, Deserialize)]
pub(crate) struct MachineState {
    pub(crate) spec: MachineSpec,
    pub(crate) clock: kvm_clock_data,
    /// Both interrupt controllers of a PC, and the I/O APIC.
    pub(crate) controllers: [kvm_irqchip; 3],
    pub(crate) processors: Vec<ProcessorState>,
    pub(crate) ports: PortsState,
    pub(crate) devices: DevicesState,
}

/// The virtio devices, each kind by its slots.
#[derive(Serialize, Deserialize)]
pub(crate) struct DevicesState {
    pub(crate) console: TransportState<ConsoleState>,
    pub(crate) entropy: TransportState<()>,
    pub(crate) balloon: TransportState<()>,
    pub(crate) files: Vec<TransportState<()>>,
    pub(crate) sockets: Vec<TransportState<()>>,
    pub(crate) blocks: Vec<TransportState<()>>,
    pub(crate) networks: Vec<TransportState<()>>,
}

/// Writes a state. Shape: the file is empty.
pub(crate) fn write(state: &impl Serialize, mut file: File) -> Result<(), StateError> {
    Ok(file.write_all(&encode(state)?)?)
}

/// The bytes that a state is, header and all.
pub(crate) fn encode(state: &impl Serialize) -> Result<Vec<u8>, StateError> {
    let payload = postcard::to_stdvec(state).map_err(StateError::Damaged)?;
    let length = u32::try_from(payload.len()).ok().filter(|&length| length <= MOST_BYTES);
    let length = length.ok_or(StateError::TooLarge(payload.len()))?;
    Ok([&MAGIC[..], &VERSION.to_le_bytes(), &length.to_le_bytes(), &payload].concat())
}

/// Reads a state, all of the file.
pub(crate) fn read<S: for<'a> Deserialize<'a>>(file: File) -> Result<S, StateError> {
    // Anything else could keep the reader waiting.
    if !file.metadata()?.is_file() {
        return Err(StateError::Foreign);
    }
    let mut bytes = Vec::new();
    file.take(HEADER_BYTES as u64 + u64::from(MOST_BYTES) + 1).read_to_end(&mut bytes)?;
    decode(&bytes)
}

/// The state that these bytes are, header and all.
pub(crate) fn decode<S: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<S, StateError> {
    let (header, payload) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(StateError::Length)?;
    let [magic @ .., v0, v1, v2, v3, l0, l1, l2, l3] = *header;
    if magic != MAGIC {
        return Err(StateError::Foreign);
    }
    let version = u32::from_le_bytes([v0, v1, v2, v3]);
    if version != VERSION {
        return Err(StateError::Version(version));
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    if length > MOST_BYTES || payload.len() as u64 != u64::from(length) {
        return Err(StateError::Length);
    }
    let (state, rest) = postcard::take_from_bytes(payload).map_err(StateError::Damaged)?;
    if rest.is_empty() { Ok(state) } else { Err(StateError::Length) }
}

#[cfg(test)]
mod tests {
    use std::io::Seek as _;

    use super::*;

    type Sample = (Vec<u64>, String, Option<[u8; 4]>);

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn sample() -> (Sample, Vec<u8>) {
        let state: Sample = (vec![1, 2, 1 << 60], "state".into(), Some([9; 4]));
        let mut written = tempfile::tempfile().unwrap();
        write(&state, written.try_clone().unwrap()).unwrap();
        let mut bytes = Vec::new();
        written.rewind().unwrap();
        written.read_to_end(&mut bytes).unwrap();
        (state, bytes)
    }

    #[test]
    fn what_was_written_is_read() {
        let (state, bytes) = sample();
        assert_eq!(read::<Sample>(file(&bytes)).unwrap(), state);
    }

    #[test]
    fn f101_a_cut_longer_or_foreign_file_is_refused() {
        let (_, bytes) = sample();
        for length in 0..bytes.len() {
            assert!(read::<Sample>(file(&bytes[..length])).is_err(), "{length}");
        }
        assert!(matches!(read::<Sample>(file(&[&bytes[..], &[0]].concat())), Err(StateError::Length)));
        for at in 0..HEADER_BYTES {
            for flip in 0..8 {
                let mut other = bytes.clone();
                other[at] ^= 1 << flip;
                assert!(read::<Sample>(file(&other)).is_err(), "byte {at} bit {flip}");
            }
        }
        let mut newer = bytes;
        newer[8] = 5;
        assert!(matches!(read::<Sample>(file(&newer)), Err(StateError::Version(5))));
    }

    #[test]
    fn f103_a_lying_length_reserves_nothing() {
        let lie = postcard::to_stdvec(&u64::MAX).unwrap();
        let length = u32::try_from(lie.len()).unwrap().to_le_bytes();
        let bytes = [&MAGIC[..], &VERSION.to_le_bytes(), &length, &lie].concat();
        assert!(matches!(read::<Sample>(file(&bytes)), Err(StateError::Damaged(_))));
    }
}
