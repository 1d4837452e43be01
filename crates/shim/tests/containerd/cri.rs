//! Pods by CRI, driven as a kubelet does: one list of steps, first with runc's handler and then with ours. Each difference is named
//! here, with its reason.
//!
//! Source: kubernetes pkg/kubelet/kuberuntime; cri-tools pkg/validate, whose cases the steps follow.

mod client;
mod kills;
mod many;
mod messages;
mod side;
mod streaming;

use std::path::Path;
use std::sync::Mutex;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::{Containerd, can_run, write_options};
use crate::support::guest_image;
use messages::{NamespaceOption, Nothing, PodSandboxStatusResponse};
use side::{GOOD, Pod, Side, Wish};

/// Steps that end otherwise, and why.
const EXCEPTIONS: [(&str, &str); 3] = [
    ("killed for want of memory", "runc's shim sometimes sees the end first and says Error; ours must not, see below"),
    (
        "exec of no program",
        "ours says which kind of fault it is, not found, and CRI passes that on; runc's knows no kinds",
    ),
    ("no such command", "the same; state, exit code and reason are compared below"),
];

/// It is told before the end, whatever the wall.
const SURVIVES: (&str, &str) = ("one of its processes killed for want of memory", "running 0 OOMKilled");

#[test]
fn a_kubelet_sees_over_our_shim_what_it_sees_over_runcs() {
    if !can_run() {
        return;
    }
    let containerd = Containerd::with_cri(Path::new("/nosuch"));
    let client = client::Client::of(&containerd);
    let run = |handler: &'static str| {
        let mut side = Side::new(&containerd, &client, handler);
        side.list();
        side.seen
    };
    let (expected, seen) = (run("runc"), run("bulkhead"));
    let excepted = |step: &str| EXCEPTIONS.iter().any(|(name, _)| *name == step);
    let differing: Vec<_> = expected.iter().zip(&seen).filter(|(a, b)| a != b && !excepted(a.0)).collect();
    assert!(differing.is_empty(), "runc's shim and ours differ: {differing:#?}\n{}", containerd.log());
    assert_eq!(expected.len(), seen.len());
    assert!(seen.contains(&("no such command", "5 true exited 128 StartError".to_owned())), "{seen:#?}");
    assert!(seen.contains(&("killed for want of memory", "exited 137 OOMKilled".to_owned())), "{seen:#?}");
    assert!(seen.contains(&(SURVIVES.0, SURVIVES.1.to_owned())), "{seen:#?}");
    // The list itself: what runc's side must have seen, or nothing was compared.
    for (step, outcome) in [
        ("exec", "3 \"out\\n\" \"err\\n\""),
        ("a stream's output", "\"got a line\\n\""),
        ("a forwarded port", "\"from the pod\\n\""),
    ] {
        assert!(expected.contains(&(step, outcome.to_owned())), "{step} is not {outcome}: {expected:#?}");
    }
}

/// What differs where the pod is a utility VM, and why.
const IN_A_VM: [(&str, &str); 8] = [
    EXCEPTIONS[0],
    EXCEPTIONS[1],
    EXCEPTIONS[2],
    ("an update", "the limits are the guest's, where the host has no file for them; they are looked at below"),
    ("an update in the guest", "that is it"),
    (
        "what a process may",
        "the guest has cgroups of version 2 and /proc/kcore, which no container may read; this host has neither",
    ),
    ("what a process may when it is confined", "the same"),
    (
        "a port without a server",
        "the shim has accepted the connection before the guest refuses it: it is reset and not refused",
    ),
];

/// The file with the options of the handler with utility VMs.
fn options() -> Option<(tempfile::TempDir, std::path::PathBuf)> {
    let image = guest_image()?;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hyperv.toml");
    // Several emulated machines share a busy host's processors.
    write_options(&file, &folder.path().join("state"), &image, "personalize-timeout-ms = 20000");
    Some((folder, file))
}

