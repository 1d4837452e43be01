//! An evil VMM: a process in the real jail, with the real filters, that tries to get out, one way a process. Nothing of it is in the
//! program that users get: this program is its own prisoner, so it has no ordinary test harness (`harness = false`).
#![allow(clippy::unwrap_used)] // This program is a test.

mod inside;
mod sys;
mod ways;

use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};

use libtest_mimic::{Arguments, Trial};

use inside::{DENIED, PRISONER, REACHED, WALLS};
use ways::WAYS;

fn main() {
    inside::act_as_prisoner();
    let tests: [(&str, fn()); 5] = [
        ("no_way_out_of_the_whole_jail", no_way_out_of_the_whole_jail),
        ("the_other_walls_hold_without_the_filter", the_other_walls_hold_without_the_filter),
        ("what_is_allowed_works", what_is_allowed_works),
        ("there_is_nothing_inside", there_is_nothing_inside),
        ("f104_memory_that_is_cut_ends_one_process", f104_memory_that_is_cut_ends_one_process),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Half of the walls are for root to build; without it they would be tested for nothing.
fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: needs root");
        assert!(std::env::var_os("BULKHEAD_TEST_REQUIRE").is_none(), "nothing may be missing here");
    }
    root
}

/// A process behind these walls that tries this.
fn prisoner(walls: &str, way: &str, secret: &tempfile::NamedTempFile) -> ExitStatus {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(PRISONER).args([walls, way]).arg(secret.path()).env_clear();
    command.stdin(Stdio::null()).stderr(Stdio::null()).status().unwrap()
}

fn secret() -> tempfile::NamedTempFile {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "secret").unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(secret.path(), everybody).unwrap();
    secret
}

fn is_denied(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGSYS) || status.code() == Some(DENIED)
}

/// Every way, from the thread that may do most; and each from one of the others in turn.
fn no_way_out_of_the_whole_jail() {
    if !is_root("no_way_out_of_the_whole_jail") {
        return;
    }
    let secret = secret();
    let mut killed = 0;
    for (number, (way, _)) in WAYS.iter().enumerate() {
        for walls in [WALLS[1], WALLS[2 + number % (WALLS.len() - 2)]] {
            let status = prisoner(walls, way, &secret);
            assert!(is_denied(status), "{way} as {walls}: {status}");
            killed += usize::from(status.signal().is_some());
        }
    }
    assert_eq!(fs::read_to_string(secret.path()).unwrap(), "secret");
    assert!(WAYS.len() >= 80, "{}", WAYS.len());
    println!("{} ways, each from two kinds of thread: all denied, {killed} by the end of the process", WAYS.len());
}

/// Without the filter, so that each of the other walls is seen to stand: what is left makes something inside, and reaches nothing
/// of the host's.
fn the_other_walls_hold_without_the_filter() {
    if !is_root("the_other_walls_hold_without_the_filter") {
        return;
    }
    let secret = secret();
    let reached: Vec<&str> =
        WAYS.iter().map(|(way, _)| *way).filter(|way| !is_denied(prisoner(WALLS[0], way, &secret))).collect();
    assert!(ways::ONLY_FILTERED.iter().all(|way| WAYS.iter().any(|(other, _)| way == other)));
    let unexpected: Vec<&&str> = reached.iter().filter(|way| !ways::ONLY_FILTERED.contains(way)).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    assert_eq!(fs::read_to_string(secret.path()).unwrap(), "secret");
    println!("{} of {} ways are denied by other walls than the filter", WAYS.len() - reached.len(), WAYS.len());
}

/// The tries themselves are not at fault: what a VMM does works in the same jail.
fn what_is_allowed_works() {
    if !is_root("what_is_allowed_works") {
        return;
    }
    let secret = secret();
    for walls in WALLS {
        assert_eq!(prisoner(walls, "allowed", &secret).code(), Some(REACHED), "{walls}");
    }
}

/// Seen from outside, while it waits.
fn there_is_nothing_inside() {
    if !is_root("there_is_nothing_inside") {
        return;
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg0(PRISONER).args([WALLS[1], "wait", "/"]).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut ready = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let process = format!("/proc/{}", child.id());
    let mounts = fs::read_to_string(format!("{process}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let fields: Vec<&str> = mounts.split_whitespace().collect();
    assert!(fields[4] == "/" && fields[5].starts_with("ro,nosuid,nodev,noexec"), "{mounts}");
    assert!(mounts.contains("- tmpfs ") && fields.last().unwrap().split(',').any(|option| option == "ro"), "{mounts}");
    assert_eq!(fs::read_dir(format!("{process}/root")).unwrap().count(), 0);
    let devices = fs::read_to_string(format!("{process}/net/dev")).unwrap();
    assert_eq!(devices.lines().count(), 3, "two lines of head, and lo: {devices}");
    for space in ["mnt", "net", "ipc", "uts"] {
        let of = |process: &str| fs::read_link(format!("{process}/ns/{space}")).unwrap();
        assert_ne!(of(&process), of("/proc/self"), "{space}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The memory's file is cut while it is mapped: whoever touches it there is ended, and nobody else.
fn f104_memory_that_is_cut_ends_one_process() {
    let secret = secret();
    fs::write(secret.path(), vec![7; 1 << 20]).unwrap();
    let status = prisoner(WALLS[0], "cut memory", &secret);
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}
