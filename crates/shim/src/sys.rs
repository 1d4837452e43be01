//! The system calls that no safe wrapper covers.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Takes from a tree of mounts, wherever it hangs, devices and set-id bits, and writing if it is read-only.
///
/// # Errors
/// The kernel is older than 5.12.
pub fn confine_mounts(tree: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let mut set = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;
    if read_only {
        set |= libc::MOUNT_ATTR_RDONLY;
    }
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is an empty C string, and the kernel reads as many bytes of the attributes as it is told they have.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes over an inherited listening socket.
///
/// When: once for a number, early, before anything else of this process can have opened it.
///
/// # Errors
/// The descriptor is closed or no socket.
pub fn inherited_listener(fd: RawFd) -> io::Result<UnixListener> {
    // SAFETY: fcntl(F_GETFD) takes no pointer and is defined for every number.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above), and by the contract of this function nobody else of this process owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    if !rustix::net::sockopt::socket_acceptconn(&owned)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a listening socket"));
    }
    rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC)?;
    Ok(UnixListener::from(owned))
}

/// Closes every descriptor from `first` on: what the parent leaked into us reaches no container, and nobody waits for the
/// other end of a pipe that we do not know.
///
/// When: before this process has opened anything under those numbers.
///
/// # Errors
/// The kernel is older than 5.9.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: close_range takes no pointer; by the contract of this function nothing of ours has those numbers.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes `number` a copy of `fd` that survives exec.
///
/// When: in a process that owns nothing under that number.
///
/// # Errors
/// What dup2(2) says.
pub fn place_at(fd: impl AsFd, number: RawFd) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    if fd == number {
        // SAFETY: fcntl(F_SETFD) takes no pointer; the descriptor is open since it is borrowed.
        let done = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
        return if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    }
    // SAFETY: dup2 takes no pointer; the caller promises that nothing owns `number`.
    let done = unsafe { libc::dup2(fd, number) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends any signal, real-time ones too (rustix knows only the named ones).
///
/// # Errors
/// `ESRCH` when the process has been reaped, `EINVAL` for a number that is no signal.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the siginfo pointer may be null, the descriptor is open since it is borrowed.
    let done =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<libc::siginfo_t>(), 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Registers a descriptor with the runtime. When: within the runtime.
///
/// # Errors
/// It cannot be watched.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and its `as_raw_fd` is constant until it is dropped, and the AsyncFd owns it; nobody
    // replaces the file behind it (dup2 is used on numbers 0 to 3 only, before the runtime starts).
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    Ok(watched?)
}

/// Gives memory that the allocator holds but does not use back to the kernel.
pub fn trim_heap() {
    // SAFETY: malloc_trim takes no pointer and may be called at any time.
    unsafe { libc::malloc_trim(0) };
}

/// Has this process shown with these words as its command line, in place of those that it was started with. What it has read of those before
/// stays as it is.
///
/// # Errors
/// The caller may not (`CAP_SYS_RESOURCE`), or the kernel cannot.
///
/// Source: prctl(2), `PR_SET_MM_ARG_START`; systemd src/basic/process-util.c and argv-util.c do the same.
pub fn show_as(words: &[String]) -> io::Result<()> {
    // Whoever looks at this process may read it at any time.
    let text: &'static [u8] = words.iter().flat_map(|word| word.bytes().chain([0])).collect::<Vec<_>>().leak();
    let range = text.as_ptr_range();
    let set = |which: libc::c_int, address: *const u8| {
        // SAFETY: the kernel keeps the address as a number and reads there what anybody may see; the text is never changed nor freed.
        let done = unsafe { libc::prctl(libc::PR_SET_MM, libc::c_long::from(which), address, 0_usize, 0_usize) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // The kernel wants the begin below the end all the time; which of them comes first depends on where the text lies.
    let (begin, end) = (libc::PR_SET_MM_ARG_START, libc::PR_SET_MM_ARG_END);
    if set(begin, range.start).is_ok() {
        return set(end, range.end);
    }
    set(end, range.end)?;
    set(begin, range.start)
}

/// Has this process forget which pages of its program it has touched. They stay in the page cache, and come back as they are needed.
///
/// # Errors
/// What madvise(2) says; nothing is lost then.
pub fn forget_program() -> io::Result<()> {
    unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _: libc::size_t, data: *mut libc::c_void) -> libc::c_int {
        // SAFETY: dl_iterate_phdr calls this with a description that is valid meanwhile, and with the pointer that it was given.
        let (info, done) = unsafe { (&*info, &mut *data.cast::<io::Result<()>>()) };
        // SAFETY: the loader says where the program's headers are and how many there are, and they stay as long as the program.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        *done = headers.iter().filter(|header| is_as_in_the_file(header)).try_for_each(|header| forget(info, header));
        // Only the first, which is the program itself; libraries are shared with others.
        1
    }
    let mut done = Ok(());
    // SAFETY: the function does not unwind, and the pointer is to a result that lives until it returns.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut done).cast()) };
    done
}

/// What is never written to, not by the loader either.
fn is_as_in_the_file(header: &libc::Elf64_Phdr) -> bool {
    header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
}

fn forget(info: &libc::dl_phdr_info, header: &libc::Elf64_Phdr) -> io::Result<()> {
    let page = rustix::param::page_size();
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidData);
    let begin = usize::try_from(info.dlpi_addr.wrapping_add(header.p_vaddr)).map_err(too_large)?;
    let length = usize::try_from(header.p_memsz).map_err(too_large)?;
    let inside = begin.next_multiple_of(page);
    let length = length.saturating_sub(inside - begin) / page * page;
    // SAFETY: the range is within a segment of the program that is mapped from its file, privately, and has no pages of its own: it
    // can not be written to. So whatever is read there is read from the file again, and is the same.
    let done = unsafe { libc::madvise(std::ptr::without_provenance_mut(inside), length, libc::MADV_DONTNEED) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_shown_as_it_says() {
        let shown = || std::fs::read("/proc/self/cmdline").unwrap();
        let (before, long) = (shown(), "x".repeat(3 * shown().len()));
        for words in [["a program", "-id", &long], ["a program", "-id", "b"]] {
            match show_as(&words.map(str::to_owned)) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    assert_eq!(shown(), before);
                    return eprintln!("SKIPPED: needs CAP_SYS_RESOURCE");
                }
                done => done.unwrap(),
            }
            assert_eq!(shown(), format!("{}\0", words.join("\0")).into_bytes());
        }
    }

    #[test]
    fn a_program_runs_on_when_its_pages_are_forgotten() {
        let words = || format!("{:?}", "read from the file again".split(' ').collect::<Vec<_>>());
        let before = words();
        forget_program().unwrap();
        assert_eq!(words(), before);
    }
}
