//! `docker logs`.

behind_both_walls! {
    fn both_streams_are_kept_apart_and_complete(host) {
        let id = host.run_detached(&[], &["sh", "-c", "echo one; echo two >&2; printf three"]);
        host.wait_state(&id, "exited");
        let said = host.docker(&["logs", &id]);
        assert_eq!((said.code, said.text().as_str(), said.err.as_str()), (0, "one\nthree", "two\n"), "{said}");
    }

    fn follow_ends_with_the_container(host) {
        let id = host.run_detached(&[], &["sh", "-c", "for i in 1 2 3; do echo line $i; sleep 0.3; done"]);
        let follower = host.spawn(&["logs", "-f", &id]);
        follower.wait_for("line 1");
        let said = follower.end();
        assert_eq!(said.ok(), "line 1\nline 2\nline 3");
    }

    fn tail_and_timestamps(host) {
        let id = host.run_detached(&[], &["seq", "1", "100"]);
        host.wait_state(&id, "exited");
        assert_eq!(host.docker(&["logs", "--tail", "3", &id]).ok(), "98\n99\n100");
        assert_eq!(host.docker(&["logs", "-n", "0", &id]).ok(), "");
        let stamped = host.docker(&["logs", "-t", "--tail", "1", &id]).ok();
        let (stamp, line) = stamped.split_once(' ').expect("a time and a line");
        assert_eq!(line, "100");
        assert!(stamp.len() == "2026-01-01T00:00:00.000000000Z".len() && stamp.ends_with('Z'), "{stamp}");
    }

    fn a_terminals_log_is_raw(host) {
        let id = host.run_detached(&["-t"], &["sh", "-c", "echo one; echo two >&2"]);
        host.wait_state(&id, "exited");
        let said = host.docker(&["logs", &id]);
        assert_eq!((said.text().as_str(), said.err.as_str()), ("one\r\ntwo\r\n", ""), "{said}");
    }

    fn long_lines_and_bytes_that_are_no_text_survive(host) {
        let id = host.run_detached(&[], &["sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo 'a \"b\" \\ <&>'"]);
        host.wait_state(&id, "exited");
        let expected = format!("{}\na \"b\" \\ <&>\n", "x".repeat(100_000));
        assert!(host.docker(&["logs", &id]).text() == expected);
    }

    fn rotated_logs_are_read_as_one(host) {
        for driver in ["json-file", "local"] {
            let options = ["--log-driver", driver, "--log-opt", "max-size=20k", "--log-opt", "max-file=3"];
            let id = host.run_detached(&options, &["sh", "-c", "seq 1 3000; sleep 1; echo last >&2"]);
            host.wait_state(&id, "exited");
            let lines = host.docker(&["logs", &id]).lines();
            let first: usize = lines[0].parse().unwrap();
            assert!(first > 1 && lines.len() == 3001 - first, "{driver}: from {first}, {} lines", lines.len());
            assert_eq!(host.docker(&["logs", "--tail", "2", &id]).text(), "3000\n");
            assert_eq!(host.docker(&["logs", "-f", "--since", "1h", "--tail", "1", &id]).err, "last\n");
            let folder = host.data_root().join("containers").join(&id);
            if !host.is_reference() {
                let files = std::fs::read_dir(folder).unwrap().filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().contains(".log"));
                assert_eq!(files.count(), 3, "{driver}");
            }
        }
    }

    fn drivers_are_what_they_say(host) {
        let none = host.run_detached(&["--log-driver", "none"], &["echo", "x"]);
        host.docker(&["logs", &none]).fails_saying(1, &["configured logging driver does not support reading"]);
        for (options, words) in [
            (&["--log-driver", "nosuch"][..], &["nosuch"][..]),
            (&["--log-opt", "odd=1"], &["unknown log opt 'odd' for json-file log driver"]),
            (&["--log-driver", "local", "--log-opt", "odd=1"], &["unknown log opt 'odd' for log-driver local"]),
            (&["--log-opt", "mode=odd"], &["logger: logging mode not supported: odd"]),
        ] {
            host.docker(&host.words("create", options, &["true"])).fails_saying(1, words);
        }
    }

    fn logs_of_nothing(host) {
        host.docker(&["logs", "nosuch"]).fails_saying(1, &["no such container", "nosuch"]);
    }
}
