//! A shim as our engine starts it, with a client, for tests that need root.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "this is test code, which clippy knows only of functions marked as tests")]

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::TaskClient;
use oci_spec::runtime::{Process, Spec};
use proto::control::{
    BackendChoice, ContainerBundle, ExitReport, LayerFile, UtilityVmReport, UtilityVmRequest, Writable,
};
use proto::{Isolation, Status};
use protobuf::well_known_types::any::Any;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use ttrpc::context::Context;

pub const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-bulkhead-v2");
const PATIENCE: Duration = Duration::from_secs(60);

/// Says why a test cannot run here; the words are counted by the test runner's closing lines. `BULKHEAD_TEST_REQUIRE`: nothing may be missing.
pub fn skip(reason: &str) {
    assert!(std::env::var_os("BULKHEAD_TEST_REQUIRE").is_none(), "nothing may be missing here: {reason}");
    eprintln!("SKIPPED: {reason}");
}

/// Root, and the programs that make a file system to run.
pub fn can_run() -> bool {
    if !rustix::process::geteuid().is_root() {
        skip("needs root");
        return false;
    }
    for (program, package) in [("/bin/busybox", "busybox-static"), ("/usr/bin/mkfs.erofs", "erofs-utils")] {
        if !Path::new(program).exists() {
            skip(&format!("needs {program}: apt-get install {package}"));
            return false;
        }
    }
    true
}

/// The guest image that `cargo xtask boot` makes, and QEMU.
pub fn guest_image() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/boot");
    if !folder.join("manifest.json").exists() {
        skip("needs a guest image: cargo xtask boot");
        return None;
    }
    if !Path::new("/usr/bin/qemu-system-x86_64").exists() {
        skip("needs QEMU: apt-get install qemu-system-x86");
        return None;
    }
    Some(folder)
}

