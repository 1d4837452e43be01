//! A busybox root file system, bundles on it, and containers that are removed whatever happens.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bulkhead_container::{Container, CreateError, ExecError, Helper, Started, Stdio, remove_cgroup};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::Process;
use serde_json::{Value, json};

/// Debian's package busybox-static.
const BUSYBOX: &str = "/usr/bin/busybox";

/// Why the tests cannot run here, if they cannot.
pub fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        Some("root is needed")
    } else if !Path::new(BUSYBOX).exists() {
        Some("/usr/bin/busybox is needed: apt-get install busybox-static")
    } else {
        None
    }
}

/// One bundle, its state folder, and what was made from it.
pub struct Fixture {
    pub folder: tempfile::TempDir,
    pub id: String,
    pub spec: Value,
}

/// What became of a process.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Fixture {
    /// A bundle that runs `sh -c script`.
    pub fn new(script: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("t-").tempdir().unwrap();
        let rootfs = folder.path().join("rootfs");
        for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
            fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        fs::copy(BUSYBOX, rootfs.join("bin/busybox")).unwrap();
        let applets = "sh cat echo id ls sleep true false stty tty hostname mkdir rm mknod dd head touch env pwd ulimit \
                       grep seq wc test kill ps dnsdomainname setsid sync yes nproc chmod";
        for applet in applets.split_whitespace() {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n")
            .unwrap();
        fs::write(rootfs.join("etc/group"), "root:x:0:\nwheel:x:10:root\napp:x:1001:\nstaff:x:50:app\n").unwrap();
        // Not by the number of this process: those come again, and what a test that was killed has left would be this one's.
        let id = folder.path().file_name().unwrap().to_str().unwrap().to_owned();
        let spec = spec(&id, script);
        Self { folder, id, spec }
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn rootfs(&self) -> PathBuf {
        self.folder.path().join("rootfs")
    }

    pub fn cgroup(&self) -> PathBuf {
        PathBuf::from(format!("/bulkhead-test/{}", self.id))
    }

    /// Reads a file of the container's cgroup in a version 1 hierarchy.
    pub fn cgroup_file(&self, controller: &str, file: &str) -> String {
        let path =
            Path::new("/sys/fs/cgroup").join(controller).join(self.cgroup().strip_prefix("/").unwrap()).join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}")).trim().to_owned()
    }

    /// Folders of the container's cgroup that exist.
    pub fn cgroup_folders(&self) -> Vec<PathBuf> {
        let relative = self.cgroup();
        let relative = relative.strip_prefix("/").unwrap();
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
        // Version 1 has a folder for each hierarchy, version 2 is that place itself.
        std::iter::once("/sys/fs/cgroup".into())
            .chain(hierarchies)
            .map(|hierarchy: PathBuf| hierarchy.join(relative))
            .filter(|folder| folder.exists())
            .collect()
    }

    pub fn set(&mut self, pointer: &str, value: Value) {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        self.spec.pointer_mut(parent).unwrap()[name] = value;
    }

    pub fn write_spec(&self) {
        fs::write(self.folder.path().join("config.json"), self.spec.to_string()).unwrap();
    }

    pub fn try_create(&self, stdio: Stdio) -> Result<(Container, Started), CreateError> {
        self.write_spec();
        Container::create(Helper::spawn().unwrap(), &self.root(), &self.id, self.folder.path(), stdio)
    }

    /// The error for a bundle without `config.json`.
    pub fn create_without_file(&self) -> CreateError {
        let helper = Helper::spawn().unwrap();
        Container::create(helper, &self.root(), &self.id, self.folder.path(), silent()).unwrap_err()
    }

    pub fn create(&self, stdio: Stdio) -> (Container, Started) {
        self.try_create(stdio).unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// Creates and starts without streams.
    pub fn start(&self) -> (Container, Started) {
        let (mut container, started) = self.create(silent());
        container.start().unwrap();
        (container, started)
    }

    /// Runs the container to its end and removes it.
    pub fn run(&self) -> Outcome {
        let mut streams = Pipes::new(b"");
        let (mut container, started) = self.create(streams.stdio());
        container.start().unwrap();
        let outcome = streams.collect(started.pid);
        container.delete(false).unwrap();
        outcome
    }

    /// Runs and wants success.
    pub fn output(&self) -> String {
        let outcome = self.run();
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.stdout
    }

    /// Waits until a file of the container's root exists.
    pub fn await_file(&self, name: &str) {
        for _ in 0..5000 {
            if self.rootfs().join(name).exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("{name} does not appear");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Ok(container) = Container::load(&self.root(), &self.id) {
            container.delete(true).unwrap();
        }
        remove_cgroup(&self.cgroup()).unwrap();
    }
}

/// Pipes for the three streams.
pub struct Pipes {
    input: Vec<u8>,
    ours: Option<[OwnedFd; 3]>,
    theirs: Option<[OwnedFd; 3]>,
}

impl Pipes {
    pub fn new(input: &[u8]) -> Self {
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let ((stdin, stdin_end), (stdout, stdout_end), (stderr, stderr_end)) = (pipe(), pipe(), pipe());
        Self {
            input: input.to_vec(),
            ours: Some([stdin_end, stdout, stderr]),
            theirs: Some([stdin, stdout_end, stderr_end]),
        }
    }

    pub fn stdio(&mut self) -> Stdio {
        let [stdin, stdout, stderr] = self.theirs.take().unwrap();
        Stdio::Streams { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr) }
    }

    /// Feeds the input, reads both outputs to their end, and reaps the process.
    pub fn collect(mut self, pid: u32) -> Outcome {
        let [stdin, stdout, stderr] = self.ours.take().unwrap();
        let input = std::mem::take(&mut self.input);
        let feeder = std::thread::spawn(move || drop(fs::File::from(stdin).write_all(&input)));
        let drain = |fd: OwnedFd| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                fs::File::from(fd).read_to_end(&mut bytes).unwrap();
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let (stdout, stderr) = (drain(stdout), drain(stderr));
        let code = wait(pid);
        feeder.join().unwrap();
        Outcome { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
    }
}

/// All three streams to /dev/null.
pub fn silent() -> Stdio {
    Stdio::Streams { stdin: None, stdout: None, stderr: None }
}

/// Reaps a process; killed by signal N is 128 + N.
pub fn wait(pid: u32) -> i32 {
    match waitpid(Pid::from_raw(pid.cast_signed()), None).unwrap() {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        other => panic!("{other:?}"),
    }
}

/// A further process with the container's usual settings.
pub fn process(fixture: &Fixture, args: &[&str]) -> Process {
    let mut value = fixture.spec["process"].clone();
    value["args"] = json!(args);
    serde_json::from_value(value).unwrap()
}

pub fn exec(container: &Container, process: &Process) -> Result<Outcome, ExecError> {
    let mut streams = Pipes::new(b"");
    let started = container.exec(Helper::spawn().unwrap(), process, streams.stdio())?;
    Ok(streams.collect(started.pid))
}

/// An error with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What Docker gives a container by default, in short.
fn spec(id: &str, script: &str) -> Value {
    let caps = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ];
    let namespaces = ["mount", "network", "uts", "pid", "ipc", "cgroup"].map(|kind| json!({ "type": kind }));
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    json!({
        "ociVersion": "1.2.0",
        "hostname": "bulk", "domainname": "head.test",
        "root": { "path": "rootfs", "readonly": false },
        "process": {
            "terminal": false, "cwd": "/", "args": ["sh", "-c", script],
            "user": { "uid": 0, "gid": 0 },
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin", "TERM=xterm"],
            "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
            "noNewPrivileges": false,
        },
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        ],
        "linux": {
            "cgroupsPath": format!("/bulkhead-test/{id}"),
            "namespaces": namespaces,
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        }
    })
}
