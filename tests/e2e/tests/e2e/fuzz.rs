//! Requests that are nearly right, in great number: nothing panics, hangs, grows without end, or answers what no client knows.
//!
//! `BULKHEAD_E2E_FUZZ` is the number of requests, `BULKHEAD_E2E_CLIENTS` that of clients at once, `BULKHEAD_E2E_SEED` begins another
//! sequence.

mod alter;
mod schema;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bulkhead_e2e::api::{self, Answer, ApiConnection};
use bulkhead_e2e::{HostOptions, TestHost, Wall, eventually, procfs, setting};
use fastrand::Rng;

use self::schema::{OPERATIONS, Operation};

/// How long an operation that does not wait for anything may take, on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one that may wait is waited for.
const GLANCE: Duration = Duration::from_millis(300);
/// What the engine may grow by, in bytes.
const GROWTH: u64 = 256 << 20;
/// Descriptors that the engine may have more once all is cleared away: namespaces stand by.
const MORE_DESCRIPTORS: usize = 64;
/// Containers that are removed between two looks at what there is.
const CLEARED_AT_ONCE: usize = 30;
/// Requests of one client between two clearings.
const BETWEEN_CLEARINGS: usize = 500;

#[test]
fn altered_requests_harm_nobody() {
    let flags = vec!["--log-level=info".to_owned()];
    let Some(mut host) = TestHost::start_own_with(Wall::Process, &HostOptions { flags, ..HostOptions::default() })
    else {
        return;
    };
    let requests = setting("BULKHEAD_E2E_FUZZ", 4000);
    let clients = setting("BULKHEAD_E2E_CLIENTS", 4);
    let seed = setting("BULKHEAD_E2E_SEED", 1) as u64;
    let steady = host.run_detached(&["--name", "steady"], &["sleep", "100000"]);
    // `box` is removed and moved to and fro.
    host.docker(&["tag", "box", schema::KEPT_IMAGE]).ok();
    let pid = host.engine().pid();
    let before = procfs::resident_bytes(pid);
    let opened = procfs::descriptors(pid);
    let (done, findings) = (AtomicUsize::new(0), Mutex::new(Findings::default()));
    std::thread::scope(|scope| {
        for client in 0..clients {
            let mut client = Client::new(host.socket(), seed * 1000 + client as u64);
            let (done, findings) = (&done, &findings);
            scope.spawn(move || {
                while done.fetch_add(1, Ordering::Relaxed) < requests {
                    client.turn(findings);
                }
            });
        }
    });
    let findings = findings.into_inner().unwrap();
    let (after, peak) = (procfs::resident_bytes(pid), procfs::peak_bytes(pid));
    println!("{requests} requests, answers by status: {:?}", findings.statuses);
    println!("engine: {} KiB before, {} KiB after, {} KiB at most", before >> 10, after >> 10, peak >> 10);
    for (what, count) in &findings.internal {
        println!("{count:6} times {what}");
    }
    assert_eq!(findings.wrong, Vec::<String>::new());
    let panics = host.logged("panicked");
    assert!(panics.is_empty(), "the engine panicked: {panics:?}");
    assert!(peak.saturating_sub(before) < GROWTH, "the engine grew from {before} to {peak} bytes");
    assert_eq!(host.engine().has_ended(), None);
    let good: usize = findings.statuses.range(200..300).map(|(_, count)| count).sum();
    assert!(good > requests / 10, "only {good} of {requests} requests were good ones");
    // What was made can be taken away, and what ran runs.
    assert_eq!(host.state(&steady).0, "running");
    Client::new(host.socket(), 0).clear().unwrap();
    let few = || procfs::descriptors(pid) < opened + MORE_DESCRIPTORS;
    assert!(eventually(PATIENCE, few), "{opened} descriptors before, {} after", procfs::descriptors(pid));
    let run = ["run", "--rm", "--network", "none", schema::KEPT_IMAGE, "echo", "fine"];
    assert_eq!(host.docker(&run).ok(), "fine");
}

/// What is told at the end.
#[derive(Default)]
struct Findings {
    statuses: BTreeMap<u16, usize>,
    /// Answers 500: operation and text.
    internal: BTreeMap<String, usize>,
    /// What must not be.
    wrong: Vec<String>,
}

/// One client with its own sequence of requests.
struct Client {
    socket: PathBuf,
    rng: Rng,
    connection: Option<ApiConnection>,
    /// The request before, which the connection was used for.
    previous: String,
    execs: Vec<String>,
    turns: usize,
}

impl Client {
    fn new(socket: &Path, seed: u64) -> Self {
        Self {
            socket: socket.to_owned(),
            rng: Rng::with_seed(seed),
            connection: None,
            previous: String::new(),
            execs: Vec::new(),
            turns: 0,
        }
    }

