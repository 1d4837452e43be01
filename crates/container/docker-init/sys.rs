//! The system calls of the first process, without a C library: it runs in images that have none. x86-64 Linux only.
//!
//! Source: linux/arch/x86/entry/syscalls/syscall_64.tbl, and the System V ABI for the first stack.

use core::arch::{asm, global_asm};

const WRITE: usize = 1;
const RT_SIGPROCMASK: usize = 14;
const IOCTL: usize = 16;
const FORK: usize = 57;
const EXECVE: usize = 59;
const WAIT4: usize = 61;
const KILL: usize = 62;
const SETPGID: usize = 109;
const RT_SIGTIMEDWAIT: usize = 128;
const EXIT_GROUP: usize = 231;

const SIG_SETMASK: usize = 2;
const SIGNAL_SET_BYTES: usize = 8;
const TIOCSPGRP: usize = 0x5410;
const WNOHANG: usize = 1;
/// Nothing to wait for is not what ends a wait: a signal is.
pub const EINTR: isize = -4;

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {run}",
    run = sym begin
);

/// What the kernel has put on the stack: a count, the arguments, nothing, the environment, nothing.
extern "C" fn begin(stack: *const usize) -> ! {
    // SAFETY: the kernel has written the count there, and `count` + 1 words behind it; the environment follows.
    let (arguments, environment) = unsafe {
        let count = *stack;
        (stack.add(1).cast(), stack.add(count + 2).cast())
    };
    crate::run(Texts(arguments), Texts(environment))
}

/// Texts with zero bytes at their ends, in a list with a zero at its end.
#[derive(Clone, Copy)]
pub struct Texts(*const *const u8);

impl Texts {
    /// The text at a place; nothing at the list's end. When: every place before it has a text.
    pub fn get(self, at: usize) -> Option<&'static [u8]> {
        // SAFETY: the list is the kernel's, ends with zero, and every text in it ends with zero and lives for ever.
        unsafe {
            let text = *self.0.add(at);
            if text.is_null() {
                return None;
            }
            let mut length = 0;
            while *text.add(length) != 0 {
                length += 1;
            }
            Some(core::slice::from_raw_parts(text, length))
        }
    }

    /// The list without its first texts. When: it has so many.
    pub fn skip(self, count: usize) -> Self {
        // SAFETY: the list has so many texts, or its end there.
        Self(unsafe { self.0.add(count) })
    }
}

fn call(number: usize, arguments: [usize; 4]) -> isize {
    let result;
    let [a, b, c, d] = arguments;
    // SAFETY: every caller passes what the call of this number takes; what the kernel changes is said here.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Blocks every signal, and answers what was blocked before.
pub fn block_signals() -> u64 {
    let (all, mut before) = (u64::MAX, 0_u64);
    call(RT_SIGPROCMASK, [SIG_SETMASK, &raw const all as usize, &raw mut before as usize, SIGNAL_SET_BYTES]);
    before
}

/// Blocks these signals and no others.
pub fn set_blocked(signals: u64) {
    call(RT_SIGPROCMASK, [SIG_SETMASK, &raw const signals as usize, 0, SIGNAL_SET_BYTES]);
}

/// Waits for a signal: its number, or an error.
pub fn wait_signal() -> isize {
    let all = u64::MAX;
    call(RT_SIGTIMEDWAIT, [&raw const all as usize, 0, 0, SIGNAL_SET_BYTES])
}

/// Zero in the child, the child's number in the parent, or an error.
pub fn fork() -> isize {
    call(FORK, [0; 4])
}

/// A child that has ended, and how; nothing when none has.
pub fn reap() -> Option<(isize, u32)> {
    let mut status = 0_u32;
    let child = call(WAIT4, [usize::MAX, &raw mut status as usize, WNOHANG, 0]);
    if child > 0 { Some((child, status)) } else { None }
}

/// Sends a signal. One that came too late is nobody's loss.
pub fn kill(process: isize, signal: isize) {
    call(KILL, [process as usize, signal as usize, 0, 0]);
}

/// Makes this process the leader of a group of its own, in the foreground of its terminal if it has one. When: SIGTTOU is
/// blocked.
pub fn lead_group(own: u32) {
    call(SETPGID, [0; 4]);
    call(IOCTL, [0, TIOCSPGRP, &raw const own as usize, 0]);
}

/// This process's number.
pub fn process_id() -> u32 {
    const GETPID: usize = 39;
    call(GETPID, [0; 4]) as u32
}

/// Replaces the program; returns only with the error. Shape: `path` ends with a zero byte.
pub fn execute(path: &[u8], arguments: Texts, environment: Texts) -> isize {
    if path.last() != Some(&0) {
        return -22;
    }
    call(EXECVE, [path.as_ptr() as usize, arguments.0 as usize, environment.0 as usize, 0])
}

/// Writes to standard error, as far as it takes.
pub fn say(text: &[u8]) {
    call(WRITE, [2, text.as_ptr() as usize, text.len(), 0]);
}

/// Ends this process.
pub fn exit(code: u32) -> ! {
    loop {
        call(EXIT_GROUP, [code as usize, 0, 0, 0]);
    }
}

/// The compiler may ask for these, which a C library has otherwise.
mod memory {
    use core::arch::asm;

    /// # Safety
    /// As C's.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
        // SAFETY: the caller's word for both ranges.
        unsafe { asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _) };
        to
    }

    /// # Safety
    /// As C's.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, length: usize) -> *mut u8 {
        // SAFETY: the caller's word for the range.
        unsafe { asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("al") byte as u8) };
        to
    }

    /// # Safety
    /// As C's.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn strlen(text: *const u8) -> usize {
        let mut length = 0;
        // SAFETY: the caller's word for a zero at its end.
        while unsafe { text.add(length).read_volatile() } != 0 {
            length += 1;
        }
        length
    }

    /// `core` names it, although nothing unwinds.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}

    /// # Safety
    /// As C's.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, length: usize) -> i32 {
        for at in 0..length {
            // SAFETY: the caller's word for both ranges.
            let (a, b) = unsafe { (one.add(at).read_volatile(), other.add(at).read_volatile()) };
            if a != b {
                return i32::from(a) - i32::from(b);
            }
        }
        0
    }
}
