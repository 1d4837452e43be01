//! The fault cases of the API, by their numbers in the list of faults (docs/threat-model.md): what clients get wrong or try.

use std::io;
use std::time::Duration;

use bulkhead_e2e::api::{Answer, ApiConnection, head};
use bulkhead_e2e::{HostOptions, TestHost, Wall, eventually, procfs, setting};
use serde_json::{Value, json};

fn connect(host: &TestHost) -> ApiConnection {
    ApiConnection::open(host.socket()).unwrap()
}

fn ask(host: &TestHost, method: &str, path: &str) -> Answer {
    connect(host).request(method, path, None).unwrap()
}

fn post(host: &TestHost, path: &str, body: &Value) -> Answer {
    connect(host).request("POST", path, Some(body.to_string().as_bytes())).unwrap()
}

fn create(host: &TestHost, settings: &Value) -> Answer {
    let mut body = json!({ "Image": "box", "Cmd": ["true"], "HostConfig": { "NetworkMode": "none" } });
    for (key, value) in settings.as_object().unwrap() {
        match (body["HostConfig"].as_object_mut().unwrap(), value) {
            (own, Value::Object(host)) if key == "HostConfig" => own.extend(host.clone()),
            _ => body[key] = value.clone(),
        }
    }
    post(host, "/v1.41/containers/create", &body)
}

#[test]
fn f45_bodies_that_are_not_what_their_heads_say() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let long = format!("{{\"Image\":\"{}\"}}", "x".repeat(5 << 20));
    let answer = connect(&host).request("POST", "/containers/create", Some(long.as_bytes()));
    assert_eq!(answer.unwrap().status, 413);
    let json = "Content-Type: application/json\r\n";
    for (what, fields, body, status) in [
        ("a body that is cut off", "Content-Length: 50\r\n", "{\"Image\":\"box\"}", None),
        ("a chunk that is cut off", "Transfer-Encoding: chunked\r\n", "ff\r\n{\"Image\":", None),
        ("a chunk without a length", "Transfer-Encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n", Some(400)),
        ("two lengths", "Content-Length: 2\r\nContent-Length: 40\r\n", "{}", Some(400)),
        ("a length that is none", "Content-Length: -1\r\n", "{}", Some(400)),
    ] {
        let mut connection = connect(&host);
        let request = format!("POST /containers/create HTTP/1.1\r\nHost: x\r\n{json}{fields}\r\n{body}");
        connection.send(request.as_bytes()).unwrap();
        connection.finish().unwrap();
        let answer = connection.answer(false);
        match status {
            Some(status) => assert_eq!(answer.unwrap().status, status, "{what}"),
            None => assert!(answer.as_ref().map_or(true, |answer| answer.status >= 400), "{what}: {answer:?}"),
        }
    }
    // Of both lengths the chunks count (RFC 9112 §6.3), and nothing behind them is taken for a request.
    let mut connection = connect(&host);
    let smuggled = "2\r\n{}\r\n0\r\n\r\nGET /_ping HTTP/1.1\r\nHost: x\r\n\r\n";
    let fields = "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n";
    let request = format!("POST /containers/create HTTP/1.1\r\nHost: x\r\n{json}{fields}\r\n{smuggled}");
    connection.send(request.as_bytes()).unwrap();
    assert_eq!(connection.answer(false).unwrap().status, 400);
    assert!(connection.answer(false).is_err(), "what was smuggled in was answered");
    assert_eq!(host.docker(&["ps", "-aq"]).ok(), "");
}

