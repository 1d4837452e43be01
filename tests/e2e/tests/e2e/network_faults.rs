//! Networks when the host has no more to give, or somebody takes away what they are made of.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Duration;

use bulkhead_e2e::{HostOptions, Said, TestHost, Wall, eventually};

fn start(wall: Wall) -> Option<TestHost> {
    let flags = vec!["--standby-networks=0".to_owned()];
    TestHost::start_own_with(wall, &HostOptions { own_network: true, flags, ..HostOptions::default() })
}

fn run(host: &TestHost, options: &[&str]) -> Said {
    let isolation = format!("--isolation={}", host.wall().word());
    host.docker(&[&["run", "-d", &isolation], options, &["box", "sleep", "1000"]].concat())
}

/// Changes on the host by ip(8), one a line.
fn ip(host: &TestHost, lines: &str) {
    let mut child = host.on_host("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Veths of the host, and namespaces of containers.
fn made(host: &TestHost) -> (usize, usize) {
    let links = host.on_host("ip").args(["-o", "link", "show", "type", "veth"]).output().unwrap();
    let namespaces = std::fs::read_dir(host.folder().join("run/n")).map_or(0, Iterator::count);
    (String::from_utf8_lossy(&links.stdout).lines().count(), namespaces)
}

fn fails(host: &TestHost, options: &[&str], text: &str) {
    let before = made(host);
    let said = run(host, &[options, &["--name=refused"]].concat());
    assert!(said.code == 125 && said.err.contains(text), "{said}");
    assert!(eventually(Duration::from_secs(5), || made(host) == before), "{:?}, {before:?}", made(host));
    host.docker(&["rm", "refused"]).ok();
}

#[test]
fn addresses_and_subnets_come_to_an_end() {
    let Some(host) = start(Wall::Process) else { return };
    let id = host.docker(&["network", "create", "--subnet=10.79.0.0/30", "tiny"]).ok();
    run(&host, &["--network=tiny"]).ok();
    let text = format!("no available IPv4 addresses on this network's address pools: tiny ({id})");
    fails(&host, &["--network=tiny"], &text);
    // The host routes one half of what networks without a subnet get, then all of it.
    ip(&host, "link add d0 type bridge\nlink set d0 up\nroute add 172.16.0.0/12 dev d0\n");
    host.docker(&["network", "create", "beside"]).ok();
    let subnet = host.docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "beside"]).ok();
    assert!(subnet.starts_with("192.168."), "{subnet}");
    ip(&host, "route add 192.168.0.0/16 dev d0\n");
    let said = host.docker(&["network", "create", "nowhere"]);
    assert!(said.err.contains("could not find an available, non-overlapping IPv4 address pool"), "{said}");
}

#[test]
fn a_bridge_has_ports_for_a_thousand_containers_and_says_so() {
    let Some(host) = start(Wall::Process) else { return };
    host.docker(&["network", "create", "--subnet=10.80.0.0/16", "-o", "com.docker.network.bridge.name=full0", "full"])
        .ok();
    // The kernel numbers ports from 1 to 1023.
    let mut lines = String::new();
    for number in 0..512 {
        writeln!(lines, "link add p{number} type veth peer name q{number}\nlink set p{number} master full0").unwrap();
        if number < 511 {
            writeln!(lines, "link set q{number} master full0").unwrap();
        }
    }
    ip(&host, &lines);
    fails(&host, &["--network=full"], "make the link");
    ip(&host, "link set p0 nomaster\n");
    run(&host, &["--network=full"]).ok();
}

