//! Networks: who reaches whom, by address and by name, through which ports, and what is left of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bulkhead_e2e::api::ApiConnection;
use bulkhead_e2e::{Said, TestHost, Wall, eventually};

/// A container that serves its host name by HTTP on port 80.
pub(crate) const SERVER: &[&str] = &["httpd", "-f", "-p", "80", "-h", "/etc"];

/// `docker run` without the default of other tests, which is no network.
pub(crate) fn run(host: &TestHost, options: &[&str], command: &[&str]) -> Said {
    host.docker(&[&["run", "--isolation", host.wall().word()], options, &["box"], command].concat())
}

/// Starts a container in the background.
pub(crate) fn start(host: &TestHost, name: &str, options: &[&str], command: &[&str]) -> String {
    run(host, &[&["-d", "--name", name], options].concat(), command).ok()
}

/// Starts a process container in the background, whatever wall the host's test is about.
fn start_process(host: &TestHost, name: &str, options: &[&str], command: &[&str]) -> String {
    let words = [&["run", "--isolation", "process", "-d", "--name", name], options, &["box"], command].concat();
    host.docker(&words).ok()
}

fn exec(host: &TestHost, container: &str, command: &[&str]) -> Said {
    host.docker(&[&["exec", container], command].concat())
}

/// What the container reads from a server.
fn fetch(host: &TestHost, container: &str, from: &str) -> Said {
    // Not wget's own -T: it crashes Debian's static busybox.
    exec(host, container, &["timeout", "2", "wget", "-q", "-O", "-", &format!("http://{from}/hostname")])
}

/// Waits until a server answers a container.
fn wait_fetch(host: &TestHost, container: &str, from: &str, wanted: &str) {
    let mut last = String::new();
    let came = eventually(Duration::from_secs(10), || {
        let said = fetch(host, container, from);
        last = said.to_string();
        said.text().trim() == wanted
    });
    assert!(came, "{container} does not read {wanted} from {from}: {last}; the engine's log:\n{}", host.log());
}

/// What the host reads from an address of its own.
fn read(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(3)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
    stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.trim().to_owned())
}

/// Waits until the host reads this from an address.
pub(crate) fn wait_read(address: &str, wanted: &str) {
    let mut last = None;
    let came = eventually(Duration::from_secs(10), || {
        last = read(address);
        last.as_deref() == Some(wanted)
    });
    assert!(came, "{address} does not answer {wanted} but {last:?}");
}

/// The number at which a port of a container is published.
pub(crate) fn port(host: &TestHost, container: &str, port: &str) -> String {
    host.docker(&["port", container, port]).ok().lines().next().unwrap().rsplit(':').next().unwrap().to_owned()
}

