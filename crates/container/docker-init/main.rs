//! The first process of a container with `--init`: starts the command, passes signals on to it, reaps what is left behind,
//! and ends as the command does.
//!
//! It is built by `build.rs` into the program that uses this crate, which puts it into containers. It needs no library and
//! no memory beyond its stack. Source of what it does: tini(1).
#![no_std]
#![no_main]

mod sys;

use sys::Texts;

const SIGCHLD: isize = 17;
/// The terminal's signals to a process in the background, which are about this process only.
const OWN_SIGNALS: [isize; 3] = [SIGCHLD, 21, 22];
const ENOENT: isize = -2;
const EACCES: isize = -13;
const ENOTDIR: isize = -20;
const ENAMETOOLONG: isize = -36;
/// Where commands are looked for without `PATH`. Source: glibc `execvp`.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";
/// Longest path, its zero byte included. Source: linux/limits.h.
const PATH_MAX: usize = 4096;

#[panic_handler]
fn panicked(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::exit(125)
}

/// Shape: the arguments are this program's name, `--`, and the command.
fn run(arguments: Texts, environment: Texts) -> ! {
    if arguments.get(0).is_none() || arguments.get(1) != Some(b"--") || arguments.get(2).is_none() {
        sys::say(b"docker-init: usage: docker-init -- COMMAND [ARGUMENTS]\n");
        sys::exit(125);
    }
    let command = arguments.skip(2);
    let before = sys::block_signals();
    match sys::fork() {
        0 => {
            sys::lead_group(sys::process_id());
            sys::set_blocked(before);
            start(command, environment)
        }
        child if child > 0 => watch(child),
        _ => {
            sys::say(b"docker-init: cannot make a process\n");
            sys::exit(125)
        }
    }
}

/// Passes signals on until the command has ended.
fn watch(command: isize) -> ! {
    loop {
        let signal = sys::wait_signal();
        if signal > 0 && !OWN_SIGNALS.contains(&signal) {
            sys::kill(command, signal);
        }
        let mut ended = None;
        while let Some((child, status)) = sys::reap() {
            if child == command {
                ended = Some(status);
            }
        }
        if let Some(status) = ended {
            let signal = status & 0x7f;
            sys::exit(if signal == 0 { status >> 8 & 0xff } else { 128 + signal });
        }
        if signal < 0 && signal != sys::EINTR {
            sys::exit(125);
        }
    }
}

fn start(command: Texts, environment: Texts) -> ! {
    let name = command.get(0).unwrap_or_default();
    let error = execute(name, command, environment);
    sys::say(b"[FATAL tini] exec ");
    sys::say(name);
    let (text, code): (&[u8], u32) = match error {
        ENOENT | ENOTDIR => (b" failed: No such file or directory\n", 127),
        EACCES => (b" failed: Permission denied\n", 126),
        _ => (b" failed\n", 126),
    };
    sys::say(text);
    sys::exit(code)
}

/// As `execvp`: a name without a slash is looked for in `PATH`.
fn execute(name: &[u8], command: Texts, environment: Texts) -> isize {
    let mut path = [0; PATH_MAX];
    if name.contains(&b'/') || name.is_empty() {
        return attempt(&mut path, b"", name, command, environment);
    }
    let mut worst = ENOENT;
    for folder in path_of(environment).split(|byte| *byte == b':') {
        let folder: &[u8] = if folder.is_empty() { b"." } else { folder };
        match attempt(&mut path, folder, name, command, environment) {
            ENOENT | ENOTDIR | ENAMETOOLONG => {}
            EACCES => worst = EACCES,
            other => return other,
        }
    }
    worst
}

fn attempt(path: &mut [u8; PATH_MAX], folder: &[u8], name: &[u8], command: Texts, environment: Texts) -> isize {
    let slash: &[u8] = if folder.is_empty() { b"" } else { b"/" };
    let mut length = 0;
    for part in [folder, slash, name, b"\0"] {
        let Some(place) = path.get_mut(length..length + part.len()) else { return ENAMETOOLONG };
        place.copy_from_slice(part);
        length += part.len();
    }
    path.get(..length).map_or(ENAMETOOLONG, |path| sys::execute(path, command, environment))
}

fn path_of(environment: Texts) -> &'static [u8] {
    let mut at = 0;
    while let Some(entry) = environment.get(at) {
        if let Some(path) = entry.strip_prefix(b"PATH=") {
            return path;
        }
        at += 1;
    }
    DEFAULT_PATH
}