    /// Sends one request and looks at the answer.
    fn turn(&mut self, findings: &Mutex<Findings>) {
        self.turns += 1;
        let operation = self.choose();
        let (request, honest) = self.request(operation);
        let told = || String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
        let patience = if operation.may_wait || !honest { GLANCE } else { PATIENCE };
        let outcome = self.exchange(&request, operation.method == "HEAD", patience);
        if !honest {
            // The engine may wait for more of it.
            self.connection = None;
        }
        let mut findings = findings.lock().unwrap();
        match outcome {
            Ok(answer) => {
                *findings.statuses.entry(answer.status).or_default() += 1;
                if answer.status == 500 {
                    let message: String = answer.message().chars().take(110).collect();
                    *findings
                        .internal
                        .entry(format!("{} {}: {message}", operation.method, operation.path))
                        .or_default() += 1;
                }
                // 414 and 431 are the HTTP library's own, before anything of ours is asked.
                let ours = answer.status >= 400 && !matches!(answer.status, 414 | 431);
                if ours && operation.method != "HEAD" && answer.message().is_empty() && honest {
                    findings.wrong.push(format!("{} without a message: {}", answer.status, told()));
                }
                if let Some(id) = answer.json()["Id"].as_str().filter(|_| operation.path.ends_with("/exec")) {
                    self.execs.push(id.to_owned());
                }
            }
            Err(error) if honest && !operation.may_wait => {
                findings.wrong.push(format!("{error}: {} after {}", told(), self.previous));
            }
            // One that waits was left, or one that is no HTTP was hung up on.
            Err(_) => {}
        }
        drop(findings);
        self.previous = told();
        if self.turns.is_multiple_of(BETWEEN_CLEARINGS) {
            self.clear().unwrap();
        }
    }

    fn choose(&mut self) -> &'static Operation {
        let total: u32 = OPERATIONS.iter().map(|operation| operation.weight).sum();
        let mut left = self.rng.u32(..total);
        for operation in OPERATIONS {
            match left.checked_sub(operation.weight) {
                Some(rest) => left = rest,
                None => return operation,
            }
        }
        &OPERATIONS[0]
    }

    /// The bytes, and whether they are HTTP as it should be.
    fn request(&mut self, operation: &Operation) -> (Vec<u8>, bool) {
        let rng = &mut self.rng;
        let mut path =
            (*rng.choice(&["", "/v1.24", "/v1.41", "/v1.44", "/v1.51", "/v1.99", "/v0.1"]).unwrap_or(&"")).to_owned();
        let mut target = operation.path.to_owned();
        for (mark, known) in [("{c}", "z"), ("{i}", "box"), ("{n}", "n1"), ("{v}", "v1")] {
            if target.contains(mark) {
                let name = match rng.u8(..4) {
                    0 => encoded(&alter::text(rng)),
                    1 if mark == "{c}" => "steady".to_owned(),
                    _ if mark == "{c}" => format!("{known}{}", rng.u8(..8)),
                    _ => known.to_owned(),
                };
                target = target.replace(mark, &name);
            }
        }
        if target.contains("{x}") {
            let exec = rng.choice(&self.execs).cloned().unwrap_or_else(|| "0".repeat(64));
            target = target.replace("{x}", &exec);
        }
        // The container that is to go on running is left alone by what would end it.
        let ends =
            ["/stop", "/kill", "/restart", "/pause", "/rename", "/update"].iter().any(|end| target.ends_with(end));
        if target.contains("steady") && (ends || operation.method == "DELETE") {
            target = target.replace("steady", "z1");
        }
        path += &target;
        let mut separator = '?';
        for (name, kind) in operation.query {
            if rng.u8(..3) == 0 || (*name == "name" && rng.u8(..3) != 0) {
                let value = if *name == "name" { format!("z{}", rng.u8(..8)) } else { alter::parameter(rng, *kind) };
                path += &format!("{separator}{name}={}", encoded(&value));
                separator = '&';
            }
        }
        let body = (!operation.body.is_empty()).then(|| alter::body(rng, operation.body));
        let content_type = if rng.u8(..30) == 0 { "text/plain" } else { "application/json" };
        let mut honest = true;
        let mut length = body.as_ref().map(Vec::len);
        if let Some(length) = length.as_mut().filter(|_| rng.u8(..200) == 0) {
            (*length, honest) = (*length + 5, false);
        }
        let mut request = api::head(operation.method, &path, content_type, length);
        if operation.method == "POST" && rng.u8(..10) == 0 {
            let end = request.len() - 2;
            request.splice(end..end, *b"Connection: Upgrade\r\nUpgrade: tcp\r\n");
        }
        request.extend_from_slice(&body.unwrap_or_default());
        if rng.u8(..200) == 0 {
            let at = rng.usize(..request.len().min(60));
            (request[at], honest) = (rng.u8(..), false);
        }
        (request, honest)
    }

    fn exchange(&mut self, request: &[u8], bare: bool, patience: Duration) -> io::Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => ApiConnection::open(&self.socket)?,
        };
        connection.set_patience(patience)?;
        let answer = connection.exchange(request, bare)?;
        let closes = answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if answer.complete && !closes {
            self.connection = Some(connection);
        }
        Ok(answer)
    }

    /// Removes what has piled up, but for the container that is to go on running.
    fn clear(&mut self) -> io::Result<()> {
        self.execs.clear();
        let mut connection = ApiConnection::open(&self.socket)?;
        // A command may be a megabyte and a half.
        connection.set_most(CLEARED_AT_ONCE << 21);
        loop {
            let list = connection.request("GET", &format!("/containers/json?all=1&limit={CLEARED_AT_ONCE}"), None)?;
            assert!(list.complete, "an answer of more than {} bytes", list.body.len());
            let list = list.json();
            let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
            for container in list.iter().filter(|container| container["Names"][0] != "/steady") {
                let id = container["Id"].as_str().unwrap_or_default();
                // Another client may be removing it.
                connection.request("DELETE", &format!("/containers/{id}?force=1&v=1"), None)?;
            }
            if list.len() < CLEARED_AT_ONCE {
                break;
            }
        }
        for kind in ["networks", "volumes"] {
            connection.request("POST", &format!("/{kind}/prune"), None)?;
        }
        Ok(())
    }
}

/// Everything that may not stand in a URL as `%XX`, and sometimes even what may.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
