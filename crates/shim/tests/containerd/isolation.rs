//! The wall by runtime options, by the runtime's name and by an annotation; hyperv over containerd's snapshotters.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::{Containerd, IMAGE, can_run, namespace, write_options};
use crate::support::{guest_image, text};

const OURS: &str = "io.containerd.bulkhead.v2";
const HYPERV: &str = "io.containerd.bulkhead-hyperv.v2";

/// Options with a state folder of the test's own.
struct Options {
    file: PathBuf,
    state: PathBuf,
}

impl Options {
    fn write(containerd: &Containerd, image: &Path, more: &str) -> Self {
        let (file, state) = (containerd.path("options.toml"), containerd.kept("state"));
        write_options(&file, &state, image, more);
        Self { file, state }
    }

    fn layers(&self) -> Vec<(PathBuf, std::time::SystemTime)> {
        let layers = fs::read_dir(self.state.join("containerd/layers")).unwrap().flatten();
        let layers = layers.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "erofs"));
        let mut layers: Vec<_> =
            layers.map(|path| (path.clone(), path.metadata().unwrap().modified().unwrap())).collect();
        layers.sort();
        layers
    }
}

struct Runner<'a> {
    containerd: &'a Containerd,
    options: String,
}

impl Runner<'_> {
    fn words<'a>(&'a self, begin: &[&'a str], runtime: &'a str, more: &[&'a str], end: &[&'a str]) -> Vec<&'a str> {
        let own = ["--runtime", runtime, "--runtime-config-path", &self.options];
        [&["run"], begin, &own[..], more, &[IMAGE], end].concat()
    }

    fn run(&self, runtime: &str, more: &[&str], end: &[&str]) -> crate::daemon::Said {
        self.containerd.ctr(&self.words(&["--rm"], runtime, more, end))
    }

    fn detach(&self, more: &[&str], id: &str, script: &str) {
        self.containerd.ctr(&self.words(&["-d"], HYPERV, more, &[id, "sh", "-c", script])).ok();
        self.containerd.await_task(id, Some("RUNNING"));
    }
}

fn host_kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim_end().to_owned()
}

#[test]
fn a_container_of_containerds_runs_in_a_utility_vm() {
    let (true, Some(image)) = (can_run(), guest_image()) else { return };
    let containerd = Containerd::start();
    let options = Options::write(&containerd, &image, "");
    let runner = Runner { containerd: &containerd, options: text(&options.file) };
    // Both layers, with what the upper one takes away; and a change.
    let script = "uname -r; cat /etc/second; [ -e /etc/gone ] || echo none; echo x >/new && cat /new; exit 5";
    let said = runner.run(HYPERV, &[], &["by-name", "sh", "-c", script]);
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!((said.code, &lines[1..]), (5, &["second", "none", "x"][..]), "{said:?}\n{}", containerd.log());
    assert_ne!(lines[0], host_kernel());
    let converted = options.layers();
    assert_eq!(converted.len(), 2);
    let said = runner.run(OURS, &["--annotation", "dev.bulkhead.isolation=hyperv"], &["asked", "uname", "-r"]);
    assert_ne!(said.ok(), host_kernel());
    assert_eq!(options.layers(), converted, "a layer is converted once");
    // The native snapshotter's root is one folder of the container's own.
    let said = runner.run(HYPERV, &["--snapshotter", "native"], &["native", "cat", "/etc/second"]);
    assert_eq!(said.ok(), "second");
    for id in ["by-name", "asked", "native"] {
        containerd.assert_nothing_left(id);
    }
}

