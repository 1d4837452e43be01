//! A container without a network that speaks with one program of the host's.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use bulkhead_e2e::archive::Tar;
use bulkhead_e2e::{TestHost, Wall};
use sha2::{Digest as _, Sha256};

use crate::standby::{host_with_standby, wait_ready, was_adopted};

/// What the container runs: `vsock_peer.c`.
const PEER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vsock-peer"));
const ASKING: [&str; 4] = ["--network", "none", "--annotation", "dev.bulkhead.vsock=true"];
const BYTES: usize = 1 << 20;
/// For one read or write.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a container with the program in it, and starts it.
fn start(host: &TestHost, options: &[&str], command: &[&str]) -> String {
    let create = [&["create", "--isolation=hyperv"], options, &["box"], command].concat();
    // Debian 12's docker is older than `--annotation`.
    let id = host.bulkhead(&create).ok();
    let tar = Tar::new().file("peer", 0o755, PEER).bytes();
    host.docker_input(&["cp", "-", &format!("{id}:/")], &tar).ok();
    host.docker(&["start", &id]).ok();
    id
}

fn content() -> Vec<u8> {
    (0..BYTES).map(|number| u8::try_from(number % 251).unwrap()).collect()
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The folder of the socket, however long its path is.
struct Folder(File);

impl Folder {
    fn of(socket: &str) -> Self {
        let socket = Path::new(socket);
        assert_eq!(socket.file_name().unwrap(), "vsock.sock");
        Self(File::open(socket.parent().unwrap()).unwrap())
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd())
    }

    /// Asks for a port of the guest; what is answered, and the stream.
    fn connect(&self, port: u32) -> (String, UnixStream) {
        let mut stream = UnixStream::connect(self.path("vsock.sock")).unwrap();
        writeln!(stream, "CONNECT {port}").unwrap();
        for end in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            end(&stream, Some(PATIENCE)).unwrap();
        }
        let mut line = String::new();
        // Nothing follows before something was sent.
        BufReader::new(&stream).read_line(&mut line).unwrap();
        (line, stream)
    }
}

#[test]
fn host_and_container_connect_with_each_other_without_a_network() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let run =
        |wall: &str, annotation: &str| host.bulkhead(&["run", "--rm", wall, "--annotation", annotation, "box", "true"]);
    run("--isolation=process", "dev.bulkhead.vsock=true").fails_saying(125, &["needs --isolation=hyperv"]);
    run("--isolation=hyperv", "dev.bulkhead.vsock=/run/x.sock").fails_saying(125, &["neither true nor false"]);
    if !host.docker(&["info", "--format", "{{.Labels}}"]).ok().contains("hypervisor=bulkhead-vmm ") {
        run("--isolation=hyperv", "dev.bulkhead.vsock=true")
            .fails_saying(125, &["a vsock needs a utility VM of our own VMM"]);
        return;
    }
    let id = start(&host, &ASKING, &["/peer", "listen", "5000"]);
    host.wait_log(&id, "listening");
    let socket = host.inspect(&id)["Bulkhead"]["VsockSocket"].as_str().unwrap().to_owned();
    let folder = Folder::of(&socket);
    let all = content();

    // In: each time all that is sent comes back, and the half that is closed ends it.
    for _ in 0..2 {
        let (line, mut stream) = folder.connect(5000);
        assert!(line.strip_prefix("OK ").is_some_and(|port| port.trim_end().parse::<u32>().is_ok()), "{line:?}");
        let mut got = Vec::new();
        std::thread::scope(|scope| {
            let mut sending = stream.try_clone().unwrap();
            let all = &all;
            scope.spawn(move || {
                sending.write_all(all).unwrap();
                sending.shutdown(std::net::Shutdown::Write).unwrap();
            });
            stream.read_to_end(&mut got).unwrap();
        });
        assert_eq!((got.len(), digest(&got)), (all.len(), digest(&all)));
    }
    let (line, _stream) = folder.connect(5001);
    assert_eq!(line, "", "where nobody listens it is closed");

    // Out, to who listens beside that socket.
    let listener = UnixListener::bind(folder.path("vsock.sock_52")).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut sending = stream.try_clone().unwrap();
            std::io::copy(&mut stream, &mut sending).unwrap();
        });
        let script = "/peer connect 52 | sha256sum";
        let said = host.docker_input(&["exec", "-i", &id, "sh", "-c", script], &all);
        // Whatever came of it, nobody waits for a connection any more.
        drop(UnixStream::connect(folder.path("vsock.sock_52")));
        assert_eq!(said.ok().split(' ').next(), Some(digest(&all).as_str()), "{said}");
    });
    host.docker(&["exec", &id, "/peer", "connect", "53"]).fails_saying(1, &["connect: connection reset"]);
    // There is no other way: neither network nor the host's other numbers.
    assert_eq!(host.docker(&["exec", &id, "ls", "/sys/class/net"]).ok(), "lo");

    host.docker(&["rm", "-f", &id]).ok();
    assert!(!Path::new(&socket).exists(), "{socket}");
}

#[test]
fn a_utility_vm_that_stood_by_has_it_for_a_container_that_asks() {
    let Some(host) = host_with_standby() else { return };
    if !host.docker(&["info", "--format", "{{.Labels}}"]).ok().contains("hypervisor=bulkhead-vmm ") {
        return;
    }
    assert_eq!(host.run(&[], &["true"]).code, 0);
    wait_ready(&host);
    let id = start(&host, &ASKING, &["/peer", "listen", "5000"]);
    assert!(was_adopted(&host, &id));
    host.wait_log(&id, "listening");
    let folder = Folder::of(host.inspect(&id)["Bulkhead"]["VsockSocket"].as_str().unwrap());
    let (line, mut stream) = folder.connect(5000);
    assert!(line.starts_with("OK "), "{line:?}");
    stream.write_all(b"here and back").unwrap();
    let mut bytes = [0; 13];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"here and back");
    // A stream that is open when the machine is held goes on with it.
    host.docker(&["pause", &id]).ok();
    stream.write_all(b"meanwhile").unwrap();
    host.docker(&["unpause", &id]).ok();
    stream.read_exact(&mut bytes[..9]).unwrap();
    assert_eq!(&bytes[..9], b"meanwhile");
}

#[test]
fn a_container_that_does_not_ask_has_none() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let id = start(&host, &[], &["sleep", "1000"]);
    assert!(host.inspect(&id)["Bulkhead"]["VsockSocket"].is_null());
    host.docker(&["exec", &id, "/peer", "socket"]).fails_saying(1, &["operation not permitted"]);
    // Without the filter the guest's kernel has nothing of the kind.
    let id = start(&host, &["--security-opt", "seccomp=unconfined"], &["sleep", "1000"]);
    host.docker(&["exec", &id, "/peer", "socket"]).fails_saying(1, &["address family not supported"]);
}
