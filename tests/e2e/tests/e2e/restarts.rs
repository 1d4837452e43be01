//! Restart policies, and the first process of `--init`.

use std::time::Duration;

use bulkhead_e2e::api::ApiConnection;
use bulkhead_e2e::{TestHost, eventually};

fn restarts(host: &TestHost, id: &str) -> u64 {
    host.inspect(id)["RestartCount"].as_u64().unwrap()
}

behind_both_walls! {
    fn a_policy_starts_again_what_fails_and_stop_ends_that(host) {
        let twice = host.run_detached(&["--restart", "on-failure:2"], &["sh", "-c", "echo run; exit 5"]);
        let always = host.run_detached(&["--restart", "always"], &["sh", "-c", "echo run; exit 0"]);
        assert!(eventually(Duration::from_secs(40), || restarts(host, &twice) == 2 && host.state(&twice) == ("exited".to_owned(), 5)));
        assert_eq!(host.docker(&["logs", &twice]).lines().len(), 3);
        assert!(eventually(Duration::from_secs(30), || restarts(host, &always) >= 2));
        assert_eq!(host.docker(&["stop", "-t", "0", &always]).code, 0);
        assert_eq!(host.state(&always).0, "exited");
        let before = restarts(host, &always);
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!((host.state(&always).0.as_str(), restarts(host, &always)), ("exited", before));
        assert_eq!(host.docker(&["update", "--restart", "no", &always]).code, 0);
        assert_eq!(host.docker(&["start", &always]).code, 0);
        host.wait_state(&always, "exited");
        assert_eq!(restarts(host, &always), 0);
        host.docker(&host.words("create", &["--rm", "--restart", "always"], &["true"])).fails_saying(125, &["conflicting options"]);
    }

    fn a_signal_that_is_to_end_it_forbids_the_next_start(host) {
        let command = ["sh", "-c", "trap 'exit 5' HUP; echo ready; while :; do sleep 0.1; done"];
        let ended = host.run_detached(&["--restart", "always"], &command);
        let again = host.run_detached(&["--restart", "always", "--stop-signal", "TERM"], &command);
        for id in [&ended, &again] {
            host.wait_log(id, "ready");
            assert_eq!(host.docker(&["kill", "-s", "HUP", id]).code, 0);
        }
        host.wait_state(&ended, "exited");
        assert!(eventually(Duration::from_secs(20), || restarts(host, &again) == 1 && host.state(&again).0 == "running"));
        assert_eq!((host.state(&ended), restarts(host, &ended)), (("exited".to_owned(), 5), 0));
        // One that is paused goes on for it.
        assert_eq!(host.docker(&["start", &ended]).code, 0);
        assert!(eventually(Duration::from_secs(20), || host.docker(&["logs", &ended]).lines().len() == 2));
        assert_eq!(host.docker(&["pause", &ended]).code, 0);
        assert_eq!(host.docker(&["kill", "-s", "HUP", &ended]).code, 0);
        host.wait_state(&ended, "exited");
        assert_eq!(host.state(&ended).1, 5);
    }

    fn a_host_that_goes_down_stops_them_and_the_next_engine_starts_what_it_should(host) {
        if host.is_reference() {
            return bulkhead_e2e::skip("dockerd does this at every end, without live-restore");
        }
        let script = "trap 'echo asked; sleep 0.5; echo over; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
        let command = ["sh", "-c", script];
        for policy in ["always", "unless-stopped", "on-failure", "no"] {
            let _ = host.run_detached(&["--name", policy, "--restart", policy], &command);
        }
        let _ = host.run_detached(&["--name", "deaf", "--stop-timeout", "1"], &["sleep", "1000"]);
        let _ = host.run_detached(&["--name", "removed", "--rm"], &command);
        for name in ["always", "unless-stopped", "on-failure", "no", "removed"] {
            host.wait_log(name, "ready");
        }
        assert_eq!(host.engine().stop_with_host(), Some(0));
        assert_eq!(host.processes(), Vec::<i32>::new());
        host.start_engine();
        for name in ["on-failure", "no"] {
            assert_eq!(host.state(name), ("exited".to_owned(), 7), "{name}");
            assert_eq!(host.docker(&["logs", name]).lines(), ["ready", "asked", "over"], "{name}");
        }
        assert_eq!(host.state("deaf"), ("exited".to_owned(), 137));
        assert!(host.docker(&["inspect", "removed"]).code != 0);
        for name in ["always", "unless-stopped"] {
            assert!(eventually(Duration::from_secs(20), || host.docker(&["logs", name]).lines() == ["ready", "asked", "over", "ready"]), "{name}");
        }
    }

    fn the_first_process_passes_signals_on_and_reaps(host) {
        // Its child is left behind by a shell that has ended: only the first process can reap it.
        let script = "sh -c 'sleep 0.2 & exit 0'; trap 'echo asked; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
        let id = host.run_detached(&["--init"], &["sh", "-c", script]);
        host.wait_log(&id, "ready");
        let first = host.docker(&["exec", &id, "sh", "-c", "cat /proc/1/comm; tr '\\0' ' ' < /proc/1/cmdline"]).ok();
        assert!(first.starts_with("docker-init\n/sbin/docker-init -- sh -c "), "{first}");
        let zombies = || host.docker(&["exec", &id, "sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; true"]).ok();
        assert!(eventually(Duration::from_secs(10), || zombies().is_empty()), "{}", zombies());
        assert_eq!(host.docker(&["stop", &id]).code, 0);
        assert_eq!(host.state(&id), ("exited".to_owned(), 9));
        assert!(host.docker(&["logs", &id]).text().contains("asked"));
        assert_eq!(host.run(&["--init", "--user", "1234"], &["no-such-command"]).code, 127);
    }
}

