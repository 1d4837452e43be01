//! kill -9 of containerd, of the shim and of the VMM while a request is on its way: what containerd says afterwards is true, and nothing is
//! left when the container is deleted. Each case is a moment, so that what is hit is a matter of chance; what must hold is not.
//!
//! A few of the cases run always; all of them with `BULKHEAD_KILLS=all`.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::{Containerd, IMAGE, can_run, write_options};
use crate::support::{guest_image, text};

/// The container of every case: its name must be free again after each.
const ID: &str = "victim";
/// One that no case touches.
const OTHER: &str = "other";
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    Containerd,
    Shim,
    Vmm,
}

pub use Victim::{Containerd as Daemon, Shim, Vmm};

/// Every case or the few that run always: so many milliseconds after the request has begun.
pub fn delays(all: &[u64]) -> Vec<u64> {
    let chosen = if is_whole() { all.len() } else { 1 };
    all[..chosen].to_vec()
}

pub fn is_whole() -> bool {
    std::env::var_os("BULKHEAD_KILLS").is_some_and(|which| which == "all")
}

/// What a request is begun by, and what the task may be afterwards when containerd or the VMM was killed; `None` is that there is none.
/// When the shim was killed there is none in any case.
struct Request {
    name: &'static str,
    /// What the bundle must have in it before the time counts: the request has come so far.
    mark: &'static str,
    delays: &'static [u64],
    after_containerd: &'static [Option<&'static str>],
    after_vmm: &'static [Option<&'static str>],
}

const GONE: Option<&str> = None;
const CREATED: Option<&str> = Some("CREATED");
const RUNNING: Option<&str> = Some("RUNNING");
const STOPPED: Option<&str> = Some("STOPPED");

const REQUESTS: [Request; 7] = [
    Request {
        name: "create",
        mark: "shim.pid",
        delays: &[5, 0, 30, 100],
        after_containerd: &[GONE, CREATED, RUNNING, STOPPED],
        after_vmm: &[GONE, STOPPED],
    },
    Request {
        name: "start",
        mark: "processes.json",
        delays: &[20, 0, 100, 300],
        after_containerd: &[GONE, CREATED, RUNNING, STOPPED],
        after_vmm: &[GONE, STOPPED],
    },
    Request { name: "exec", mark: "", delays: &[40, 20, 80], after_containerd: &[RUNNING], after_vmm: &[STOPPED] },
    // Who waits deletes, too, when it is over.
    Request { name: "wait", mark: "", delays: &[40], after_containerd: &[RUNNING], after_vmm: &[STOPPED, GONE] },
    Request {
        name: "kill",
        mark: "",
        delays: &[30, 20, 60],
        after_containerd: &[RUNNING, STOPPED],
        after_vmm: &[STOPPED],
    },
    Request {
        name: "delete",
        mark: "",
        delays: &[30, 20, 60],
        after_containerd: &[STOPPED, GONE],
        after_vmm: &[STOPPED, GONE],
    },
    Request { name: "pids", mark: "", delays: &[30], after_containerd: &[RUNNING], after_vmm: &[STOPPED] },
];

struct Wall {
    containerd: Containerd,
    runtime: Vec<String>,
}

impl Wall {
    fn run(&self, id: &str) -> Child {
        let mut words: Vec<&str> = vec!["run", "-d"];
        words.extend(self.runtime.iter().map(String::as_str));
        words.extend([IMAGE, id, "sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.02; done"]);
        self.spawn(&words)
    }

