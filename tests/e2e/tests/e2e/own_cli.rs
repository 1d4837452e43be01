//! The CLI `bulkhead`: docker's verbs and exit codes.

use bulkhead_e2e::Wall;
use bulkhead_e2e::{IMAGE, TestHost};

fn verbs(wall: Wall) {
    let Some(host) = TestHost::start_own(wall) else { return };
    let isolation = format!("--isolation={}", wall.word());
    let run = |options: &[&str], command: &[&str]| {
        host.bulkhead(&[&["run", "--network", "none", &isolation], options, &[IMAGE], command].concat())
    };
    assert_eq!(run(&["--rm"], &["echo", "hello"]).ok(), "hello");
    assert_eq!(run(&["--rm"], &["sh", "-c", "echo err >&2; exit 7"]).fails(7).trim(), "err");
    assert_eq!(run(&["--rm"], &["no-such-command"]).code, 127);
    assert_eq!(run(&["--rm"], &["/etc/plain"]).code, 126);
    assert_eq!(run(&["--rm", "--isolation", "bogus"], &["true"]).code, 125);
    let id = run(&["-d", "--name", "one"], &["sh", "-c", "echo started; exec sleep 1000"]).ok();
    host.wait_log("one", "started");
    assert_eq!(host.bulkhead(&["ps", "-q", "--no-trunc"]).ok(), id);
    let table = host.bulkhead(&["ps"]).ok();
    assert!(table.contains("one") && table.contains(wall.word()), "{table}");
    assert!(!table.contains('\x1b'), "colours without a terminal: {table:?}");
    assert_eq!(host.bulkhead(&["exec", "one", "echo", "inside"]).ok(), "inside");
    assert_eq!(host.bulkhead(&["exec", "one", "sh", "-c", "exit 5"]).code, 5);
    assert_eq!(host.bulkhead(&["logs", "one"]).ok(), "started");
    let top = host.bulkhead(&["top", "one"]);
    assert!(top.ok().contains("sleep 1000"), "{top}");
    assert!(host.bulkhead(&["inspect", "one"]).ok().contains(&id));
    assert_eq!(host.bulkhead(&["pause", "one"]).code, 0);
    assert_eq!(host.bulkhead(&["unpause", "one"]).code, 0);
    assert_eq!(host.bulkhead(&["rename", "one", "two"]).code, 0);
    assert_eq!(host.bulkhead(&["stop", "-t", "0", "two"]).code, 0);
    assert_eq!(host.bulkhead(&["wait", "two"]).ok(), "137");
    assert_eq!(host.bulkhead(&["start", "two"]).code, 0);
    assert_eq!(host.bulkhead(&["kill", "two"]).code, 0);
    assert_eq!(host.bulkhead(&["rm", "-f", "two"]).code, 0);
    assert_eq!(host.bulkhead(&["ps", "-aq"]).ok(), "");
    assert!(host.bulkhead(&["images"]).ok().contains(IMAGE));
    assert_ne!(host.bulkhead(&["rm", "nosuch"]).code, 0);
}

#[test]
fn the_verbs_work_behind_the_process_wall() {
    verbs(Wall::Process);
}

#[test]
fn the_verbs_work_behind_the_hyperv_wall() {
    verbs(Wall::Hyperv);
}

#[test]
fn without_an_engine_it_says_what_to_do() {
    let Some(host) = TestHost::prepare(Wall::Process, &bulkhead_e2e::HostOptions::default()) else { return };
    if host.is_reference() {
        return bulkhead_e2e::skip("our own CLI");
    }
    let said = host.bulkhead(&["ps"]);
    assert_ne!(said.code, 0);
    assert!(said.err.contains("docker.sock") && said.err.contains("bulkheadd"), "{said}");
}
