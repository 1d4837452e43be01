//! Workers that die, engines that die, disks that are full.

use std::fs;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_image::limits::Limits;
use bulkhead_image::{Converter, ImageStore, ImportOptions, LayerError, WorkerFault};
use nix::sys::signal::{Signal, kill};
use proto::ErrorKind;

use crate::Case;
use crate::archives::{entry, gzip, noise, stream};
use crate::conversions::Store;
use crate::jail::{is_root, workers_of};

pub const CASES: &[Case] = &[
    ("a_killed_worker_is_one_clear_error", a_killed_worker_is_one_clear_error),
    ("every_signal_of_a_limit_has_its_name", every_signal_of_a_limit_has_its_name),
    ("a_worker_does_not_outlive_its_engine", a_worker_does_not_outlive_its_engine),
    ("a_file_over_its_limit_is_told", a_file_over_its_limit_is_told),
    ("a_full_disk_is_told_and_leaves_nothing", a_full_disk_is_told_and_leaves_nothing),
];

const ENGINE: &str = "bulkhead-test-engine";

/// An endless file, told by the byte; something happens after the first piece.
struct Endless<F: FnMut()> {
    head: Vec<u8>,
    then: F,
    reads: u32,
}

impl<F: FnMut()> Endless<F> {
    fn new(then: F) -> Self {
        let mut head = entry("endless", b'0', b"");
        // Eight gibibytes.
        head[124..136].copy_from_slice(b"100000000000");
        let sum: u32 = head[..512]
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Self { head, then, reads: 0 }
    }
}

impl<F: FnMut()> Read for Endless<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reads += 1;
        if self.reads == 20 {
            (self.then)();
        }
        if self.head.is_empty() {
            buffer.fill(7);
            return Ok(buffer.len());
        }
        let count = self.head.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.head[..count]);
        self.head.drain(..count);
        Ok(count)
    }
}

fn kill_workers(signal: Signal) {
    let own = workers_of(std::process::id());
    assert!(!own.is_empty(), "no worker");
    own.into_iter().for_each(|worker| kill(worker, signal).unwrap());
}

fn fault_after(signal: Signal) -> WorkerFault {
    let store = Store::new();
    let error = store.import(Endless::new(|| kill_workers(signal))).unwrap_err();
    store.assert_empty();
    match error {
        LayerError::Worker(fault) => *fault,
        other => panic!("{other:?}"),
    }
}

/// Other tests of this process have workers, too, which a test that kills them all must not meet.
fn alone(act: &str) -> bool {
    let status = Command::new("/proc/self/exe").arg0(ENGINE).arg(act).stdin(Stdio::null()).status().unwrap();
    status.success()
}

/// Acts as an engine of its own if this process was started as one.
pub fn act_as_engine() {
    let mut arguments = std::env::args();
    if arguments.next().as_deref() != Some(ENGINE) {
        return;
    }
    match arguments.next().as_deref() {
        Some("killed") => killed(),
        Some("signals") => signals(),
        Some("endless") => {
            let root = PathBuf::from(arguments.next().unwrap());
            let store = ImageStore::with_converter(&root, Limits::default(), Converter::Workers).unwrap();
            let result = store.import(Endless::new(|| println!("converting")), &ImportOptions::default());
            panic!("it ended: {result:?}");
        }
        other => panic!("{other:?}"),
    }
    std::process::exit(0)
}

fn a_killed_worker_is_one_clear_error() {
    assert!(alone("killed"));
}

fn killed() {
    let fault = fault_after(Signal::SIGKILL);
    assert!(matches!(&fault, WorkerFault::Died(how) if how.contains("signal: 9")), "{fault:?}");
    assert_eq!(fault.kind(), ErrorKind::Internal);
    // The decompressor in front of the converter.
    let store = Store::new();
    let tar = gzip(&stream(&[entry("f", b'0', &noise(8 << 20))]));
    let mut reads = 0;
    let source = Pieces(&tar, || {
        reads += 1;
        if reads == 10 {
            kill_workers(Signal::SIGKILL);
        }
    });
    let error = store.import(source).unwrap_err();
    assert!(matches!(&error, LayerError::Worker(fault) if matches!(**fault, WorkerFault::Died(_))), "{error:?}");
    store.assert_empty();
    assert!(workers_of(std::process::id()).is_empty());
}

struct Pieces<'a, F: FnMut()>(&'a [u8], F);

impl<F: FnMut()> Read for Pieces<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (self.1)();
        let count = buffer.len().min(self.0.len()).min(100_000);
        buffer[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        Ok(count)
    }
}

fn every_signal_of_a_limit_has_its_name() {
    assert!(alone("signals"));
}

fn signals() {
    assert!(matches!(fault_after(Signal::SIGXCPU), WorkerFault::Time));
    assert!(matches!(fault_after(Signal::SIGABRT), WorkerFault::Memory));
    assert!(matches!(fault_after(Signal::SIGSYS), WorkerFault::Forbidden));
    assert_eq!(fault_after(Signal::SIGXFSZ).kind(), ErrorKind::ResourceExhausted);
}

fn a_worker_does_not_outlive_its_engine() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = Command::new("/proc/self/exe")
        .arg0(ENGINE)
        .arg("endless")
        .arg(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 10];
    engine.stdout.take().unwrap().read_exact(&mut line).unwrap();
    let workers = workers_of(engine.id());
    assert_eq!(workers.len(), 1, "{workers:?}");
    engine.kill().unwrap();
    engine.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while workers.iter().any(|worker| fs::exists(format!("/proc/{worker}/fd/0")).unwrap_or(false)) {
        assert!(Instant::now() < deadline, "the worker lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
    // What it had written is gone with the next start.
    Store::at(folder).assert_empty();
}

fn a_file_over_its_limit_is_told() {
    // Two entries may make 64 MiB and 16 KiB beside the content: attributes of the one folder are not counted as content,
    // but a stream long enough for that is refused before.
    let limits = Limits { layer_bytes: 1 << 20, ..Limits::default() };
    let store = Store::with(limits, Converter::Workers);
    let error = store.import(Endless::new(|| {})).unwrap_err();
    assert!(matches!(error, LayerError::Refused(_)), "{error:?}");
    store.assert_empty();
}

fn a_full_disk_is_told_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let point = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(point.path()).status();
    assert!(mounted.unwrap().success());
    let outcome = std::panic::catch_unwind(|| {
        let store = ImageStore::with_converter(point.path(), Limits::default(), Converter::Workers).unwrap();
        let tar = stream(&[entry("f", b'0', &noise(16 << 20))]);
        let mut causes = Vec::new();
        for bytes in [tar.clone(), gzip(&tar)] {
            let error = store.import(&bytes[..], &ImportOptions::default()).unwrap_err();
            causes.push((error.kind(), std::error::Error::source(&error).unwrap().to_string()));
        }
        let left: Vec<_> = ["layers", "tmp"].map(|sub| fs::read_dir(point.path().join(sub)).unwrap().count()).into();
        // What fits still goes in.
        store.import(&stream(&[entry("f", b'0', b"x")])[..], &ImportOptions::default()).unwrap();
        (causes, left)
    });
    assert!(Command::new("umount").arg(point.path()).status().unwrap().success());
    let (causes, left) = outcome.unwrap();
    for (kind, cause) in causes {
        assert_eq!((kind, cause.as_str()), (ErrorKind::ResourceExhausted, "cannot write the converted layer"));
    }
    assert_eq!(left, [0, 0]);
}
