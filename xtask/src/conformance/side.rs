//! The daemons that the suites run against.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;

use super::{Folders, newest};
use crate::workspace;

/// A daemon that a suite runs against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Side {
    /// Docker's own, as the machine has it: what is right.
    Dockerd,
    /// Docker's own, as Debian's unstable has it: what is right by now.
    Dockerd28,
    /// Ours, with process containers by default.
    Process,
    /// Ours, with utility VMs by default.
    Hyperv,
}

impl Side {
    pub const ALL: [Self; 4] = [Self::Dockerd, Self::Dockerd28, Self::Process, Self::Hyperv];
    /// Those that others are compared with.
    pub const REFERENCES: [Self; 2] = [Self::Dockerd, Self::Dockerd28];
    /// This engine.
    pub const OURS: [Self; 2] = [Self::Process, Self::Hyperv];

    /// The word on the command line, in files and in tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Dockerd => "dockerd",
            Self::Dockerd28 => "dockerd28",
            Self::Process => "process",
            Self::Hyperv => "hyperv",
        }
    }
}

/// Where every daemon listens, inside its session's own mount namespace. Some tests know no other place.
pub const SOCKET: &str = "/run/docker.sock";
/// Cgroup of every session.
pub const CGROUP: &str = "bulkhead-conformance";
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A daemon that runs. It is killed with the session's process namespace.
pub struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts it on roots below a folder, and waits until it answers.
    pub fn start(side: Side, folders: &Folders, folder: &Path, mirror: &str) -> anyhow::Result<Self> {
        let log = folder.join("daemon.log");
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = command(side, folders, folder);
        command.arg("--data-root").arg(folder.join("data")).args(["--exec-root", "/run/engine"]);
        command.args(["-H", &format!("unix://{SOCKET}"), "-p", "/run/engine.pid", "--registry-mirror", mirror]);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        println!("+ {}", workspace::shown(&command));
        let mut daemon = Self { child: command.spawn().context("the daemon does not start")? };
        let began = Instant::now();
        while !daemon.answers() {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("the daemon ended with {status}, see {}", log.display());
            }
            if began.elapsed() > START_DEADLINE {
                bail!("the daemon does not answer after {START_DEADLINE:?}, see {}", log.display());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(daemon)
    }

    /// True when it answers a client.
    pub fn answers(&mut self) -> bool {
        docker(&["version"]).output().is_ok_and(|output| output.status.success())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Containers, shims and VMs go with the session's process namespace.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn command(side: Side, folders: &Folders, folder: &Path) -> Command {
    if Side::REFERENCES.contains(&side) {
        let mut command = if side == Side::Dockerd { Command::new("dockerd") } else { newest::dockerd(folders) };
        command.args(["--cgroup-parent", &format!("/{CGROUP}")]);
        return command;
    }
    let target = workspace::target_dir();
    let mut command = Command::new(target.join("release/bulkheadd"));
    command.args(["--isolation", side.word(), "--cgroup-parent", &format!("/{CGROUP}"), "--log-level=debug"]);
    command.arg("--guest-image").arg(target.join("boot"));
    // A template that was booted for another run serves again; it depends on the build only.
    command.arg("--template-store").arg(folder.parent().unwrap_or(folder).join("templates"));
    // The product's two seconds hold for an idle machine; a suite shares this one.
    command.arg("--personalize-timeout-ms=20000");
    command
}

/// The docker CLI, talking to the session's daemon.
pub fn docker(args: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.args(args).env("DOCKER_HOST", format!("unix://{SOCKET}")).env("DOCKER_CLI_HINTS", "false");
    command.env("DOCKER_CONFIG", "/run/docker-config").env_remove("DOCKER_CONTEXT");
    command
}
