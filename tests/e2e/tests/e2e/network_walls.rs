//! Who is not reached, what is not believed, and what never leaves: hostile name servers (F132), what belongs to the host and to other
//! networks (F126), frames of a utility VM that is nobody's yet (F134), a router among the containers (F125).

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use bulkhead_e2e::{HostOptions, Said, TestHost, Wall, eventually};

/// A name server that is told by the first word of a name how to answer, and notes each name. Arguments: address, file.
const NAME_SERVER: &str = r"
use Socket;
my ($address, $notes) = @ARGV;
open(my $log, '>>', $notes) or die $!;
select((select($log), $| = 1)[0]);
sub name { my ($question) = @_; return substr($question, 13, ord(substr($question, 12, 1))) }
sub answer {
    my ($question) = @_;
    my ($id, $word) = (substr($question, 0, 2), name($question));
    print $log qq($word\n);
    my $end = index($question, qq(\0), 12) + 5;
    my $asked = substr($question, 12, $end - 12);
    my $head = sub { $_[0] . pack('nnnnn', 0x8180, 1, $_[1], 0, 0) . $asked };
    return $id . (qq(\xff) x 40) if $word eq 'garbage';
    return $id . (qq(\0) x 60000) if $word eq 'huge';
    return substr($head->($id, 1), 0, 11) if $word eq 'half';
    return $head->(pack('n', unpack('n', $id) ^ 1), 0) if $word eq 'liar';
    # An alias of itself.
    return $head->($id, 1) . pack('nnnNnn', 0xc00c, 5, 1, 9, 2, 0xc00c) if $word eq 'circle';
    return $head->($id, 1) . pack('nnnNn', 0xc00c, 1, 1, 9, 4) . inet_aton('192.0.2.7');
}
socket(my $udp, PF_INET, SOCK_DGRAM, 0) or die $!;
socket(my $tcp, PF_INET, SOCK_STREAM, 0) or die $!;
bind($_, sockaddr_in(53, inet_aton($address))) or die $! for ($udp, $tcp);
listen($tcp, 9) or die $!;
print qq(ready\n);
close(STDOUT);
my @open; # None of them is ever closed.
while (1) {
    my $ready = '';
    vec($ready, fileno($_), 1) = 1 for ($udp, $tcp);
    select($ready, undef, undef, undef);
    if (vec($ready, fileno($udp), 1)) {
        my $from = recv($udp, my $question, 4096, 0) or next;
        send($udp, answer($question), 0, $from);
    } else {
        accept(my $stream, $tcp) or next;
        sysread($stream, my $question, 4096);
        print $log 'stream ', name(substr($question, 2)), qq(\n);
        syswrite($stream, pack('n', 65535) . 'little of it');
        push(@open, $stream);
    }
}
";

/// Asks the container's own name server by a stream, and says how long it took. Argument: a name of one word.
const STREAM_CLIENT: &str = r"
use Socket;
my $word = $ARGV[0];
socket(my $stream, PF_INET, SOCK_STREAM, 0) or die $!;
connect($stream, sockaddr_in(53, inet_aton('127.0.0.11'))) or die $!;
my $question = pack('nnnnnn', 7, 0x0100, 1, 0, 0, 0) . pack('C/a*', $word) . pack('C/a*Cnn', 'invalid', 0, 1, 1);
syswrite($stream, pack('n/a*', $question));
alarm 20;
sysread($stream, my $answer, 4096);
print unpack('n', substr($answer, 4, 2)) & 15;
";

/// Prints every hardware address that a frame on this host comes from, once.
const LISTENER: &str = r"
socket(my $all, 17, 3, 0x0300) or die $!;
$| = 1;
print qq(ready\n);
my %seen;
while (1) {
    recv($all, my $frame, 64, 0);
    my $from = join(':', unpack('(H2)6', substr($frame, 6, 6)));
    print qq($from\n) unless $seen{$from}++;
}
";

/// Says to all neighbours that whoever has this namespace is a router. Argument: a scope, the index of eth0.
const ROUTER: &str = r"
use Socket;
socket(my $raw, 10, SOCK_RAW, 58) or die $!;
setsockopt($raw, 41, 18, pack('i', 255)) or die $!; # IPV6_MULTICAST_HOPS
my $all = pack('SnN', 10, 0, 0) . pack('n8', 0xff02, 0, 0, 0, 0, 0, 0, 1) . pack('L', $ARGV[0]);
my $prefix = pack('CCCCNNN', 3, 4, 64, 0xc0, 9000, 9000, 0) . pack('n8', 0x2001, 0xdb8, 0, 0, 0, 0, 0, 0);
send($raw, pack('CCnCCnNN', 134, 0, 0, 64, 0, 1800, 0, 0) . $prefix, 0, $all) or die $! for (1 .. 3);
";

