//! Limits that are really applied, read back from the kernel, and what is counted.

use std::fs;
use std::future::ready;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bulkhead_container::OomWatch;
use oci_spec::runtime::LinuxResources;
use proto::ErrorKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::Case;
use crate::fixture::{Fixture, silent, wait};

pub const CASES: &[Case] = &[
    ("limits_are_applied_and_changed", limits_are_applied_and_changed),
    ("too_much_memory_is_an_oom_kill", too_much_memory_is_an_oom_kill),
    ("a_kill_for_want_of_memory_is_told_when_it_happens", a_kill_for_want_of_memory_is_told_when_it_happens),
    ("use_is_counted", use_is_counted),
    ("too_many_processes_are_refused", too_many_processes_are_refused),
    ("rlimits_above_the_hard_limit_degrade", rlimits_above_the_hard_limit_degrade),
];

fn resources(value: serde_json::Value) -> LinuxResources {
    serde_json::from_value(value).unwrap()
}

/// The limits as the kernel has them now: memory, quota, shares, processes.
fn now(fixture: &Fixture) -> [String; 4] {
    if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let file =
            |name| std::fs::read_to_string(format!("/sys/fs/cgroup{}/{name}", fixture.cgroup().display())).unwrap();
        return ["memory.max", "cpu.max", "cpu.weight", "pids.max"].map(|name| file(name).trim().to_owned());
    }
    [
        fixture.cgroup_file("memory", "memory.limit_in_bytes"),
        format!(
            "{} {}",
            fixture.cgroup_file("cpu", "cpu.cfs_quota_us"),
            fixture.cgroup_file("cpu", "cpu.cfs_period_us")
        ),
        fixture.cgroup_file("cpu", "cpu.shares"),
        fixture.cgroup_file("pids", "pids.max"),
    ]
}

fn limits_are_applied_and_changed() {
    let mut fixture = Fixture::new("exec sleep 100");
    fixture.set("/linux/resources/memory", json!({ "limit": 64 << 20, "swap": 128 << 20, "reservation": 32 << 20 }));
    fixture.set("/linux/resources/cpu", json!({ "quota": 150_000, "period": 100_000, "shares": 1024 }));
    fixture.set("/linux/resources/pids", json!({ "limit": 77 }));
    let (container, started) = fixture.start();
    let [memory, quota, _, pids] = now(&fixture);
    assert_eq!([memory, quota, pids], [(64 << 20).to_string(), "150000 100000".into(), "77".into()]);

    let change =
        json!({ "memory": { "limit": 96 << 20, "swap": 192 << 20 }, "cpu": { "quota": 50_000, "period": 100_000 } });
    container.update(&resources(change)).unwrap();
    let [memory, quota, _, pids] = now(&fixture);
    assert_eq!([memory, quota, pids], [(96 << 20).to_string(), "50000 100000".into(), "77".into()]);
    // And down again.
    container.update(&resources(json!({ "memory": { "limit": 48 << 20, "swap": 96 << 20 } }))).unwrap();
    assert_eq!(now(&fixture)[0], (48 << 20).to_string());

    let impossible = json!({ "memory": { "limit": 4096, "swap": 1024 } });
    assert_eq!(container.update(&resources(impossible)).unwrap_err().kind(), ErrorKind::InvalidArgument);
    container.signal_all(libc::SIGKILL).unwrap();
    wait(started.pid);
    container.delete(false).unwrap();
}

fn too_much_memory_is_an_oom_kill() {
    // The shell survives its child, so the count is all that tells.
    let mut fixture = Fixture::new("dd if=/dev/zero of=/dev/null bs=200M count=1; echo $? > /status; exec sleep 100");
    fixture.set("/linux/resources/memory", json!({ "limit": 32 << 20, "swap": 32 << 20 }));
    let (container, started) = fixture.start();
    fixture.await_file("status");
    assert_eq!(container.oom_kills(), 1);
    let stats = container.stats().unwrap();
    assert_eq!((stats.memory.oom_kills, stats.memory.limit_bytes), (1, Some(32 << 20)));
    container.signal_all(libc::SIGKILL).unwrap();
    wait(started.pid);
    // Also after the end, for the one who reports it.
    assert_eq!(container.oom_kills(), 1);
    container.delete(false).unwrap();
}

