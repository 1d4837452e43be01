//! What is left, and what containerd says, when one of the two dies.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::{Containerd, IMAGE, can_run};

const OURS: &str = "io.containerd.bulkhead.v2";

fn detach(containerd: &Containerd, id: &str, script: &str) {
    containerd.ctr(&["run", "-d", "--runtime", OURS, IMAGE, id, "sh", "-c", script]).ok();
    containerd.await_task(id, Some("RUNNING"));
}

#[test]
fn a_killed_shim_is_cleared_away_and_its_container_with_it() {
    if !can_run() {
        return;
    }
    let containerd = Containerd::start();
    detach(&containerd, "lost", "sleep 1000 & sleep 1001");
    detach(&containerd, "other", "sleep 1000");
    kill(Pid::from_raw(containerd.shim_pid("lost")), Signal::SIGKILL).unwrap();
    containerd.assert_nothing_left("lost");
    containerd.await_task("lost", None);
    containerd.await_task("other", Some("RUNNING"));
    containerd.ctr(&["container", "delete", "lost"]).ok();
    // Its name is free again.
    detach(&containerd, "lost", "sleep 1000");
    for id in ["lost", "other"] {
        containerd.ctr(&["task", "delete", "--force", id]);
        containerd.assert_nothing_left(id);
    }
}

#[test]
fn containers_outlive_a_killed_containerd() {
    if !can_run() {
        return;
    }
    let mut containerd = Containerd::start();
    let go = containerd.path("go");
    let wait = format!("while [ ! -e /mnt/{} ]; do sleep 0.02; done; exit 9", go.file_name().unwrap().display());
    detach(&containerd, "goes-on", "trap 'exit 6' TERM; while :; do sleep 0.02; done");
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind", go.parent().unwrap().display());
    let ends = ["run", "-d", "--runtime", OURS, "--mount", &mount, IMAGE, "ends", "sh", "-c", &wait];
    containerd.ctr(&ends).ok();
    containerd.await_task("ends", Some("RUNNING"));
    containerd.kill();
    std::fs::write(&go, "").unwrap();
    // It ends while nobody is there to be told.
    let exit = containerd.bundle("ends").join("exit.json");
    while !exit.exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    containerd.start_again();
    containerd.await_task("goes-on", Some("RUNNING"));
    containerd.await_task("ends", Some("STOPPED"));
    assert!(containerd.ctr(&["task", "delete", "ends"]).err.contains('9'));
    let said = containerd.ctr(&["task", "exec", "--exec-id", "e", "goes-on", "echo", "still here"]);
    assert_eq!(said.ok(), "still here");
    containerd.ctr(&["task", "kill", "-s", "SIGTERM", "goes-on"]).ok();
    containerd.await_task("goes-on", Some("STOPPED"));
    assert!(containerd.ctr(&["task", "delete", "goes-on"]).err.contains('6'));
    for id in ["ends", "goes-on"] {
        containerd.assert_nothing_left(id);
    }
}
