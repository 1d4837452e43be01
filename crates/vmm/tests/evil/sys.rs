//! System calls as an attacker makes them.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd as _;

/// Makes a system call with these arguments.
pub fn call(number: libc::c_long, arguments: [u64; 6]) -> Result<i64, i32> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the callers pass pointers to buffers of theirs that outlive the call, or numbers; the process exists for this
    // one call and ends after it.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result >= 0 { Ok(result) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

/// Maps a file, cuts it, and reads what is not there any more.
pub fn read_behind_the_end(file: &File, bytes: usize) -> u8 {
    // SAFETY: a new mapping of a file that is open, at an address that the kernel chooses.
    let mapped =
        unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    assert_ne!(mapped, libc::MAP_FAILED);
    file.set_len(0).unwrap();
    // SAFETY: the address is within the mapping; that there is nothing behind it any more is what is tried, and ends the process.
    unsafe { mapped.cast::<u8>().add(bytes / 2).read_volatile() }
}
