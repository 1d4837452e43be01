//! Signals reach the container's first process, and only what they should.

use std::time::{Duration, Instant};

use rustix::process::Signal;

behind_both_walls! {
    fn kill_sends_the_named_signal(host) {
        let id = host.run_detached(&[], &["sh", "-c", "trap 'echo caught-usr1' USR1; echo ready; while :; do sleep 0.1; done"]);
        host.wait_log(&id, "ready");
        assert_eq!(host.docker(&["kill", "-s", "USR1", &id]).code, 0);
        host.wait_log(&id, "caught-usr1");
        assert_eq!(host.state(&id).0, "running");
        assert_eq!(host.docker(&["kill", "--signal", "10", &id]).code, 0);
    }

    fn kill_ends_with_137(host) {
        let id = host.run_detached(&[], &["sleep", "1000"]);
        assert_eq!(host.docker(&["kill", &id]).code, 0);
        host.wait_state(&id, "exited");
        assert_eq!(host.state(&id).1, 137);
        host.docker(&["kill", &id]).fails_saying(1, &["is not running"]);
    }

    fn stop_asks_first(host) {
        let id = host.run_detached(&[], &["sh", "-c", "trap 'echo asked; exit 4' TERM; echo ready; while :; do sleep 0.1; done"]);
        host.wait_log(&id, "ready");
        assert_eq!(host.docker(&["stop", &id]).code, 0);
        assert_eq!(host.state(&id), ("exited".to_owned(), 4));
        assert!(host.docker(&["logs", &id]).ok().contains("asked"));
    }

    fn stop_kills_what_does_not_listen(host) {
        // The first process of a pid namespace ignores signals it has no handler for.
        let id = host.run_detached(&[], &["sleep", "1000"]);
        let began = Instant::now();
        assert_eq!(host.docker(&["stop", "-t", "1", &id]).code, 0);
        assert!(began.elapsed() > Duration::from_millis(900), "it was not asked first");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(host.state(&id), ("exited".to_owned(), 137));
    }

    fn the_stop_signal_can_be_chosen(host) {
        let script = "trap 'exit 21' USR2; trap 'exit 22' TERM; echo ready; while :; do sleep 0.1; done";
        let id = host.run_detached(&["--stop-signal", "USR2"], &["sh", "-c", script]);
        host.wait_log(&id, "ready");
        assert_eq!(host.docker(&["stop", &id]).code, 0);
        assert_eq!(host.state(&id).1, 21);
    }

    fn a_signal_to_the_client_is_passed_on(host) {
        let script = "trap 'echo passed-on; exit 6' TERM; echo ready; while :; do sleep 0.1; done";
        let client = host.spawn(&host.words("run", &["--rm"], &["sh", "-c", script]));
        client.wait_for("ready");
        client.signal(Signal::TERM);
        let said = client.wait();
        assert_eq!(said.code, 6, "{said}");
        assert!(said.text().contains("passed-on"));
    }

    fn an_unknown_signal_is_refused(host) {
        let id = host.run_detached(&[], &["sleep", "1000"]);
        host.docker(&["kill", "-s", "NOSUCH", &id]).fails_saying(1, &["invalid signal", "NOSUCH"]);
        assert_eq!(host.state(&id).0, "running");
    }
}
