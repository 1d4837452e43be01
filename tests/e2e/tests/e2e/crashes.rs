//! `kill -9` of everything in turn: the right exit state, nothing left, and nobody else notices.

use std::time::Duration;

use bulkhead_e2e::{TestHost, eventually, procfs};
use rustix::process::Signal;

use crate::options::WaitExec;

/// The processes of a host's engine whose program has this name.
fn find_program(host: &TestHost, name: &str) -> Vec<i32> {
    let is_it = |pid: &i32| {
        let line = procfs::command_line(*pid);
        line.split(' ')
            .next()
            .is_some_and(|program| program.rsplit('/').next().is_some_and(|own| own.starts_with(name)))
    };
    host.processes().into_iter().filter(is_it).collect()
}

/// The one process that runs a container's utility VM, whichever program that is.
fn vmm(host: &TestHost, id: &str) -> i32 {
    let inspected = host.inspect(id);
    let pids = inspected["Bulkhead"]["VmmPids"].as_array().expect("a list");
    assert_eq!(pids.len(), 1, "one process is one VM: {inspected}");
    let pid = i32::try_from(pids[0].as_i64().unwrap()).unwrap();
    let line = procfs::command_line(pid);
    assert!(line.contains("qemu-system") || line.contains("bulkhead-vmm"), "{line}");
    assert!(host.processes().contains(&pid), "it belongs to this host: {line}");
    pid
}

behind_both_walls! {
    fn the_engine_is_killed_and_knows_everything_again(host) {
        if host.is_reference() {
            return bulkhead_e2e::skip("dockerd takes its containers along without live-restore");
        }
        let running = host.run_detached(&["--name", "running"], &["sh", "-c", "while :; do echo tick; sleep 0.2; done"]);
        let ends = host.run_detached(&["--name", "ends"], &["sh", "-c", "sleep 2; exit 23"]);
        let done = host.run_detached(&["--name", "done", "--label", "a=b"], &["sh", "-c", "echo said; exit 9"]);
        let created = host.docker(&host.words("create", &["--name", "created"], &["true"])).ok();
        host.wait_state(&done, "exited");
        host.engine().kill();
        std::thread::sleep(Duration::from_secs(3));
        host.start_engine();
        let mut all = host.docker(&["ps", "-aq", "--no-trunc"]).lines();
        all.sort();
        let mut expected = vec![running.clone(), ends.clone(), done.clone(), created];
        expected.sort();
        assert_eq!(all, expected);
        assert_eq!(host.state(&running).0, "running");
        assert_eq!(host.state(&done), ("exited".to_owned(), 9));
        assert_eq!(host.state("created").0, "created");
        // It ended while nobody watched; the shim kept its exit status.
        host.wait_state(&ends, "exited");
        assert_eq!(host.state(&ends).1, 23);
        assert_eq!(host.docker(&["exec", &running, "echo", "reached"]).ok(), "reached");
        assert!(host.docker(&["logs", &done]).ok().contains("said"));
        let before = host.docker(&["logs", &running]).text().lines().count();
        assert!(eventually(Duration::from_secs(10), || host.docker(&["logs", &running]).text().lines().count() > before));
        assert_eq!(host.docker(&["stop", "-t", "0", &running]).code, 0);
        assert_eq!(host.state(&running), ("exited".to_owned(), 137));
        assert_eq!(host.run(&[], &["echo", "next"]).ok(), "next");
    }

    fn the_shim_is_killed_and_its_container_is_dead(host) {
        if host.is_reference() {
            return bulkhead_e2e::skip("Docker's shim is another program");
        }
        let id = host.run_detached(&[], &["sleep", "345678"]);
        let neighbour = host.run_detached(&[], &["sleep", "1000"]);
        let shims = find_program(host, "containerd-shim-bulkhead");
        let short = id[..12].to_owned();
        let shim = shims.iter().copied().find(|&pid| procfs::command_line(pid).contains(&short)).expect("a shim that names its container");
        procfs::kill(shim, Signal::KILL);
        host.wait_state(&id, "exited");
        let (_, code) = host.state(&id);
        assert_ne!(code, 0);
        assert!(eventually(Duration::from_secs(10), || procfs::find_command("sleep 345678").is_empty()), "it outlived its shim");
        assert_eq!(host.docker(&["exec", &neighbour, "echo", "alive"]).ok(), "alive");
        // It can be started again and removed.
        assert_eq!(host.docker(&["start", &id]).code, 0);
        host.wait_exec(&id, "true");
        assert_eq!(host.docker(&["rm", "-f", &id]).code, 0);
    }

    fn engine_and_shim_are_killed_together(host) {
        if host.is_reference() {
            return bulkhead_e2e::skip("Docker's shim is another program");
        }
        let id = host.run_detached(&[], &["sleep", "456789"]);
        host.engine().kill();
        for pid in find_program(host, "containerd-shim-bulkhead") {
            procfs::kill(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(300));
        host.start_engine();
        host.wait_state(&id, "exited");
        assert_ne!(host.state(&id).1, 0);
        assert!(eventually(Duration::from_secs(10), || procfs::find_command("sleep 456789").is_empty()));
        assert_eq!(host.docker(&["rm", &id]).code, 0);
    }

    fn the_containers_process_is_killed(host) {
        let id = host.run_detached(&[], &["sh", "-c", "sleep 1000 & echo $! > /child; echo up; wait $!"]);
        host.wait_log(&id, "up");
        // Detached: the container's end may kill the one that has brought it about before that one ends by itself.
        assert_eq!(host.docker(&["exec", "-d", &id, "sh", "-c", "kill -9 $(cat /child)"]).code, 0);
        host.wait_state(&id, "exited");
        assert_eq!(host.state(&id).1, 137);
    }
}

#[test]
fn the_vmm_is_killed_and_only_its_container_ends() {
    let Some(host) = TestHost::start_own(bulkhead_e2e::Wall::Hyperv) else { return };
    let neighbour = host.run_detached(&[], &["sleep", "1000"]);
    let id = host.run_detached(&[], &["sleep", "1000"]);
    let [own, other] = [&id, &neighbour].map(|id| vmm(&host, id));
    assert_ne!(own, other, "one VM for one container");
    let client = host.spawn(&["wait", &id]);
    procfs::kill(own, Signal::KILL);
    let code = client.end().ok();
    assert_ne!(code, "0");
    host.wait_state(&id, "exited");
    let state = &host.inspect(&id)["State"];
    assert!(!state["Error"].as_str().unwrap().is_empty(), "{state}");
    assert_eq!(host.docker(&["exec", &neighbour, "echo", "alive"]).ok(), "alive");
    assert_eq!(host.docker(&["start", &id]).code, 0);
    assert_eq!(host.docker(&["exec", &id, "echo", "again"]).ok(), "again");
}