fn a_kill_for_want_of_memory_is_told_when_it_happens() {
    let script = "while :; do [ -e /eat ] && rm /eat && dd if=/dev/zero of=/dev/null bs=200M count=1; sleep 0.02; done";
    let mut fixture = Fixture::new(script);
    fixture.set("/linux/resources/memory", json!({ "limit": 32 << 20, "swap": 32 << 20 }));
    let (container, started) = fixture.start();
    let (events, watch) = container.oom_events().unwrap();
    let is_told = |limit: &Timespec| poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(limit)).unwrap() == 1;
    assert!(!is_told(&Timespec { tv_sec: 0, tv_nsec: 200_000_000 }), "nothing has happened");
    for kills in 1..=2 {
        fs::write(fixture.rootfs().join("eat"), "").unwrap();
        let event = || {
            assert!(is_told(&Timespec { tv_sec: 60, tv_nsec: 0 }), "no event of kill {kills}");
            OomWatch::discard(&events);
            ready(Ok(()))
        };
        let pause = |length| {
            std::thread::sleep(length);
            ready(())
        };
        let counted = watch.kills_after(kills - 1, || ready(Ok::<_, ()>(container.oom_kills())), event, pause);
        // Each part of it blocks.
        let counted = pin!(counted).poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(counted, Poll::Ready(Ok(kills)));
    }
    container.signal_all(libc::SIGKILL).unwrap();
    wait(started.pid);
    container.delete(false).unwrap();
}

fn use_is_counted() {
    let mut fixture = Fixture::new("i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; touch /done; exec sleep 100");
    fixture.set("/linux/resources/pids", json!({ "limit": 50 }));
    let (container, started) = fixture.start();
    fixture.await_file("done");
    std::thread::sleep(Duration::from_millis(20));
    let stats = container.stats().unwrap();
    assert!(stats.cpu.total_ns > 5_000_000, "{:?}", stats.cpu);
    assert!(stats.cpu.total_ns < 60_000_000_000, "{:?}", stats.cpu);
    assert!(stats.memory.usage_bytes > 4096 && stats.memory.limit_bytes.is_none(), "{:?}", stats.memory);
    assert!(stats.memory.peak_bytes >= stats.memory.usage_bytes / 2);
    assert_eq!((stats.pids.current, stats.pids.limit), (1, Some(50)));
    container.signal_all(libc::SIGKILL).unwrap();
    wait(started.pid);
    container.delete(false).unwrap();
}

fn too_many_processes_are_refused() {
    let mut fixture = Fixture::new("for i in 1 2 3 4 5 6 7 8; do sleep 50 & done; wait");
    fixture.set("/linux/resources/pids", json!({ "limit": 5 }));
    let (mut container, started) = fixture.create(silent());
    container.start().unwrap();
    for _ in 0..1000 {
        if container.processes().unwrap().len() >= 5 {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(container.processes().unwrap().len() <= 5);
    container.signal_all(libc::SIGKILL).unwrap();
    wait(started.pid);
    container.delete(false).unwrap();
}

fn rlimits_above_the_hard_limit_degrade() {
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap();
    let may_raise = std::fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .is_some_and(|set| u64::from_str_radix(set.trim(), 16).unwrap() & (1 << 24) != 0);
    let mut fixture = Fixture::new("ulimit -Hn; ulimit -Sn; cat /proc/self/oom_score_adj");
    let rlimit = json!([{ "type": "RLIMIT_NOFILE", "hard": hard + 1000, "soft": 500 }]);
    fixture.set("/process/rlimits", rlimit);
    fixture.set("/process/oomScoreAdj", json!(-500));
    let expected = if may_raise { hard + 1000 } else { hard };
    let score = if may_raise { -500 } else { 0 };
    assert_eq!(fixture.output(), format!("{expected}\n500\n{score}\n"));
}
