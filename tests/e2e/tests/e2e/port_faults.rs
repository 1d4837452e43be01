//! Networks and ports that cannot be, by their numbers in the list of faults: each refused, with nothing left of it.

use std::time::Duration;

use bulkhead_e2e::api::ApiConnection;
use bulkhead_e2e::{TestHost, Wall, eventually};
use serde_json::{Value, json};

use crate::networks::{SERVER, endpoint, namespaces, port, run, start, table, wait_read};

/// What the engine and its containers have of the host: namespaces, rules, processes.
type Have = (usize, String, Vec<i32>);

fn have(host: &TestHost) -> Have {
    (namespaces(host), table(host), host.processes())
}

/// Nothing has come since; a process may have ended meanwhile, and one that is ending may be seen for a moment.
#[track_caller]
fn assert_nothing_new(host: &TestHost, before: &Have) {
    let mut now = have(host);
    let same = eventually(Duration::from_secs(5), || {
        now = have(host);
        (now.0, &now.1) == (before.0, &before.1) && now.2.iter().all(|pid| before.2.contains(pid))
    });
    assert!(same, "before: {before:?}\nnow: {now:?}");
}

fn create(host: &TestHost, settings: &Value) -> (u16, String) {
    let mut connection = ApiConnection::open(host.socket()).unwrap();
    let body = json!({ "Image": "box", "HostConfig": settings }).to_string();
    let answer = connection.request("POST", "/v1.41/containers/create", Some(body.as_bytes())).unwrap();
    (answer.status, answer.message())
}

behind_both_walls! { own:
    fn f62_ports_that_cannot_be_had_leave_nothing(host) {
        for (port, word) in [("70000", "invalid"), ("-1", "invalid"), ("x", "invalid"), ("90-80", "invalid")] {
            let bound = json!({ "PortBindings": { "80/tcp": [{ "HostPort": port }] } });
            let (status, said) = create(host, &bound);
            assert!(status == 400 && said.to_lowercase().contains(word), "{port}: {status} {said}");
        }
        host.run(&["-p", "70000:80"], &["true"]).fails_saying(125, &["70000"]);
        // Five addresses: one that a failed start keeps is missed by the next.
        host.docker(&["network", "create", "--subnet", "10.203.62.0/29", "few"]).ok();
        let first = start(host, "first", &["--network", "few", "-p", "127.0.0.1:0:80"], SERVER);
        let taken = port(host, "first", "80/tcp");
        let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (foreign_port, free_port) = (foreign.local_addr().unwrap().port(), free.local_addr().unwrap().port());
        drop(free);
        let before = have(host);
        // The first of its ports can be had, the second cannot.
        for (what, second, word) in [
            ("of another container", format!("127.0.0.1:{taken}:81"), "port is already allocated"),
            ("of somebody else", format!("127.0.0.1:{foreign_port}:81"), "address already in use"),
            ("its own", format!("127.0.0.1:{free_port}:81"), "port is already allocated"),
            ("of another container, again", format!("127.0.0.1:{taken}:81"), "port is already allocated"),
        ] {
            let name = format!("second-{free_port}");
            let options = ["-d", "--name", &name, "--network", "few", "-p", &format!("127.0.0.1:{free_port}:80"), "-p", &second];
            let said = run(host, &options, SERVER);
            assert!(said.code == 125 && said.err.contains(word), "{what}: {said}");
            assert_eq!(host.state(&name).0, "created", "{what}");
            assert_eq!(endpoint(host, &name, "few", "IPAddress"), "", "{what}");
            assert_nothing_new(host, &before);
            host.docker(&["rm", &name]).ok();
        }
        wait_read(&format!("127.0.0.1:{taken}"), &first[..12]);
        // Address and port go to the next.
        let next = start(host, "next", &["--network", "few", "-p", &format!("127.0.0.1:{free_port}:80")], SERVER);
        wait_read(&format!("127.0.0.1:{free_port}"), &next[..12]);
    }

    fn f66_networks_that_cannot_be(host) {
        let before = have(host);
        let own = run(host, &["--rm", "--name", "me", "--network", "container:me"], &["true"]);
        let none = run(host, &["--rm", "--network", "container:nosuch"], &["true"]);
        host.docker(&["create", "--isolation", host.wall().word(), "--name", "idle", "box", "true"]).ok();
        let idle = run(host, &["--rm", "--network", "container:idle"], &["true"]);
        let words = if host.wall() == Wall::Process {
            ["cannot join own network", "No such container: nosuch", "cannot join network of a non running container"]
        } else {
            ["a utility VM of its own"; 3]
        };
        for (said, word) in [own, none, idle].iter().zip(words) {
            assert!(said.code == 125 && said.err.contains(word), "{word}: {said}");
        }
        if host.wall() == Wall::Hyperv {
            run(host, &["--rm", "--network", "host"], &["true"]).fails_saying(125, &["a kernel of its own"]);
        }
        assert_eq!(host.docker(&["ps", "-aq"]).lines().len(), 1, "a refused container was left");
        assert_nothing_new(host, &before);
    }
}
