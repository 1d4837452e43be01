//! The exit code of `docker run` is the command's, or 125, 126, 127 as docker's documentation says.

behind_both_walls! {
    fn the_commands_own_code_is_passed_on(host) {
        assert_eq!(host.run(&[], &["true"]).code, 0);
        assert_eq!(host.run(&[], &["false"]).code, 1);
        assert_eq!(host.sh("exit 77").code, 77);
        // Modulo 256, as every Unix process.
        assert_eq!(host.sh("exit 300").code, 44);
    }

    fn a_command_that_is_not_there_is_127(host) {
        host.run(&[], &["no-such-command"]).fails_saying(127, &["exec: \"no-such-command\"", "executable file not found in $path"]);
        host.run(&[], &["/no/such/command"]).fails_saying(127, &["/no/such/command", "no such file or directory"]);
        assert_eq!(host.docker(&["ps", "-aq"]).ok(), "", "a failed start leaves no container of --rm");
    }

    fn a_command_that_cannot_be_executed_is_126(host) {
        host.run(&[], &["/etc/plain"]).fails_saying(126, &["exec: \"/etc/plain\"", "permission denied"]);
        host.run(&[], &["/etc"]).fails_saying(126, &["/etc"]);
    }

    fn a_container_that_could_not_start_keeps_its_error(host) {
        let said = host.docker(&host.words("run", &["--name", "failed"], &["no-such-command"]));
        assert_eq!(said.code, 127, "{said}");
        let state = &host.inspect("failed")["State"];
        assert_eq!((state["Status"].as_str(), state["ExitCode"].as_i64()), (Some("created"), Some(127)));
        assert!(state["Error"].as_str().unwrap().contains("no-such-command"), "{state}");
    }

    fn a_killed_child_is_128_and_the_signal(host) {
        assert_eq!(host.sh("sh -c 'kill -9 $$'; exit $?").code, 137);
        assert_eq!(host.sh("sh -c 'kill -TERM $$'; exit $?").code, 143);
    }
}
