//! A utility VM that stands by: quicker, and otherwise not to be told from a fork.

use std::collections::HashSet;
use std::time::Duration;

use bulkhead_e2e::{HostOptions, TestHost, Wall, eventually, procfs};
use rustix::process::Signal;

use crate::forks::IDENTITY;

/// A host whose engine keeps a utility VM that stands by.
pub fn host_with_standby() -> Option<TestHost> {
    let options = HostOptions { flags: vec!["--standby-vms=1".into()], ..HostOptions::default() };
    TestHost::start_own_with(Wall::Hyperv, &options)
}

fn standby(host: &TestHost) -> String {
    host.get_json("/info")["Bulkhead"]["Standby"].as_str().unwrap_or_default().to_owned()
}

/// Waits until one does.
pub fn wait_ready(host: &TestHost) {
    let ready = eventually(Duration::from_secs(60), || standby(host) == "ready");
    assert!(ready, "no standby: {}\n{}", standby(host), host.log());
}

/// The VMM of the VM that stands by, as its shim recorded it.
fn standby_vmm(host: &TestHost) -> i32 {
    let folders = std::fs::read_dir(host.folder().join("run/standby")).unwrap().flatten();
    let records: Vec<String> =
        folders.filter_map(|entry| std::fs::read_to_string(entry.path().join("processes.json")).ok()).collect();
    assert_eq!(records.len(), 1, "{records:?}");
    let record: serde_json::Value = serde_json::from_str(&records[0]).unwrap();
    record[0]["pid"].as_i64().unwrap().try_into().unwrap()
}

/// True for a container that got it.
pub fn was_adopted(host: &TestHost, id: &str) -> bool {
    host.inspect(id)["Bulkhead"]["StandbyMicroseconds"].is_u64()
}

#[test]
fn containers_get_it_in_turn_and_share_no_identity() {
    let Some(host) = host_with_standby() else { return };
    assert_eq!(standby(&host), "none", "before there is any hyperv container nothing is kept");
    let mut seen = vec![HashSet::new(); 5];
    let mut fingerprints = HashSet::new();
    for number in 0..4 {
        if number > 0 {
            wait_ready(&host);
        }
        let id = host.run_detached(&[], &["sh", "-c", &format!("{IDENTITY}; exec sleep 1000")]);
        assert_eq!(was_adopted(&host, &id), number > 0);
        host.wait_log(&id, "-");
        assert!(eventually(Duration::from_secs(10), || host.docker(&["logs", &id]).lines().len() == 5));
        let lines = host.docker(&["logs", &id]).lines();
        assert_eq!(lines[2], id[..12], "its own host name");
        for (set, line) in seen.iter_mut().zip(lines) {
            assert!(set.insert(line.clone()), "two containers have {line}");
        }
        let own = host.inspect(&id)["Bulkhead"].clone();
        assert!(fingerprints.insert(own["EntropyFingerprint"].as_str().unwrap().to_owned()));
        assert!(own["ClockErrorMicroseconds"].as_i64().unwrap().abs() <= 50_000, "{own}");
        // What the rehearsal ran is nowhere to be seen.
        assert_eq!(host.docker(&["exec", &id, "ls", "/rehearsal"]).code, 1);
        let processes = host.docker(&["exec", &id, "ps", "-o", "args"]).ok();
        assert!(!processes.contains("rehears"), "{processes}");
        assert_eq!(host.docker(&["rm", "-f", &id]).code, 0);
    }
}

#[test]
fn an_adopted_container_behaves_like_any_other() {
    let Some(host) = host_with_standby() else { return };
    assert_eq!(host.run(&[], &["true"]).code, 0);
    wait_ready(&host);
    let id = host.run_detached(
        &[],
        &["sh", "-c", "echo err >&2; test -f /file || echo kept > /file; echo out; trap 'exit 5' TERM; while :; do sleep 0.1; done"],
    );
    assert!(was_adopted(&host, &id));
    host.wait_log(&id, "out");
    assert!(host.docker(&["logs", &id]).err.contains("err"));
    assert_eq!(host.docker(&["exec", "-e", "A=b", &id, "sh", "-c", "echo $A; cat /file"]).ok(), "b\nkept");
    assert_eq!(host.docker(&["stop", &id]).code, 0);
    assert_eq!(host.state(&id), ("exited".to_owned(), 5));
    // Its changes are in its own scratch: another start, by another VM, finds them.
    wait_ready(&host);
    assert_eq!(host.docker(&["start", &id]).code, 0);
    assert_eq!(host.docker(&["exec", &id, "cat", "/file"]).ok(), "kept");
    wait_ready(&host);
    assert_eq!(
        host.docker_input(&["run", "-i", "--rm", "--isolation=hyperv", bulkhead_e2e::IMAGE, "cat"], b"in and out").ok(),
        "in and out"
    );
    wait_ready(&host);
    assert_eq!(host.run(&[], &["no-such-command"]).code, 127);
    assert_eq!(host.run(&[], &["sh", "-c", "exit 42"]).code, 42);
}

