//! `docker events`.

behind_both_walls! {
    fn a_run_is_told_in_order(host) {
        assert_eq!(host.run(&["--name", "short"], &["sh", "-c", "exit 3"]).code, 3);
        let events = host.docker(&["events", "--since", "0", "--until", &now(), "--filter", "type=container", "--format", "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}}"]);
        let none = "<no value>";
        let expected = ["create", "attach", "start"].map(|action| format!("{action} short {none}"));
        let mut expected = expected.to_vec();
        expected.extend(["die short 3".to_owned(), format!("destroy short {none}")]);
        assert_eq!(events.lines(), expected);
    }

    fn followers_hear_as_it_happens(host) {
        let follower = host.spawn(&["events", "--filter", "type=container", "--format", "{{.Action}}"]);
        std::thread::sleep(std::time::Duration::from_millis(500));
        let id = host.run_detached(&[], &["sleep", "1000"]);
        follower.wait_for("start");
        assert_eq!(host.docker(&["pause", &id]).code, 0);
        follower.wait_for("pause");
        assert_eq!(host.docker(&["unpause", &id]).code, 0);
        follower.wait_for("unpause");
        assert_eq!(host.docker(&["exec", &id, "true"]).code, 0);
        follower.wait_for("exec_die");
        assert_eq!(host.docker(&["rename", &id, "renamed"]).code, 0);
        follower.wait_for("rename");
        assert_eq!(host.docker(&["kill", &id]).code, 0);
        follower.wait_for("kill");
        follower.wait_for("die");
        assert_eq!(host.docker(&["rm", &id]).code, 0);
        follower.wait_for("destroy");
        follower.signal(rustix::process::Signal::INT);
    }
}

/// A time a little in the future: an event of just now is not after it.
pub(crate) fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    (since.as_secs() + 1).to_string()
}
