//! One suite against one daemon, in namespaces of their own: whatever they leave behind goes with these.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::exceptions::Exceptions;
use super::images::{self, Registry};
use super::results::{self, Cases};
use super::script::{self, Judge};
use super::side::{CGROUP, Daemon, Side, docker};
use super::{Folders, Suite, bollard, docker_py};
use crate::workspace;

/// What a suite gets.
pub struct Session<'a> {
    pub folders: &'a Folders,
    /// Folder for whatever this session writes; emptied before each.
    pub own: &'a Path,
    pub suite: Suite,
    pub side: Side,
    /// Parts of the names of the cases to run; all if empty.
    pub names: &'a [String],
    /// Patterns of the cases that are not to run.
    pub skipped: &'a [&'a str],
}

impl Session<'_> {
    /// True when a case is to run.
    pub fn wants(&self, case: &str) -> bool {
        (self.names.is_empty() || self.names.iter().any(|name| case.contains(name.as_str())))
            && !self.skipped.iter().any(|pattern| super::exceptions::matches(pattern, case))
    }

    /// Times every deadline: utility VMs may be emulated.
    pub fn patience(&self) -> u32 {
        if self.side == Side::Hyperv { 3 } else { 1 }
    }
}

/// Starts this program again as the session, in new namespaces, and waits for its end.
pub fn start(folders: &Folders, suite: Suite, side: Side, names: &[String]) -> anyhow::Result<()> {
    let own = folders.root.join("sessions").join(format!("{}-{}", suite.word(), side.word()));
    match fs::remove_dir_all(&own) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot clear {}", own.display()));
        }
        _ => {}
    }
    fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]);
    command.args(["--propagation", "private", "--"]);
    command.arg(std::env::current_exe().context("cannot find this program's own path")?);
    command.args(["conformance", "--in-session", "--suite", suite.word(), "--against", side.word(), "--"]).args(names);
    let status = workspace::run(&mut command)?;
    remove_cgroups();
    if !status.success() {
        bail!("the session of {} against {} ended with {status}", suite.word(), side.word());
    }
    Ok(())
}

/// In the namespaces: starts registry and daemon, runs the suite, writes the results.
pub fn run(
    folders: &Folders,
    suite: Suite,
    side: Side,
    exceptions: &Exceptions,
    names: &[String],
) -> anyhow::Result<()> {
    let own = folders.root.join("sessions").join(format!("{}-{}", suite.word(), side.word()));
    workspace::run_checked(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    workspace::run_checked(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]))?;
    let _registry = Registry::start(&own, &folders.images())?;
    let mut daemon = Daemon::start(side, folders, &own, &format!("http://{}", images::REGISTRY))?;
    for image in ["alpine:3.10", "alpine", "busybox", "hello-world"] {
        workspace::run_checked(&mut docker(&["pull", "--quiet", image]))?;
    }
    let skipped = exceptions.skipped(suite);
    let session = Session { folders, own: &own, suite, side, names, skipped: &skipped };
    let cases: Cases = match suite {
        Suite::DockerPy => docker_py::run(&session)?,
        Suite::Bollard => bollard::run(&session)?,
        Suite::Compose | Suite::Compose2 => script::run(&session, "compose", Judge::Code)?,
        Suite::Cli => script::run(&session, "cli", Judge::Dockerd)?,
    };
    if !daemon.answers() {
        bail!("the daemon has ended, see daemon.log in {}", own.display());
    }
    results::save(&results::file(&folders.results(), suite, side), &cases, names.is_empty())
}

/// Removes the cgroups of a session whose processes have all ended. One that is still there hinders nobody.
fn remove_cgroups() {
    let mut command = Command::new("find");
    command.args(["/sys/fs/cgroup", "-depth", "-type", "d", "-path", &format!("*/{CGROUP}*")]);
    command.args(["-exec", "rmdir", "--ignore-fail-on-non-empty", "{}", "+"]);
    if let Err(error) = command.output() {
        println!("cannot remove cgroups: {error}");
    }
}
