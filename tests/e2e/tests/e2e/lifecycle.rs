//! From create to rm.

use std::time::Duration;

use bulkhead_e2e::eventually;

behind_both_walls! {
    fn create_start_stop_start_rm(host) {
        let id = host.docker(&host.words("create", &["--name", "one"], &["sh", "-c", "echo run >> /tmp/runs; wc -l < /tmp/runs; exec sleep 1000"])).ok();
        assert_eq!(id.len(), 64);
        assert_eq!(host.state("one").0, "created");
        assert_eq!(host.docker(&["ps", "-aq", "--no-trunc"]).ok(), id);
        assert_eq!(host.docker(&["ps", "-q"]).ok(), "");
        assert_eq!(host.docker(&["start", "one"]).ok(), "one");
        assert_eq!(host.docker(&["ps", "--format", "{{.Names}} {{.State}}"]).ok(), "one running");
        host.wait_log("one", "1\n");
        assert_eq!(host.docker(&["stop", "-t", "0", "one"]).ok(), "one");
        assert_eq!(host.docker(&["start", &id[..12]]).ok(), id[..12]);
        // What the container wrote is still there when it starts again.
        host.wait_log("one", "2\n");
        assert_eq!(host.docker(&["restart", "-t", "0", "one"]).code, 0);
        host.wait_log("one", "3\n");
        host.docker(&["rm", "one"]).fails_saying(1, &["running", "force remov"]);
        assert_eq!(host.docker(&["rm", "-f", "one"]).code, 0);
        host.docker(&["inspect", "one"]).fails_saying(1, &["no such object", "one"]);
    }

    fn rm_flag_leaves_nothing(host) {
        assert_eq!(host.run(&["--name", "gone"], &["sh", "-c", "echo x > /file; exit 3"]).code, 3);
        assert_eq!(host.docker(&["ps", "-aq"]).ok(), "");
        // The name is free when `run` has ended, not some time later.
        for _ in 0..3 {
            assert_eq!(host.run(&["--name", "gone"], &["true"]).code, 0);
        }
        let containers = host.data_root().join("containers");
        let left = || std::fs::read_dir(&containers).map_or(0, Iterator::count);
        assert!(eventually(Duration::from_secs(5), || left() == 0), "{left} files", left = left());
    }

    fn wait_gives_the_exit_code(host) {
        let id = host.run_detached(&[], &["sh", "-c", "sleep 1; exit 12"]);
        let waiting = host.spawn(&["wait", &id]);
        assert_eq!(waiting.end().ok(), "12");
        assert_eq!(host.docker(&["wait", &id]).ok(), "12");
    }

    fn names_are_unique_and_can_be_changed(host) {
        let id = host.run_detached(&["--name", "first"], &["sleep", "1000"]);
        host.docker(&host.words("create", &["--name", "first"], &["true"])).fails_saying(1, &["the container name \"/first\" is already in use", &id]);
        assert_eq!(host.docker(&["rename", "first", "second"]).code, 0);
        assert_eq!(host.inspect("second")["Id"].as_str(), Some(id.as_str()));
        host.docker(&["rename", "first", "third"]).fails_saying(1, &["no such container", "first"]);
        assert_eq!(host.docker(&["ps", "--format", "{{.Names}}"]).ok(), "second");
        host.docker(&host.words("create", &["--name", "-bad/name"], &["true"])).fails_saying(1, &["invalid container name"]);
    }

    fn pause_stops_time_inside(host) {
        let id = host.run_detached(&[], &["sh", "-c", "while :; do echo tick; sleep 0.1; done"]);
        host.wait_log(&id, "tick");
        let ticks = || host.docker(&["logs", &id]).text().lines().count();
        assert_eq!(host.docker(&["pause", &id]).code, 0);
        assert_eq!(host.state(&id).0, "paused");
        std::thread::sleep(Duration::from_millis(300));
        let before = ticks();
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(ticks(), before, "it went on while paused");
        host.docker(&["exec", &id, "true"]).fails_saying(1, &["paused"]);
        assert_eq!(host.docker(&["unpause", &id]).code, 0);
        assert!(eventually(Duration::from_secs(10), || ticks() > before), "it did not go on");
        assert_eq!(host.state(&id).0, "running");
    }

    fn start_attached_gives_output_and_code(host) {
        let id = host.docker(&host.words("create", &[], &["sh", "-c", "echo again; exit 13"])).ok();
        for _ in 0..2 {
            let said = host.docker(&["start", "-a", &id]);
            assert_eq!((said.code, said.text().trim()), (13, "again"), "{said}");
        }
    }

    fn attach_joins_a_running_container(host) {
        let id = host.run_detached(&["-i"], &["sh", "-c", "while read line; do echo heard $line; [ $line = quit ] && exit 14; done"]);
        let mut client = host.spawn(&["attach", &id]);
        // Attached is only who gets the answer; before that, input may come too early.
        std::thread::sleep(Duration::from_millis(500));
        client.write(b"words\n");
        client.wait_for("heard words");
        // A detached container's input outlives its clients.
        client.close_stdin();
        let mut second = host.spawn(&["attach", &id]);
        std::thread::sleep(Duration::from_millis(500));
        second.write(b"quit\n");
        assert_eq!(second.end().code, 14);
        let said = client.end();
        assert_eq!(said.code, 14, "{said}");
    }

    fn top_shows_the_processes(host) {
        let id = host.run_detached(&[], &["sh", "-c", "sleep 4321 & exec sleep 1234"]);
        let shows = |text: &str| host.docker(&["top", &id]).lines().iter().any(|line| line.ends_with(&format!(" {text}")));
        assert!(eventually(Duration::from_secs(10), || shows("sleep 4321") && shows("sleep 1234")), "{}", host.docker(&["top", &id]));
        let lines = host.docker(&["top", &id]).lines();
        assert!(lines[0].contains("UID") && lines[0].contains("PID") && lines[0].contains("CMD"), "{lines:?}");
        assert_eq!(lines.len(), 3, "{lines:?}");
    }

    fn stats_measure_the_container(host) {
        let id = host.run_detached(&["--memory", "256m"], &["sh", "-c", "while :; do :; done"]);
        let measure = || host.docker(&["stats", "--no-stream", "--format", "{{.CPUPerc}} {{.MemUsage}} {{.PIDs}}", &id]).ok();
        let busy = |text: &str| text.split('%').next().and_then(|cpu| cpu.parse::<f64>().ok()).is_some_and(|cpu| cpu > 20.0);
        assert!(eventually(Duration::from_secs(20), || busy(&measure())), "{}", measure());
        let text = measure();
        // A busy busybox sh uses some hundred KiB, so the unit of the usage is not asked for.
        assert!(text.contains("iB / 256MiB") && !text.contains(" 0B / "), "{text}");
    }

    fn ps_filters_and_labels(host) {
        let a = host.run_detached(&["--label", "tier=front", "--name", "aa"], &["sleep", "1000"]);
        let _ = host.run_detached(&["--label", "tier=back", "--name", "bb"], &["sleep", "1000"]);
        let names = |filter: &str| {
            let mut lines = host.docker(&["ps", "-a", "--filter", filter, "--format", "{{.Names}}"]).lines();
            lines.sort();
            lines
        };
        assert_eq!(names("label=tier=front"), ["aa"]);
        assert_eq!(names("label=tier"), ["aa", "bb"]);
        assert_eq!(names("name=bb"), ["bb"]);
        assert_eq!(names("status=exited"), Vec::<String>::new());
        assert_eq!(names(&format!("id={}", &a[..12])), ["aa"]);
        assert_eq!(host.inspect("aa")["Config"]["Labels"]["tier"], "front");
    }
}
