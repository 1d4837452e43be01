//! Pods that are all asked for at once, each on a connection of its own, and then removed at once; how long it took, beside runc's handler.
//!
//! A few of them run always; `BULKHEAD_PODS=100` (and `BULKHEAD_VM_PODS=10`) say how many: `cargo nextest run --release --profile many
//! -p bulkhead-shim many_pods` has no limit of time of its own. Ours come first: whether they pass does not depend on what runc's leave of the machine.

use std::fmt;
use std::path::Path;
use std::sync::Mutex;
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use super::client::Client;
use super::messages::NamespaceOption;
use super::options;
use super::side::{GOOD, Side, Wish};
use crate::daemon::{Containerd, can_run};

const RUNC: &str = "runc";

fn wanted(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// How long it took, in seconds: until half of the pods had started, until all had, and until all were removed.
struct Took {
    half: f32,
    all: f32,
    removed: f32,
}

impl fmt::Display for Took {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { half, all, removed } = self;
        write!(to, "half of them started in {half:.1} s, all in {all:.1} s; used and removed in {removed:.1} s")
    }
}

/// Each on a connection of its own, as many kubelet's workers. Shape: after how many seconds each was done, the first first.
fn at_once(
    containerd: &Containerd,
    handler: &'static str,
    pods: usize,
    act: impl Fn(&Side<'_>, usize) + Sync,
) -> Vec<f32> {
    let begin = Instant::now();
    let mut done: Vec<f32> = std::thread::scope(|scope| {
        let act = &act;
        let work = |number| {
            scope.spawn(move || {
                act(&Side::new(containerd, &Client::of(containerd), handler), number);
                begin.elapsed().as_secs_f32()
            })
        };
        let working: Vec<_> = (0..pods).map(work).collect();
        let end = |working: ScopedJoinHandle<'_, f32>| working.join().expect("each of them works");
        working.into_iter().map(end).collect()
    });
    done.sort_by(f32::total_cmp);
    done
}

fn start_use_and_remove(containerd: &Containerd, handler: &'static str, pods: usize) -> Took {
    let started = Mutex::new(Vec::new());
    let starting = at_once(containerd, handler, pods, |side, number| {
        let pod = side.run_pod(&format!("many-{number}"), NamespaceOption { pid: 1, ..Default::default() });
        let id = side.start(&pod, "a", Wish::script(GOOD));
        started.lock().unwrap().push((pod, id));
    });
    let started = started.into_inner().unwrap();
    assert_eq!(started.len(), pods);
    let shims = containerd.shims().len();
    assert_eq!(shims, if handler == RUNC { 0 } else { pods });
    let removing = at_once(containerd, handler, pods, |side, number| {
        let (pod, id) = &started[number];
        assert_eq!(side.status(id), "running 0 ");
        assert_eq!(side.sh(id, "echo on"), "0 \"on\\n\" \"\"");
        side.stop_pod(&pod.id);
        side.remove(pod, &[id]);
    });
    let mut left = containerd.await_nothing_but(&[]);
    left.extend(containerd.pod_addresses());
    assert!(left.is_empty(), "{handler}: left behind: {left:#?}");
    Took { half: starting[pods / 2], all: starting[pods - 1], removed: removing[pods - 1] }
}

#[test]
fn many_pods_at_once() {
    if !can_run() {
        return;
    }
    let pods = wanted("BULKHEAD_PODS", 4);
    let containerd = Containerd::with_cri(Path::new("/nosuch")).crowded(pods);
    let ours = start_use_and_remove(&containerd, "bulkhead", pods);
    eprintln!("bulkhead: {pods} pods: {ours}");
    // What follows is runc's shims, for comparison.
    let theirs = std::panic::catch_unwind(|| start_use_and_remove(&containerd, RUNC, pods));
    let theirs =
        theirs.unwrap_or_else(|_| panic!("runc's shims have failed with {pods} pods, and ours have not: {ours}"));
    eprintln!("{RUNC}: {pods} pods: {theirs}");
}

#[test]
fn many_pods_in_utility_vms_at_once() {
    let (true, Some((_folder, options))) = (can_run(), options()) else { return };
    let pods = wanted("BULKHEAD_VM_PODS", 2);
    let containerd = Containerd::with_cri(&options).crowded(pods);
    let took = start_use_and_remove(&containerd, "bulkhead-hyperv", pods);
    eprintln!("bulkhead-hyperv: {pods} pods: {took}");
}