    fn spawn(&self, words: &[&str]) -> Child {
        let mut command = self.containerd.ctr_command(words);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn end(&self, what: &str, child: &mut Child) {
        let begin = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begin.elapsed() > PATIENCE {
                child.kill().unwrap();
                panic!("{what}: ctr does not end\n{}", self.containerd.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Makes what the request is about, begins the request, and waits for its moment.
    fn begin(&self, request: &Request, delay: u64) -> Child {
        if !["create", "start"].contains(&request.name) {
            let mut run = self.run(ID);
            self.end("run", &mut run);
            self.containerd.await_task(ID, RUNNING);
        }
        let child = match request.name {
            "create" | "start" => self.run(ID),
            "exec" => self.spawn(&["task", "exec", "--exec-id", "e", ID, "sleep", "0.05"]),
            "wait" => self.spawn(&["task", "attach", ID]),
            "kill" => self.spawn(&["task", "kill", "-s", "KILL", ID]),
            "pids" => self.spawn(&["task", "ps", ID]),
            "delete" => {
                self.containerd.ctr(&["task", "kill", "-s", "KILL", ID]).ok();
                self.containerd.await_task(ID, STOPPED);
                self.spawn(&["task", "delete", ID])
            }
            other => unreachable!("{other}"),
        };
        let (begin, mark) = (Instant::now(), self.containerd.bundle(ID).join(request.mark));
        while !mark.exists() && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(delay));
        child
    }

    /// False when there is none (any more).
    fn strike(&mut self, victim: Victim) -> bool {
        let bundle = self.containerd.bundle(ID);
        let pid = match victim {
            Victim::Containerd => {
                self.containerd.kill();
                return true;
            }
            Victim::Shim => shim_of(&bundle),
            Victim::Vmm => vmm_of(&bundle),
        };
        pid.is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok())
    }

    fn case(&mut self, request: &Request, victim: Victim, delay: u64) {
        let what = format!("{victim:?} killed {delay} ms into {}", request.name);
        let mut child = self.begin(request, delay);
        if !self.strike(victim) {
            eprintln!("{what}: there was none");
        } else {
            if victim == Victim::Containerd {
                self.end(&what, &mut child);
                self.containerd.start_again();
            }
            self.end(&what, &mut child);
            let allowed = match victim {
                Victim::Containerd => request.after_containerd,
                Victim::Shim => &[GONE],
                Victim::Vmm => request.after_vmm,
            };
            let state = self.await_state(&what, allowed);
            eprintln!("{what}: {state:?}");
            // What is said to run does, if it is not about to end.
            if state.as_deref() == RUNNING {
                let said = self.containerd.ctr(&["task", "exec", "--exec-id", "after", ID, "echo", "on"]);
                if said.code != 0 && request.name == "kill" {
                    self.containerd.await_task(ID, STOPPED);
                } else {
                    assert_eq!(said.ok(), "on", "{what}");
                }
            }
        }
        self.end(&what, &mut child);
        self.clear(&what);
    }

    fn await_state(&self, what: &str, allowed: &[Option<&str>]) -> Option<String> {
        let begin = Instant::now();
        loop {
            let state = self.containerd.task_state(ID);
            if allowed.contains(&state.as_deref()) {
                return state;
            }
            assert!(begin.elapsed() < PATIENCE, "{what}: {state:?}\n{}", self.containerd.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn clear(&self, what: &str) {
        self.containerd.ctr(&["task", "delete", "--force", ID]);
        self.containerd.ctr(&["container", "delete", ID]);
        // That of a container which did not come to be.
        self.containerd.ctr(&["snapshots", "rm", ID]);
        let left = self.containerd.await_nothing_but(&[OTHER]);
        assert!(left.is_empty(), "{what}: left behind: {left:#?}\n{}", self.containerd.log());
    }

    fn all(&mut self, victims: &[Victim]) {
        let mut other = self.run(OTHER);
        self.end("run", &mut other);
        for request in &REQUESTS {
            for delay in delays(request.delays) {
                for &victim in victims {
                    self.case(request, victim, delay);
                }
            }
        }
        self.containerd.await_task(OTHER, RUNNING);
        self.containerd.ctr(&["task", "delete", "--force", OTHER]);
        let left = self.containerd.await_nothing_but(&[]);
        assert!(left.is_empty(), "{left:#?}");
    }
}

pub fn shim_of(bundle: &std::path::Path) -> Option<i32> {
    fs::read_to_string(bundle.join("shim.pid")).ok()?.split_whitespace().next()?.parse().ok()
}

pub fn vmm_of(bundle: &std::path::Path) -> Option<i32> {
    let records: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(bundle.join("processes.json")).ok()?).ok()?;
    records[0]["pid"].as_i64()?.try_into().ok()
}

#[test]
fn a_process_container_whose_containerd_or_shim_is_killed_at_any_request() {
    if !can_run() {
        return;
    }
    let runtime = ["--runtime", "io.containerd.bulkhead.v2"].map(str::to_owned).to_vec();
    let mut wall = Wall { containerd: Containerd::start(), runtime };
    wall.all(&[Daemon, Shim]);
}

#[test]
fn a_hyperv_container_whose_containerd_or_shim_or_vmm_is_killed_at_any_request() {
    let (true, Some(image)) = (can_run(), guest_image()) else { return };
    let containerd = Containerd::start();
    let (file, state): (PathBuf, PathBuf) = (containerd.path("options.toml"), containerd.kept("state"));
    write_options(&file, &state, &image, "personalize-timeout-ms = 20000");
    let (runtime, options) = ("io.containerd.bulkhead-hyperv.v2", text(&file));
    let runtime = ["--runtime", runtime, "--runtime-config-path", &options].map(str::to_owned).to_vec();
    let mut wall = Wall { containerd, runtime };
    if is_whole() {
        wall.all(&[Daemon, Shim, Vmm]);
        return;
    }
    let mut other = wall.run(OTHER);
    wall.end("run", &mut other);
    for (number, victim) in [(0, Shim), (1, Vmm), (2, Daemon)] {
        wall.case(&REQUESTS[number], victim, REQUESTS[number].delays[0]);
    }
    wall.containerd.await_task(OTHER, RUNNING);
    wall.containerd.ctr(&["task", "delete", "--force", OTHER]);
    let left = wall.containerd.await_nothing_but(&[]);
    assert!(left.is_empty(), "{left:#?}");
}
