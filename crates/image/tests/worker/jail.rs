//! What a living worker is, seen from outside, and what it can reach, tried from inside.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::unistd::Pid;

use crate::Case;
use crate::archives::{entry, stream};
use crate::conversions::Store;
use crate::probes::{self, PROBE};

pub const CASES: &[Case] = &[
    ("a_worker_has_nothing", a_worker_has_nothing),
    ("an_evil_worker_reaches_nothing", an_evil_worker_reaches_nothing),
    ("f23_layers_touch_nothing_outside_the_store", f23_layers_touch_nothing_outside_the_store),
];

pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED in part: this needs root");
    }
    root
}

pub fn fsck(layer: &Path) {
    match Command::new("fsck.erofs").arg(layer).output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(_) => eprintln!("SKIPPED in part: fsck.erofs is not installed (package erofs-utils)"),
    }
}

/// Mounts a layer while `look` runs.
pub fn mounted(layer: &Path, look: impl FnOnce(&Path)) {
    if !is_root() {
        return;
    }
    let point = tempfile::tempdir().unwrap();
    let mount =
        Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(layer).arg(point.path()).output().unwrap();
    if !mount.status.success() && String::from_utf8_lossy(&mount.stderr).contains("unknown filesystem") {
        eprintln!("SKIPPED in part: this kernel knows no erofs");
        return;
    }
    assert!(mount.status.success(), "{mount:?}");
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(point.path())));
    assert!(Command::new("umount").arg(point.path()).status().unwrap().success());
    result.unwrap();
}

/// Children of a process that are conversion workers.
pub fn workers_of(parent: u32) -> Vec<Pid> {
    let is_worker = |pid: i32| {
        let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        name.starts_with(b"bulkhead-layer-converter\0") && field(&status, "PPid") == parent.to_string()
    };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_worker(*pid)).map(Pid::from_raw).collect()
}

fn field<'s>(status: &'s str, name: &str) -> &'s str {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_default().trim()
}

/// Watches how much memory workers of this process take, in a thread.
pub struct Watch {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn start() -> Self {
        let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, seen) = (Arc::clone(&stop), Arc::clone(&peak));
        let watch = move || {
            while !until.load(Ordering::Relaxed) {
                for worker in workers_of(std::process::id()) {
                    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap_or_default();
                    let kibibytes: u64 = field(&status, "VmHWM").trim_end_matches(" kB").trim().parse().unwrap_or(0);
                    seen.fetch_max(kibibytes << 10, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        Self { stop, peak, thread: Some(std::thread::spawn(watch)) }
    }

    pub fn peak_bytes(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.peak.load(Ordering::Relaxed)
    }
}

/// Gives a layer with its last byte only after somebody has looked.
struct Paused<'a, F: FnMut()> {
    bytes: &'a [u8],
    look: F,
}

impl<F: FnMut()> Read for Paused<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes.len() == 1 {
            (self.look)();
        }
        let count = buffer
            .len()
            .min((self.bytes.len() - usize::from(self.bytes.len() > 1)).max(usize::from(self.bytes.len() == 1)));
        let count = count.min(self.bytes.len());
        buffer[..count].copy_from_slice(&self.bytes[..count]);
        self.bytes = &self.bytes[count..];
        Ok(count)
    }
}

fn a_worker_has_nothing() {
    // In a process of its own, whose only worker this is.
    let status = Command::new("/proc/self/exe").arg0(PROBE).arg("look").status().unwrap();
    assert!(status.success());
}