#[test]
fn a_kubelet_sees_of_a_pod_in_a_utility_vm_what_it_sees_over_runcs_shim() {
    let (true, Some((_folder, options))) = (can_run(), options()) else { return };
    let containerd = Containerd::with_cri(&options);
    let client = client::Client::of(&containerd);
    let run = |handler: &'static str| {
        let mut side = Side::new(&containerd, &client, handler);
        side.list();
        side.seen
    };
    let (expected, seen) = (run("runc"), run("bulkhead-hyperv"));
    let excepted = |step: &str| IN_A_VM.iter().any(|(name, _)| *name == step);
    let differing: Vec<_> = seen.iter().filter(|step| !expected.contains(step) && !excepted(step.0)).collect();
    assert!(differing.is_empty(), "runc's shim: {expected:#?}, ours: {differing:#?}\n{}", containerd.log());
    assert!(seen.contains(&("no such command", "5 true exited 128 StartError".to_owned())), "{seen:#?}");
    assert!(seen.contains(&("killed for want of memory", "exited 137 OOMKilled".to_owned())), "{seen:#?}");
    assert!(seen.contains(&(SURVIVES.0, SURVIVES.1.to_owned())), "{seen:#?}");
    let limits = "1 \"67108864\\n50000 100000\\n29\\n\" \"ls: pod: No such file or directory\\n\"";
    assert!(seen.contains(&("an update in the guest", limits.to_owned())), "{seen:#?}");
    assert!(seen.contains(&("next door by 127.0.0.1", "0 \"from the pod\\n\" \"\"".to_owned())), "{seen:#?}");
    assert!(seen.contains(&("a port without a server", "Err(ConnectionReset)".to_owned())), "{seen:#?}");
    assert!(containerd.shims().is_empty(), "{:?}", containerd.shims());
}

#[test]
fn nothing_is_left_of_a_pod_whose_utility_vm_or_shim_is_killed() {
    let (true, Some((_folder, options))) = (can_run(), options()) else { return };
    let containerd = Containerd::with_cri(&options);
    let client = client::Client::of(&containerd);
    let side = Side::new(&containerd, &client, "bulkhead-hyperv");
    let pods = ["vmm", "shim"].map(|name| side.run_pod(name, NamespaceOption { pid: 1, ..Default::default() }));
    let containers = pods.each_ref().map(|pod| ["a", "b"].map(|name| side.start(pod, name, Wish::script(GOOD))));
    let vmm = |pod: &Pod| -> i32 {
        let records = std::fs::read_to_string(containerd.bundle(&pod.id).join("processes.json")).unwrap();
        let records: serde_json::Value = serde_json::from_str(&records).unwrap();
        records[0]["pid"].as_i64().and_then(|pid| pid.try_into().ok()).unwrap()
    };
    let vmms = pods.each_ref().map(vmm);
    assert_ne!(vmms[0], vmms[1]);
    let victims = [vmms[0], containerd.shim_pid(&pods[1].id)];
    for ((pod, containers), victim) in pods.iter().zip(&containers).zip(victims) {
        kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
        for id in containers {
            // containerd may notice the loss of the shim before it learns how the container ended.
            assert!(["exited 137 Error", "exited 255 Error"].contains(&side.end(id).as_str()), "{}", side.status(id));
        }
        let status = || side.of_id::<PodSandboxStatusResponse>("PodSandboxStatus", &pod.id).unwrap().status.unwrap();
        side.until("end of the pod", || (status().state == 1).then_some(()));
        side.stop_pod(&pod.id);
        side.remove(pod, &[&containers[0], &containers[1]]);
    }
    side.until("end of the shims", || containerd.shims().is_empty().then_some(()));
    for pid in vmms {
        // What nobody reaps has ended as well.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(status.is_empty() || status.contains("State:\tZ"), "{status}");
    }
}

/// What a utility VM cannot be is refused when the pod is made, or the container that asks for it.
#[test]
fn a_pod_that_shares_the_nodes_namespaces_gets_no_utility_vm() {
    let (true, Some((_folder, options))) = (can_run(), options()) else { return };
    let containerd = Containerd::with_cri(&options);
    let client = client::Client::of(&containerd);
    let side = Side::new(&containerd, &client, "bulkhead-hyperv");
    for (name, namespaces, word) in [
        ("network", NamespaceOption { network: 2, pid: 1, ipc: 0 }, "network namespace"),
        ("pid", NamespaceOption { network: 0, pid: 2, ipc: 0 }, "pid namespace"),
        ("ipc", NamespaceOption { network: 0, pid: 1, ipc: 2 }, "ipc namespace"),
    ] {
        let refused = side.ask_for_pod(name, namespaces).unwrap_err();
        assert!(refused.message.contains(word), "{name}: {refused:?}");
    }
    assert!(containerd.shims().is_empty(), "{:?}", containerd.shims());
}