pub(crate) fn endpoint(host: &TestHost, container: &str, network: &str, field: &str) -> String {
    let value = host.inspect(container)["NetworkSettings"]["Networks"][network][field].clone();
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Bridge of a network.
fn bridge(host: &TestHost, network: &str) -> String {
    let id = host.docker(&["network", "inspect", "-f", "{{.Id}}", network]).ok();
    let option = "{{index .Options \"com.docker.network.bridge.name\"}}";
    let named = host.docker(&["network", "inspect", "-f", option, network]).ok();
    if named.is_empty() { format!("bh-{}", &id[..12]) } else { named }
}

/// The engine's table in the host's firewall, if it is there.
pub(crate) fn table(host: &TestHost) -> String {
    let name = table_name(host);
    let output = Command::new("/usr/sbin/nft").args(["list", "table", "inet", &name]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn table_name(host: &TestHost) -> String {
    format!("bulkhead_{}", bridge(host, "bridge").strip_prefix("bh0-").unwrap())
}

pub(crate) fn namespaces(host: &TestHost) -> usize {
    std::fs::read_dir(host.folder().join("run/n")).map_or(0, Iterator::count)
}

fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

behind_both_walls! { own:
    fn neighbours_are_reached_by_name_and_the_host_reaches_ports(host) {
        host.docker(&["network", "create", "--label", "a=b", "shop"]).ok();
        let options = ["--network", "shop", "--network-alias", "www", "-p", "80", "-p", "127.0.0.1::80/udp"];
        let web = start(host, "web", &options, SERVER);
        // Behind either wall there are the same networks.
        start_process(host, "client", &["--network", "shop"], &["httpd", "-f", "-p", "80", "-h", "/etc"]);
        wait_fetch(host, "web", "client", &host.inspect("client")["Id"].as_str().unwrap()[..12]);
        for name in ["web", "www", &web[..12], "WEB", "web.shop"] {
            wait_fetch(host, "client", name, &web[..12]);
        }
        assert_ne!(exec(host, "client", &["nslookup", "nobody.invalid"]).code, 0);
        let published = port(host, "web", "80/tcp");
        for address in ["127.0.0.1", "[::1]"] {
            wait_read(&format!("{address}:{published}"), &web[..12]);
        }
        let datagrams = format!("127.0.0.1:{}", port(host, "web", "80/udp"));
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let came = eventually(Duration::from_secs(10), || {
            socket.send_to(b"x", &datagrams).unwrap();
            // Nobody listens there, which the container's kernel counts.
            let counters = exec(host, "web", &["cat", "/proc/net/snmp"]).ok();
            let line = counters.lines().filter(|line| line.starts_with("Udp:")).nth(1).unwrap();
            line.split(' ').nth(2).unwrap() != "0"
        });
        assert!(came, "no datagram reaches a published port");
        let gateway = endpoint(host, "web", "shop", "Gateway");
        wait_read(&format!("{gateway}:{published}"), &web[..12]);
        // By the host's address from another network, too: it goes by the proxy.
        start_process(host, "other", &[], &["sleep", "1000"]);
        wait_fetch(host, "other", &format!("{gateway}:{published}"), &web[..12]);
        let shown = host.docker(&["ps", "--filter", "network=shop", "--format", "{{.Names}} {{.Ports}}"]).ok();
        assert!(shown.contains("web ") && shown.contains(&format!("0.0.0.0:{published}->80/tcp")), "{shown}");
        // A name that is renamed is found by the new one.
        host.docker(&["rename", "web", "store"]).ok();
        wait_fetch(host, "client", "store", &web[..12]);
        assert_ne!(fetch(host, "client", "web").code, 0);
    }
}

#[test]
fn a_port_that_is_taken_undoes_the_start() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let first = start(&host, "first", &["-p", "127.0.0.1:0:80"], SERVER);
    let taken = port(&host, "first", "80/tcp");
    let said = run(&host, &["-d", "--name", "second", "-p", &format!("{taken}:80")], SERVER);
    assert_eq!(said.code, 125);
    let text = format!("Bind for 0.0.0.0:{taken} failed: port is already allocated");
    assert!(
        said.err.contains("driver failed programming external connectivity on endpoint second")
            && said.err.contains(&text),
        "{said}"
    );
    assert_eq!(host.state("second").0, "created");
    assert_eq!((namespaces(&host), endpoint(&host, "second", "bridge", "IPAddress")), (1, String::new()));
    // Somebody else has it.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let foreign = listener.local_addr().unwrap().port().to_string();
    let said = run(&host, &["--rm", "-p", &format!("127.0.0.1:{foreign}:80")], &["true"]);
    assert!(said.code == 125 && said.err.contains("address already in use"), "{said}");
    wait_read(&format!("127.0.0.1:{taken}"), &first[..12]);
    host.docker(&["rm", "-f", "first"]).ok();
    assert!(read(&format!("127.0.0.1:{taken}")).is_none());
    host.docker(&["start", "second"]).ok();
    wait_read(&format!("127.0.0.1:{taken}"), &host.inspect("second")["Id"].as_str().unwrap()[..12]);
}

behind_both_walls! { own:
    fn networks_are_apart_and_change_while_a_container_runs(host) {
        for options in [&["one"][..], &["two"], &["--internal", "inside"]] {
            host.docker(&[&["network", "create"], options].concat()).ok();
        }
        let web = start(host, "web", &["--network", "one"], SERVER);
        start_process(host, "client", &["--network", "two"], &["sleep", "1000"]);
        let address = endpoint(host, "web", "one", "IPAddress");
        assert_ne!(fetch(host, "client", &address).code, 0, "another network is reached");
        host.docker(&["network", "connect", "--alias", "www", "two", "web"]).ok();
        wait_fetch(host, "client", "www", &web[..12]);
        let second = endpoint(host, "web", "two", "IPAddress");
        assert!(exec(host, "web", &["cat", "/etc/hosts"]).ok().contains(&format!("{second}\t{}", &web[..12])));
        let again = host.docker(&["network", "connect", "two", "web"]);
        assert!(again.err.contains("endpoint with name web already exists in network two"), "{again}");
        assert!(host.docker(&["network", "rm", "two"]).err.contains("has active endpoints"));
        host.docker(&["network", "disconnect", "two", "web"]).ok();
        assert_ne!(fetch(host, "client", &second).code, 0);
        assert!(!exec(host, "web", &["cat", "/etc/hosts"]).ok().contains(&second));
        // Inside there are neighbours and nothing else.
        let inner = start(host, "inner", &["--network", "inside", "-p", "80"], SERVER);
        host.docker(&["network", "connect", "inside", "client"]).ok();
        wait_fetch(host, "client", "inner", &inner[..12]);
        assert!(!exec(host, "inner", &["ip", "route"]).ok().contains("default"));
        assert_eq!(host.docker(&["port", "inner"]).ok(), "");
        let events = host.docker(&[
            "events",
            "--since",
            "0",
            "--until",
            "1s",
            "--filter",
            "type=network",
            "--format",
            "{{.Action}} {{.Actor.Attributes.name}}",
        ]);
        for wanted in ["create one", "connect one", "connect two", "disconnect two"] {
            assert!(events.ok().lines().any(|line| line == wanted), "{wanted}");
        }
    }

    fn ranges_and_ports_that_are_chosen_lead_in(host) {
        // The first that is free of a range, for as many as there are.
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let begin = std::iter::repeat_with(free).find(|port| *port < u16::MAX - 2).unwrap();
        let range = format!("127.0.0.1:{begin}-{}:80", begin + 1);
        let first = start(host, "first", &["-p", &range], SERVER);
        start(host, "second", &["-p", &range], SERVER);
        let ports = ["first", "second"].map(|name| port(host, name, "80/tcp").parse::<u16>().unwrap());
        assert_eq!(ports, [begin, begin + 1]);
        let third = run(host, &["--rm", "-p", &range], &["true"]);
        assert!(third.code == 125 && third.err.contains("port is already allocated"), "{third}");
        wait_read(&format!("127.0.0.1:{begin}"), &first[..12]);
        // All that the container exposes, wherever there is room, in both protocols.
        host.docker(&["rm", "-f", "second"]).ok();
        let options = ["-P", "--expose", "80", "--expose", "81-82/udp"];
        let all = start(host, "all", &options, SERVER);
        wait_read(&format!("127.0.0.1:{}", port(host, "all", "80/tcp")), &all[..12]);
        let shown = host.docker(&["port", "all"]).ok();
        for exposed in ["80/tcp -> 0.0.0.0:", "81/udp -> 0.0.0.0:", "82/udp -> 0.0.0.0:"] {
            assert!(shown.contains(exposed), "{exposed}: {shown}");
        }
        // Range to range, port by port.
        let pairs = format!("127.0.0.1:{}-{}:80-81", begin + 1, begin + 2);
        start(host, "pairs", &["-p", &pairs], SERVER);
        let shown = host.docker(&["port", "pairs"]).ok();
        assert!(shown.contains(&format!("81/tcp -> 127.0.0.1:{}", begin + 2)), "{shown}");
    }

    fn addresses_modes_and_files_are_as_asked_for(host) {
        let create = [
            "network",
            "create",
            "--subnet",
            "10.201.7.0/24",
            "--ip-range",
            "10.201.7.128/25",
            "--ipv6",
            "--subnet",
            "fd00:b17:7::/64",
            "-o",
            "com.docker.network.driver.mtu=1400",
            "fixed",
        ];
        host.docker(&create).ok();
        let options = [
            "--network",
            "fixed",
            "--ip",
            "10.201.7.9",
            "--mac-address",
            "02:00:00:00:07:09",
            "--add-host",
            "up:host-gateway",
            "--dns-search",
            "x.invalid",
        ];
        start(host, "static", &options, SERVER);
        start_process(host, "any", &["--network", "fixed"], &["sleep", "1000"]);
        let shown = exec(host, "static", &["ip", "addr", "show", "eth0"]).ok();
        for wanted in ["mtu 1400", "02:00:00:00:07:09", "10.201.7.9/24", "fd00:b17:7::"] {
            assert!(shown.contains(wanted), "{wanted}: {shown}");
        }
        assert_eq!(endpoint(host, "any", "fixed", "IPAddress"), "10.201.7.128");
        let v6 = endpoint(host, "static", "fixed", "GlobalIPv6Address");
        wait_fetch(host, "any", &format!("[{v6}]"), &host.inspect("static")["Id"].as_str().unwrap()[..12]);
        let hosts = exec(host, "static", &["cat", "/etc/hosts"]).ok();
        assert!(hosts.contains("10.201.7.1\tup\n") && hosts.contains("10.201.7.9\t"), "{hosts}");
        let resolver = exec(host, "static", &["cat", "/etc/resolv.conf"]).ok();
        assert!(resolver.contains("nameserver 127.0.0.11") && resolver.contains("search x.invalid"), "{resolver}");
        let taken = run(host, &["--rm", "--network", "fixed", "--ip", "10.201.7.9"], &["true"]);
        assert!(taken.err.contains("Address already in use"), "{taken}");
        let links = |options: &[&str]| run(host, &[&["--rm"], options].concat(), &["ls", "/sys/class/net"]).ok();
        assert_eq!(links(&["--network", "none"]), "lo");
        if host.wall() == Wall::Hyperv {
            for (mode, word) in [("host", "a kernel of its own"), ("container:static", "a utility VM of its own")] {
                let said = run(host, &["--rm", "--network", mode], &["true"]);
                assert!(said.code == 125 && said.err.contains(word), "{said}");
            }
            return;
        }
        assert!(links(&["--network", "host"]).contains(&bridge(host, "fixed")));
        let shared =
            run(host, &["--rm", "--network", "container:static"], &["sh", "-c", "hostname; ip addr show eth0"]).ok();
        assert!(
            shared.contains("10.201.7.9/24")
                && shared.contains(&host.inspect("static")["Config"]["Hostname"].as_str().unwrap().to_owned()),
            "{shared}"
        );
    }

    fn networks_outlive_a_killed_engine_and_a_changed_firewall(host) {
        host.docker(&["network", "create", "shop"]).ok();
        let web = start(host, "web", &["--network", "shop", "-p", "127.0.0.1:0:80"], SERVER);
        start_process(host, "client", &["--network", "shop"], &["sleep", "1000"]);
        let address = format!("127.0.0.1:{}", port(host, "web", "80/tcp"));
        wait_read(&address, &web[..12]);
        host.engine().kill();
        wait_read(&address, &web[..12]);
        // What an engine leaves that was killed while it made a container.
        let stray = host.folder().join("run/n/stray");
        std::fs::write(&stray, "").unwrap();
        host.start_engine();
        assert!(!stray.exists());
        wait_read(&address, &web[..12]);
        wait_fetch(host, "client", "web", &web[..12]);
        let said = run(host, &["--rm", "-p", &format!("{address}:80")], &["true"]);
        assert!(said.err.contains("port is already allocated"), "{said}");
        let name = table_name(host);
        let deleted = Command::new("/usr/sbin/nft").args(["delete", "table", "inet", &name]).status().unwrap();
        assert!(deleted.success());
        assert!(eventually(Duration::from_secs(10), || table(host).contains("chain published")), "{}", host.log());
        wait_read(&address, &web[..12]);
        let bridges = [bridge(host, "shop"), bridge(host, "bridge")];
        // Not by their endpoints: a link that waited for a container has a name of its own.
        let links: Vec<String> = std::fs::read_dir(format!("/sys/class/net/{}/brif", bridges[0]))
            .unwrap()
            .map(|port| port.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(links.len(), 2, "{links:?}");
        host.docker(&["rm", "-f", "web", "client"]).ok();
        let gone = || !links.iter().any(|link| link_exists(link)) && namespaces(host) == 0;
        assert!(eventually(Duration::from_secs(10), gone), "{links:?}, {} namespaces", namespaces(host));
        assert!(!table(host).contains("dnat ip to 1") && link_exists(&bridges[0]));
        host.docker(&["network", "prune", "-f"]).ok();
        assert!(!link_exists(&bridges[0]));
        host.stop_engine();
        assert!(!link_exists(&bridges[1]));
        let left = Command::new("/usr/sbin/nft").args(["list", "table", "inet", &name]).status().unwrap();
        assert!(!left.success(), "its rules are left");
        host.start_engine();
    }
}

#[test]
fn what_a_network_cannot_be_is_told_in_dockers_words() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let said = |words: &[&str]| host.docker(words).err;
    host.docker(&["network", "create", "--subnet", "10.202.7.0/24", "mine"]).ok();
    host.docker(&host.words("create", &["--name", "alone"], &["true"])).ok();
    host.run_detached(&["--name", "running"], &["sleep", "1000"]);
    for (words, text) in [
        (&["network", "inspect", "nosuch"][..], "network nosuch not found"),
        (&["network", "create", "mine"], "network with name mine already exists"),
        (&["network", "create", "bridge"], "operation is not permitted on predefined bridge network"),
        (&["network", "create", "-d", "nosuch", "x"], "plugin \"nosuch\" not found"),
        (
            &["network", "create", "--subnet", "10.202.7.128/25", "x"],
            "Pool overlaps with other one on this address space",
        ),
        (&["network", "rm", "host"], "host is a pre-defined network and cannot be removed"),
        (
            &["network", "connect", "host", "alone"],
            "container cannot be disconnected from host network or connected to host network",
        ),
        (&["network", "connect", "mine", "alone"], "with one of the networks in private (none) mode"),
        (&["network", "disconnect", "mine", "alone"], "is not connected to the network mine"),
        (&["network", "disconnect", "mine", "running"], "is not connected to network mine"),
        (&["network", "disconnect", "-f", "mine", "nosuch"], "endpoint nosuch not found"),
    ] {
        let error = said(words);
        assert!(error.contains(text), "{words:?}: {error}");
    }
    let unknown = run(&host, &["--rm", "--network", "nosuch"], &["true"]);
    assert!(unknown.code == 125 && unknown.err.contains("network nosuch not found"), "{unknown}");
}

/// What is made is either there or was taken away: nothing of it is half done.
#[test]
fn networks_that_come_and_go_at_once_harm_each_other_not() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let connect = || ApiConnection::open(host.socket()).unwrap();
    let made = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = connect();
            while !made.load(Ordering::Relaxed) {
                let answer = connection.request("POST", "/networks/prune", None).unwrap();
                assert_eq!(answer.status, 200, "{}", answer.message());
            }
        });
        let makers: Vec<_> = (0..3)
            .map(|maker| {
                scope.spawn(move || {
                    let mut connection = connect();
                    (0..15)
                        .map(|number| {
                            let body = format!("{{\"Name\": \"quick{maker}-{number}\"}}");
                            let answer = connection.request("POST", "/networks/create", Some(body.as_bytes())).unwrap();
                            (answer.status, answer.message())
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let answers: Vec<_> = makers.into_iter().map(|maker| maker.join()).collect();
        made.store(true, Ordering::Relaxed);
        for answer in answers.into_iter().flat_map(|answers| answers.unwrap()) {
            assert_eq!(answer, (201, String::new()));
        }
    });
    host.docker(&["network", "prune", "-f"]).ok();
    let left = host.docker(&["network", "ls", "-q", "--filter", "type=custom"]).ok();
    assert_eq!(left, "");
}

#[test]
fn links_lead_to_others_by_names_of_their_own() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let web = start(&host, "web", &["-e", "A=1", "--expose", "80", "-h", "www"], SERVER);
    // On the default bridge by the hosts file and the environment.
    start(&host, "client", &["--link", "web:my-web"], &["sleep", "1000"]);
    for name in ["my-web", "web", "www"] {
        assert_eq!(fetch(&host, "client", name).ok(), "www", "{name}");
    }
    let address = endpoint(&host, "web", "bridge", "IPAddress");
    let environment = exec(&host, "client", &["env"]).ok();
    for wanted in
        [format!("MY_WEB_PORT=tcp://{address}:80"), "MY_WEB_ENV_A=1".into(), "MY_WEB_NAME=/client/my-web".into()]
    {
        assert!(environment.lines().any(|line| line == wanted), "{wanted}: {environment}");
    }
    assert_eq!(host.inspect("client")["HostConfig"]["Links"][0], "/web:/client/my-web");
    assert_eq!(
        host.docker(&["ps", "--no-trunc", "--filter", "name=^web$", "--format", "{{.Names}}"]).ok(),
        "web,client/my-web"
    );
    host.docker(&["rm", "--link", "client/my-web"]).ok();
    assert!(host.inspect("client")["HostConfig"]["Links"].is_null());
    // One that does not run cannot be linked to; one that is not there neither.
    host.docker(&["stop", "-t", "0", "web"]).ok();
    run(&host, &["--link", "web:w"], &["true"])
        .fails_saying(125, &["Cannot link to a non running container: /web AS /"]);
    run(&host, &["--link", "nosuch:w"], &["true"]).fails_saying(125, &["could not get container for nosuch"]);
    // On networks with names as an alias that one container alone has.
    host.docker(&["network", "create", "shop"]).ok();
    host.docker(&["network", "connect", "shop", "web"]).ok();
    host.docker(&["start", "web"]).ok();
    start(&host, "named", &["--network", "shop", "--link", "web:store"], &["sleep", "1000"]);
    start(&host, "other", &["--network", "shop"], &["sleep", "1000"]);
    wait_fetch(&host, "named", "store", "www");
    assert_ne!(fetch(&host, "other", "store").code, 0);
    let counters = host.get_json(&format!("/containers/{web}/stats?stream=0&one-shot=1"))["networks"].clone();
    assert!(counters["eth0"]["rx_bytes"].as_u64().unwrap() > 0 && counters["eth1"].is_object(), "{counters}");
}

/// What a utility VM sends that is not its own is dropped on the host's side.
#[test]
fn a_utility_vm_cannot_pose_as_another() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let create = ["network", "create", "--subnet", "10.203.7.0/24", "--ipv6", "--subnet", "fd00:b17:8::/64", "place"];
    host.docker(&create).ok();
    start_process(&host, "mark", &["--network", "place"], &["sleep", "1000"]);
    start(&host, "rogue", &["--network", "place", "--cap-add", "NET_ADMIN"], &["sleep", "1000"]);
    let (own, mark) = (endpoint(&host, "rogue", "place", "IPAddress"), endpoint(&host, "mark", "place", "IPAddress"));
    let mark6 = endpoint(&host, "mark", "place", "GlobalIPv6Address");
    let mac = endpoint(&host, "rogue", "place", "MacAddress");
    let reaches = |words: &[&str]| exec(&host, "rogue", words).code == 0;
    let ping = |target: &str| reaches(&["ping", "-c", "1", "-W", "1", target]);
    assert!(eventually(Duration::from_secs(10), || ping(&mark) && ping(&mark6)), "{}", host.log());
    assert!(reaches(&["arping", "-c", "1", "-w", "1", "-I", "eth0", &mark]));
    let do_it = |line: &str| exec(&host, "rogue", &["sh", "-c", line]).ok();
    // Another's address in ARP, in IPv4, in IPv6 with its neighbour discovery; a server of names beside ours.
    do_it("ip addr add 10.203.7.77/24 dev eth0; ip addr add fd00:b17:8::77/64 dev eth0 nodad; true");
    assert!(!reaches(&["arping", "-c", "1", "-w", "1", "-I", "eth0", "-s", "10.203.7.77", &mark]));
    assert!(!reaches(&["ping", "-c", "1", "-W", "1", "-I", "10.203.7.77", &mark]));
    assert!(!reaches(&["ping6", "-c", "1", "-W", "1", "-I", "fd00:b17:8::77", &mark6]));
    let neighbours = exec(&host, "mark", &["sh", "-c", "ip neigh; ip -6 neigh"]).ok();
    assert!(neighbours.contains(&own) && !neighbours.contains("7.77") && !neighbours.contains("8::77"), "{neighbours}");
    // Another's hardware address: the bridge never learns it.
    do_it("ip link set eth0 down; ip link set eth0 address 02:66:66:66:66:66; ip link set eth0 up");
    assert!(!ping(&mark));
    let learned =
        Command::new("/usr/sbin/bridge").args(["fdb", "show", "br", &bridge(&host, "place")]).output().unwrap();
    let learned = String::from_utf8_lossy(&learned.stdout).into_owned();
    assert!(learned.contains(&mac) && !learned.contains("66:66"), "{learned}");
    do_it(&format!("ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up"));
    assert!(eventually(Duration::from_secs(10), || ping(&mark)));
}

/// Guest and host leave checksums and segmentation to each other: what a guest sends at once is one packet up to the wire.
#[test]
fn a_utility_vm_leaves_segmentation_to_the_host() {
    const BYTES: usize = 4 << 20;
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let serve = format!("dd if=/dev/zero of=/etc/bulk bs={BYTES} count=1; exec httpd -f -p 80 -h /etc");
    let id = start(&host, "bulk", &["-p", "127.0.0.1:0:80"], &["sh", "-c", &serve]);
    let address = format!("127.0.0.1:{}", port(&host, "bulk", "80/tcp"));
    wait_read(&address, &id[..12]);
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"GET /bulk HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.len() > BYTES);
    let counters = host.get_json(&format!("/containers/{id}/stats?stream=0&one-shot=1"))["networks"]["eth0"].clone();
    let count = |name: &str| counters[name].as_u64().unwrap();
    assert!(count("tx_bytes") > BYTES as u64 && count("rx_packets") > 0, "{counters}");
    assert!(count("tx_bytes") / count("tx_packets") > 2 * 1500, "packets of the wire's size: {counters}");
}

/// A container that has more networks than a utility VM has slots.
#[test]
fn a_utility_vm_has_a_slot_for_each_of_four_networks() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let networks = ["n0", "n1", "n2", "n3", "n4"];
    networks.iter().for_each(|name| drop(host.docker(&["network", "create", name]).ok()));
    let id = start(&host, "many", &["--network", "n0"], SERVER);
    start_process(&host, "client", &["--network", "n3"], &["sleep", "1000"]);
    networks[1..4].iter().for_each(|name| drop(host.docker(&["network", "connect", name, "many"]).ok()));
    wait_fetch(&host, "client", "many", &id[..12]);
    let full = host.docker(&["network", "connect", "n4", "many"]);
    assert!(full.err.contains("a hyperv container may be on 4 networks at most"), "{full}");
    let links = || exec(&host, "many", &["ls", "/sys/class/net"]).ok();
    assert_eq!(links(), "eth0\neth1\neth2\neth3\nlo");
    host.docker(&["network", "disconnect", "n0", "many"]).ok();
    host.docker(&["network", "connect", "n4", "many"]).ok();
    assert_eq!(links(), "eth0\neth1\neth2\neth3\nlo");
    wait_fetch(&host, "client", "many", &id[..12]);
    assert_ne!(exec(&host, "many", &["nslookup", "client"]).code, 1, "names are served by another interface now");
}