/// A folder tree with busybox.
pub fn busybox_root(folder: &Path) {
    for name in ["bin", "proc", "sys", "dev", "etc", "tmp", "root", "run"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", folder.join("bin/busybox")).unwrap();
    let applets =
        ["sh", "cat", "echo", "true", "sleep", "yes", "head", "ps", "stty", "dd", "kill", "uname", "tee", "seq"];
    for applet in applets {
        std::os::unix::fs::symlink("busybox", folder.join("bin").join(applet)).unwrap();
    }
    fs::write(folder.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(folder.join("etc/notexec"), "no program\n").unwrap();
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The specification of a container that runs `arguments`.
pub fn spec(arguments: &[&str], terminal: bool) -> Spec {
    let mut spec = Spec::default();
    spec.set_process(Some(process(arguments, terminal)));
    spec.set_hostname(Some("shim-test".to_owned()));
    spec
}

/// A process that runs `arguments`.
pub fn process(arguments: &[&str], terminal: bool) -> Process {
    let mut process = Process::default();
    process.set_args(Some(arguments.iter().map(|&argument| argument.to_owned()).collect()));
    process.set_terminal(Some(terminal));
    process.set_env(Some(vec!["PATH=/bin:/usr/bin".to_owned(), "TERM=xterm".to_owned()]));
    process.set_cwd("/".into());
    process
}

/// A name that nothing else on the host has. Not by the number of this process: those come again, and what a test that was killed has left
/// would be this one's.
pub fn own_name(prefix: &str) -> String {
    // Its keys are the kernel's random numbers.
    let random = RandomState::new().build_hasher().finish();
    format!("{prefix}{:08x}", random & u64::from(u32::MAX))
}

/// A bundle, its shim, and a client of it. Dropped, it kills what is left.
pub struct Fixture {
    folder: tempfile::TempDir,
    pub id: String,
    pub client: TaskClient,
    pub shim: Child,
    streams: u32,
}

/// What a container's bundle says.
pub struct Setup {
    pub isolation: Isolation,
    pub spec: Spec,
    /// Without: a foreign containerd's bundle, with its root in a folder.
    pub engines: bool,
    pub memory_bytes: Option<u64>,
}

impl Setup {
    pub fn process(arguments: &[&str]) -> Self {
        Self { isolation: Isolation::Process, spec: spec(arguments, false), engines: true, memory_bytes: None }
    }

    pub fn hyperv(arguments: &[&str]) -> Self {
        Self { isolation: Isolation::Hyperv, ..Self::process(arguments) }
    }

    pub fn terminal(mut self, width: u64, height: u64) -> Self {
        let mut process = self.spec.process().clone().unwrap();
        process.set_terminal(Some(true));
        let size = oci_spec::runtime::BoxBuilder::default().width(width).height(height).build().unwrap();
        process.set_console_size(Some(size));
        self.spec.set_process(Some(process));
        self
    }

    pub fn foreign(mut self) -> Self {
        self.engines = false;
        self
    }
}

/// The paths of a process's fifos, and how the test reads them.
pub struct Pipes {
    pub stdin: PathBuf,
    pub stdout: PathBuf,
    pub stderr: PathBuf,
    pub terminal: bool,
}

impl Pipes {
    fn make(folder: &Path, number: u32, terminal: bool) -> Self {
        let make = |name: &str| {
            let path = folder.join(format!("{number}-{name}"));
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
            path
        };
        Self { stdin: make("in"), stdout: make("out"), stderr: make("err"), terminal }
    }

    pub fn output(&self) -> pipe::Receiver {
        pipe::OpenOptions::new().open_receiver(&self.stdout).unwrap()
    }

    pub fn errors(&self) -> pipe::Receiver {
        pipe::OpenOptions::new().open_receiver(&self.stderr).unwrap()
    }

    pub fn input(&self) -> pipe::Sender {
        pipe::OpenOptions::new().open_sender(&self.stdin).unwrap()
    }
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Everything until end of file.
pub async fn read_all(mut from: pipe::Receiver) -> Vec<u8> {
    let mut all = Vec::new();
    tokio::time::timeout(PATIENCE, from.read_to_end(&mut all)).await.expect("no end of file").unwrap();
    all
}

/// Until `what` was read.
pub async fn read_until(from: &mut pipe::Receiver, what: &str) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    let begin = Instant::now();
    while !String::from_utf8_lossy(&all).contains(what) {
        let left = PATIENCE.saturating_sub(begin.elapsed());
        let count = tokio::time::timeout(left, from.read(&mut buffer)).await;
        let count = count.unwrap_or_else(|_| panic!("no {what:?} in {:?}", String::from_utf8_lossy(&all))).unwrap();
        assert_ne!(count, 0, "end of file before {what:?}: {:?}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

pub async fn write_all(to: &mut pipe::Sender, bytes: &[u8]) {
    tokio::time::timeout(PATIENCE, to.write_all(bytes)).await.expect("nobody reads").unwrap();
}

impl Fixture {
    /// Makes the bundle and starts a shim for it, as our engine does.
    pub async fn new(setup: Setup) -> Self {
        let folder = tempfile::Builder::new().prefix("bulkhead-shim-").tempdir().unwrap();
        let id = own_name("shim-test-");
        let bundle = folder.path().join("bundle");
        fs::create_dir(&bundle).unwrap();
        write_bundle(folder.path(), &bundle, &id, setup);
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        // The shell makes descriptor 3 of its standard input.
        let shim = Command::new("/bin/sh")
            .args(["-c", "exec \"$0\" serve -debug -namespace test -id \"$1\" 3<&0 </dev/null", SHIM, &id])
            .current_dir(&bundle)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .spawn()
            .unwrap();
        let client = ttrpc::asynchronous::Client::connect(&format!("unix://{}", socket.display())).await.unwrap();
        Self { folder, id, client: TaskClient::new(client), shim, streams: 0 }
    }

    pub fn bundle(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }

    pub fn scratch(&self) -> PathBuf {
        self.folder.path().join("scratch.img")
    }

    pub fn upper(&self) -> PathBuf {
        self.folder.path().join("upper")
    }

    pub fn pipes(&mut self, terminal: bool) -> Pipes {
        self.streams += 1;
        Pipes::make(self.folder.path(), self.streams, terminal)
    }

    pub async fn create(&self, pipes: &Pipes) -> Result<u32, Status> {
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: text(&self.bundle()),
            stdin: text(&pipes.stdin),
            stdout: text(&pipes.stdout),
            stderr: if pipes.terminal { String::new() } else { text(&pipes.stderr) },
            terminal: pipes.terminal,
            ..Default::default()
        };
        let created = self.client.create(context(), &request).await;
        created.map(|response| response.pid).map_err(|error| Status::from_ttrpc(&error))
    }

    pub async fn start(&self, exec_id: &str) -> Result<u32, Status> {
        let request = api::StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let started = self.client.start(context(), &request).await;
        started.map(|response| response.pid).map_err(|error| Status::from_ttrpc(&error))
    }

    /// Create and Start, which must succeed. Answers the process id.
    pub async fn run(&self, pipes: &Pipes) -> u32 {
        let pid = self.create(pipes).await.unwrap_or_else(|error| panic!("create: {error}\n{}", self.log()));
        self.start("").await.unwrap_or_else(|error| panic!("start: {error}\n{}", self.log()));
        pid
    }

    pub async fn exec(&self, exec_id: &str, process: &Process, pipes: &Pipes) -> Result<u32, Status> {
        let spec = Any { value: serde_json::to_vec(process).unwrap(), ..Any::default() };
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            stdin: text(&pipes.stdin),
            stdout: text(&pipes.stdout),
            stderr: if pipes.terminal { String::new() } else { text(&pipes.stderr) },
            terminal: pipes.terminal,
            spec: Some(spec).into(),
            ..Default::default()
        };
        self.client.exec(context(), &request).await.map_err(|error| Status::from_ttrpc(&error))?;
        self.start(exec_id).await
    }

    pub async fn wait(&self, exec_id: &str) -> u32 {
        let request = api::WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let waited = tokio::time::timeout(PATIENCE, self.client.wait(context(), &request)).await;
        waited.unwrap_or_else(|_| panic!("wait is not answered\n{}", self.log())).unwrap().exit_status
    }

    pub async fn kill(&self, signal: i32) -> Result<(), Status> {
        let signal = signal.cast_unsigned();
        let request = api::KillRequest { id: self.id.clone(), signal, ..Default::default() };
        self.client.kill(context(), &request).await.map(drop).map_err(|error| Status::from_ttrpc(&error))
    }

    pub async fn close_stdin(&self, exec_id: &str) {
        let exec_id = exec_id.to_owned();
        let request = api::CloseIORequest { id: self.id.clone(), exec_id, stdin: true, ..Default::default() };
        self.client.close_io(context(), &request).await.unwrap();
    }

    pub async fn state(&self) -> api::StateResponse {
        let request = api::StateRequest { id: self.id.clone(), ..Default::default() };
        self.client.state(context(), &request).await.unwrap()
    }

    pub async fn delete(&self, exec_id: &str) -> Result<api::DeleteResponse, Status> {
        let request = api::DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        self.client.delete(context(), &request).await.map_err(|error| Status::from_ttrpc(&error))
    }

    /// Delete and Shutdown; then nothing of the container may be left.
    pub async fn finish(mut self) {
        self.delete("").await.unwrap_or_else(|error| panic!("delete: {error}\n{}", self.log()));
        self.shut_down(false).await;
        self.assert_nothing_left();
    }

    pub async fn shut_down(&mut self, now: bool) {
        let request = api::ShutdownRequest { id: self.id.clone(), now, ..Default::default() };
        // The answer may lose the race with the end of the connection.
        let _ = self.client.shutdown(context(), &request).await;
        let begin = Instant::now();
        while self.shim.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < PATIENCE, "the shim does not end\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn exit_report(&self) -> ExitReport {
        serde_json::from_slice(&fs::read(self.bundle().join(ExitReport::FILE_NAME)).unwrap()).unwrap()
    }

    pub fn utility_vm(&self) -> UtilityVmReport {
        serde_json::from_slice(&fs::read(self.bundle().join(UtilityVmReport::FILE_NAME)).unwrap()).unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.bundle().join("shim.log")).unwrap_or_default()
    }

    /// Runs the shim's `delete` and answers its output.
    pub fn delete_after_crash(&self) -> api::DeleteResponse {
        let output = Command::new(SHIM)
            .args(["-namespace", "test", "-id", &self.id, "delete"])
            .current_dir(self.bundle())
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        protobuf::Message::parse_from_bytes(&output.stdout).unwrap()
    }

    /// No cgroup, no process with the folder's name in its command line, no loop device on a layer.
    pub fn assert_nothing_left(&self) {
        let begin = Instant::now();
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                return;
            }
            assert!(begin.elapsed() < Duration::from_secs(5), "left behind: {left:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            for below in ["", "bulkhead-shim-test"] {
                let folder = hierarchy.path().join(below).join(&self.id);
                left.extend(folder.exists().then(|| text(&folder)));
            }
        }
        let own = format!("{}", self.folder.path().display());
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(&own) || command.contains(&self.id) {
                left.push(command);
            }
        }
        for device in fs::read_dir("/sys/block").unwrap().flatten() {
            let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
            left.extend(file.contains(&own).then_some(file));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(&own)).map(str::to_owned));
        left
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = self.shim.kill();
        let _ = self.shim.wait();
        if self.bundle().exists() {
            let _ = Command::new(SHIM).args(["-id", &self.id, "delete"]).current_dir(self.bundle()).output();
        }
    }
}

