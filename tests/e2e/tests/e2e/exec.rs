//! Further processes in a running container.

use std::time::Duration;

use bulkhead_e2e::api;

use crate::options::WaitExec;

/// More at once than a utility VM starts at a time.
const MANY: usize = 60;

behind_both_walls! {
    fn a_further_process_shares_the_containers_world(host) {
        let id = host.run_detached(&["-e", "FROM=container", "--hostname", "inside"], &["sh", "-c", "echo made > /tmp/file; exec sleep 1000"]);
        assert_eq!(host.docker(&["exec", &id, "hostname"]).ok(), "inside");
        host.wait_exec(&id, "test -s /tmp/file");
        assert_eq!(host.docker(&["exec", &id, "cat", "/tmp/file"]).ok(), "made");
        assert_eq!(host.docker(&["exec", &id, "sh", "-c", "echo $FROM"]).ok(), "container");
        let first = host.docker(&["exec", &id, "sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline"]).ok();
        assert_eq!(first.trim(), "sleep 1000");
    }

    fn its_exit_code_streams_and_options_are_its_own(host) {
        let id = host.run_detached(&[], &["sleep", "1000"]);
        let said = host.docker(&["exec", "-e", "A=b", "-w", "/tmp", "-u", "app", &id, "sh", "-c", "echo $A $PWD $(id -u); echo err >&2; exit 8"]);
        assert_eq!((said.code, said.text().trim(), said.err.trim()), (8, "b /tmp 1000", "err"));
        let piped = host.docker_input(&["exec", "-i", &id, "tr", "a-z", "A-Z"], b"shout");
        assert_eq!(piped.ok(), "SHOUT");
        assert_eq!(host.state(&id).0, "running");
    }

    fn it_works_while_output_flows(host) {
        let mut flow = host.spawn(&host.words("run", &["--rm", "--name", "flow", "--log-driver", "none"], &["yes"]));
        flow.wait_for("y\n");
        for _ in 0..3 {
            assert_eq!(host.docker(&["exec", "flow", "echo", "through"]).ok(), "through");
        }
        assert!(flow.is_running());
        assert_eq!(host.docker(&["kill", "flow"]).code, 0);
        assert_eq!(flow.end().code, 137);
    }

    fn a_missing_command_is_127_and_a_plain_file_126(host) {
        let id = host.run_detached(&[], &["sleep", "1000"]);
        let missing = host.docker(&["exec", &id, "no-such-command"]);
        // Docker up to 20.10 said 126 for both.
        assert_eq!(missing.code, if host.is_reference() { 126 } else { 127 }, "{missing}");
        let plain = host.docker(&["exec", &id, "/etc/plain"]);
        assert_eq!(plain.code, 126, "{plain}");
        assert!((missing.text() + &missing.err).contains("no-such-command"), "{missing}");
        assert_eq!(host.state(&id).0, "running");
    }

    fn it_needs_a_running_container(host) {
        let id = host.run_detached(&[], &["true"]);
        host.wait_state(&id, "exited");
        host.docker(&["exec", &id, "true"]).fails_saying(1, &["is not running"]);
    }

    fn it_ends_with_its_container(host) {
        let id = host.run_detached(&[], &["sleep", "1000"]);
        let inner = host.spawn(&["exec", &id, "sh", "-c", "echo up; exec sleep 1000"]);
        inner.wait_for("up");
        assert_eq!(host.docker(&["kill", &id]).code, 0);
        let said = inner.end();
        assert_eq!(said.code, 137, "{said}");
    }

    fn a_detached_one_goes_on(host) {
        let id = host.run_detached(&[], &["sleep", "1000"]);
        assert_eq!(host.docker(&["exec", "-d", &id, "sh", "-c", "echo later > /tmp/later"]).code, 0);
        host.wait_exec(&id, "test -s /tmp/later");
    }

    fn many_at_once_are_all_answered(host) {
        let id = host.run_detached(&[], &["sleep", "1000"]);
        let answers = std::thread::scope(|scope| {
            let exec = |number: usize| {
                let (host, id) = (&*host, id.as_str());
                scope.spawn(move || api::exec(host.socket(), id, &["echo", &format!("said {number}.")], Duration::from_secs(120)))
            };
            let execs: Vec<_> = (0..MANY).map(exec).collect();
            execs.into_iter().map(|exec| exec.join().unwrap()).collect::<Vec<_>>()
        });
        for (number, answer) in answers.into_iter().enumerate() {
            let (code, output) = answer.unwrap();
            let output = String::from_utf8_lossy(&output);
            assert!(code == 0 && output.contains(&format!("said {number}.")), "{number}: {code} {output:?}");
        }
        assert_eq!(host.state(&id).0, "running");
    }
}
