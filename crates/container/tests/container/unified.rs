//! The same on a system with cgroup version 2 only, such as a utility VM: made of a private mount namespace in which nothing
//! but version 2 is mounted. Where the host uses version 1, its controllers are missing in there; the rest is true.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use serde_json::json;

use crate::Case;
use crate::fixture::{Fixture, exec, process, wait};

pub const CASES: &[Case] = &[
    ("a_container_lives_in_version_2", || in_version_2(a_container_lives_in_version_2)),
    ("devices_are_denied_by_a_program", || in_version_2(devices_are_denied_by_a_program)),
    ("a_fork_bomb_is_killed_at_once", || in_version_2(a_fork_bomb_is_killed_at_once)),
];

/// Runs a test with a view of version 2 only, in a thread of its own: the harness gives one thread to several tests.
fn in_version_2(test: fn()) {
    let thread = std::thread::spawn(move || {
        enter();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Gives this thread a view of version 2 only, which a host may have already.
fn enter() {
    if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None).unwrap();
}

fn folder(fixture: &Fixture) -> PathBuf {
    PathBuf::from(format!("/sys/fs/cgroup{}", fixture.cgroup().display()))
}

fn a_container_lives_in_version_2() {
    let fixture = Fixture::new("while true; do echo x >> /tick; sleep 0.01; done");
    let (container, started) = fixture.start();
    fixture.await_file("tick");
    assert!(folder(&fixture).join("cgroup.procs").exists());
    assert!(!container.processes().unwrap().is_empty());
    assert!(container.stats().unwrap().cpu.total_ns > 0);
    assert_eq!(container.oom_kills(), 0);
    assert_eq!(
        exec(&container, &process(&fixture, &["sh", "-c", "cat /proc/self/cgroup | grep ^0"])).unwrap().stdout,
        "0::/\n"
    );

    let length = || fs::metadata(fixture.rootfs().join("tick")).unwrap().len();
    container.pause().unwrap();
    let before = length();
    std::thread::sleep(std::time::Duration::from_millis(60));
    assert_eq!(length(), before);
    container.resume().unwrap();
    container.pause().unwrap();
    // Frozen processes of version 2 die at once.
    container.signal_all(libc::SIGKILL).unwrap();
    assert_eq!(wait(started.pid), 128 + libc::SIGKILL);
    container.delete(false).unwrap();
    assert!(!folder(&fixture).exists());
}

fn devices_are_denied_by_a_program() {
    let script = "mknod /tmp/disk b 240 7; mknod /tmp/strange c 240 7; mknod /tmp/tun c 10 200; mknod /tmp/null c 1 3; \
                  for d in disk strange tun; do head -c1 /tmp/$d 2>&1 | grep -c 'Operation not permitted'; done; \
                  echo x > /tmp/null && echo x > /dev/null && head -c4 /dev/zero | wc -c";
    assert_eq!(Fixture::new(script).output(), "1\n1\n1\n4\n");
    let mut fixture = Fixture::new("mknod /tmp/strange c 240 7; head -c1 /tmp/strange 2>&1 | grep -c 'No such device'");
    let allowed = json!({ "allow": true, "type": "c", "major": 240, "minor": 7, "access": "rwm" });
    fixture.set("/linux/resources/devices", json!([{ "allow": false, "access": "rwm" }, allowed]));
    assert_eq!(fixture.output(), "1\n");
    // Everything, as for a privileged container.
    fixture.set("/linux/resources/devices", json!([{ "allow": true, "access": "rwm" }]));
    let script = "rm -f /tmp/d; mknod /tmp/d b 240 7; head -c1 /tmp/d 2>&1 | grep -c 'No such device'";
    fixture.set("/process/args", json!(["sh", "-c", script]));
    assert_eq!(fixture.output(), "1\n");
}

fn a_fork_bomb_is_killed_at_once() {
    // No pids controller here: the bomb is bounded as a user's processes are, since root's are not.
    let mut fixture = Fixture::new("f() { f & f & wait; }; f & : > /tmp/ready; exec sleep 100");
    fs::set_permissions(fixture.rootfs().join("tmp"), fs::Permissions::from_mode(0o777)).unwrap();
    fixture.set("/annotations", json!({ "dev.bulkhead.user": "app" }));
    fixture.set("/process/rlimits", json!([{ "type": "RLIMIT_NPROC", "hard": 80, "soft": 80 }]));
    let (container, started) = fixture.start();
    fixture.await_file("tmp/ready");
    container.delete(true).unwrap();
    wait(started.pid);
    assert!(!folder(&fixture).exists());
}
