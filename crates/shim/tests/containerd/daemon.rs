//! A containerd of a test's own, driven by its `ctr`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::support::{SHIM, busybox_root, own_name, run, skip, text};

/// The image that every test uses.
pub const IMAGE: &str = "docker.io/library/busybox:test";
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at all processes. Whoever opens files of a process in /proc while it is reaped has its parent spin in the kernel
/// (`shrink_dcache_parent`), and a few such parents starve everything else; seen on Linux 6.18, for minutes.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// containerd's namespace, and the name of its containers' cgroups on the host, so one for each test's process.
pub fn namespace() -> String {
    static NAME: LazyLock<String> = LazyLock::new(|| own_name("bulkhead-ctr-"));
    NAME.clone()
}

/// What CRI makes of an image's name.
pub const PAUSE: &str = "docker.io/library/pause:test";
/// The lines that `deploy` adds to a node's configuration.
pub const HANDLER: &str = include_str!("../../../../deploy/containerd.toml");
/// The lines that make pods utility VMs.
pub const HYPERV_HANDLER: &str = include_str!("../../../../deploy/containerd-hyperv.toml");
/// CRI's namespace in containerd, always.
const CRI_NAMESPACE: &str = "k8s.io";

/// Why it cannot run here, told loudly.
pub fn can_run() -> bool {
    if !crate::support::can_run() {
        return false;
    }
    let packages = [
        ("bin/containerd", "containerd"),
        ("bin/ctr", "containerd"),
        ("sbin/runc", "runc"),
        ("lib/cni/bridge", "containernetworking-plugins"),
    ];
    for (program, package) in packages {
        let found = Path::new("/usr").join(program).exists();
        if !found {
            skip(&format!("needs {program}: apt-get install {package}"));
            return false;
        }
    }
    true
}

/// Where the programs of a containerd 2 are, unpacked, that the tests are to run in place of the system's.
fn second() -> Option<PathBuf> {
    std::env::var_os("BULKHEAD_CONTAINERD_2").map(PathBuf::from)
}

/// Writes a runtime's options, with a state folder whose templates are those of the shim's other tests. No utility VM stands by: most
/// tests count what there is on the host.
pub fn write_options(file: &Path, state: &Path, image: &Path, more: &str) {
    write_whole_options(file, state, image, &format!("standby-vms = 0\n{more}"));
}

/// As [`write_options`], for tests of what stands by.
pub fn write_whole_options(file: &Path, state: &Path, image: &Path, more: &str) {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let templates = target.join("shim-test-templates");
    fs::create_dir_all(&templates).unwrap();
    fs::create_dir_all(state).unwrap();
    let _ = std::os::unix::fs::symlink(templates.canonicalize().unwrap(), state.join("templates"));
    let image = image.canonicalize().unwrap();
    fs::write(file, format!("state = {state:?}\nguest-image = {image:?}\n{more}\n")).unwrap();
}

/// How a `ctr` ended, and what it said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        self.out.trim_end()
    }
}

/// `BULKHEAD_TEST_PATIENCE=10`: ten times the deadlines, for a slow machine.
pub fn slowness() -> u32 {
    std::env::var("BULKHEAD_TEST_PATIENCE").map_or(1, |times| times.parse().unwrap())
}

/// A containerd; dropped, it is killed, and its containers' shims with it.
pub struct Containerd {
    /// On a tmpfs, as `/run` on a host, where bundles are.
    folder: tempfile::TempDir,
    /// What our shim keeps for later containers is on a disk.
    kept: tempfile::TempDir,
    daemon: Child,
    /// The one that `ctr` asks for.
    namespace: String,
    own_network: bool,
    /// How many times as long as usual everything may take.
    times: u32,
}

impl Containerd {
    /// Starts one with the image loaded.
    pub fn start() -> Self {
        let this = Self::launch(namespace(), None);
        this.load_image(IMAGE, "sh");
        this
    }

    /// Starts one that serves CRI, with the images loaded, in a network namespace of its own. Shape: `hyperv` is the file with
    /// the runtime's options.
    pub fn with_cri(hyperv: &Path) -> Self {
        let this = Self::launch(CRI_NAMESPACE.to_owned(), Some(hyperv));
        this.load_image(IMAGE, "sh");
        // It is killed at once; as PID 1 it takes no other signal.
        this.load_image(PAUSE, "sleep\",\"2147483647");
        this
    }