pub fn context() -> Context {
    ttrpc::context::with_timeout(0)
}

fn write_bundle(folder: &Path, bundle: &Path, id: &str, setup: Setup) {
    let tree = folder.join("tree");
    busybox_root(&tree);
    let mut spec = setup.spec;
    let mut root = oci_spec::runtime::Root::default();
    root.set_readonly(Some(false));
    let cgroup = format!("/bulkhead-shim-test/{id}");
    let mut linux = spec.linux().clone().unwrap();
    linux.set_cgroups_path(Some(cgroup.clone().into()));
    spec.set_linux(Some(linux));
    if setup.engines {
        let layer = folder.join("layer.erofs");
        run(Command::new("/usr/bin/mkfs.erofs").arg(&layer).arg(&tree));
        let layers = vec![LayerFile { diff_id: format!("sha256:{}", "0".repeat(64)).parse().unwrap(), path: layer }];
        let (writable, utility_vm) = match setup.isolation {
            Isolation::Process => (upper(folder), None),
            Isolation::Hyperv => (scratch(folder), Some(vm_request(setup.memory_bytes))),
        };
        let container = ContainerBundle {
            isolation: setup.isolation,
            layers,
            writable,
            cgroup,
            utility_vm,
            parts: Vec::new(),
            network: None,
        };
        fs::write(bundle.join(ContainerBundle::FILE_NAME), serde_json::to_vec(&container).unwrap()).unwrap();
        root.set_path(folder.join("merged"));
    } else {
        root.set_path(tree);
    }
    spec.set_root(Some(root));
    spec.save(bundle.join("config.json")).unwrap();
}

fn upper(folder: &Path) -> Writable {
    let make = |name: &str| {
        let path = folder.join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    Writable::Upper { upper: make("upper"), work: make("work"), merged: make("merged"), disk: None }
}

fn scratch(folder: &Path) -> Writable {
    let seed = folder.join("seed");
    for name in ["upper", "work"] {
        fs::create_dir_all(seed.join(name)).unwrap();
    }
    let disk = folder.join("scratch.img");
    fs::File::create(&disk).unwrap().set_len(256 << 20).unwrap();
    run(Command::new("/sbin/mkfs.ext4").args(["-q", "-d"]).arg(&seed).arg(&disk));
    Writable::Scratch { disk }
}

fn vm_request(memory_bytes: Option<u64>) -> UtilityVmRequest {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    UtilityVmRequest {
        // Shared between tests: the first one makes the template.
        template_store: target.join("shim-test-templates"),
        guest_image: target.join("boot"),
        backend: BackendChoice::Auto,
        memory_bytes,
        cpus_milli: None,
        boundary_required: false,
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        personalize_timeout_ms: 2000,
        disk_rates: proto::control::DiskRates::default(),
    }
}