#[test]
fn f46_f61_f63_values_beyond_their_bounds() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    for (settings, said) in [
        (json!({ "HostConfig": { "Memory": -1 } }), "emory"),
        (json!({ "HostConfig": { "Memory": 9_223_372_036_854_775_808_u64 } }), "Memory: invalid"),
        (json!({ "HostConfig": { "Memory": 1 } }), "Minimum memory limit allowed is 6MB"),
        (json!({ "HostConfig": { "NanoCpus": 1_000_000_000_000_000_000_i64 } }), "CPUs"),
        (json!({ "HostConfig": { "NanoCpus": -1 } }), "CPUs"),
        (json!({ "HostConfig": { "NanoCpus": "NaN" } }), "NanoCpus"),
        (json!({ "HostConfig": { "CpusetCpus": "9999" } }), "cpuset"),
        (json!({ "HostConfig": { "Sysctls": { "kernel.core_pattern": "|/bin/sh" } } }), "kernel.core_pattern"),
        (json!({ "HostConfig": { "SecurityOpt": ["frobnicate=1"] } }), "frobnicate"),
        (json!({ "HostConfig": { "CapAdd": ["FOO"] } }), "FOO"),
        (json!({ "HostConfig": { "Isolation": "bogus" } }), "bogus"),
        (json!({ "Cmd": "true" }), "Cmd"),
        (json!({ "Labels": ["a"] }), "Labels"),
    ] {
        let answer = create(&host, &settings);
        assert!(
            answer.status == 400 && answer.message().contains(said),
            "{settings}: {answer:?}, {}",
            answer.message()
        );
    }
    let mut connection = connect(&host);
    for text in [
        "[".repeat(10_000),
        format!("{{\"a\":{}", "{\"a\":".repeat(10_000)),
        "{\"HostConfig\":{\"Memory\":1e400}}".into(),
    ] {
        assert_eq!(connection.request("POST", "/containers/create", Some(text.as_bytes())).unwrap().status, 400);
    }
    // Docker means "no limit" by these.
    for settings in [json!({ "HostConfig": { "PidsLimit": 0 } }), json!({ "HostConfig": { "PidsLimit": -1 } })] {
        assert_eq!(create(&host, &settings).status, 201, "{settings}");
    }
}

