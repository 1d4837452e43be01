//! System calls as an attacker makes them.
#![allow(unsafe_code)]

/// Makes a system call with these arguments.
pub fn call(number: libc::c_long, arguments: [u64; 6]) -> Result<i64, i32> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the callers pass pointers to buffers of theirs that outlive the call, or numbers; the process exists for this
    // one call and ends after it.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result >= 0 { Ok(result) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}