/// A script on the host that runs beside the test.
struct Script {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Script {
    fn start(mut command: Command, script: &str, args: &[&str]) -> Self {
        let mut child = command.args(["-e", script]).args(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { child, output }
    }

    /// All that it has said, when it has ended.
    fn end(mut self) -> String {
        self.child.kill().unwrap();
        let mut said = String::new();
        self.output.read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // It may be reaped by now.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn alone(wall: Wall) -> Option<TestHost> {
    TestHost::start_own_with(wall, &HostOptions { own_network: true, ..HostOptions::default() })
}

fn exec(host: &TestHost, container: &str, command: &[&str]) -> Said {
    host.docker(&[&["exec", container], command].concat())
}

fn run(host: &TestHost, name: &str, options: &[&str], command: &[&str]) -> String {
    let isolation = format!("--isolation={}", host.wall().word());
    let words = [&["run", "-d", &isolation, "--name", name], options, &["box"], command].concat();
    host.docker(&words).ok()
}

fn gateway(host: &TestHost, network: &str) -> String {
    host.docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", network]).ok()
}

/// A program in the network of a process container.
fn inside(host: &TestHost, id: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    let namespace = host.folder().join("run/n").join(&id[..12]);
    command.arg(format!("--net={}", namespace.display())).args(["--", program]);
    command
}

fn names_asked(notes: &Path) -> BTreeSet<String> {
    std::fs::read_to_string(notes).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn hostile_name_servers_hurt_nobody(wall: Wall) {
    let Some(host) = alone(wall) else { return };
    host.docker(&["network", "create", "mine"]).ok();
    host.docker(&["network", "create", "--internal", "inside"]).ok();
    let (server, notes) = (gateway(&host, "mine"), host.folder().join("asked"));
    let hostile = Script::start(host.on_host("perl"), NAME_SERVER, &[&server, notes.to_str().unwrap()]);
    run(&host, "mate", &["--network=mine"], &["sleep", "1000"]);
    let id = run(&host, "asks", &["--network=mine", "--dns", &server], &["sleep", "1000"]);
    let ask = |name: &str| exec(&host, "asks", &["timeout", "15", "nslookup", "-type=a", &format!("{name}.invalid")]);
    assert!(ask("good").ok().contains("192.0.2.7"));
    let mate = host.inspect("mate")["NetworkSettings"]["Networks"]["mine"]["IPAddress"].as_str().unwrap().to_owned();
    for word in ["garbage", "huge", "half", "liar", "circle"] {
        let said = ask(word);
        assert!(!said.text().contains("192.0.2.7"), "{word}: {said}");
        assert!(names_asked(&notes).contains(word), "{word} was not asked for");
        assert!(exec(&host, "asks", &["nslookup", "-type=a", "mate"]).text().contains(&mate), "after {word}");
        assert!(ask("good").ok().contains("192.0.2.7"), "after {word}");
    }
    if wall == Wall::Process {
        // A long answer of which little comes: that there is none, in time.
        let output = inside(&host, &id, "perl").args(["-e", STREAM_CLIENT, "stall"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "2", "{output:?}");
        assert!(names_asked(&notes).contains("stream stall"));
    }
    // From where nothing leads out, no question leaves.
    run(&host, "kept", &["--network=inside", "--dns", &server], &["sleep", "1000"]);
    let secret = exec(&host, "kept", &["timeout", "15", "nslookup", "-type=a", "secret.invalid"]);
    assert!(secret.code != 0 && !names_asked(&notes).contains("secret"), "{secret}");
    drop(hostile);
}

#[test]
fn hostile_name_servers_hurt_nobody_process() {
    hostile_name_servers_hurt_nobody(Wall::Process);
}

#[test]
fn hostile_name_servers_hurt_nobody_hyperv() {
    hostile_name_servers_hurt_nobody(Wall::Hyperv);
}

/// Ports of the host's on which somebody listens.
fn listening(host: &TestHost) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for family in ["tcp", "tcp6"] {
        let output = host.on_host("cat").arg(format!("/proc/self/net/{family}")).output().unwrap();
        for line in String::from_utf8_lossy(&output.stdout).lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[3] == "0A" {
                ports.insert(u16::from_str_radix(fields[1].rsplit(':').next().unwrap(), 16).unwrap());
            }
        }
    }
    ports
}

fn a_container_reaches_what_it_was_given(wall: Wall) {
    const ECHO: &[&str] = &["nc", "-ll", "-p", "7", "-e", "cat"];
    let Some(host) = alone(wall) else { return };
    for network in ["one", "two"] {
        host.docker(&["network", "create", network]).ok();
    }
    run(&host, "server", &["--network=one", "-p=127.0.0.1:7070:7", "-p=7071:7"], ECHO);
    run(&host, "client", &["--network=two", "--cap-add=NET_ADMIN"], &["sleep", "1000"]);
    let echo = |address: &str, port: &str| format!("echo hello | busybox timeout 2 busybox nc {address} {port}");
    let by_host = |address: &str, port: &str| {
        let said = host.on_host("sh").args(["-c", &echo(address, port)]).output().unwrap();
        said.stdout == b"hello\n"
    };
    let by_client =
        |address: &str, port: &str| exec(&host, "client", &["sh", "-c", &echo(address, port)]).text().contains("hello");
    let (own, other) = (gateway(&host, "two"), gateway(&host, "one"));
    let server = host.inspect("server")["NetworkSettings"]["Networks"]["one"]["IPAddress"].as_str().unwrap().to_owned();
    // What is published for all is reached by the host's addresses, which shows that the words above can say yes.
    assert!(eventually(Duration::from_secs(10), || by_host("127.0.0.1", "7070") && by_client(&own, "7071")));
    for (address, port) in [(&own, "7070"), (&other, "7070"), (&server, "7"), (&server, "7070")] {
        assert!(!by_client(address, port), "{address}:{port} is reached");
    }
    // As a router of its own for the host's loopback: CVE-2020-8558.
    let detour = format!("ip address del 127.0.0.1/8 dev lo; ip route add 127.0.0.1/32 via {own}; true");
    exec(&host, "client", &["sh", "-c", &detour]).ok();
    assert!(!by_client("127.0.0.1", "7070"), "the host's loopback is reached");
    // The engine and its shims listen nowhere but at what is published.
    assert_eq!(listening(&host), BTreeSet::from([7070, 7071]));
}

#[test]
fn a_container_reaches_what_it_was_given_process() {
    a_container_reaches_what_it_was_given(Wall::Process);
}

#[test]
fn a_container_reaches_what_it_was_given_hyperv() {
    a_container_reaches_what_it_was_given(Wall::Hyperv);
}

/// Hardware addresses of a file of the kernel's links.
fn hardware_addresses(host: &TestHost) -> BTreeSet<String> {
    let output = host.on_host("ip").args(["-o", "link"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| Some(line.split("link/ether ").nth(1)?[..17].to_owned())).collect()
}

#[test]
fn no_frame_leaves_a_fork_that_is_nobodys() {
    let Some(host) = alone(Wall::Hyperv) else { return };
    host.docker(&["network", "create", "--ipv6", "--subnet=fd00:134::/64", "mine"]).ok();
    let gateway = gateway(&host, "mine");
    let listener = Script::start(host.on_host("perl"), LISTENER, &[]);
    let mut own = hardware_addresses(&host);
    for number in 0..3 {
        let name = format!("fork{number}");
        run(&host, &name, &["--network=mine"], &["sleep", "1000"]);
        own.extend(hardware_addresses(&host));
        let mac = &host.inspect(&name)["NetworkSettings"]["Networks"]["mine"]["MacAddress"];
        own.insert(mac.as_str().unwrap().to_owned());
        // With a network and without, one after the other.
        host.docker(&["run", "--rm", "--isolation=hyperv", "--network=none", "box", "true"]).ok();
        let reached = || exec(&host, &name, &["ping", "-c", "1", "-W", "2", &gateway]).code == 0;
        assert!(eventually(Duration::from_secs(10), reached), "{}", host.log());
    }
    own.insert("00:00:00:00:00:00".into());
    let seen: BTreeSet<String> = listener.end().lines().map(str::to_owned).collect();
    assert!(seen.len() >= 4, "{seen:?}");
    assert!(seen.is_subset(&own), "{:?} are nobody's", seen.difference(&own).collect::<Vec<_>>());
}

/// CVE-2020-13401: neither the host nor a neighbour believes a container that says it is a router.
#[test]
fn a_container_is_nobodys_router() {
    let Some(host) = alone(Wall::Process) else { return };
    host.docker(&["network", "create", "--ipv6", "--subnet=fd00:125::/64", "mine"]).ok();
    let id = run(&host, "rogue", &["--network=mine"], &["sleep", "1000"]);
    run(&host, "mate", &["--network=mine"], &["sleep", "1000"]);
    let counted = || {
        let counters = exec(&host, "mate", &["grep", "Icmp6InRouterAdvertisements", "/proc/net/snmp6"]).ok();
        counters.split_whitespace().last().unwrap().parse::<u32>().unwrap()
    };
    let index = inside(&host, &id, "cat").arg("/proc/self/net/if_inet6").output().unwrap();
    let index = String::from_utf8_lossy(&index.stdout).into_owned();
    let index = index.lines().find(|line| line.ends_with("eth0")).unwrap().split(' ').nth(1).unwrap().to_owned();
    let index = u32::from_str_radix(&index, 16).unwrap().to_string();
    let said = inside(&host, &id, "perl").args(["-e", ROUTER, &index]).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    assert!(eventually(Duration::from_secs(5), || counted() > 0), "nobody has heard it");
    let of_mate = exec(&host, "mate", &["sh", "-c", "ip -6 route; ip -6 address"]).ok();
    let of_host = host.on_host("sh").args(["-c", "ip -6 route; ip -6 address"]).output().unwrap();
    for routes in [of_mate, String::from_utf8_lossy(&of_host.stdout).into_owned()] {
        assert!(routes.contains("fd00:125::") && !routes.contains("2001:db8"), "{routes}");
        assert!(!routes.contains("proto ra") && !routes.contains("via fe80"), "{routes}");
    }
}