#[test]
fn a_container_with_limits_has_a_fork_of_its_own() {
    let Some(host) = host_with_standby() else { return };
    assert_eq!(host.run(&[], &["true"]).code, 0);
    wait_ready(&host);
    for limit in [["--memory", "64m"], ["--cpus", "0.5"]] {
        let id = host.run_detached(&limit, &["sleep", "1000"]);
        assert!(!was_adopted(&host, &id), "{limit:?}");
    }
    wait_ready(&host);
    let id = host.run_detached(&[], &["sleep", "1000"]);
    assert!(was_adopted(&host, &id));
}

#[test]
fn one_that_is_dead_is_not_missed() {
    let Some(host) = host_with_standby() else { return };
    assert_eq!(host.run(&[], &["true"]).code, 0);
    wait_ready(&host);
    procfs::kill(standby_vmm(&host), Signal::KILL);
    let id = host.run_detached(&[], &["sh", "-c", "echo started; exec sleep 1000"]);
    assert!(!was_adopted(&host, &id));
    host.wait_log(&id, "started");
    // And the next one is made.
    wait_ready(&host);
}

#[test]
fn it_ends_with_the_engine_however_that_ends() {
    let Some(mut host) = host_with_standby() else { return };
    let engines_end: [fn(&mut TestHost); 2] =
        [|host| host.engine().kill(), |host| assert_eq!(host.engine().stop(), Some(0))];
    for end in engines_end {
        assert_eq!(host.run(&[], &["true"]).code, 0);
        wait_ready(&host);
        let script = "while :; do echo tick; sleep 0.2; done";
        let adopted = host.run_detached(&[], &["sh", "-c", script]);
        assert!(was_adopted(&host, &adopted));
        wait_ready(&host);
        let vmm = standby_vmm(&host);
        end(&mut host);
        assert!(eventually(Duration::from_secs(10), || !procfs::is_alive(vmm)), "the standby's VMM lives on");
        host.start_engine();
        let left = std::fs::read_dir(host.folder().join("run/standby")).map_or(0, Iterator::count);
        assert_eq!((left, standby(&host).as_str()), (0, "none"));
        // The one that was a standby once is a container, and goes on.
        assert_eq!(host.state(&adopted).0, "running");
        assert_eq!(host.docker(&["exec", &adopted, "echo", "reached"]).ok(), "reached");
        let ticks = || host.docker(&["logs", &adopted]).text().lines().count();
        let before = ticks();
        assert!(eventually(Duration::from_secs(10), || ticks() > before));
        assert_eq!(host.docker(&["rm", "-f", &adopted]).code, 0);
    }
}

#[test]
fn by_default_it_is_a_vm_under_emulation_and_a_process_with_kvm() {
    let options = HostOptions { default_standby: true, ..HostOptions::default() };
    let Some(host) = TestHost::start_own_with(Wall::Hyperv, &options) else { return };
    assert_eq!(host.run(&[], &["true"]).code, 0);
    wait_ready(&host);
    let stood_by = standby_vmm(&host);
    let id = host.run_detached(&[], &["sleep", "1000"]);
    let own = host.inspect(&id)["Bulkhead"].clone();
    let is_emulated = own["Accelerator"] == "tcg";
    assert_eq!((own["VmmPids"][0].as_i64(), was_adopted(&host, &id)), (Some(stood_by.into()), is_emulated), "{own}");
    assert_eq!(host.docker(&["exec", &id, "echo", "reached"]).ok(), "reached");
    wait_ready(&host);
    if !is_emulated {
        // A process has nothing yet that a limit would have to count, and no guest that would have to be of another size.
        let stood_by = standby_vmm(&host);
        let limited = host.run_detached(&["--memory", "64m", "--cpus", "0.5"], &["sleep", "1000"]);
        assert_eq!(host.inspect(&limited)["Bulkhead"]["VmmPids"][0].as_i64(), Some(stood_by.into()));
        wait_ready(&host);
        // A machine that is larger is another one's.
        let stood_by = standby_vmm(&host);
        let large = host.run_detached(&["--memory", "1500m"], &["sleep", "1000"]);
        assert_ne!(host.inspect(&large)["Bulkhead"]["VmmPids"][0].as_i64(), Some(stood_by.into()));
        assert!(
            eventually(Duration::from_secs(10), || !procfs::is_alive(stood_by)),
            "the process that waited lives on"
        );
        wait_ready(&host);
    }
    procfs::kill(standby_vmm(&host), Signal::KILL);
    assert_eq!(host.run(&[], &["echo", "not missed"]).ok(), "not missed");
}

#[test]
fn it_can_be_switched_off() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    assert_eq!(host.run(&[], &["true"]).code, 0);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(standby(&host), "off");
    let id = host.run_detached(&[], &["sleep", "1000"]);
    assert!(!was_adopted(&host, &id));
}
