//! Docker's own daemon, on roots of its own, in a network namespace of its own.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bulkhead_e2e::{IMAGE, archive, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A running dockerd; its default bridge, addresses and firewall rules stay inside its network namespace.
pub struct Dockerd {
    child: Child,
    folder: TempDir,
    /// What `docker version` says of it.
    pub version: String,
}

impl Dockerd {
    /// Starts it, waits until it answers, and imports the test image.
    pub fn start() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("bhbench-").tempdir_in("/tmp")?;
        let root = folder.path();
        let log = File::create(root.join("log"))?;
        let child = Command::new("unshare")
            .args(["--mount", "--net", "--propagation", "slave", "dockerd"])
            .arg("--data-root")
            .arg(root.join("data"))
            .arg("--exec-root")
            .arg(root.join("run"))
            .arg("--pidfile")
            .arg(root.join("pid"))
            .arg("-H")
            .arg(format!("unix://{}", root.join("docker.sock").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("unshare (package util-linux) does not start")?;
        let mut dockerd = Self { child, folder, version: String::new() };
        let socket = dockerd.socket();
        if !eventually(Duration::from_secs(60), || UnixStream::connect(&socket).is_ok()) {
            let log = std::fs::read_to_string(dockerd.folder.path().join("log")).unwrap_or_default();
            bail!("dockerd (package docker.io) does not answer; its log:\n{log}");
        }
        dockerd.import()?;
        // A namespace begins with its loopback down, and then reaches no address of its own.
        let up = dockerd.on_host("ip").args(["link", "set", "lo", "up"]).status()?;
        ensure!(up.success(), "ip (package iproute2) cannot bring lo up");
        let version = dockerd.docker(&["version", "--format", "{{.Server.Version}}"]).output()?;
        dockerd.version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
        Ok(dockerd)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    fn import(&self) -> anyhow::Result<()> {
        let tar = self.folder.path().join("image.tar");
        std::fs::write(&tar, archive::busybox_rootfs())?;
        let output = self.docker(&["import", "-", IMAGE]).stdin(File::open(&tar)?).output()?;
        if !output.status.success() {
            bail!("docker import: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// A program in the network namespace that is this daemon's host.
    pub fn on_host(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.child.id())).args(["--", program]);
        command
    }

    /// The docker CLI, talking to this daemon.
    pub fn docker(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", format!("unix://{}", self.socket().display())).args(args);
        command
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // unshare(1) executes the daemon in place, so its id is the child's. One that has ended already is no error.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        if let Err(error) = self.child.wait() {
            eprintln!("dockerd was not reaped: {error}");
        }
    }
}