#[test]
fn engines_that_come_back_start_what_they_should() {
    let Some(mut host) = TestHost::start(bulkhead_e2e::Wall::Process) else { return };
    if host.is_reference() {
        return bulkhead_e2e::skip("dockerd takes its containers along without live-restore");
    }
    let policies = [("always", "always"), ("unless", "unless-stopped"), ("fails", "on-failure"), ("no", "no")];
    for (name, policy) in policies {
        let _ = host.run_detached(&["--name", name, "--restart", policy], &["sleep", "1000"]);
        assert_eq!(host.docker(&["stop", "-t", "0", name]).code, 0);
    }
    let _ = host.run_detached(
        &["--name", "dies", "--restart", "unless-stopped"],
        &["sh", "-c", "echo run; test -e /again && exec sleep 1000; touch /again; sleep 1; exit 3"],
    );
    host.engine().kill();
    std::thread::sleep(Duration::from_secs(2));
    host.start_engine();
    host.wait_state("always", "running");
    host.wait_state("dies", "running");
    for (name, _) in &policies[1..] {
        assert_eq!(host.state(name).0, "exited", "{name}");
    }
    assert_eq!(restarts(&host, "dies"), 1);
    assert_eq!(host.docker(&["logs", "dies"]).lines(), ["run", "run"]);
}

#[test]
fn a_utility_vm_that_is_late_is_tried_again() {
    let Some(mut host) = TestHost::start_own(bulkhead_e2e::Wall::Hyperv) else { return };
    let command = ["sh", "-c", "echo ready; exec sleep 1000"];
    let id = host.run_detached(&["--restart", "always"], &command);
    host.wait_log(&id, "ready");
    assert_eq!(host.engine().stop_with_host(), Some(0));
    host.start_engine_with(&["--personalize-timeout-ms=1", "--standby-vms=0"]);
    assert!(eventually(Duration::from_secs(60), || restarts(&host, &id) >= 3), "{}", host.inspect(&id)["State"]);
    assert!(host.log().contains("did not personalize"), "{}", host.log());
    host.stop_engine();
    host.start_engine();
    assert!(eventually(Duration::from_secs(60), || host.docker(&["logs", &id]).lines() == ["ready", "ready"]));
    host.wait_state(&id, "running");
}

#[test]
fn a_stop_is_the_last_word_about_a_container_that_ends_all_the_time() {
    let Some(host) = TestHost::start(bulkhead_e2e::Wall::Process) else { return };
    let id = host.run_detached(&["--restart", "always"], &["true"]);
    for pause in 0..12 {
        std::thread::sleep(Duration::from_millis(pause * 17));
        assert_eq!(host.docker(&["stop", "-t", "0", &id]).code, 0);
        // Longer than the first pause of the policy.
        std::thread::sleep(Duration::from_millis(250));
        assert_eq!(host.state(&id).0, "exited", "after {pause} pauses of 17 ms");
        assert_eq!(host.docker(&["start", &id]).code, 0);
    }
}

behind_both_walls! {
    /// A container that ends by itself at the moment when its time is up has ended when that is answered.
    fn what_was_stopped_is_not_shown_as_running(host) {
        let stop = |number: usize| {
            let script = format!("trap 'sleep 0.{number}; exit 0' TERM; echo ready; while :; do sleep 0.02; done");
            let id = host.run_detached(&[], &["sh", "-c", &script]);
            host.wait_log(&id, "ready");
            let mut connection = ApiConnection::open(host.socket()).unwrap();
            assert_eq!(connection.request("POST", &format!("/containers/{id}/stop?t=1"), None).unwrap().status, 204);
            let state = connection.request("GET", &format!("/containers/{id}/json"), None).unwrap().json();
            assert_eq!(state["State"]["Status"], "exited", "{number} hundredths after the signal");
        };
        // The end of a utility VM takes longer.
        let (first, step) = if host.wall() == bulkhead_e2e::Wall::Hyperv { (70, 10) } else { (88, 2) };
        let stop = &stop;
        std::thread::scope(|scope| {
            for number in (first..100).step_by(step) {
                scope.spawn(move || stop(number));
            }
        });
    }
}
