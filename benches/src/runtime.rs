//! The runtime part alone: one process container from its bundle, by runc's command line and by our crate `container`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bulkhead_e2e::archive;
use container::{Container, Helper, Stdio as ContainerStdio};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::Value;

use crate::series::{Series, print};

/// Runs both sides once per round, over the same bundle: the one that `runc spec` writes, which runs `true`.
pub fn measure(rounds: usize) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let bundle = folder.path().join("bundle");
    make_bundle(&bundle)?;
    let mut ours = Series::new("container (helper started cold)");
    let mut warm = Series::new("container (helper waiting, as in the shim)");
    let mut runc = Series::new("runc run");
    for round in 0..=rounds {
        let count = |series: &mut Series, time: Duration| {
            if round > 0 {
                series.push(time);
            }
        };
        let id = format!("bench-{}-{round}", std::process::id());
        count(&mut runc, time_runc(&bundle, &folder.path().join("runc"), &id)?);
        let began = Instant::now();
        let helper = Helper::spawn()?;
        run_container(helper, &bundle, &folder.path().join("state"), &id)?;
        count(&mut ours, began.elapsed());
        let helper = Helper::spawn()?;
        std::thread::sleep(Duration::from_millis(20));
        let began = Instant::now();
        run_container(helper, &bundle, &folder.path().join("state"), &id)?;
        count(&mut warm, began.elapsed());
    }
    let series = [ours, warm, runc];
    print(&series, &[&series[2]]);
    Ok(())
}

fn make_bundle(bundle: &Path) -> anyhow::Result<()> {
    let rootfs = bundle.join("rootfs");
    std::fs::create_dir_all(&rootfs)?;
    let tar = bundle.join("rootfs.tar");
    std::fs::write(&tar, archive::busybox_rootfs())?;
    let unpacked = Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&rootfs).status()?;
    let spec = Command::new("runc").arg("spec").current_dir(bundle).status().context("runc (package runc)")?;
    if !unpacked.success() || !spec.success() {
        bail!("the bundle could not be made");
    }
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = serde_json::json!(["true"]);
    config["linux"]["cgroupsPath"] = format!("/bulkhead-bench-{}", std::process::id()).into();
    std::fs::write(path, config.to_string())?;
    Ok(())
}

fn time_runc(bundle: &Path, root: &Path, id: &str) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let status = Command::new("runc")
        .arg("--root")
        .arg(root)
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(id)
        .stdin(Stdio::null())
        .status()?;
    let took = began.elapsed();
    if !status.success() {
        bail!("runc run: {status}");
    }
    Ok(took)
}

fn run_container(helper: Helper, bundle: &Path, root: &Path, id: &str) -> anyhow::Result<()> {
    let nothing = ContainerStdio::Streams { stdin: None, stdout: None, stderr: None };
    let (mut container, started) = Container::create(helper, root, id, bundle, nothing)?;
    container.start()?;
    let pid = Pid::from_raw(i32::try_from(started.pid)?).context("a process id is not 0")?;
    let (_, status) = waitpid(Some(pid), WaitOptions::empty())?.context("the wait blocks")?;
    container.delete(false)?;
    if status.exit_status() != Some(0) {
        bail!("the container's process: {status:?}");
    }
    Ok(())
}
