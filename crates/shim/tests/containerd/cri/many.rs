//! Pods that are all asked for at once, each on a connection of its own, and then removed at once; how long it took, beside runc's handler.
//!
//! A few of them run always; `BULKHEAD_PODS=100` (and `BULKHEAD_VM_PODS=10`) say how many.

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use super::client::Client;
use super::messages::NamespaceOption;
use super::options;
use super::side::{GOOD, Side, Wish};
use crate::daemon::{Containerd, can_run};

fn wanted(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Seconds to the last start, and to the last removal.
fn at_once(containerd: &Containerd, handler: &'static str, pods: usize) -> [f32; 2] {
    let each = |act: &(dyn Fn(&Side<'_>, usize) + Sync)| {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for number in 0..pods {
                scope.spawn(move || {
                    let client = Client::connect(&containerd.path("sock"));
                    act(&Side::new(containerd, &client, handler), number);
                });
            }
        });
        begin.elapsed().as_secs_f32()
    };
    let started = Mutex::new(Vec::new());
    let starting = each(&|side, number| {
        let pod = side.run_pod(&format!("many-{number}"), NamespaceOption { pid: 1, ..Default::default() });
        let id = side.start(&pod, "a", Wish::script(GOOD));
        started.lock().unwrap().push((pod, id));
    });
    let started = started.into_inner().unwrap();
    assert_eq!(started.len(), pods);
    let shims = containerd.shims().len();
    assert_eq!(shims, if handler == "runc" { 0 } else { pods });
    let removing = each(&|side, number| {
        let (pod, id) = &started[number];
        assert_eq!(side.status(id), "running 0 ");
        assert_eq!(side.sh(id, "echo on"), "0 \"on\\n\" \"\"");
        side.stop_pod(&pod.id);
        side.remove(pod, &[id]);
    });
    let left = containerd.await_nothing_but(&[]);
    assert!(left.is_empty(), "{handler}: left behind: {left:#?}");
    [starting, removing]
}

#[test]
fn many_pods_at_once() {
    if !can_run() {
        return;
    }
    let containerd = Containerd::with_cri(Path::new("/nosuch"));
    let pods = wanted("BULKHEAD_PODS", 4);
    for handler in ["runc", "bulkhead"] {
        let [starting, removing] = at_once(&containerd, handler, pods);
        eprintln!("{handler}: {pods} pods started in {starting:.1} s, used and removed in {removing:.1} s");
    }
}

#[test]
fn many_pods_in_utility_vms_at_once() {
    let (true, Some((_folder, options))) = (can_run(), options()) else { return };
    let containerd = Containerd::with_cri(&options);
    let pods = wanted("BULKHEAD_VM_PODS", 2);
    let [starting, removing] = at_once(&containerd, "bulkhead-hyperv", pods);
    eprintln!("bulkhead-hyperv: {pods} pods started in {starting:.1} s, used and removed in {removing:.1} s");
}