/// The body of [`a_worker_has_nothing`].
pub fn look_at_a_worker() {
    let tar = stream(&[entry("f", b'0', b"x")]);
    let mut looked = false;
    let paused = Paused {
        bytes: &tar,
        look: || {
            // Just started, it has no name yet; then it locks itself in before it reads.
            for _ in 0..200 {
                let worker = workers_of(std::process::id()).first().copied();
                let status = worker.and_then(|worker| fs::read_to_string(format!("/proc/{worker}/status")).ok());
                if let (Some(worker), Some(status)) = (worker, status)
                    && field(&status, "Seccomp") == "2"
                {
                    looked = true;
                    assert_locked_in(worker, &status);
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            panic!("the worker is not locked in after a second");
        },
    };
    Store::new().import(paused).unwrap();
    assert!(looked);
}

fn assert_locked_in(worker: Pid, status: &str) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(status, set), "0000000000000000", "{set}");
    }
    assert_eq!((field(status, "NoNewPrivs"), field(status, "Threads")), ("1", "1"));
    let limits = fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let limit = |name: &str| {
        limits.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max data size"), (120_u64 << 20).to_string());
    for zero in ["Max core file size", "Max open files", "Max processes", "Max locked memory"] {
        assert_eq!(limit(zero), "0", "{zero}");
    }
    assert_ne!(limit("Max cpu time"), "unlimited");
    assert_ne!(limit("Max file size"), "unlimited");
    if !is_root() {
        return;
    }
    assert_eq!(field(status, "CapBnd"), "0000000000000000");
    assert_eq!(field(status, "Uid").split_whitespace().collect::<Vec<_>>(), ["65534"; 4]);
    assert_eq!(field(status, "Gid").split_whitespace().collect::<Vec<_>>(), ["65534"; 4]);
    assert_eq!(field(status, "Groups"), "");
    assert_eq!(fs::read(format!("/proc/{worker}/environ")).unwrap(), b"");
    for space in ["net", "ipc", "uts"] {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{space}")).unwrap();
        assert_ne!(of(&worker.to_string()), of("self"), "{space}");
    }
    let mut open: BTreeMap<String, usize> = BTreeMap::new();
    for fd in fs::read_dir(format!("/proc/{worker}/fd")).unwrap() {
        let target = fs::read_link(fd.unwrap().path()).unwrap().display().to_string();
        let kind = target.split_once(':').map_or(target.clone(), |(kind, _)| kind.to_owned());
        *open.entry(if kind.contains("/tmp/") { "staged file".to_owned() } else { kind }).or_default() += 1;
    }
    let expected = [("/dev/null", 2), ("pipe", 1), ("socket", 2), ("staged file", 1)];
    assert_eq!(open, expected.map(|(what, count)| (what.to_owned(), count)).into());
}

fn an_evil_worker_reaches_nothing() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    let mut denied = 0;
    for (name, _) in probes::PROBES {
        let status =
            Command::new("/proc/self/exe").arg0(PROBE).arg(name).arg(secret.path()).env_clear().status().unwrap();
        match (status.signal(), status.code()) {
            (Some(libc::SIGSYS), _) | (_, Some(probes::DENIED)) => denied += 1,
            _ => panic!("{name}: {status}"),
        }
    }
    assert!(denied >= 50, "{denied}");
    // The probes themselves are not at fault: what is allowed works in the same jail.
    let status = Command::new("/proc/self/exe").arg0(PROBE).arg("allowed").status().unwrap();
    assert_eq!(status.code(), Some(probes::REACHED), "{status}");
    println!("{denied} probes, all denied");
}

/// Contents and names of a tree of files.
fn fingerprint(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let facts = path.symlink_metadata().unwrap();
            let content = if facts.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            let (mode, changed) = (std::os::unix::fs::MetadataExt::mode(&facts), facts.modified().unwrap());
            found.insert(format!("{} {mode:o} {changed:?}", path.display()), content);
            if facts.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

fn f23_layers_touch_nothing_outside_the_store() {
    let around = tempfile::tempdir().unwrap();
    let canary = around.path().join("canary");
    for number in 0..1000 {
        let folder = canary.join(format!("{}/{}", number % 7, number % 11));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(number.to_string()), number.to_string()).unwrap();
    }
    let before = fingerprint(&canary);
    let store = Store::at(tempfile::tempdir_in(around.path()).unwrap());
    let link = |path: &str, target: &str, kind: u8| {
        let mut bytes = entry(path, kind, b"");
        bytes[157..157 + target.len()].copy_from_slice(target.as_bytes());
        let sum: u32 = bytes
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes
    };
    let outside = canary.display().to_string();
    let victim = format!("{outside}/1/1/1");
    let file = |path: &str| entry(path, b'0', b"overwritten");
    let mut taken = 0;
    for (what, entries) in [
        ("F1 up", vec![file("../canary/1/1/1")]),
        ("F1 absolute", vec![file(&victim)]),
        ("F2 through a link", vec![link("s", &outside, b'2'), file("s/1/1/1")]),
        ("F2 through a relative link", vec![link("s", "../../canary", b'2'), file("s/1/1/1")]),
        ("F4 hard link", vec![link("h", &victim, b'1'), file("h")]),
        ("F4 hard link through a link", vec![link("s", &outside, b'2'), link("h", "s/1/1/1", b'1')]),
        ("F7 whiteouts", vec![file(".wh."), file(".wh.."), file(".wh...")]),
        ("F8 opaque", vec![link("s", &outside, b'2'), file("s/.wh..wh..opq")]),
        ("F9 whiteout through a link", vec![link("s", &outside, b'2'), file("s/.wh.1")]),
        ("F23 etc", vec![link("etc", "/elsewhere", b'2'), link("proc", "/proc", b'2'), file("etc/passwd")]),
    ] {
        match store.import(&stream(&entries)[..]) {
            Ok(_) => taken += 1,
            Err(error) => println!("{what}: {error:?}"),
        }
        assert!(fingerprint(&canary) == before, "{what}");
    }
    assert_eq!(taken, 6, "those that are harmless inside");
}
