//! What the engine says about itself and the host (M14), and how it speaks with clients of other versions.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use bulkhead_e2e::{TestHost, Wall};

#[test]
fn version_and_info_are_understood_by_the_client() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let version = host.docker(&["version", "--format", "{{.Server.APIVersion}} {{.Server.Os}} {{.Server.Arch}}"]).ok();
    assert!(version.ends_with(" linux amd64"), "{version}");
    let info = host.docker(&["info", "--format", "{{.OSType}} {{.Containers}} {{.Images}} {{.NCPU}}"]).ok();
    assert!(info.starts_with("linux 0 1 "), "{info}");
    let said = host.docker(&["info"]);
    assert_eq!(said.code, 0, "{said}");
}

#[test]
fn the_host_says_whether_it_has_what_is_needed() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let info = host.bulkhead(&["info"]).ok().to_lowercase();
    for word in ["isolation", "process", "hyperv", "accelerator", "boundary", "kernel"] {
        assert!(info.contains(word), "no {word}: {info}");
    }
    let doctor = host.bulkhead(&["doctor"]);
    assert_eq!(doctor.code, 0, "everything is there, since hyperv works here: {doctor}");
}

#[test]
fn info_names_the_hosts_cgroups_and_accelerator() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let version = host.docker(&["info", "--format", "{{.CgroupVersion}}"]).ok();
    assert_eq!(version, if unified { "2" } else { "1" });
    let labels = host.docker(&["info", "--format", "{{.Labels}}"]).ok();
    let accelerator = |name: &str| labels.contains(&format!("dev.bulkhead.hyperv.accelerator={name} "));
    // Where it is known what the machine has, such as in the lab.
    match std::env::var("BULKHEAD_TEST_ACCELERATOR") {
        Ok(expected) => assert!(accelerator(&expected), "{labels}"),
        Err(_) => assert!(accelerator("kvm") || accelerator("tcg"), "{labels}"),
    }
    // KVM means our own VMM, unless QEMU was asked for; emulation is QEMU's.
    let asked = std::env::var("BULKHEAD_TEST_BACKEND").unwrap_or_default();
    let own = accelerator("kvm") && !asked.starts_with("qemu");
    let hypervisor = if own { "bulkhead-vmm " } else { "qemu " };
    assert!(labels.contains(&format!("dev.bulkhead.hyperv.hypervisor={hypervisor}")), "{labels}");
    let said = [host.bulkhead(&["info"]).ok(), host.bulkhead(&["doctor"]).text()];
    assert!(said.iter().all(|said| said.contains(hypervisor)), "{said:?}");
}

fn request(host: &TestHost, head: &str) -> String {
    let mut stream = UnixStream::connect(host.socket()).unwrap();
    write!(stream, "{head}\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn versions_are_negotiated() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let ping = request(&host, "HEAD /_ping HTTP/1.1");
    let header = |name: &str| ping.lines().find(|line| line.to_lowercase().starts_with(name)).map(str::to_owned);
    assert!(ping.starts_with("HTTP/1.1 200"), "{ping}");
    assert!(header("api-version:").is_some() && header("ostype: linux").is_some(), "{ping}");
    for path in ["/v1.24/containers/json", "/v1.41/containers/json", "/containers/json"] {
        assert!(request(&host, &format!("GET {path} HTTP/1.1")).starts_with("HTTP/1.1 200"), "{path}");
    }
    let new = request(&host, "GET /v9.99/containers/json HTTP/1.1");
    assert!(new.starts_with("HTTP/1.1 400") && new.contains("is too new"), "{new}");
    let unknown = request(&host, "GET /v1.41/no/such/page HTTP/1.1");
    assert!(unknown.starts_with("HTTP/1.1 404") && unknown.contains("\"message\""), "{unknown}");
}

#[test]
fn what_is_planned_answers_not_implemented() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    for head in ["POST /v1.41/session HTTP/1.1", "GET /v1.41/containers/x/checkpoints HTTP/1.1"] {
        let answer = request(&host, head);
        let code = answer.split(' ').nth(1).unwrap_or_default();
        assert!(code == "501", "{head}: {answer}");
        assert!(answer.contains("\"message\""), "{head}: {answer}");
    }
}

#[test]
fn a_broken_request_breaks_only_itself() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    for bytes in [
        &b"GET / HTTP/9.9\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST /v1.41/containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\n{bad}",
        &[b'A'; 100_000],
    ] {
        let mut stream = UnixStream::connect(host.socket()).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 500"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(host.run(&[], &["echo", "fine"]).ok(), "fine");
}
