//! Each step by which a container's network is made is refused once, or the engine killed before it: the start says why, nothing of
//! it is left, and the next one goes well. The steps are those of `network::failpoint`.

use std::time::Duration;

use bulkhead_e2e::{HostOptions, TestHost, Wall, eventually};

/// More than there are of any operation.
const MOST_STEPS: usize = 60;

fn start(wall: Wall) -> Option<TestHost> {
    // Nothing of the network's is made in the background, so that the steps are those of the operation.
    let flags = vec!["--standby-networks=0".to_owned()];
    let options = HostOptions { own_network: true, network_faults: true, flags, ..HostOptions::default() };
    TestHost::start_own_with(wall, &options)
}

/// Links with the bridges that they are on, firewall, and namespaces.
fn made(host: &TestHost) -> String {
    let said = |program: &str, args: &[&str]| {
        let output = host.on_host(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let links = said("ip", &["-o", "link", "show"]);
    // A bridge is up, but has no carrier while nobody is on it.
    let links: Vec<String> = links.lines().map(|line| line.split_whitespace().take(2).collect::<String>()).collect();
    let namespaces = std::fs::read_dir(host.folder().join("run/n")).map_or(0, Iterator::count);
    format!("{links:?} {namespaces} namespaces\n{}", said("nft", &["list", "ruleset"]))
}

/// Refuses one step after the other, until the operation comes to its end without; how many there were.
fn refuse_each(host: &TestHost, operate: &[&str], undo: &[&str]) -> usize {
    let before = made(host);
    let mut mended = 0;
    for number in 1..MOST_STEPS {
        host.refuse_step(&format!("fail {number}"));
        let said = host.docker(operate);
        if !host.step_was_refused() {
            said.ok();
            // What is done once more, if it fails, is a change to the firewall.
            assert!(mended <= 1, "{mended} of {number} steps were refused without a word");
            return number - 1;
        }
        if said.code == 0 {
            mended += 1;
            host.docker(undo).ok();
        } else {
            assert!(said.err.contains("a test refuses this step"), "step {number}: {said}");
        }
        // Links go in the background.
        let is_gone = || made(host) == before;
        assert!(eventually(Duration::from_secs(5), is_gone), "step {number}: {said}\n{before}\n{}", made(host));
    }
    panic!("an operation of {MOST_STEPS} steps");
}

fn networks_whose_steps_are_refused_leave_nothing(wall: Wall) {
    let Some(host) = start(wall) else { return };
    let isolation = format!("--isolation={}", wall.word());
    // The default bridge comes with the first start: bridge, mark, address, up, rules; whatever of that fails, none stays.
    let before = made(&host);
    host.docker(&["create", &isolation, "--name=early", "box", "true"]).ok();
    for number in 1..=5 {
        host.refuse_step(&format!("fail {number}"));
        let said = host.docker(&["start", "early"]);
        assert!(host.step_was_refused() && said.code != 0, "{said}");
        assert_eq!(made(&host), before, "step {number}: {said}");
    }
    host.docker(&["rm", "early"]).ok();
    let apart = ["network", "create", "-o", "com.docker.network.bridge.enable_icc=false", "--ipv6"];
    // Bridge, mark, addresses of both families, up, rules.
    let steps = refuse_each(&host, &[&apart[..], &["one"]].concat(), &["network", "rm", "one"]);
    assert!(steps >= 6, "{steps} steps");
    host.docker(&[&apart[..], &["other"]].concat()).ok();
    host.docker(&["create", &isolation, "--name=it", "--network=one", "-p=18080:80", "box", "sleep", "1000"]).ok();
    let steps = refuse_each(&host, &["start", "it"], &["stop", "-t=0", "it"]);
    // Namespace, its loopback, its file, link, isolation, addresses or a bridge, up, routes or a guard, names, port; a hyperv
    // container's tap.
    assert!(steps >= 12, "{steps} steps");
    let steps = refuse_each(&host, &["network", "connect", "other", "it"], &["network", "disconnect", "other", "it"]);
    assert!(steps >= 4, "{steps} steps");
    let pings = |network: &str| {
        let gateway = host.docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", network]).ok();
        host.docker(&["exec", "it", "ping", "-c", "1", "-W", "5", &gateway]).ok();
    };
    pings("one");
    pings("other");
    // A step back that is refused leaves the container on the network, or off it, and is done by the next one.
    for number in 1..=3 {
        host.refuse_step(&format!("fail {number}"));
        let said = host.docker(&["network", "disconnect", "other", "it"]);
        if !host.step_was_refused() {
            said.ok();
        }
        let again = host.docker(&["network", "disconnect", "-f", "other", "it"]);
        assert!(again.code == 0 || again.err.contains("is not connected"), "{again}");
        pings("one");
        host.docker(&["network", "connect", "other", "it"]).ok();
        pings("other");
    }
    // Ends, too, whatever is refused.
    for number in 1..=4 {
        host.refuse_step(&format!("fail {number}"));
        let said = host.docker(&["restart", "-t", "0", "it"]);
        assert!(said.code == 0 || said.err.contains("a test refuses this step"), "step {number}: {said}");
        host.step_was_refused();
        host.docker(&["start", "it"]).ok();
        pings("one");
    }
    host.docker(&["rm", "-f", "it"]).ok();
    host.docker(&["network", "rm", "one", "other"]).ok();
    let left = || host.on_host("ip").args(["-o", "link", "show", "type", "veth"]).output().unwrap().stdout;
    assert!(eventually(Duration::from_secs(5), || left().is_empty()), "{}", String::from_utf8_lossy(&left()));
}

#[test]
fn networks_whose_steps_are_refused_leave_nothing_process() {
    networks_whose_steps_are_refused_leave_nothing(Wall::Process);
}

#[test]
fn networks_whose_steps_are_refused_leave_nothing_hyperv() {
    networks_whose_steps_are_refused_leave_nothing(Wall::Hyperv);
}

#[test]
fn an_engine_that_dies_at_any_step_leaves_nothing_to_the_next() {
    let Some(mut host) = start(Wall::Process) else { return };
    let before = made(&host);
    host.docker(&["network", "create", "mine"]).ok();
    host.docker(&["create", "--name=it", "--network=mine", "-p=18080:80", "box", "sleep", "1000"]).ok();
    let mut steps = 0;
    for number in 1..MOST_STEPS {
        // An engine that ends with nobody on its networks takes them away: the next one makes all of it.
        host.stop_engine();
        assert_eq!(made(&host), before, "before step {number}");
        host.start_engine();
        host.refuse_step(&format!("die {number}"));
        let said = host.docker(&["start", "it"]);
        if !host.step_was_refused() {
            said.ok();
            break;
        }
        steps = number;
        host.wait_engine_died(&format!("step {number}"));
        host.start_engine();
        let (state, _) = host.state("it");
        assert!(["created", "exited"].contains(&state.as_str()), "step {number}: {state}");
        assert!(eventually(Duration::from_secs(5), || made(&host) == before), "step {number}: {}", made(&host));
    }
    assert!((14..MOST_STEPS - 1).contains(&steps), "{steps} steps");
}
