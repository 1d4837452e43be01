//! `docker events`.

use bulkhead_e2e::TestHost;

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

    fn a_lack_of_memory_is_told_while_the_container_goes_on(host) {
        let follower = host.spawn(&["events", "--filter", "event=oom", "--format", "{{.Action}} {{.Actor.Attributes.name}}"]);
        std::thread::sleep(std::time::Duration::from_millis(500));
        let id = host.run_detached(&["--name", "hungry", "--memory", "32m"], &["sleep", "1000"]);
        let eat = ["exec", &id, "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"];
        let state = |host: &TestHost| {
            let state = &host.inspect("hungry")["State"];
            (state["Status"].as_str().unwrap().to_owned(), state["OOMKilled"].as_bool().unwrap())
        };
        let told = |host: &TestHost| {
            let kinds = ["--filter", "event=oom", "--filter", "event=die", "--format", "{{.Action}}"];
            host.docker(&[&["events", "--since", "0", "--until", &now()], &kinds[..]].concat()).lines()
        };
        assert_eq!(state(host), ("running".to_owned(), false));
        assert_eq!(host.docker(&eat).code, 137);
        follower.wait_for("oom hungry");
        assert_eq!((state(host), told(host)), (("running".to_owned(), true), vec!["oom".to_owned()]));
        follower.signal(rustix::process::Signal::INT);
        if host.is_reference() {
            return;
        }
        // The next engine knows of it, does not tell it again, and tells the next one.
        host.engine().kill();
        host.start_engine();
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert_eq!((state(host), told(host).len()), (("running".to_owned(), true), 0));
        assert_eq!(host.docker(&eat).code, 137);
        assert!(bulkhead_e2e::eventually(std::time::Duration::from_secs(10), || told(host) == ["oom"]), "{:?}", told(host));
        assert_eq!(host.docker(&["kill", &id]).code, 0);
        host.wait_state(&id, "exited");
        assert_eq!((state(host), told(host)), (("exited".to_owned(), true), vec!["oom".to_owned(), "die".to_owned()]));
        // Another run has nothing to do with it.
        assert_eq!(host.docker(&["start", &id]).code, 0);
        assert_eq!(state(host), ("running".to_owned(), false));
    }
}

/// A time a little in the future: an event of just now is not after it.
pub(crate) fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    (since.as_secs() + 1).to_string()
}