#[test]
fn a_hyperv_tasks_life() {
    let (true, Some(image)) = (can_run(), guest_image()) else { return };
    let containerd = Containerd::start();
    let options = Options::write(&containerd, &image, "");
    let runner = Runner { containerd: &containerd, options: text(&options.file) };
    runner.detach(&[], "life", "trap 'exit 6' TERM; while :; do sleep 0.02; done");
    let exec = |words: &[&str]| containerd.ctr(&[&["task", "exec", "--exec-id", "e", "life"], words].concat());
    let said = exec(&["sh", "-c", "uname -r; exit 3"]);
    assert_eq!(said.code, 3);
    assert_ne!(said.out.trim_end(), host_kernel());
    containerd.ctr(&["task", "pause", "life"]).ok();
    containerd.await_task("life", Some("PAUSED"));
    containerd.ctr(&["task", "resume", "life"]).ok();
    let metrics = containerd.ctr(&["task", "metrics", "--format", "json", "life"]);
    let metrics: serde_json::Value = serde_json::from_str(metrics.ok()).unwrap();
    assert!(metrics["pids"]["current"].as_u64().is_some_and(|count| count > 0), "{metrics}");
    containerd.ctr(&["task", "kill", "-s", "SIGTERM", "life"]).ok();
    containerd.await_task("life", Some("STOPPED"));
    assert!(containerd.ctr(&["task", "delete", "life"]).err.contains('6'));
    containerd.assert_nothing_left("life");
    // The VM goes with its shim.
    runner.detach(&[], "lost", "sleep 1000");
    kill(Pid::from_raw(containerd.shim_pid("lost")), Signal::SIGKILL).unwrap();
    containerd.await_task("lost", None);
    containerd.assert_nothing_left("lost");
    let own = format!("/{}/lost", namespace());
    let in_its_cgroup = |folder: &Path| {
        fs::read_to_string(folder.join("cgroup")).is_ok_and(|text| text.lines().any(|line| line.ends_with(&own)))
    };
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let left: Vec<PathBuf> = processes.filter(|folder| in_its_cgroup(folder)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_cannot_be_isolated_as_asked_is_refused() {
    let (true, Some(image)) = (can_run(), guest_image()) else { return };
    let containerd = Containerd::start();
    let options = Options::write(&containerd, &image, "");
    let runner = Runner { containerd: &containerd, options: text(&options.file) };
    let refused = |runtime: &str, more: &[&str], words: &str| {
        let said = runner.run(runtime, more, &["refused", "true"]);
        assert!(said.code == 1 && said.err.contains(words), "{words:?} is not in {said:?}");
        containerd.assert_nothing_left("refused");
    };
    refused(HYPERV, &["--net-host"], "network namespace");
    refused(HYPERV, &["--annotation", "dev.bulkhead.isolation=process"], "cannot weaken");
    refused(OURS, &["--annotation", "dev.bulkhead.isolation=hypervisor"], "is no isolation");
    refused(HYPERV, &["--annotation", "io.kubernetes.cri.container-type=container"], "has no sandbox here");
    Options::write(&containerd, &image, "isolaton = \"hyperv\"");
    refused(OURS, &[], "options.toml");
    fs::remove_file(&options.file).unwrap();
    refused(OURS, &[], "options.toml");
}

/// As after an installation of which only a half is new.
#[test]
fn a_guest_image_of_another_build_is_refused_with_what_to_do() {
    let (true, Some(image)) = (can_run(), guest_image()) else { return };
    let containerd = Containerd::start();
    let older = containerd.path("older");
    fs::create_dir(&older).unwrap();
    for name in ["vmlinux", "initramfs.cpio"] {
        std::os::unix::fs::symlink(image.canonicalize().unwrap().join(name), older.join(name)).unwrap();
    }
    let manifest = fs::read(image.join("manifest.json")).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["protocol"] = (proto::gcs::VERSION - 1).into();
    fs::write(older.join("manifest.json"), manifest.to_string()).unwrap();
    let options = Options::write(&containerd, &older, "");
    let runner = Runner { containerd: &containerd, options: text(&options.file) };
    let said = runner.run(HYPERV, &[], &["refused", "true"]);
    let words = format!("speaks version {} of the protocol", proto::gcs::VERSION - 1);
    assert!(said.code == 1 && said.err.contains(&words) && said.err.contains("from one build"), "{said:?}");
    containerd.assert_nothing_left("refused");
}
