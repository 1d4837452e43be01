//! One list of steps, first over runc's shim and then over ours. Each difference is named here, with its reason.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::daemon::{Containerd, IMAGE, can_run, slowness, write_options};
use crate::support::{guest_image, text};

const RUNC: &str = "io.containerd.runc.v2";
const OURS: &str = "io.containerd.bulkhead.v2";
const HYPERV: &str = "io.containerd.bulkhead-hyperv.v2";

/// Steps that end otherwise, and why.
const EXCEPTIONS: [(&str, &str); 1] =
    [("checkpoint", "not supported, and said so; runc's shim fails too, unless CRIU is installed")];

/// What a program wrote to its log, with the arguments and the environment that it was given.
const LOGGER: &str = "#!/bin/sh
trap '' TERM
{ exec 5>&-; echo \"$CONTAINER_NAMESPACE $*\"; cat <&3 & cat <&4; wait; } >\"$(dirname \"$0\")/logged\"
";

/// It goes on for a while: on a busy host runc's shim loses the last lines of what ends at once.
const LOGGED: &[&str] = &["sh", "-c", "echo out; echo err >&2; sleep 0.5"];

/// The events of tasks that containerd passes on.
struct Events {
    ctr: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Events {
    fn subscribe(containerd: &Containerd) -> Self {
        let mut ctr = containerd.ctr_command(&["events"]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, sink) = (BufReader::new(ctr.stdout.take().unwrap()), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                sink.lock().unwrap().push(line);
            }
        });
        let this = Self { ctr, lines };
        // A subscription that is not there yet misses events: so one is made until it is seen.
        while this.lines.lock().unwrap().is_empty() {
            containerd.ctr(&["content", "ls"]).ok();
            containerd.ctr(&["images", "tag", "--force", IMAGE, "docker.io/library/other:test"]).ok();
            std::thread::sleep(Duration::from_millis(20));
        }
        this
    }

    /// Topic, container, exec and exit code of each event of containers whose name begins so.
    fn of(&self, prefix: &str, last: &str) -> Vec<String> {
        for _ in 0..200 * slowness() {
            if self.told(prefix).iter().any(|line| line == last) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.told(prefix)
    }

    fn told(&self, prefix: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let told = lines.iter().filter_map(|line| {
            let (topic, json) = line.split_once(" /tasks/")?.1.split_once(' ')?;
            let event: serde_json::Value = serde_json::from_str(json).ok()?;
            let id = event["container_id"].as_str()?.strip_prefix(prefix)?;
            let exec = event["exec_id"].as_str().or(event["id"].as_str()).unwrap_or("");
            let exec = exec.strip_prefix(prefix).unwrap_or(exec);
            Some(format!("{topic} {id} {exec} {}", event["exit_status"].as_u64().unwrap_or(0)))
        });
        told.collect()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.ctr.kill();
        let _ = self.ctr.wait();
    }
}

/// One shim under test.
struct Side<'a> {
    containerd: &'a Containerd,
    runtime: &'a str,
    prefix: String,
    seen: Vec<(&'static str, String)>,
}

impl Side<'_> {
    fn id(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn see(&mut self, step: &'static str, outcome: String) {
        self.seen.push((step, outcome));
    }

    /// A step's outcome: exit code and standard output.
    fn ctr(&mut self, step: &'static str, words: &[&str]) {
        let said = self.containerd.ctr(words);
        self.see(step, format!("{} {:?}", said.code, said.out.replace(&self.prefix, "")));
    }

    fn run(&mut self, step: &'static str, options: &[&str], command: &[&str]) {
        let id = self.id("run");
        let begin = [&["run", "--rm", "--runtime", self.runtime], options, &[IMAGE, &id], command].concat();
        self.ctr(step, &begin);
    }

    /// Whether it still shows what a process wrote that it leaves behind is a matter of luck: only the exit code counts.
    fn code(&mut self, step: &'static str, words: &[&str]) {
        let code = self.containerd.ctr(words).code;
        self.see(step, code.to_string());
    }

    fn detach(&mut self, step: &'static str, options: &[&str], name: &str, command: &[&str]) -> String {
        let id = self.id(name);
        let begin = [&["run", "-d", "--runtime", self.runtime], options, &[IMAGE, &id], command].concat();
        self.code(step, &begin);
        id
    }

    fn list(&mut self) {
        self.run("a program's output", &[], &["echo", "hello"]);
        self.run("an exit code", &[], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
        self.run("a killed process", &[], &["sh", "-c", "kill -9 $$"]);
        self.run("the native snapshotter", &["--snapshotter", "native"], &["sh", "-c", "echo x >/new; cat /new"]);
        self.run("a read-only root", &["--read-only"], &["sh", "-c", "echo x >/new"]);
        self.run("environment and folder", &["--env", "A=b", "--cwd", "/tmp"], &["sh", "-c", "echo $A $PWD"]);
        self.run("no such program", &[], &["nosuch"]);
        self.run("no program", &[], &["/etc/notexec"]);
        self.run("a memory limit", &["--memory-limit", "8388608"], &["dd", "if=/dev/zero", "of=/dev/null", "bs=64M"]);
        self.run(
            "a folder of the host",
            &["--mount", "type=bind,src=/usr,dst=/mnt,options=rbind:ro"],
            &["ls", "-d", "/mnt/bin"],
        );
        self.run("the host's network", &["--net-host"], &["ls", "/sys/class/net"]);
        self.life();
        self.logs();
    }

    fn life(&mut self) {
        // Two processes at every moment, since their number is compared.
        let script = "trap 'exit 6' TERM; echo on; sleep 1000 & wait";
        let id = self.detach("detached", &[], "life", &["sh", "-c", script]);
        let id = id.as_str();
        self.containerd.await_task(id, Some("RUNNING"));
        self.ctr("exec", &["task", "exec", "--exec-id", "e1", id, "sh", "-c", "echo in; exit 3"]);
        self.ctr("exec of no program", &["task", "exec", "--exec-id", "e2", id, "nosuch"]);
        let listed = self.containerd.ctr(&["task", "ps", id]);
        self.see("ps", format!("{} {}", listed.code, listed.out.lines().count() > 1));
        self.metrics(id);
        self.ctr("pause", &["task", "pause", id]);
        self.containerd.await_task(id, Some("PAUSED"));
        self.ctr("exec in a paused one", &["task", "exec", "--exec-id", "e3", id, "true"]);
        self.ctr("resume", &["task", "resume", id]);
        self.containerd.await_task(id, Some("RUNNING"));
        self.ctr("checkpoint", &["task", "checkpoint", id]);
        self.ctr("start again", &["task", "start", id]);
        self.ctr("delete while it runs", &["task", "delete", id]);
        self.ctr("kill", &["task", "kill", "-s", "SIGTERM", id]);
        self.containerd.await_task(id, Some("STOPPED"));
        self.ctr("kill what has ended", &["task", "kill", "-s", "SIGTERM", id]);
        self.ctr("delete", &["task", "delete", id]);
        self.code("a second task", &["task", "start", "-d", id]);
        self.ctr("kill by force", &["task", "delete", "--force", id]);
        self.ctr("remove", &["container", "delete", id]);
        let id = id.to_owned();
        self.containerd.assert_nothing_left(&id);
    }

    /// The same numbers are there; what they are differs from run to run.
    fn metrics(&mut self, id: &str) {
        let said = self.containerd.ctr(&["task", "metrics", "--format", "json", id]);
        let value: serde_json::Value = serde_json::from_str(&said.out).unwrap_or_default();
        let filled = ["/memory/usage", "/cpu", "/pids/current", "/memory/pgfault", "/memory/pg_fault"];
        let filled = filled.map(|path| value.pointer(path).is_some());
        self.see("metrics", format!("{} {filled:?} {}", said.code, value["pids"]["current"]));
    }

    fn logs(&mut self) {
        let file = self.containerd.path(&format!("{}file", self.prefix));
        let uri = format!("file://{}", text(&file));
        self.detach("a log file", &["--log-uri", &uri], "file", LOGGED);
        self.end("file");
        self.see("what the log file has", sorted(&file));
        let folder = self.containerd.path(&format!("{}logger", self.prefix));
        std::fs::create_dir(&folder).unwrap();
        let program = folder.join("program");
        std::fs::write(&program, LOGGER).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let uri = format!("binary://{}?-k=v%20w", text(&program));
        self.detach("a logging program", &["--log-uri", &uri], "logger", LOGGED);
        self.end("logger");
        self.see("what the logging program was given", sorted(&folder.join("logged")));
        let none = self.id("none");
        let words = ["run", "-d", "--runtime", self.runtime, "--log-uri", "binary:///nosuch", IMAGE, &none, "true"];
        let said = self.containerd.ctr(&words);
        self.see("no such logging program", (said.code == 0).to_string());
        self.containerd.ctr(&["container", "delete", &none]).ok();
    }

    fn end(&mut self, name: &'static str) {
        let id = self.id(name);
        self.containerd.await_task(&id, Some("STOPPED"));
        self.ctr(name, &["task", "delete", &id]);
        self.containerd.ctr(&["container", "delete", &id]).ok();
    }
}

/// The lines of a file that somebody may still write.
fn sorted(file: &std::path::Path) -> String {
    let mut lines = Vec::new();
    for _ in 0..100 * slowness() {
        let content = std::fs::read_to_string(file).unwrap_or_default();
        lines = content.lines().map(str::to_owned).collect();
        if lines.len() >= 2 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    lines.sort();
    format!("{lines:?}")
}

#[test]
fn ctr_sees_over_our_shim_what_it_sees_over_runcs() {
    if !can_run() {
        return;
    }
    let containerd = Containerd::start();
    let events = Events::subscribe(&containerd);
    let side = |runtime, prefix: &str| {
        let mut side = Side { containerd: &containerd, runtime, prefix: prefix.to_owned(), seen: Vec::new() };
        side.list();
        (side.seen, events.of(prefix, "delete logger  0"))
    };
    let (expected, expected_events) = side(RUNC, "r-");
    let (seen, seen_events) = side(OURS, "b-");
    let excepted = |step: &str| EXCEPTIONS.iter().any(|(name, _)| *name == step);
    let differing: Vec<_> = expected.iter().zip(&seen).filter(|(a, b)| a != b && !excepted(a.0)).collect();
    assert!(differing.is_empty(), "runc's shim and ours differ: {differing:#?}\n{}", containerd.log());
    assert_eq!(expected.len(), seen.len());
    assert!(
        expected.iter().any(|(step, outcome)| *step == "an exit code" && outcome.starts_with("7 ")),
        "{expected:?}"
    );
    // The moment, and so the number, of the first depends on the kernel; what the shim says of processes does not.
    let without_oom =
        |events: Vec<String>| events.into_iter().filter(|line| !line.starts_with("oom ")).collect::<Vec<_>>();
    // On a busy host runc's shim comes too late to see it.
    assert!(seen_events.iter().any(|line| line.starts_with("oom run")), "{seen_events:?}");
    assert_eq!(without_oom(expected_events), without_oom(seen_events));
}

#[test]
fn a_lack_of_memory_is_told_when_it_happens() {
    if can_run() {
        a_lack_of_memory_is_told(&Containerd::start(), OURS, &[]);
    }
}

#[test]
fn a_lack_of_memory_in_a_utility_vm_is_told_when_it_happens() {
    let (true, Some(image)) = (can_run(), guest_image()) else { return };
    let containerd = Containerd::start();
    let file = containerd.path("options.toml");
    write_options(&file, &containerd.kept("state"), &image, "");
    a_lack_of_memory_is_told(&containerd, HYPERV, &["--runtime-config-path", &text(&file)]);
}

fn a_lack_of_memory_is_told(containerd: &Containerd, runtime: &str, options: &[&str]) {
    let events = Events::subscribe(containerd);
    let mut side = Side { containerd, runtime, prefix: "l-".to_owned(), seen: Vec::new() };
    let script = "dd if=/dev/zero of=/dev/null bs=64M; while :; do sleep 0.02; done";
    let options = [options, &["--memory-limit", "8388608"]].concat();
    let id = side.detach("hungry", &options, "hungry", &["sh", "-c", script]);
    let told = events.of("l-", "oom hungry  0");
    assert_eq!(told, ["create hungry  0", "start hungry  0", "oom hungry  0"], "{}", containerd.log());
    containerd.await_task(&id, Some("RUNNING"));
    containerd.ctr(&["task", "delete", "--force", &id]);
    // No second time with the end.
    let told = events.of("l-", "delete hungry  137");
    assert_eq!(told[3..], ["exit hungry hungry 137", "delete hungry  137"], "{told:?}");
    containerd.ctr(&["container", "delete", &id]).ok();
    containerd.assert_nothing_left(&id);
}
