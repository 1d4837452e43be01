//! Our shim beside runc's under a plain containerd, by its `ctr`.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bulkhead_e2e::{Build, archive, eventually, procfs};
use tempfile::TempDir;

use crate::series::{Series, print};

const RUNC: &str = "io.containerd.runc.v2";
const PROCESS: &str = "io.containerd.bulkhead.v2";
const HYPERV: &str = "io.containerd.bulkhead-hyperv.v2";
/// As containerd spells it.
const IMAGE: &str = "docker.io/library/busybox:bench";
/// containerd's namespace, and the top of its containers' cgroups.
const NAMESPACE: &str = "bulkhead-bench";
/// Runtime options: with a VM that stands by for the next container, and without.
const STANDS_BY: &str = "standby.toml";
const FORKED: &str = "forked.toml";
/// More than a VM takes to be prepared.
const PREPARATION: Duration = Duration::from_secs(30);
/// What start-up touched and gave back is counted as the kernel counts it a moment later.
const SETTLED: Duration = Duration::from_secs(3);

/// A containerd on roots of its own.
struct Containerd {
    daemon: Child,
    folder: TempDir,
}

impl Containerd {
    fn start(build: &Build) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("bhbench-").tempdir_in("/tmp")?;
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("bin"))?;
        let shim = build.binaries.join("containerd-shim-bulkhead-v2");
        ensure!(shim.exists() && build.guest_image.exists(), "the shim or the guest image is not built (make build)");
        for runtime in ["bulkhead", "bulkhead-hyperv"] {
            symlink(&shim, at("bin").join(format!("containerd-shim-{runtime}-v2")))?;
        }
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("sock"),
            at("sock.ttrpc")
        );
        fs::write(at("config.toml"), config)?;
        let options = format!("state = {:?}\nguest-image = {:?}\n", at("own"), build.guest_image);
        fs::write(at(STANDS_BY), &options)?;
        fs::write(at(FORKED), format!("{options}standby-vms = 0\n"))?;
        let log = File::create(at("log"))?;
        let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap_or_default());
        let daemon = Command::new("containerd")
            .arg("--config")
            .arg(at("config.toml"))
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("containerd (package containerd) does not start")?;
        let this = Self { daemon, folder };
        let answers = || this.ctr(&["version"]).output().is_ok_and(|output| output.status.success());
        ensure!(eventually(Duration::from_secs(60), answers), "containerd does not answer");
        let tar = this.folder.path().join("image.tar");
        fs::write(&tar, archive::saved_image(IMAGE, &[archive::busybox_rootfs()]))?;
        this.run(&["images", "import", &tar.to_string_lossy()])?;
        Ok(this)
    }

    fn ctr(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("-a").arg(self.folder.path().join("sock")).args(["-n", NAMESPACE]).args(words);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.ctr(words).output()?;
        if !output.status.success() {
            bail!("ctr {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The words of `ctr run` for a runtime.
    fn start_container(
        &self,
        how: &str,
        (runtime, options): (&str, &str),
        id: &str,
        command: &[&str],
    ) -> anyhow::Result<()> {
        let options = self.folder.path().join(options).to_string_lossy().into_owned();
        let mut words = vec!["run", how, "--runtime", runtime];
        if runtime != RUNC {
            words.extend(["--runtime-config-path", &options]);
        }
        words.extend([IMAGE, id]);
        words.extend(command);
        self.run(&words).map(drop)
    }

    /// The processes that stand by for this one's containers, with their folders.
    fn standbys(&self) -> Vec<(i32, PathBuf)> {
        let own = format!("TTRPC_ADDRESS={}", self.folder.path().join("sock.ttrpc").display());
        let stands_by = |pid: i32| {
            let folder = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let is_own = environment.split(|byte| *byte == 0).any(|entry| entry == own.as_bytes());
            let is_shim = procfs::command_line(pid).split_whitespace().last() == Some("standby");
            (is_own && is_shim && folder.starts_with("/run/bulkhead/standby")).then_some((pid, folder))
        };
        procfs::pids().into_iter().filter_map(stands_by).collect()
    }

    /// Waits until a VM stands by.
    fn await_standby(&self) -> anyhow::Result<()> {
        let is_ready = || self.standbys().iter().any(|(_, folder)| folder.join("s").exists());
        ensure!(eventually(PREPARATION, is_ready), "no utility VM stands by");
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for (pid, folder) in self.standbys() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            let _ = fs::remove_dir_all(folder);
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        // containerd leaves a namespace's cgroup.
        for folder in procfs::cgroup_folders(NAMESPACE) {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// `ctr run --rm IMAGE true` with each runtime once per round, then the private memory of an idle container's shim.
///
/// # Errors
/// A daemon or a container that does not start.
pub fn measure(rounds: usize) -> anyhow::Result<()> {
    let build = Build::of_this_test();
    let containerd = Containerd::start(&build)?;
    println!("\n# From `ctr run --rm` to its exit, plain containerd ({rounds} rounds in turn)\n");
    let mut sides = [
        ((RUNC, ""), "runc's shim"),
        ((PROCESS, FORKED), "process"),
        ((HYPERV, FORKED), "hyperv, forked"),
        ((HYPERV, STANDS_BY), "hyperv, a VM stands by"),
    ]
    .map(|(how, name)| (how, Series::new(name)));
    // The first round converts the image and boots the template.
    for round in 0..=rounds {
        for (how, series) in &mut sides {
            // It is used up by each.
            if round > 0 && how.1 == STANDS_BY {
                containerd.await_standby()?;
            }
            let began = Instant::now();
            containerd.start_container("--rm", *how, &format!("run-{round}"), &["true"])?;
            if round > 0 {
                series.push(began.elapsed());
            }
        }
    }
    let [runc, process, forked, stood_by] = sides.map(|(_, series)| series);
    print(&[runc.clone(), process, forked, stood_by], &[&runc]);
    println!("\n# Private memory of the shim of an idle container, no other beside it\n");
    for (runtime, name) in [(RUNC, "runc's shim"), (PROCESS, "process"), (HYPERV, "hyperv")] {
        let kib = idle_shim(&containerd, runtime)?;
        println!("{name}: {}.{} MiB", kib / 1024, kib % 1024 * 10 / 1024);
    }
    Ok(())
}

fn idle_shim(containerd: &Containerd, runtime: &str) -> anyhow::Result<u64> {
    let id = "idle";
    containerd.start_container("-d", (runtime, FORKED), id, &["sleep", "1000"])?;
    std::thread::sleep(SETTLED);
    let program = format!("containerd-shim-{}", if runtime == RUNC { "runc" } else { "bulkhead" });
    let own = containerd.folder.path();
    let is_shim = |pid: &i32| {
        let is_below = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder.starts_with(own));
        is_below && procfs::command_line(*pid).split_whitespace().next().is_some_and(|name| name.contains(&program))
    };
    let shims: Vec<i32> = procfs::pids().into_iter().filter(is_shim).collect();
    let kib = shims.iter().map(|&pid| procfs::private_kib(pid)).sum();
    containerd.run(&["task", "delete", "--force", id]).ok();
    containerd.run(&["container", "delete", id])?;
    ensure!(shims.len() == 1, "{} processes are taken for the shim", shims.len());
    Ok(kib)
}
