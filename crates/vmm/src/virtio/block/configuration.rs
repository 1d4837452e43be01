//! What a driver is told of a disk slot. Source: virtio 1.2 §5.2.3 and §5.2.4.

use super::QUEUE_SIZE;
use super::disk::SECTOR;

const SIZE_MAX: u64 = 1 << 1;
const SEG_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLOCK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// The most that one request discards or zeroes, in sectors: 2 GiB.
pub(super) const MOST_DISCARD_SECTORS: u32 = 1 << 22;
/// The longest buffer, bytes. With the number of buffers it bounds how long one request keeps the device's lock: 64 MiB.
const LONGEST_BUFFER: u32 = 256 << 10;
/// Buffers of one request: as many as fit into the queue with a header and a status.
const MOST_BUFFERS: u32 = QUEUE_SIZE as u32 - 2;
/// The most that one request reads or writes, bytes. Linux asks for 1.25 MiB at most where nobody has told it otherwise.
pub(super) const MOST_BYTES: u64 = LONGEST_BUFFER as u64 * MOST_BUFFERS as u64;
/// A file system's block, in sectors.
const DISCARD_ALIGNMENT: u32 = 8;

pub(super) fn features(read_only: bool) -> u64 {
    let all = SIZE_MAX | SEG_MAX | BLOCK_SIZE | FLUSH;
    if read_only { all | READ_ONLY } else { all | DISCARD | WRITE_ZEROES }
}

pub(super) fn space(capacity_bytes: u64, read_only: bool) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &(capacity_bytes / SECTOR).to_le_bytes());
    put(8, &LONGEST_BUFFER.to_le_bytes());
    put(12, &MOST_BUFFERS.to_le_bytes());
    put(20, &512_u32.to_le_bytes());
    put(34, &1_u16.to_le_bytes());
    if !read_only {
        put(36, &MOST_DISCARD_SECTORS.to_le_bytes());
        put(40, &1_u32.to_le_bytes());
        put(44, &DISCARD_ALIGNMENT.to_le_bytes());
        put(48, &MOST_DISCARD_SECTORS.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
    }
    bytes
}