#[test]
fn one_shim_serves_a_pod_and_nothing_of_it_is_left_when_that_is_killed() {
    if !can_run() {
        return;
    }
    let containerd = Containerd::with_cri(Path::new("/nosuch"));
    let client = client::Client::of(&containerd);
    let side = Side::new(&containerd, &client, "bulkhead");
    let pods = [side.run_pod("killed", NamespaceOption::default()), side.run_pod("other", NamespaceOption::default())];
    let containers = ["a", "b"].map(|name| side.start(&pods[0], name, Wish::script(GOOD)));
    let neighbour = side.start(&pods[1], "c", Wish::script(GOOD));
    assert_eq!(containerd.shims().len(), 2, "{:?}", containerd.shims());
    // One that ends and is removed leaves the others alone, and their shim.
    let brief = side.start(&pods[0], "brief", Wish::script("exit 3"));
    assert_eq!(side.end(&brief), "exited 3 Error");
    side.of_id::<Nothing>("RemoveContainer", &brief).unwrap();
    containerd.assert_nothing_left(&brief);
    assert_eq!(side.sh(&containers[0], "echo on"), "0 \"on\\n\" \"\"");
    kill(Pid::from_raw(containerd.shim_pid(&pods[0].id)), Signal::SIGKILL).unwrap();
    for id in &containers {
        // containerd may notice the loss of the shim before it learns how the container ended.
        assert!(["exited 137 Error", "exited 255 Error"].contains(&side.end(id).as_str()), "{}", side.status(id));
        containerd.assert_nothing_left(id);
    }
    let status = || side.of_id::<PodSandboxStatusResponse>("PodSandboxStatus", &pods[0].id).unwrap().status.unwrap();
    side.until("end of the pod", || (status().state == 1).then_some(()));
    containerd.assert_nothing_left(&pods[0].id);
    assert_eq!(side.status(&neighbour), "running 0 ");
    for (pod, containers) in [(&pods[0], vec![&containers[0], &containers[1]]), (&pods[1], vec![&neighbour])] {
        side.stop_pod(&pod.id);
        side.remove(pod, &containers.iter().map(|id| id.as_str()).collect::<Vec<_>>());
    }
    side.until("end of the shims", || containerd.shims().is_empty().then_some(()));
}

/// How many pods start at once.
const AT_ONCE: usize = 8;

#[test]
fn pods_that_start_at_once_outlive_a_killed_containerd() {
    if !can_run() {
        return;
    }
    let mut containerd = Containerd::with_cri(Path::new("/nosuch"));
    let names: Vec<String> = (0..AT_ONCE).map(|number| format!("pod-{number}")).collect();
    // Each on a connection of its own, as many kubelet's workers.
    let at_once = |containerd: &Containerd, act: &(dyn Fn(&Side<'_>, &str, usize) + Sync)| {
        std::thread::scope(|scope| {
            for (number, name) in names.iter().enumerate() {
                scope.spawn(move || {
                    let client = client::Client::of(containerd);
                    act(&Side::new(containerd, &client, "bulkhead"), name, number);
                });
            }
        });
    };
    let started = Mutex::new(Vec::new());
    at_once(&containerd, &|side, name, number| {
        let pod = side.run_pod(name, NamespaceOption::default());
        let containers = ["a", "b"].map(|name| side.start(&pod, name, Wish::script(GOOD)));
        started.lock().unwrap().push((number, pod, containers));
    });
    let mut started = started.into_inner().unwrap();
    started.sort_by_key(|(number, ..)| *number);
    assert_eq!((started.len(), containerd.shims().len()), (AT_ONCE, AT_ONCE), "{:?}", containerd.shims());
    containerd.kill();
    assert_eq!(containerd.shims().len(), AT_ONCE);
    containerd.start_again();
    at_once(&containerd, &|side, _, number| {
        let (_, pod, containers) = &started[number];
        for id in containers {
            assert_eq!(
                (side.status(id), side.sh(id, "echo on")),
                ("running 0 ".to_owned(), "0 \"on\\n\" \"\"".to_owned())
            );
        }
        // The pod's shim is found again for one more.
        let late = side.start(pod, "late", Wish::script("exit 4"));
        assert_eq!(side.end(&late), "exited 4 Error");
        side.stop_pod(&pod.id);
        side.remove(pod, &[&containers[0], &containers[1], &late]);
    });
    assert!(containerd.shims().is_empty(), "{:?}", containerd.shims());
}
