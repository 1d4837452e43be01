//! What clients other than the docker CLI do: without taking the connection, by web sockets, in other spellings.

use std::time::Duration;

use bulkhead_e2e::TestHost;
use bulkhead_e2e::api::ApiConnection;

fn connection(host: &TestHost) -> ApiConnection {
    ApiConnection::open(host.socket()).unwrap()
}

fn create_exec(host: &TestHost, container: &str, body: &str) -> String {
    let path = format!("/v1.41/containers/{container}/exec");
    let answer = connection(host).request("POST", &path, Some(body.as_bytes())).unwrap();
    assert_eq!(answer.status, 201, "{}", answer.message());
    answer.json()["Id"].as_str().unwrap().to_owned()
}

/// A chunk with its header: of the standard output.
fn framed(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&[1, 0, 0, 0], &length[..], text.as_bytes()].concat()
}

/// A binary message as a client sends it, masked with zeros.
fn message(bytes: &[u8]) -> Vec<u8> {
    let length = 0x80 | u8::try_from(bytes.len()).unwrap();
    [&[0x82, length, 0, 0, 0, 0], bytes].concat()
}

behind_both_walls! {
    fn streams_come_without_an_upgrade(host) {
        let id = host.run_detached(&[], &["sh", "-c", "echo first; exec sleep 1000"]);
        host.wait_log(&id, "first");
        let body = r#"{"Cmd":["sh","-c","cat; echo out"],"AttachStdin":true,"AttachStdout":true}"#;
        let exec = create_exec(host, &id, body);
        let mut connection = connection(host);
        connection.set_pause(Duration::from_secs(10));
        let path = format!("/v1.44/exec/{exec}/start");
        let answer = connection.request("POST", &path, Some(br#"{"Detach":false,"Tty":false}"#)).unwrap();
        assert_eq!((answer.status, answer.complete), (200, true));
        assert_eq!(answer.header("content-type"), Some("application/vnd.docker.multiplexed-stream"));
        assert_eq!(answer.body, framed("out\n"));
        assert_eq!(host.get_json(&format!("/exec/{exec}/json"))["ExitCode"], 0);
        let path = format!("/v1.41/containers/{id}/attach?logs=1&stdout=1");
        let answer = connection.request("POST", &path, None).unwrap();
        assert_eq!((answer.status, answer.complete, answer.body), (200, true, framed("first\n")));
        assert_eq!(answer.headers.iter().find(|(name, _)| name == "content-type").unwrap().1, "application/vnd.docker.raw-stream");
    }

    fn a_web_socket_attaches_in_both_directions(host) {
        let id = host.docker(&host.words("create", &["-i"], &["sh", "-c", "read line; echo got $line; sleep 1"])).ok();
        let mut connection = connection(host);
        let request = format!(
            "GET /v1.44/containers/{id}/attach/ws?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let answer = connection.exchange(request.as_bytes(), true).unwrap();
        assert_eq!(answer.status, 101);
        // RFC 6455, section 1.3.
        assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(host.docker(&["start", &id]).code, 0);
        connection.send(&message(b"hello\n")).unwrap();
        let said = connection.read_for(b"got hello\n".len() + 2).unwrap();
        assert_eq!(said, [&[0x82, 10], &b"got hello\n"[..]].concat());
        let plain = connection_answer(host, &format!("/v1.44/containers/{id}/attach/ws"));
        assert_eq!(plain, 400);
    }

    fn keys_that_detach_may_be_spelled_in_small_letters(host) {
        let id = host.run_detached(&[], &["sleep", "1000"]);
        let exec = create_exec(host, &id, r#"{"cmd":["cat"],"AttachStdin":true,"AttachStdout":true,"Tty":true,"detachKeys":"ctrl-p"}"#);
        let mut connection = connection(host);
        let path = format!("/v1.41/exec/{exec}/start");
        assert_eq!(connection.upgrade(&path, br#"{"Tty":true}"#).unwrap().status, 101);
        connection.send(b"x\x10").unwrap();
        let path = format!("/exec/{exec}/json");
        assert!(connection.read_for(64).is_err(), "the client was not detached");
        assert_eq!(host.get_json(&path)["Running"], true);
    }

    fn processes_are_shown_in_other_columns(host) {
        let id = host.run_detached(&[], &["sleep", "1000"]);
        let shown = host.docker(&["top", &id, "-o", "pid,ppid,args"]).ok();
        assert!(shown.starts_with("PID ") && shown.lines().nth(1).unwrap().ends_with("sleep 1000"), "{shown}");
        host.docker(&["top", &id, "-o", "args"]).fails_saying(1, &["PID"]);
        let memory = host.docker(&["top", &id, "aux"]);
        match host.wall() {
            bulkhead_e2e::Wall::Process => assert!(memory.ok().contains("%MEM"), "{memory}"),
            // Not known from outside, and not made up.
            bulkhead_e2e::Wall::Hyperv => memory.fails_saying(1, &["aux", "not known of a hyperv container"]),
        }
    }
}

fn connection_answer(host: &TestHost, path: &str) -> u16 {
    connection(host).request("GET", path, None).unwrap().status
}
