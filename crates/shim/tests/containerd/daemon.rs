//! A containerd of a test's own, driven by its `ctr`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{SHIM, busybox_root, run, skip, text};

/// The image that every test uses.
pub const IMAGE: &str = "docker.io/library/busybox:test";
const PATIENCE: Duration = Duration::from_secs(30);

/// containerd's namespace, and the name of its containers' cgroups on the host, so one for each test's process.
pub fn namespace() -> String {
    format!("bulkhead-ctr-{}", std::process::id())
}

/// Why it cannot run here, told loudly.
pub fn can_run() -> bool {
    if !crate::support::can_run() {
        return false;
    }
    for (program, package) in [("containerd", "containerd"), ("ctr", "containerd"), ("runc", "runc")] {
        let found = ["/usr/bin", "/usr/sbin"].iter().any(|folder| Path::new(folder).join(program).exists());
        if !found {
            skip(&format!("needs {program}: apt-get install {package}"));
            return false;
        }
    }
    true
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

/// A containerd; dropped, it is killed, and its containers' shims with it.
pub struct Containerd {
    folder: tempfile::TempDir,
    daemon: Child,
}

impl Containerd {
    /// Starts one with the image loaded.
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("bulkhead-ctr-").tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["bin", "rootfs"] {
            fs::create_dir(at(name)).unwrap();
        }
        for name in ["containerd-shim-bulkhead-v2", "containerd-shim-bulkhead-hyperv-v2"] {
            std::os::unix::fs::symlink(SHIM, at("bin").join(name)).unwrap();
        }
        let off = ["grpc.v1.cri", "snapshotter.v1.btrfs", "snapshotter.v1.zfs", "snapshotter.v1.aufs"];
        let off: Vec<String> = off.iter().map(|name| format!("\"io.containerd.{name}\"")).collect();
        let configuration = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [{}, \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n[debug]\nlevel = \"debug\"\n",
            at("root"),
            at("state"),
            off.join(", "),
            at("sock"),
            at("sock.ttrpc")
        );
        fs::write(at("config.toml"), configuration).unwrap();
        let daemon = spawn(folder.path());
        let this = Self { folder, daemon };
        this.await_answer();
        this.load_image();
        this
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn await_answer(&self) {
        let begin = Instant::now();
        while self.ctr(&["version"]).code != 0 {
            assert!(begin.elapsed() < PATIENCE, "containerd does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Two layers: busybox, and one that adds a file and takes another away.
    fn load_image(&self) {
        let (lower, upper, archive) = (self.path("rootfs"), self.path("upper"), self.path("image"));
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
            r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["PATH=/bin"],"Cmd":["sh"]}},
                "rootfs":{{"type":"layers","diff_ids":[{sums}]}}}}"#
        );
        fs::write(archive.join("config.json"), config).unwrap();
        let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["{IMAGE}"],"Layers":["0.tar","1.tar"]}}]"#);
        fs::write(archive.join("manifest.json"), manifest).unwrap();
        let tar = self.path("image.tar");
        run(Command::new("tar").arg("-C").arg(&archive).arg("-cf").arg(&tar).arg("."));
        self.ctr(&["images", "import", &text(&tar)]).ok();
    }

    pub fn ctr_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.args(["-a", &text(&self.path("sock")), "-n", &namespace()]).args(words).stdin(Stdio::null());
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
            if begin.elapsed() > PATIENCE {
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
            let list = self.ctr(&["task", "ls"]);
            let seen = list.ok().lines().find(|line| line.starts_with(&format!("{id} ")));
            let seen = seen.and_then(|line| line.split_whitespace().nth(2)).map(str::to_owned);
            if seen.as_deref() == state {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{id} is {seen:?}, not {state:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it as a crash does, and waits for its end.
    pub fn kill(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        self.daemon = spawn(self.folder.path());
        self.await_answer();
    }

    /// The shim that serves a container.
    pub fn shim_pid(&self, id: &str) -> i32 {
        let file = self.bundle(id).join("shim.pid");
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        text.split_whitespace().next().unwrap().parse().unwrap()
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        self.path("state/io.containerd.runtime.v2.task").join(namespace()).join(id)
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
            assert!(begin.elapsed() < PATIENCE, "left behind: {left:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
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
            if command.contains("shim") && command.contains(&namespace()) && command.contains(&format!("-id {id} ")) {
                left.push(command);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(&text(&bundle))).map(str::to_owned));
        left
    }
}

/// Every mounted hierarchy, and what they are mounted in, which is the only one with version 2.
fn hierarchies() -> Vec<PathBuf> {
    let top = PathBuf::from("/sys/fs/cgroup");
    let below = fs::read_dir(&top).into_iter().flatten().flatten().map(|entry| entry.path());
    below.chain([top.clone()]).collect()
}

fn spawn(folder: &Path) -> Child {
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let path = format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("containerd");
    command.arg("--config").arg(folder.join("config.toml")).env("PATH", path).stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // What a failed test has left runs: as containerd does for shims that it lost.
        let shims = self.path("state/io.containerd.runtime.v2.task").join(namespace());
        for bundle in fs::read_dir(shims).into_iter().flatten().flatten() {
            let id = bundle.file_name().to_string_lossy().into_owned();
            let _ = Command::new(SHIM)
                .args(["-namespace", &namespace(), "-id", &id, "delete"])
                .current_dir(bundle.path())
                .output();
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        // containerd leaves a namespace's cgroup; it is empty when all went well.
        for hierarchy in hierarchies() {
            let _ = fs::remove_dir(hierarchy.join(namespace()));
        }
    }
}
