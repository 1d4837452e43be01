//! The daemon under test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::api::ApiConnection;
use crate::build::{Build, EngineKind, program};
use crate::patience::eventually;

/// Everything that a daemon is started with.
#[derive(Debug, Clone)]
pub(crate) struct EngineSettings {
    pub kind: EngineKind,
    pub data_root: PathBuf,
    pub exec_root: PathBuf,
    pub socket: PathBuf,
    pub log: PathBuf,
    pub cgroup_parent: String,
    pub template_store: PathBuf,
    /// Environment entry by which its processes are found: name and value.
    pub marker: (String, String),
    /// Further flags, and the PATH it is to have.
    pub flags: Vec<String>,
    pub path: Option<String>,
    /// How many descriptors it may have.
    pub descriptors: Option<u64>,
    /// It is not told what is to stand by.
    pub default_standby: bool,
    /// The network namespace to run in, unless it is the machine's.
    pub network: Option<PathBuf>,
    /// The point at which it kills itself, if it is to.
    pub failpoint: Option<String>,
    /// The file that says which step of a network is refused, if one may be.
    pub network_faults: Option<PathBuf>,
}

/// Name of the engine that can be told where to kill itself. Users never get it.
pub(crate) const FAILPOINTS_ENGINE: &str = "bulkheadd-failpoints";
/// Name of the shim to it.
pub(crate) const FAILPOINTS_SHIM: &str = "containerd-shim-bulkhead-v2-failpoints";

/// A daemon that runs.
pub struct Engine {
    child: Child,
}

impl EngineSettings {
    /// The command that starts it.
    pub fn command(&self) -> Command {
        let mut command = match self.kind {
            EngineKind::Own => self.own_command(),
            EngineKind::Reference => self.reference_command(),
        };
        command
            .arg("--data-root")
            .arg(&self.data_root)
            .arg("--exec-root")
            .arg(&self.exec_root)
            .arg("-H")
            .arg(format!("unix://{}", self.socket.display()))
            .args(&self.flags)
            .env(&self.marker.0, &self.marker.1);
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        if let Some(count) = self.descriptors {
            command = through("prlimit", &format!("--nofile={count}:{count}"), &command);
        }
        match &self.network {
            Some(network) => through("nsenter", &format!("--net={}", network.display()), &command),
            None => command,
        }
    }

    fn own_command(&self) -> Command {
        let build = Build::of_this_test();
        let is_failing = self.failpoint.is_some() || self.network_faults.is_some();
        let name = if is_failing { FAILPOINTS_ENGINE } else { "bulkheadd" };
        let mut command = Command::new(build.binaries.join(name));
        if let Some(point) = &self.failpoint {
            command.env("BULKHEAD_FAILPOINT", point);
        }
        if let Some(file) = &self.network_faults {
            command.env("BULKHEAD_NETWORK_FAILPOINT", file);
            command.arg("--shim").arg(build.binaries.join(FAILPOINTS_SHIM));
        }
        command.arg("--guest-image").arg(build.guest_image);
        command.args(["--cgroup-parent", &self.cgroup_parent]);
        if !self.flags.iter().any(|flag| flag.starts_with("--log-level")) {
            command.arg("--log-level=debug");
        }
        command.arg("--template-store").arg(&self.template_store);
        if let Ok(backend) = std::env::var("BULKHEAD_TEST_BACKEND")
            && !self.flags.iter().any(|flag| flag.starts_with("--backend"))
        {
            command.arg("--backend").arg(backend);
        }
        // The machine's own configuration is none of a test's business.
        if !self.flags.iter().any(|flag| flag.starts_with("--config")) {
            command.arg("--config=/dev/null");
        }
        // The product's two seconds hold for an idle machine; tests share theirs with a compiler.
        if !self.flags.iter().any(|flag| flag.starts_with("--personalize-timeout-ms")) {
            command.arg("--personalize-timeout-ms=20000");
        }
        // One of its own for each engine of each test would take most of the machine; tests of it ask for it.
        if !self.default_standby && !self.flags.iter().any(|flag| flag.starts_with("--standby-vms")) {
            command.arg("--standby-vms=0");
        }
        command
    }

    fn reference_command(&self) -> Command {
        let mut command = Command::new(program("dockerd").expect("dockerd"));
        command.args(["--bridge=none", "--iptables=false", "--ip-masq=false", "--ip-forward=false"]);
        command.arg("--pidfile").arg(self.exec_root.with_extension("pid"));
        command
    }

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// When it does not; the panic shows its log.
    #[track_caller]
    pub fn start(&self) -> Engine {
        let began = Instant::now();
        let (mut engine, up) = self.spawn();
        assert!(
            up && engine.has_ended().is_none(),
            "the engine did not answer after {:?}; its log:\n{}",
            began.elapsed(),
            tail(&self.log)
        );
        engine
    }

    /// Starts it and waits until it answers or has ended.
    pub fn spawn(&self) -> (Engine, bool) {
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let errors = log.try_clone().expect("a copy of a descriptor");
        let spawned = self.command().stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
        let mut engine = Engine { child: spawned.expect("the engine starts") };
        let up = eventually(Duration::from_secs(30), || engine.has_ended().is_some() || answers(&self.socket));
        (engine, up)
    }
}

/// The same command through a program that executes it in place.
fn through(program: &str, argument: &str, inner: &Command) -> Command {
    let mut command = Command::new(program);
    command.arg(argument).arg("--").arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// True when somebody answers a ping on a socket.
fn answers(socket: &Path) -> bool {
    let ping = || -> std::io::Result<u16> {
        let mut connection = ApiConnection::open(socket)?;
        connection.set_patience(Duration::from_secs(2))?;
        Ok(connection.request("GET", "/_ping", None)?.status)
    };
    ping().is_ok_and(|status| status == 200)
}

/// The end of a log, for a failed test's message.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

impl Engine {
    /// Its process id.
    ///
    /// # Panics
    /// Never: a child's id fits.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids are small")
    }

    /// Its exit code, once it has ended (-1 for a signal).
    pub fn has_ended(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().map(|status| status.code().unwrap_or(-1))
    }

    /// Kills it without warning and reaps it.
    ///
    /// # Panics
    /// When it is not ours to kill.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// Asks it to end. Gives its exit code; none when it had to be killed.
    pub fn stop(&mut self) -> Option<i32> {
        self.end_by(Signal::TERM)
    }

    /// Tells it that the host goes down. Gives as [`Engine::stop`].
    pub fn stop_with_host(&mut self) -> Option<i32> {
        self.end_by(Signal::POWER)
    }

    fn end_by(&mut self, signal: Signal) -> Option<i32> {
        // One that has ended already is no error.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), signal);
        if eventually(Duration::from_secs(20), || self.has_ended().is_some()) {
            return self.has_ended();
        }
        self.kill();
        None
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.has_ended().is_none() {
            self.stop();
        }
    }
}
