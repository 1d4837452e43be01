//! Control calls of the random device, of disks and of network devices, which no library wraps, and tokio's watching of
//! descriptors. Source: random(4), netdevice(7), Linux include/uapi/linux/random.h and fs.h.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

/// Bytes that one call may carry; more are refused.
pub const ENTROPY_BYTES_MAX: usize = 1024;

/// `struct rand_pool_info` with room for [`ENTROPY_BYTES_MAX`] bytes.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; ENTROPY_BYTES_MAX],
}

nix::ioctl_write_ptr_bad!(
    rnd_add_entropy,
    nix::request_code_write!(b'R', 0x03, size_of::<[libc::c_int; 2]>()),
    RandPoolInfo
);
nix::ioctl_none!(rnd_reseed_crng, b'R', 0x07);
nix::ioctl_none!(blk_reread_partitions, 0x12, 95);
nix::ioctl_none!(blk_flush_buffers, 0x12, 97);
nix::ioctl_write_ptr_bad!(set_interface_flags, libc::SIOCSIFFLAGS, libc::ifreq);

/// Adds bytes to the kernel's pool and credits every bit of them.
///
/// # Errors
/// `InvalidInput` for more than [`ENTROPY_BYTES_MAX`] bytes; the kernel's answer otherwise.
pub fn add_entropy(random: &File, bytes: &[u8]) -> io::Result<()> {
    let mut info = RandPoolInfo { entropy_count: 0, buf_size: 0, buf: [0; ENTROPY_BYTES_MAX] };
    info.buf.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
    info.buf_size = i32::try_from(bytes.len()).map_err(io::Error::other)?;
    info.entropy_count = info.buf_size * 8;
    // SAFETY: the kernel reads the two counts and `buf_size` bytes behind them, all of which lie within `info`.
    unsafe { rnd_add_entropy(random.as_raw_fd(), &raw const info) }?;
    Ok(())
}

/// Makes the kernel's generator take a new key from its pool now; every copy of the old one is void.
///
/// # Errors
/// The kernel's answer: `ENODATA` while the generator has never been seeded.
pub fn reseed(random: &File) -> io::Result<()> {
    // SAFETY: the call takes no argument.
    unsafe { rnd_reseed_crng(random.as_raw_fd()) }?;
    Ok(())
}

/// Throws away what the kernel remembers of a disk's content.
///
/// # Errors
/// The kernel's answer.
pub fn flush_buffers(disk: &File) -> io::Result<()> {
    // SAFETY: the call takes no argument.
    unsafe { blk_flush_buffers(disk.as_raw_fd()) }?;
    Ok(())
}

/// Reads a disk's partition table again and makes the device files of its partitions.
///
/// # Errors
/// The kernel's answer: `EBUSY` while a partition is in use.
pub fn reread_partitions(disk: &File) -> io::Result<()> {
    // SAFETY: the call takes no argument.
    unsafe { blk_reread_partitions(disk.as_raw_fd()) }?;
    Ok(())
}

/// Has tokio watch a descriptor. When: within the runtime; the descriptor is non-blocking.
///
/// # Errors
/// When the descriptor cannot be polled.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open, and the same, until the AsyncFd that owns it is dropped; it is not handed out mutably.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Switches the loopback device on; the kernel then gives it its addresses.
///
/// # Errors
/// The kernel's answer.
pub fn switch_on_loopback() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(c"lo".to_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(io::Error::other)?;
    let request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: the kernel reads the name, which ends in a zero, and the flags.
    unsafe { set_interface_flags(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}
