//! kill -9 of containerd, of a pod's shim and of its VMM while CRI is asked for something: a kubelet that then stops and removes what is
//! listed, as it does, finds nothing in its way and leaves nothing.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::{Client, Refused};
use super::messages::{NamespaceOption, Nothing};
use super::options;
use super::side::{GOOD, Pod, Side, Wish};
use crate::daemon::{Containerd, can_run};
use crate::kills::{Daemon, Shim, Victim, Vmm, delays, is_whole, shim_of, vmm_of};

/// What is asked for, and how many milliseconds later the kill comes.
const REQUESTS: [(&str, &[u64]); 4] = [
    ("RunPodSandbox", &[300, 100, 200, 400, 600]),
    ("CreateContainer", &[10, 30]),
    ("StartContainer", &[40, 10, 100, 300]),
    ("StopPodSandbox", &[20, 5, 60, 150]),
];

/// A shim that nobody ends ends by itself in 10 s.
const SOCKETS_GONE: Duration = Duration::from_secs(20);

/// Those that groups' shims listen on.
fn sockets() -> BTreeSet<OsString> {
    let entries = std::fs::read_dir("/run/bulkhead/s").into_iter().flatten().flatten().map(|entry| entry.file_name());
    entries.filter(|name| name.to_string_lossy().starts_with("group-")).collect()
}

struct Kubelet {
    containerd: Containerd,
    /// What others have left.
    sockets: BTreeSet<OsString>,
    handler: &'static str,
}

impl Kubelet {
    /// Asks on a connection of its own, whose end may be containerd's.
    fn ask<T>(&self, what: impl FnOnce(&Side<'_>) -> T) -> T {
        let client = Client::of(&self.containerd);
        what(&Side::new(&self.containerd, &client, self.handler))
    }

    /// The bundle of the pod's sandbox, which is the only one with a shim's number when a pod begins, or the oldest.
    fn sandbox(&self, pod: Option<&Pod>) -> Option<PathBuf> {
        if let Some(pod) = pod {
            return Some(self.containerd.bundle(&pod.id));
        }
        let bundles = std::fs::read_dir(self.containerd.bundle("")).ok()?.flatten();
        bundles.map(|entry| entry.path()).find(|bundle| bundle.join("shim.pid").exists())
    }

    fn case(&mut self, number: usize, request: &str, victim: Victim, delay: u64) {
        let what = format!("{victim:?} killed {delay} ms into {request}");
        let name = format!("pod-{number}");
        let namespaces = || NamespaceOption { pid: 1, ..Default::default() };
        let pod = (request != "RunPodSandbox").then(|| self.ask(|side| side.run_pod(&name, namespaces())));
        let begun = ["StartContainer", "StopPodSandbox"].contains(&request);
        let container = pod.as_ref().filter(|_| begun).map(|pod| {
            self.ask(|side| {
                let id = side.create(pod, "a", Wish::script(GOOD));
                if request == "StopPodSandbox" {
                    side.of_id::<Nothing>("StartContainer", &id).unwrap();
                }
                id
            })
        });
        let mut killed_daemon = None;
        std::thread::scope(|scope| {
            let this = &*self;
            let asking = scope.spawn(|| match (request, &pod, &container) {
                ("CreateContainer", Some(pod), _) => this.ask(|side| side.ask_for_container(pod, "a")).map(drop),
                ("StartContainer", _, Some(id)) => this.ask(|side| side.of_id::<Nothing>(request, id)).map(drop),
                ("StopPodSandbox", Some(pod), _) => this.ask(|side| side.of_id::<Nothing>(request, &pod.id)).map(drop),
                _ => this.ask(|side| side.ask_for_pod(&name, namespaces())).map(drop),
            });
            std::thread::sleep(Duration::from_millis(delay));
            let bundle = this.sandbox(pod.as_ref());
            let found = match victim {
                Victim::Containerd => this.containerd.daemon_pid(),
                Victim::Shim => bundle.as_deref().and_then(shim_of),
                Victim::Vmm => bundle.as_deref().and_then(vmm_of),
            };
            let struck = found.is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok());
            killed_daemon = (victim == Daemon).then_some(());
            // A containerd that dies breaks the connection, which the client takes for a fault of the test.
            let answer: Result<Result<(), Refused>, _> = asking.join();
            let answer =
                answer.map_or("no answer".to_owned(), |answer| format!("{:?}", answer.map_err(|refused| refused.code)));
            eprintln!("{what}: {} {answer}", if struck { "struck," } else { "there was none," });
        });
        if killed_daemon.is_some() {
            self.containerd.kill();
            self.containerd.start_again();
        }
        self.clear(&what);
    }

    /// As a kubelet: again and again, until there is nothing.
    fn clear(&self, what: &str) {
        let begin = Instant::now();
        self.ask(|side| {
            while let pods @ [_, ..] = &side.list_pods()[..] {
                for id in pods {
                    let _ = side
                        .of_id::<Nothing>("StopPodSandbox", id)
                        .and_then(|_| side.of_id::<Nothing>("RemovePodSandbox", id));
                }
                assert!(begin.elapsed() < Duration::from_secs(60), "{what}: {pods:?}\n{}", self.containerd.log());
            }
        });
        let left = self.containerd.await_nothing_but(&[]);
        assert!(left.is_empty(), "{what}: left behind: {left:#?}\n{}", self.containerd.log());
        let (mut left, begin) = (BTreeSet::new(), Instant::now());
        while begin.elapsed() < SOCKETS_GONE {
            left = sockets().difference(&self.sockets).cloned().collect();
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{what}: sockets left behind: {left:?}\n{}", self.containerd.log());
    }

    fn all(&mut self, victims: &[Victim]) {
        let mut number = 0;
        for (request, all) in REQUESTS {
            for delay in delays(all) {
                for &victim in victims {
                    number += 1;
                    self.case(number, request, victim, delay);
                }
            }
        }
    }
}

#[test]
fn a_pod_whose_containerd_or_shim_is_killed_at_any_request() {
    if !can_run() {
        return;
    }
    let containerd = Containerd::with_cri(Path::new("/nosuch"));
    let mut kubelet = Kubelet { containerd, sockets: sockets(), handler: "bulkhead" };
    kubelet.all(if is_whole() { &[Daemon, Shim] } else { &[Shim] });
}

#[test]
fn a_pod_in_a_vm_whose_containerd_or_shim_or_vmm_is_killed_at_any_request() {
    let (true, Some((_folder, options))) = (can_run(), options()) else { return };
    let containerd = Containerd::with_cri(&options);
    let mut kubelet = Kubelet { containerd, sockets: sockets(), handler: "bulkhead-hyperv" };
    if is_whole() {
        return kubelet.all(&[Daemon, Shim, Vmm]);
    }
    kubelet.case(1, "StartContainer", Vmm, 100);
    kubelet.case(2, "StopPodSandbox", Daemon, 5);
    kubelet.case(3, "RunPodSandbox", Daemon, 100);
}
