//! Networks that wait for a start, and links that go after an end.

use std::collections::BTreeSet;
use std::time::Duration;

use bulkhead_e2e::{HostOptions, TestHost, Wall, eventually};

/// The host's ends of all links, waiting and in use.
fn links(host: &TestHost) -> BTreeSet<String> {
    let output = host.on_host("ip").args(["-o", "link", "show", "type", "veth"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.split(' ').nth(1)?.split('@').next().map(str::to_owned)).collect()
}

/// What waits is linked a moment before it can be taken.
fn wait_ready(host: &TestHost, count: usize, why: &str) -> BTreeSet<String> {
    let links = wait_links(host, count, why);
    std::thread::sleep(Duration::from_secs(1));
    links
}

fn wait_links(host: &TestHost, count: usize, why: &str) -> BTreeSet<String> {
    let mut links = BTreeSet::new();
    eventually(Duration::from_secs(10), || {
        links = self::links(host);
        links.len() == count
    });
    assert_eq!(links.len(), count, "{why}: {links:?}; the engine's log:\n{}", host.log());
    links
}

fn run(host: &TestHost, options: &[&str]) {
    let isolation = format!("--isolation={}", host.wall().word());
    host.docker(&[&["run", "-d", &isolation], options, &["box", "sleep", "1000"]].concat()).ok();
}

fn start(wall: Wall, flags: &[&str]) -> Option<TestHost> {
    let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
    TestHost::start_own_with(wall, &HostOptions { own_network: true, flags, ..HostOptions::default() })
}

fn a_start_takes_what_waits(wall: Wall) {
    let Some(mut host) = start(wall, &[]) else { return };
    assert!(links(&host).is_empty(), "nothing waits before there is any container");
    run(&host, &["--name=first"]);
    let before = wait_ready(&host, 3, "one in use, two waiting");
    run(&host, &["--name=second"]);
    let during = wait_links(&host, 4, "two in use, two waiting");
    assert!(during.is_superset(&before));
    host.docker(&["rm", "-f", "second"]).ok();
    let after = wait_links(&host, 3, "the second's is gone");
    assert_eq!(before.difference(&after).count(), 1, "its link was one that had waited: {before:?}, {after:?}");
    let gateway = "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'";
    host.docker(&["exec", "first", "sh", "-c", &format!("ping -c 1 -W 5 $({gateway})")]).ok();
    // Others find what waited cut off from the bridge.
    for link in &after {
        let cut = host.on_host("ip").args(["link", "set", link, "nomaster"]).status().unwrap();
        assert!(cut.success());
    }
    run(&host, &["--name=third"]);
    host.docker(&["exec", "third", "sh", "-c", &format!("ping -c 1 -W 5 $({gateway})")]).ok();
    host.docker(&["rm", "-f", "first", "third"]).ok();
    wait_links(&host, 2, "two wait for more");
    host.engine().kill();
    wait_links(&host, 0, "what waited goes with an engine that is killed");
    host.start_engine();
    run(&host, &["--name=fourth"]);
    wait_links(&host, 3, "and is made again");
    host.docker(&["rm", "-f", "fourth"]).ok();
    host.stop_engine();
    wait_links(&host, 0, "and goes with an engine that ends");
    host.start_engine();
}

#[test]
fn a_start_takes_what_waits_process() {
    a_start_takes_what_waits(Wall::Process);
}

#[test]
fn a_start_takes_what_waits_hyperv() {
    a_start_takes_what_waits(Wall::Hyperv);
}

#[test]
fn a_network_with_names_has_those_that_know_them() {
    let Some(host) = start(Wall::Process, &["--standby-networks=1"]) else { return };
    host.docker(&["network", "create", "shop"]).ok();
    run(&host, &["--name=first", "--network=shop"]);
    let before = wait_ready(&host, 2, "one in use, one waiting");
    run(&host, &["--name=second", "--network=shop"]);
    wait_links(&host, 3, "two in use, one waiting");
    for (asks, other) in [("first", "second"), ("second", "first")] {
        host.docker(&["exec", asks, "nslookup", other]).ok();
        host.docker(&["exec", asks, "ping", "-c", "1", "-W", "5", other]).ok();
    }
    host.docker(&["rm", "-f", "first", "second"]).ok();
    let waiting = wait_links(&host, 1, "one waits for more");
    assert!(waiting.is_disjoint(&before), "{waiting:?}, {before:?}");
    host.docker(&["network", "rm", "shop"]).ok();
    wait_links(&host, 0, "what waited goes with its network");
    // Two networks have some, and a third takes them from the first.
    for name in ["one", "two", "three"] {
        host.docker(&["network", "create", name]).ok();
        run(&host, &["--rm", "--name", name, "--network", name]);
        eventually(Duration::from_secs(5), || links(&host).len() >= 2);
        host.docker(&["kill", name]).ok();
    }
    wait_links(&host, 2, "one each for two networks");
}

#[test]
fn what_an_ended_container_had_is_free_for_the_next() {
    let Some(host) = start(Wall::Process, &["--standby-networks=0"]) else { return };
    host.docker(&["network", "create", "--subnet=10.77.0.0/30", "tiny"]).ok();
    for round in 0..6 {
        // The only address of its network, and a port: both were another's a moment ago.
        run(&host, &["--name=one", "--network=tiny", "--ip=10.77.0.2", "-p", "127.0.0.1:18080:80"]);
        assert_eq!(links(&host).len(), 1, "round {round}: none waits");
        if round % 2 == 0 {
            host.docker(&["restart", "-t", "0", "one"]).ok();
        }
        host.docker(&["rm", "-f", "one"]).ok();
    }
    run(&host, &["--name=any", "--network=tiny"]);
    host.docker(&["rm", "-f", "any"]).ok();
    host.docker(&["network", "rm", "tiny"]).ok();
    wait_links(&host, 0, "nothing is left");
}

#[test]
fn a_utility_vm_stands_by_on_the_network_of_the_last_one() {
    let Some(mut host) = start(Wall::Hyperv, &["--standby-networks=0", "--standby-vms=1"]) else { return };
    let stands_by = |host: &TestHost| {
        let word = || host.get_json("/info")["Bulkhead"]["Standby"].as_str().unwrap_or_default().to_owned();
        assert!(eventually(Duration::from_secs(60), || word() == "ready"), "{}", host.log());
    };
    let gateway = "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'";
    let reaches = |host: &TestHost, name: &str| {
        host.docker(&["exec", name, "sh", "-c", &format!("ping -c 1 -W 5 $({gateway})")]).ok();
    };
    host.docker(&["network", "create", "shop"]).ok();
    run(&host, &["--name=first", "--network=shop"]);
    stands_by(&host);
    let before = wait_links(&host, 2, "one in use, one of the VM that stands by");
    run(&host, &["--name=second", "--network=shop"]);
    let mac = host.inspect("second")["NetworkSettings"]["Networks"]["shop"]["MacAddress"].clone();
    let said = host.docker(&["exec", "second", "cat", "/sys/class/net/eth0/address"]).ok();
    assert_eq!(Some(said.as_str()), mac.as_str());
    reaches(&host, "second");
    host.docker(&["exec", "second", "ping", "-c", "1", "-W", "5", "first"]).ok();
    stands_by(&host);
    let during = wait_links(&host, 3, "two in use, one of the next");
    assert!(during.is_superset(&before), "{before:?}, {during:?}");
    // Another network, with the first one beside it, and none at all: what waited is not used, and goes.
    run(&host, &["--name=third"]);
    reaches(&host, "third");
    assert!(eventually(Duration::from_secs(10), || !links(&host).is_superset(&during)), "{during:?}");
    host.docker(&["network", "connect", "shop", "third"]).ok();
    host.docker(&["exec", "third", "ping", "-c", "1", "-W", "5", "first"]).ok();
    stands_by(&host);
    wait_links(&host, 5, "three in use on four networks, one of the next");
    run(&host, &["--name=fourth", "--network=none"]);
    assert_eq!(host.docker(&["exec", "fourth", "ls", "/sys/class/net"]).ok(), "lo");
    wait_links(&host, 4, "the fourth has none");
    stands_by(&host);
    wait_links(&host, 4, "nor is the next one linked");
    host.docker(&["rm", "-f", "third", "fourth"]).ok();
    // A network that goes takes the link of the VM along.
    run(&host, &["--name=third", "--network=shop"]);
    stands_by(&host);
    wait_links(&host, 4, "three in use, one of the next");
    host.docker(&["rm", "-f", "first", "second", "third"]).ok();
    wait_links(&host, 1, "one of the VM that stands by");
    host.docker(&["network", "rm", "shop"]).ok();
    wait_links(&host, 0, "gone with its network");
    run(&host, &["--name=fifth"]);
    reaches(&host, "fifth");
    host.docker(&["rm", "-f", "fifth"]).ok();
    host.engine().kill();
    wait_links(&host, 0, "the VM goes with an engine that is killed");
    host.start_engine();
}
