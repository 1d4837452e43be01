//! More connections than the kernel keeps count of, and connections that are begun and left (F130): who was connected stays so, others come
//! through, and the engine goes on.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use bulkhead_e2e::{HostOptions, TestHost, Wall, eventually};

/// Datagrams that nobody answers, each of another flow. Arguments: how many, and to which address.
const DATAGRAMS: &str = r"
use Socket;
my ($left, $to) = ($ARGV[0], inet_aton($ARGV[1]));
while ($left > 0) {
    socket(my $socket, PF_INET, SOCK_DGRAM, 0) or die $!;
    for my $port (1 .. 60000) {
        send($socket, 'x', 0, sockaddr_in($port, $to));
        last if --$left <= 0;
    }
}
";

/// First packets of connections, from addresses that answer nothing. Arguments: how many, to which address and port.
const BEGINNINGS: &str = r"
use Socket;
my ($count, $to, $port) = ($ARGV[0], inet_aton($ARGV[1]), $ARGV[2]);
socket(my $socket, PF_INET, SOCK_RAW, 255) or die $!;
for my $number (1 .. $count) {
    my $from = pack('N', 0x0ac90000 + $number % 65000);
    my $segment = pack('nnNNCCnnn', 1024 + $number % 60000, $port, $number, 0, 0x50, 2, 65535, 0, 0);
    my $sum = unpack('%32n*', $from . $to . pack('nn', 6, 20) . $segment);
    $sum = ($sum & 0xffff) + ($sum >> 16) while $sum >> 16;
    substr($segment, 16, 2) = pack('n', ~$sum & 0xffff);
    my $head = pack('CCnnnCCna4a4', 0x45, 0, 40, 0, 0, 64, 6, 0, $from, $to);
    send($socket, $head . $segment, 0, sockaddr_in(0, $to));
}
";

/// The most flows that are made: a machine may count more.
const MOST_FLOWS: usize = 1 << 20;
const HALF_OPEN: usize = 20_000;
const ECHO: &[&str] = &["nc", "-ll", "-p", "7", "-e", "cat"];

fn perl(mut command: Command, script: &str, args: &[&str]) {
    let output = command.args(["-e", script]).args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn number(host: &TestHost, name: &str) -> usize {
    let output = host.on_host("cat").arg(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
}

/// A line there and back by a connection of its own.
fn echoes(host: &TestHost, address: &str, port: &str) -> bool {
    let mut client = host.on_host("busybox");
    client.args(["nc", "-w", "3", address, port]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = client.spawn().unwrap();
    // Without a connection it may be gone by now.
    let _ = client.stdin.as_mut().unwrap().write_all(b"new\n");
    let mut line = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    line == "new\n"
}

fn floods_hurt_nobody_who_is_connected(wall: Wall) {
    let options = HostOptions { own_network: true, ..HostOptions::default() };
    let Some(host) = TestHost::start_own_with(wall, &options) else { return };
    // The way out of this host: whatever takes it is not heard of again.
    for words in [
        "link add d0 type bridge",
        "link set d0 up",
        "neigh add 10.199.0.1 lladdr 02:00:00:00:00:01 dev d0",
        "route add 10.200.0.0/15 via 10.199.0.1 dev d0 onlink",
    ] {
        assert!(host.on_host("ip").args(words.split(' ')).status().unwrap().success(), "{words}");
    }
    host.docker(&["network", "create", "mine"]).ok();
    let isolation = format!("--isolation={}", wall.word());
    let run = |name: &str, publish: &str, command: &[&str]| {
        let options = ["run", "-d", &isolation, "--network=mine", "--name", name, "-p", publish, "box"];
        host.docker(&[&options[..], command].concat()).ok()
    };
    run("server", "7001:7", ECHO);
    let gateway = host.docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "mine"]).ok();
    assert!(eventually(Duration::from_secs(10), || echoes(&host, &gateway, "7001")), "{}", host.log());
    let mut connected = host.on_host("busybox");
    connected.args(["nc", &gateway, "7001"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut connected = connected.spawn().unwrap();
    let (mut to, from) = (connected.stdin.take().unwrap(), connected.stdout.take().unwrap());
    let mut from = BufReader::new(from).lines();
    let mut still = |word: &str| {
        writeln!(to, "{word}").unwrap();
        assert_eq!(from.next().unwrap().unwrap(), word);
    };
    still("before");
    let most = number(&host, "max");
    let flows = most.min(MOST_FLOWS);
    let from_where = match wall {
        // What a container sends itself.
        Wall::Process => {
            let id = host.docker(&["run", "-d", "--network=mine", "--name=flooding", "box", "sleep", "1000"]).ok();
            let mut inside = Command::new("nsenter");
            inside.arg(format!("--net={}", host.folder().join("run/n").join(&id[..12]).display())).args(["--", "perl"]);
            inside
        }
        Wall::Hyperv => host.on_host("perl"),
    };
    perl(from_where, DATAGRAMS, &[&(flows + flows / 10).to_string(), "10.200.0.1"]);
    let count = number(&host, "count");
    assert!(count >= flows / 10 * 9 && count <= most, "{count} flows are known, of {most}");
    let reached = || eventually(Duration::from_secs(20), || echoes(&host, &gateway, "7001"));
    still("full");
    assert!(reached(), "nobody new comes through");
    run("late", "7002:7", ECHO);
    assert!(eventually(Duration::from_secs(20), || echoes(&host, &gateway, "7002")), "{}", host.log());
    let by_name = || host.docker(&["exec", "late", "nslookup", "server"]).code == 0;
    assert!(eventually(Duration::from_secs(20), by_name), "names are not found");
    perl(host.on_host("perl"), BEGINNINGS, &[&HALF_OPEN.to_string(), &gateway, "7001"]);
    still("flooded");
    assert!(reached(), "connections that are left keep others out");
    assert!(number(&host, "count") <= most);
    host.docker(&["exec", "server", "true"]).ok();
    connected.kill().unwrap();
    connected.wait().unwrap();
}

#[test]
fn floods_hurt_nobody_who_is_connected_process() {
    floods_hurt_nobody_who_is_connected(Wall::Process);
}

#[test]
fn floods_hurt_nobody_who_is_connected_hyperv() {
    floods_hurt_nobody_who_is_connected(Wall::Hyperv);
}
