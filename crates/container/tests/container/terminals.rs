//! Terminals, of the first and of further processes.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bulkhead_container::{Helper, Stdio};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::json;

use crate::Case;
use crate::fixture::{Fixture, process, silent, wait};

pub const CASES: &[Case] = &[
    ("a_terminal_has_its_size_from_the_start_and_follows", a_terminal_has_its_size_from_the_start_and_follows),
    ("a_terminal_is_its_users", a_terminal_is_its_users),
    ("keys_become_signals", keys_become_signals),
    ("a_further_process_has_its_own_terminal", a_further_process_has_its_own_terminal),
];

/// Reads until `wanted` has come, or the other side is gone.
fn read_until(terminal: &OwnedFd, wanted: &str) -> String {
    let mut file = File::from(terminal.try_clone().unwrap());
    let mut text = String::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !text.contains(wanted) && Instant::now() < deadline {
        let mut bytes = [0; 1024];
        match file.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(count) => text.push_str(&String::from_utf8_lossy(&bytes[..count])),
        }
    }
    text.replace("\r\n", "\n")
}

fn type_in(terminal: &OwnedFd, text: &str) {
    File::from(terminal.try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
}

fn a_terminal_has_its_size_from_the_start_and_follows() {
    let script =
        "stty size; tty; test -t 0 && test -t 1 && test -t 2 && echo all; ls -l /dev/console; read x; stty size";
    let fixture = Fixture::new(script);
    let (mut container, started) = fixture.create(Stdio::Terminal { width: 123, height: 45 });
    let terminal = started.terminal.unwrap();
    container.start().unwrap();
    let text = read_until(&terminal, "/dev/console");
    assert!(text.starts_with("45 123\n/dev/pts/0\nall\n"), "{text}");
    tcsetwinsize(&terminal, Winsize { ws_row: 10, ws_col: 20, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    type_in(&terminal, "\n");
    let text = read_until(&terminal, "10 20\n");
    assert!(text.contains("10 20\n"), "{text}");
    assert_eq!(wait(started.pid), 0);
    container.delete(false).unwrap();
}

fn a_terminal_is_its_users() {
    let mut fixture = Fixture::new("echo written > /dev/pts/0; ls -l /dev/pts/0");
    fixture.set("/annotations", json!({ "dev.bulkhead.user": "app" }));
    let (mut container, started) = fixture.create(Stdio::Terminal { width: 80, height: 24 });
    let terminal = started.terminal.unwrap();
    container.start().unwrap();
    let text = read_until(&terminal, "/dev/pts/0");
    assert!(text.starts_with("written\n") && text.contains(" app "), "{text}");
    wait(started.pid);
    container.delete(false).unwrap();
}

fn keys_become_signals() {
    let fixture = Fixture::new("trap 'echo caught; exit 3' INT; echo ready; while true; do sleep 1; done");
    let (mut container, started) = fixture.create(Stdio::Terminal { width: 80, height: 24 });
    let terminal = started.terminal.unwrap();
    container.start().unwrap();
    read_until(&terminal, "ready");
    type_in(&terminal, "\x03");
    assert!(read_until(&terminal, "caught").contains("caught"));
    assert_eq!(wait(started.pid), 3);
    container.delete(false).unwrap();
}

fn a_further_process_has_its_own_terminal() {
    let fixture = Fixture::new("exec sleep 1000");
    let (mut container, started) = fixture.create(silent());
    assert!(started.terminal.is_none());
    container.start().unwrap();
    let mut further = process(&fixture, &["sh", "-c", "stty size; tty; ls -l /dev/pts/0; cat; exit 4"]);
    further.user_mut().set_username(Some("app".into()));
    let stdio = Stdio::Terminal { width: 66, height: 33 };
    let shell = container.exec(Helper::spawn().unwrap(), &further, stdio).unwrap();
    let terminal = shell.terminal.unwrap();
    let text = read_until(&terminal, "app");
    assert!(text.starts_with("33 66\n/dev/pts/0\n") && text.contains(" app "), "{text}");
    let shown = container.processes().unwrap().into_iter().find(|one| one.pid == shell.pid).unwrap();
    assert_eq!((shown.terminal.as_str(), shown.user_id), ("pts/0", 1000));
    // End of file from the keyboard.
    type_in(&terminal, "\x04");
    assert_eq!(wait(shell.pid), 4);
    container.signal_all(libc::SIGKILL).unwrap();
    wait(started.pid);
    container.delete(false).unwrap();
}