    fn launch(namespace: String, cri: Option<&Path>) -> Self {
        let kept = tempfile::Builder::new().prefix("bulkhead-ctr-kept-").tempdir().unwrap();
        let folder = tempfile::Builder::new().prefix("bulkhead-ctr-").tempdir_in("/dev/shm").unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["bin", "rootfs"] {
            fs::create_dir(at(name)).unwrap();
        }
        for name in ["containerd-shim-bulkhead-v2", "containerd-shim-bulkhead-hyperv-v2"] {
            std::os::unix::fs::symlink(SHIM, at("bin").join(name)).unwrap();
        }
        let mut off = vec!["internal.v1.opt", "snapshotter.v1.btrfs", "snapshotter.v1.zfs", "snapshotter.v1.aufs"];
        let all_of_cri = ["grpc.v1.cri", "cri.v1.images", "cri.v1.runtime"];
        off.extend(all_of_cri.into_iter().filter(|_| cri.is_none()));
        let off: Vec<String> = off.iter().map(|name| format!("\"io.containerd.{name}\"")).collect();
        let configuration = format!(
            "version = {}\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [{}]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n[debug]\nlevel = {:?}\n{}",
            if second().is_some() { 3 } else { 2 },
            at("root"),
            at("state"),
            off.join(", "),
            at("sock"),
            at("sock.ttrpc"),
            // CRI's debugging lines are whole specifications.
            if cri.is_some() { "info" } else { "debug" },
            cri.map(|hyperv| cri_configuration(folder.path(), hyperv)).unwrap_or_default(),
        );
        fs::write(at("config.toml"), configuration).unwrap();
        let own_network = cri.is_some();
        let daemon = spawn(folder.path(), own_network);
        let this = Self { folder, kept, daemon, namespace, own_network, times: slowness() };
        this.await_answer();
        this
    }

    /// So many containers at once keep the machine busy: everything may take longer.
    pub fn crowded(mut self, containers: usize) -> Self {
        self.times *= 1 + u32::try_from(containers / 10).unwrap();
        self
    }

    /// A deadline, by how busy it keeps the machine.
    pub fn patience(&self, usual: Duration) -> Duration {
        self.times * usual
    }