behind_both_walls! { own:
    fn a_namespace_that_somebody_unmounts_hurts_nobody(host) {
        let isolation = format!("--isolation={}", host.wall().word());
        host.docker(&["network", "create", "other"]).ok();
        let id = host.docker(&["run", "-d", &isolation, "--name=hurt", "box", "sleep", "1000"]).ok();
        let file = host.folder().join("run/n").join(&id[..12]);
        let file = file.to_str().unwrap();
        let unmounted = std::process::Command::new("umount").arg(file).status().unwrap();
        assert!(unmounted.success());
        // It runs on, and is told what cannot be changed any more.
        assert_eq!(host.docker(&["exec", "hurt", "echo", "alive"]).ok(), "alive");
        let said = host.docker(&["network", "connect", "other", "hurt"]);
        assert_ne!(said.code, 0, "{said}");
        assert_eq!(host.docker(&["exec", "hurt", "echo", "alive"]).ok(), "alive");
        host.docker(&["restart", "-t", "0", "hurt"]).ok();
        host.docker(&["network", "connect", "other", "hurt"]).ok();
        host.docker(&["rm", "-f", "hurt"]).ok();
        host.docker(&["network", "rm", "other"]).ok();
    }

    fn a_network_without_ipv6_gives_none_and_one_with_it_does(host) {
        let isolation = format!("--isolation={}", host.wall().word());
        host.docker(&["network", "create", "four"]).ok();
        host.docker(&["network", "create", "--ipv6", "--subnet=fd00:79::/64", "both"]).ok();
        let addresses = |network: &str| {
            let network = format!("--network={network}");
            host.docker(&["run", "--rm", &isolation, &network, "box", "cat", "/proc/net/if_inet6"]).ok()
        };
        // Not even an address of the link's own: GHSA-x84c-p2g9-rqv9.
        for network in ["bridge", "four"] {
            let found = addresses(network);
            assert!(!found.contains("eth0"), "{network}: {found}");
        }
        let found = addresses("both");
        assert!(found.lines().any(|line| line.starts_with("fd000079") && line.ends_with("eth0")), "{found}");
    }
}

#[test]
fn f127_rules_that_somebody_flushes_come_back_process() {
    f127_rules_that_somebody_flushes_come_back(Wall::Process);
}

#[test]
fn f127_rules_that_somebody_flushes_come_back_hyperv() {
    f127_rules_that_somebody_flushes_come_back(Wall::Hyperv);
}

fn f127_rules_that_somebody_flushes_come_back(wall: Wall) {
    let Some(host) = start(wall) else { return };
    let isolation = format!("--isolation={}", host.wall().word());
    let echo = ["nc", "-ll", "-p", "7", "-e", "cat"];
    host.docker(&[&["run", "-d", &isolation, "-p=7127:7", "--name=flushed", "box"], &echo[..]].concat()).ok();
    let script = "echo hello | busybox timeout 2 busybox nc 127.0.0.1 7127";
    let reached = || host.on_host("sh").args(["-c", script]).output().unwrap().stdout == b"hello\n";
    let ruleset = || {
        let output = host.on_host("nft").args(["list", "ruleset"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(eventually(Duration::from_secs(5), reached), "{}", host.log());
    let before = ruleset();
    for _ in 0..2 {
        assert!(host.on_host("nft").args(["flush", "ruleset"]).status().unwrap().success());
        assert!(eventually(Duration::from_secs(5), || ruleset() == before), "{}\n{before}", ruleset());
        assert!(reached(), "{}", host.log());
    }
    host.docker(&["rm", "-f", "flushed"]).ok();
}

#[test]
fn a_bridge_that_somebody_deletes_comes_back_process() {
    a_bridge_that_somebody_deletes_comes_back(Wall::Process);
}

#[test]
fn a_bridge_that_somebody_deletes_comes_back_hyperv() {
    a_bridge_that_somebody_deletes_comes_back(Wall::Hyperv);
}

fn a_bridge_that_somebody_deletes_comes_back(wall: Wall) {
    let Some(host) = start(wall) else { return };
    let gateway = "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'";
    let reaches = |name: &str| {
        let said = host.docker(&["exec", name, "sh", "-c", &format!("ping -c 1 -W 2 $({gateway})")]);
        said.code == 0
    };
    let isolation = format!("--isolation={}", host.wall().word());
    let options = ["-o", "com.docker.network.bridge.name=lost0", "-o", "com.docker.network.bridge.enable_icc=false"];
    host.docker(&[&["network", "create"], &options[..], &["lost"]].concat()).ok();
    let run = |name: &str| {
        host.docker(&["run", "-d", &isolation, "--network=lost", "--name", name, "box", "sleep", "1000"]).ok();
    };
    run("first");
    assert!(reaches("first"));
    for _ in 0..2 {
        ip(&host, "link delete lost0\n");
        assert!(eventually(Duration::from_secs(10), || reaches("first")), "{}", host.log());
    }
    // A start does not wait until that was noticed.
    ip(&host, "link delete lost0\n");
    run("second");
    assert!(eventually(Duration::from_secs(10), || reaches("first") && reaches("second")), "{}", host.log());
    let ports = host.on_host("bridge").args(["-d", "link", "show"]).output().unwrap();
    let ports = String::from_utf8_lossy(&ports.stdout).into_owned();
    assert_eq!(ports.matches("isolated on").count(), 2, "{ports}");
    host.docker(&["rm", "-f", "first", "second"]).ok();
    host.docker(&["network", "rm", "lost"]).ok();
}