#[test]
fn f47_f54_names_and_paths_that_are_none() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    for name in ["..%2Fx", "a%0Ab", "%20", "-a", "a/b", "%00", "%C3%BC"] {
        let answer =
            connect(&host).request("POST", &format!("/containers/create?name={name}"), Some(br#"{"Image":"box"}"#));
        let answer = answer.unwrap();
        assert!(answer.status == 400 && answer.message().contains("Invalid container name"), "{name}: {answer:?}");
    }
    let long = "a".repeat(1 << 20);
    let answer =
        connect(&host).request("POST", &format!("/containers/create?name={long}"), Some(br#"{"Image":"box"}"#));
    // Who is hung up on while sending has been refused, too.
    assert!(answer.map_or(true, |answer| matches!(answer.status, 414 | 431)));
    host.docker(&["create", "--name", "there", "--network", "none", "box", "true"]).ok();
    for (path, status) in [
        ("/v999.9/containers/json", 400),
        ("/v1.1/containers/json", 400),
        ("/v1.41x/containers/json", 404),
        ("/containers/..%2Fthere/json", 404),
        ("/containers/there%2Fjson", 404),
        ("//containers/there/json", 404),
        ("/containers/..;/json", 404),
        ("/containers/there/json/", 404),
        ("/containers/%ff%fe/json", 400),
        ("/containers/there%00/json", 404),
    ] {
        let answer = ask(&host, "GET", path);
        assert!(
            answer.status == status && !answer.message().is_empty(),
            "{path}: {} {}",
            answer.status,
            answer.message()
        );
    }
    assert_eq!(ask(&host, "GET", "/containers/%74here/json").status, 200);
}

#[test]
fn f49_idle_connections_take_little() {
    let Some(mut host) = TestHost::start_own(Wall::Process) else { return };
    let pid = host.engine().pid();
    let before = procfs::resident_bytes(pid);
    let count = setting("BULKHEAD_E2E_CONNECTIONS", 500);
    let mut held = Vec::new();
    for number in 0..count {
        let mut connection = connect(&host);
        // Some have asked before, some have begun to ask.
        match number % 3 {
            0 => drop(connection.request("GET", "/_ping", None).unwrap()),
            1 => connection.send(b"GET /_ping HTT").unwrap(),
            _ => {}
        }
        held.push(connection);
    }
    assert_eq!(ask(&host, "GET", "/_ping").body, b"OK");
    let grown = procfs::resident_bytes(pid).saturating_sub(before);
    assert!(grown < (count as u64) * (64 << 10) + (8 << 20), "{grown} bytes for {count} connections");
    drop(held);
}

/// Clients that are attached keep their places, and are counted: those who come when all places are in use are told so.
#[test]
fn f49_attached_clients_fill_places_and_keep_them() {
    // A quarter of them is for connections.
    let options = HostOptions { descriptors: Some(320), ..HostOptions::default() };
    let Some(host) = TestHost::start_own_with(Wall::Process, &options) else { return };
    let id = host.run_detached(&["-i"], &["cat"]);
    let attach = || {
        let mut connection = connect(&host);
        let answer = connection.upgrade(&format!("/containers/{id}/attach?stream=1&stdin=1&stdout=1"), b"").unwrap();
        assert_eq!(answer.status, 101, "{}", answer.message());
        connection
    };
    // Those who are gone hold nothing, though there is nothing to be sent to them: soon others are answered.
    for (method, path) in [
        ("GET", "/events".to_owned()),
        ("POST", format!("/containers/{id}/wait")),
        ("GET", format!("/containers/{id}/logs?follow=1&stdout=1")),
        ("POST", format!("/containers/{id}/attach?stream=1&stdin=1&stdout=1")),
    ] {
        let mut request = head(method, &path, "", None);
        request.splice(request.len() - 2.., *b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n");
        let begun = || matches!(connect(&host).exchange(&request, true), Ok(answer) if answer.status < 300);
        assert!((0..100).all(|_| eventually(Duration::from_secs(10), begun)), "{path}");
    }
    let mut attached: Vec<ApiConnection> = (0..40).map(|_| attach()).collect();
    // Those who say nothing make room for one another.
    let silent: Vec<ApiConnection> = (0..200).map(|_| connect(&host)).collect();
    assert_eq!(ask(&host, "GET", "/_ping").body, b"OK");
    attached.extend((0..40).map(|_| attach()));
    let refused = ask(&host, "GET", "/_ping");
    assert_eq!((refused.status, refused.message().as_str()), (503, "too many connections are in use: try again later"));
    assert_eq!(refused.header("connection"), Some("close"));
    assert!(!host.logged("too many connections are in use").is_empty());
    // Nobody who is attached has lost anything.
    attached[0].send(b"all\n").unwrap();
    for connection in &mut attached {
        assert_eq!(connection.read_for(12).unwrap(), framed_line("all\n"));
    }
    drop((attached, silent));
    assert!(eventually(Duration::from_secs(10), || ask(&host, "GET", "/_ping").status == 200));
}

/// A line of standard output, with its header.
fn framed_line(line: &str) -> Vec<u8> {
    let length = u8::try_from(line.len()).unwrap();
    [&[1, 0, 0, 0, 0, 0, 0, length], line.as_bytes()].concat()
}

behind_both_walls! {
    fn f50_clients_that_never_read_and_resize_without_end(host) {
        // An emulated terminal is slow.
        let bytes = if host.wall() == Wall::Process { 40_000_000 } else { 8_000_000 };
        let script = format!("read go; yes $(printf %0999d 0) | head -c {bytes}; echo end; sleep 1000");
        let id = host.run_detached(&["-ti"], &["sh", "-c", &script]);
        let pid = host.engine().pid();
        let before = procfs::resident_bytes(pid);
        let upgrade = |path: &str, body: &str| {
            let mut connection = connect(host);
            assert_eq!(connection.upgrade(path, body.as_bytes()).unwrap().status, 101, "{path}");
            connection
        };
        let mut deaf = upgrade(&format!("/containers/{id}/attach?stream=1&stdin=1&stdout=1"), "");
        let exec = json!({ "Cmd": ["head", "-c", bytes.to_string(), "/dev/zero"], "AttachStdout": true });
        let exec = post(host, &format!("/containers/{id}/exec"), &exec).json()["Id"].as_str().unwrap().to_owned();
        let deaf_exec = upgrade(&format!("/exec/{exec}/start"), "{}");
        deaf.send(b"go\n").unwrap();
        let mut connection = connect(host);
        for number in 0..2000 {
            let path = format!("/containers/{id}/resize?h={}&w={}", 10 + number % 50, number * 33 % 200);
            let answer = connection.request("POST", &path, None).unwrap();
            assert!(matches!(answer.status, 200 | 400), "{number}: {}", answer.message());
        }
        std::thread::sleep(Duration::from_secs(1));
        let grown = procfs::peak_bytes(pid).saturating_sub(before);
        assert!(grown < 24 << 20, "the engine grew by {grown} bytes");
        drop((deaf, deaf_exec));
        // Once they are gone the container goes on.
        assert!(eventually(Duration::from_secs(30), || host.docker(&["logs", "--tail", "1", &id]).text().contains("end")));
    }

    fn f53_who_follows_a_removed_container_is_let_go(host) {
        let id = host.run_detached(&[], &["sh", "-c", "echo begun; sleep 1000"]);
        let mut follower = connect(host);
        follower.send(&head("GET", &format!("/containers/{id}/logs?follow=1&stdout=1"), "", None)).unwrap();
        assert!(!follower.answer(false).unwrap().complete);
        let mut events = connect(host);
        events.send(&head("GET", "/events", "", None)).unwrap();
        host.docker(&["rm", "-f", &id]).ok();
        // The end of the stream: a last chunk, or the end of the connection.
        let mut waiting = follower;
        let ended = eventually(Duration::from_secs(20), || {
            waiting.set_patience(Duration::from_millis(200)).unwrap();
            let error = waiting.answer(false).err().map(|error| error.kind());
            !matches!(error, Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
        });
        assert!(ended, "the follower is still held");
        // Nobody has read the events so far; they are there.
        let told = events.answer(false).unwrap();
        assert!(String::from_utf8_lossy(&told.body).contains("\"destroy\""));
    }

    fn f55_races_have_one_winner_and_typed_losers(host) {
        for round in 0..4 {
            let id = create(host, &json!({ "Cmd": ["sleep", "1000"] })).json()["Id"].as_str().unwrap().to_owned();
            let requests = [
                ("POST", format!("/containers/{id}/start")),
                ("POST", format!("/containers/{id}/start")),
                ("POST", format!("/containers/{id}/rename?name=winner{round}")),
                ("POST", format!("/containers/{id}/rename?name=winner{round}")),
                ("DELETE", format!("/containers/{id}?force={}", round % 2)),
                ("POST", format!("/containers/{id}/update")),
            ];
            let host = &*host;
            let statuses: Vec<u16> = std::thread::scope(|scope| {
                let running: Vec<_> = requests
                    .iter()
                    .map(|(method, path)| scope.spawn(move || {
                        let body = path.ends_with("/update").then_some(&br#"{"PidsLimit":100}"#[..]);
                        let answer = connect(host).request(method, path, body).unwrap();
                        assert!(answer.status < 500, "{method} {path}: {} {}", answer.status, answer.message());
                        answer.status
                    }))
                    .collect();
                running.into_iter().map(|one| one.join().unwrap()).collect()
            });
            assert!(statuses[..2].iter().filter(|status| **status == 204).count() <= 1, "{statuses:?}");
            assert!(statuses[2..4].iter().filter(|status| **status == 204).count() <= 1, "{statuses:?}");
            // Another may have removed it.
            drop(host.docker(&["rm", "-f", &id]));
            // Whoever won, the name is free again.
            let again = create(host, &json!({})).json()["Id"].as_str().unwrap().to_owned();
            let renamed = ask(host, "POST", &format!("/containers/{again}/rename?name=winner{round}"));
            assert_eq!(renamed.status, 204, "{}", renamed.message());
            host.docker(&["rm", &again]).ok();
        }
        let made: Vec<u16> = std::thread::scope(|scope| {
            let host = &*host;
            let body = br#"{"Image":"box","Cmd":["true"]}"#;
            let one = move || connect(host).request("POST", "/containers/create?name=one", Some(body)).unwrap().status;
            let running: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
            running.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!((made.iter().filter(|s| **s == 201).count(), made.iter().filter(|s| **s == 409).count()), (1, 7));
    }

    fn f56_execs_go_nowhere_else(host) {
        let id = host.run_detached(&["--user", "1000"], &["sleep", "1000"]);
        let run = |options: &[&str]| host.docker(&[&["exec"], options, &[&*id, "id", "-u"]].concat());
        // CVE-2024-21626: a folder of the host that the runtime left open would be the way out.
        let canary = host.folder().join("canary");
        std::fs::write(&canary, "secret").unwrap();
        let way_out = format!("../../../../../../../..{}", canary.display());
        for folder in ["/proc/self/fd/3", "/proc/self/fd/7", "/proc/self/fd/8", "/proc/1/root", "/nosuch"] {
            let said = host.docker(&["exec", "-w", folder, &id, "cat", &way_out]);
            assert!(said.code != 0 && !said.text().contains("secret"), "{folder}: {said}");
        }
        for user in ["2147483648", "-1", "nosuch", "0:nosuch", "99999999999999999999"] {
            assert_ne!(run(&["-u", user]).code, 0, "{user}");
        }
        assert_eq!(run(&[]).ok(), "1000");
        assert_eq!(run(&["-u", "2147483647"]).ok(), "2147483647");
    }

    fn f57_many_streams_of_figures(host) {
        let id = host.run_detached(&[], &["sleep", "1000"]);
        let pid = host.engine().pid();
        let before = procfs::resident_bytes(pid);
        let mut streams = Vec::new();
        for _ in 0..setting("BULKHEAD_E2E_STREAMS", 100) {
            let mut connection = connect(host);
            connection.send(&head("GET", &format!("/containers/{id}/stats"), "", None)).unwrap();
            streams.push(connection);
        }
        for connection in &mut streams {
            assert_eq!(connection.answer(true).unwrap().status, 200);
        }
        let grown = procfs::peak_bytes(pid).saturating_sub(before);
        assert!(grown < 64 << 20, "the engine grew by {grown} bytes");
        drop(streams);
        host.docker(&["rm", "-f", &id]).ok();
    }

    /// That one check is ended by its timeout is in `health`.
    fn f57_many_checks_that_never_end(host) {
        let default = if host.wall() == Wall::Process { 10 } else { 3 };
        let count = setting("BULKHEAD_E2E_CHECKS", default);
        let flags = ["--health-cmd", "yes", "--health-interval", "10ms", "--health-timeout", "2s"];
        let ids: Vec<String> = (0..count).map(|_| host.run_detached(&flags, &["sleep", "1000"])).collect();
        let pid = host.engine().pid();
        let before = procfs::resident_bytes(pid);
        let failed = |id: &String| host.inspect(id)["State"]["Health"]["FailingStreak"].as_u64() >= Some(1);
        // While all of them write without end, the engine answers.
        let mut slowest = Duration::ZERO;
        let all_failed = eventually(Duration::from_secs(120), || {
            let asked = std::time::Instant::now();
            assert_eq!(ask(host, "GET", "/containers/json").json().as_array().map(Vec::len), Some(count));
            slowest = slowest.max(asked.elapsed());
            ids.iter().all(failed)
        });
        assert!(all_failed && slowest < Duration::from_secs(5), "{all_failed}, {slowest:?}");
        for id in &ids {
            let seen = host.inspect(id);
            let last = &seen["State"]["Health"]["Log"][0]["Output"];
            assert!(last.as_str().is_some_and(|text| text.len() < 5000), "{} bytes", last.to_string().len());
            assert!(seen["ExecIDs"].as_array().is_none_or(|ids| ids.len() <= 1), "{}", seen["ExecIDs"]);
        }
        let grown = procfs::peak_bytes(pid).saturating_sub(before);
        assert!(grown < (16 << 20) + (count as u64) * (1 << 20), "the engine grew by {grown} bytes");
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        assert_eq!(host.docker(&[&["rm", "-f"], &ids[..]].concat()).code, 0);
    }

    fn f64_devices_are_those_of_the_host_or_refused(host) {
        let link = host.folder().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let link = format!("{}:/dev/mine", link.display());
        for device in ["/dev/null:/dev/mine", &link, "/dev/nosuch", "/etc/passwd"] {
            let said = host.run(&["--device", device], &["sh", "-c", "test -c /dev/mine && echo there"]);
            let good = host.wall() == Wall::Process && device.contains("mine");
            assert_eq!((said.code == 0, said.text().contains("there")), (good, good), "{device}: {said}");
        }
        assert_eq!(host.docker(&["ps", "-aq"]).ok(), "", "a refused container was left");
    }
}

#[test]
fn f67_a_privileged_guest_is_privileged_in_its_guest_only() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let canary = host.folder().join("canary");
    std::fs::write(&canary, "host").unwrap();
    let disks = "cat /proc/partitions | wc -l; ls /dev | tr '\\n' ' '; cat /proc/cmdline";
    let inside = host.run(&["--privileged"], &["sh", "-c", disks]).ok();
    // What the guest has is its own layers and scratch; no disk of the host is among them.
    for name in std::fs::read_dir("/sys/block").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok())
    {
        if !name.starts_with("vd") && !name.starts_with("loop") && !name.starts_with("ram") {
            assert!(!inside.split_whitespace().any(|word| word == name), "{name} is inside: {inside}");
        }
    }
    let look = format!("for f in /proc/*/root{0} {0}; do cat $f; done 2>/dev/null; echo looked", canary.display());
    assert_eq!(host.run(&["--privileged"], &["sh", "-c", &look]).text().lines().next_back(), Some("looked"));
    let written = host
        .run(&["--privileged"], &["sh", "-c", "echo 1 > /proc/sys/kernel/panic_on_oops; cat /proc/sys/kernel/ostype"]);
    assert_eq!(written.ok(), "Linux");
}