    /// containerd itself.
    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// As [`Containerd::pid`]; the one that `unshare` becomes is the same.
    pub fn daemon_pid(&self) -> Option<i32> {
        self.pid().try_into().ok()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where a runtime's state may be.
    pub fn kept(&self, name: &str) -> PathBuf {
        self.kept.path().join(name)
    }

    pub fn await_answer(&self) {
        let begin = Instant::now();
        while self.ctr(&["version"]).code != 0 {
            assert!(begin.elapsed() < self.patience(PATIENCE), "containerd does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Two layers: busybox, and one that adds a file and takes another away.
    fn load_image(&self, name: &str, command: &str) {
        let (lower, upper, archive) = (self.path("rootfs"), self.path("upper"), self.path("image"));
        for folder in [&lower, &upper, &archive] {
            let _ = fs::remove_dir_all(folder);
        }
        busybox_root(&lower);
        fs::write(lower.join("etc/gone"), "").unwrap();
        fs::create_dir_all(upper.join("etc")).unwrap();
        fs::write(upper.join("etc/second"), "second\n").unwrap();
        fs::write(upper.join("etc/.wh.gone"), "").unwrap();
        fs::create_dir(&archive).unwrap();
        let layer = |folder: &Path, name: &str| {
            let file = archive.join(name);
            run(Command::new("tar").arg("-C").arg(folder).arg("-cf").arg(&file).arg("."));
            let sum = Command::new("sha256sum").arg(&file).output().unwrap().stdout;
            format!("\"sha256:{}\"", String::from_utf8_lossy(&sum[..64]))
        };
        let sums = [layer(&lower, "0.tar"), layer(&upper, "1.tar")].join(",");
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["PATH=/bin"],"Cmd":["{command}"]}},
                "rootfs":{{"type":"layers","diff_ids":[{sums}]}}}}"#
        );
        fs::write(archive.join("config.json"), config).unwrap();
        let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["{name}"],"Layers":["0.tar","1.tar"]}}]"#);
        fs::write(archive.join("manifest.json"), manifest).unwrap();
        let tar = self.path("image.tar");
        run(Command::new("tar").arg("-C").arg(&archive).arg("-cf").arg(&tar).arg("."));
        self.ctr(&["images", "import", &text(&tar)]).ok();
    }

    pub fn ctr_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(second().map_or("ctr".into(), |folder| folder.join("ctr")));
        command.args(["-a", &text(&self.path("sock")), "-n", &self.namespace]).args(words).stdin(Stdio::null());
        command
    }

    /// Runs `ctr` to its end, which must come.
    pub fn ctr(&self, words: &[&str]) -> Said {
        let mut child =
            self.ctr_command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ctr can be run");
        let read = |from: Option<Box<dyn Read + Send>>| {
            std::thread::spawn(move || {
                let mut text = String::new();
                from.map(|mut from| from.read_to_string(&mut text).unwrap());
                text
            })
        };
        let out = read(child.stdout.take().map(|from| Box::new(from) as Box<dyn Read + Send>));
        let err = read(child.stderr.take().map(|from| Box::new(from) as Box<dyn Read + Send>));
        let begin = Instant::now();
        let code = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status.code().unwrap_or(-1);
            }
            if begin.elapsed() > self.patience(PATIENCE) {
                child.kill().unwrap();
                panic!("ctr {words:?} does not end\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Said { code, out: out.join().unwrap(), err: err.join().unwrap() }
    }

    /// Waits until a task is in a state, such as `RUNNING`; `None` is that there is no such task.
    #[track_caller]
    pub fn await_task(&self, id: &str, state: Option<&str>) {
        let begin = Instant::now();
        loop {
            let seen = self.task_state(id);
            if seen.as_deref() == state {
                return;
            }
            assert!(begin.elapsed() < self.patience(PATIENCE), "{id} is {seen:?}, not {state:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Such as `RUNNING`; none when there is no such task.
    #[track_caller]
    pub fn task_state(&self, id: &str) -> Option<String> {
        let list = self.ctr(&["task", "ls"]);
        let seen = list.ok().lines().find(|line| line.starts_with(&format!("{id} ")));
        seen.and_then(|line| line.split_whitespace().nth(2)).map(str::to_owned)
    }

    /// Kills it as a crash does, and waits for its end.
    pub fn kill(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        self.daemon = spawn(self.folder.path(), self.own_network);
        self.await_answer();
    }

    /// The shim that serves a container.
    pub fn shim_pid(&self, id: &str) -> i32 {
        let file = self.bundle(id).join("shim.pid");
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        text.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The command lines of our shims that live.
    pub fn shims(&self) -> Vec<String> {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let own = format!("{}/", text(self.folder.path()));
        let ours = processes.filter(|entry| {
            fs::read_link(entry.path().join("cwd")).is_ok_and(|folder| text(&folder).starts_with(&own))
        });
        let commands = ours.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
        commands.filter(|command| command.contains("\0serve\0")).map(|command| command.replace('\0', " ")).collect()
    }

    /// That of the only pod.
    pub fn network_namespace(&self) -> PathBuf {
        let (mounts, own) = (fs::read_to_string("/proc/self/mounts").unwrap(), text(self.folder.path()));
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let mut found = points.filter(|point| point.starts_with(&own) && point.contains("/netns/"));
        let (first, second) = (found.next().expect("a pod runs"), found.next());
        assert_eq!(second, None);
        PathBuf::from(first)
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        self.path("state/io.containerd.runtime.v2.task").join(&self.namespace).join(id)
    }

    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// What is left of a container: bundle, cgroups, processes, mounts.
    #[track_caller]
    pub fn assert_nothing_left(&self, id: &str) {
        let begin = Instant::now();
        loop {
            let left = self.leftovers(id);
            if left.is_empty() {
                return;
            }
            assert!(begin.elapsed() < self.patience(PATIENCE), "left behind: {left:?}\n{}", self.log());
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// What there is on the host of other tasks than these, pods among them, once it no longer changes: bundles, cgroups, processes, mounts.
    pub fn await_nothing_but(&self, ids: &[&str]) -> Vec<String> {
        let begin = Instant::now();
        loop {
            let left = self.whole(ids);
            // A shim whose containerd was killed before it had asked for a task, or for the end, ends by itself after half a minute.
            if left.is_empty() || begin.elapsed() > self.patience(2 * PATIENCE) {
                return left;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn whole(&self, ids: &[&str]) -> Vec<String> {
        let own = format!("{}/", text(self.folder.path()));
        let is_others = |what: &str| !ids.iter().any(|id| what.contains(&format!("/{id}")));
        let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut left: Vec<String> = entries(self.bundle("").as_path()).map(|path| text(&path)).collect();
        for hierarchy in hierarchies() {
            left.extend(entries(&hierarchy.join(namespace())).filter(|path| path.is_dir()).map(|path| text(&path)));
        }
        // containerd itself works in another folder; a shim and what it starts, in the bundle.
        let works_here = |path: &Path| {
            let folder = fs::read_link(path.join("cwd")).unwrap_or_default();
            let words = fs::read_to_string(path.join("cmdline")).unwrap_or_default().replace('\0', " ");
            let is_here =
                text(&folder).starts_with(&own) || (words.contains(&own) && !words.contains("containerd --config"));
            is_here.then(|| format!("{} {words}", text(&folder)))
        };
        left.extend(entries(Path::new("/proc")).filter_map(|path| works_here(&path)));
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(&format!("{own}state/"))).map(str::to_owned));
        left.retain(|what| is_others(what));
        left
    }

    /// Which addresses CNI's plugins hold for pods.
    pub fn pod_addresses(&self) -> Vec<String> {
        let held = fs::read_dir(self.path("cni-data/test")).into_iter().flatten().flatten();
        let names = held.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
    }

    fn leftovers(&self, id: &str) -> Vec<String> {
        let mut left = Vec::new();
        let bundle = self.bundle(id);
        left.extend(bundle.exists().then(|| text(&bundle)));
        for hierarchy in hierarchies() {
            let folder = hierarchy.join(namespace()).join(id);
            left.extend(folder.exists().then(|| text(&folder)));
        }
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains("shim") && command.contains(&self.namespace) && command.contains(&format!("-id {id} "))
            {
                left.push(command);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(&text(&bundle))).map(str::to_owned));
        left
    }
}

/// Every mounted hierarchy, and what they are mounted in, which is the only one with version 2.
pub fn hierarchies() -> Vec<PathBuf> {
    let top = PathBuf::from("/sys/fs/cgroup");
    let below = fs::read_dir(&top).into_iter().flatten().flatten().map(|entry| entry.path());
    below.chain([top.clone()]).collect()
}

/// CRI with our handlers beside runc's.
fn cri_configuration(folder: &Path, hyperv: &Path) -> String {
    let network = r#"{"cniVersion": "1.0.0", "name": "test", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "DATA"}}]}"#;
    let conf = folder.join("cni");
    fs::create_dir(&conf).unwrap();
    fs::write(conf.join("net.conflist"), network.replace("DATA", &text(&folder.join("cni-data")))).unwrap();
    let text = format!(
        r#"[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = {conf:?}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
{HYPERV_HANDLER}[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.bulkhead-hyperv.options]
ConfigPath = {hyperv:?}
{HANDLER}"#
    );
    if second().is_none() {
        return text;
    }
    // As the installer does for a configuration of version 3.
    let text = text.replace("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime");
    let images = format!("[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"{PAUSE}\"\n");
    text.replace(&format!("sandbox_image = \"{PAUSE}\"\n"), "") + &images
}

fn spawn(folder: &Path, own_network: bool) -> Child {
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let first = second().map(|folder| format!("{}:", folder.display())).unwrap_or_default();
    let path = format!("{}:{first}{}", folder.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(if own_network { "unshare" } else { "containerd" });
    if own_network {
        let script = "busybox ip link set lo up && exec containerd \"$@\"";
        command.args(["--net", "busybox", "sh", "-c", script, "sh"]);
    }
    command.arg("--config").arg(folder.join("config.toml")).env("PATH", path).stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // What a failed test has left runs: as containerd does for shims that it lost.
        let shims = self.path("state/io.containerd.runtime.v2.task").join(&self.namespace);
        for bundle in fs::read_dir(shims).into_iter().flatten().flatten() {
            let id = bundle.file_name().to_string_lossy().into_owned();
            let _ = Command::new(SHIM)
                .args(["-namespace", &self.namespace, "-id", &id, "delete"])
                .current_dir(bundle.path())
                .output();
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        // A failed test's pods: network namespaces and shared memory.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = text(self.folder.path());
        for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&own)) {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
        // containerd leaves a namespace's cgroup; it is empty when all went well.
        for hierarchy in hierarchies() {
            let _ = fs::remove_dir(hierarchy.join(namespace()));
        }
    }
}
