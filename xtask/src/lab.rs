//! `cargo xtask lab`: an emulated machine with AMD's virtualization (SVM, nested paging) in which the release binaries run
//! on a real `kvm_amd`, and on a host that has cgroup version 2 only. A shell in it, a command in it, or the tests.
//!
//! ```text
//! Debian packages ── root ────────▶ root-KEY/root.erofs (cached) ─┐
//! kernel package ─── boot ────────▶ vmlinux, initramfs.cpio ──────┤
//! this build ─────── payload ─────▶ payload.erofs (every run) ────┴─ machine ──▶ output, exit code
//! ```
//!
//! docs/design/0006-lab.md says what it is for and what was measured in it.

mod builds;
mod hang;
mod machine;
mod payload;
mod root;
mod suites;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use self::builds::{Builds, Wanted};
use self::machine::{Limits, Machine, MachineDied, Seat};
use self::payload::Payload;
use crate::{boot, workspace};

/// The machine's memory, what QEMU needs beside it, and the compiler's leftovers.
const LEAST_MEMORY_KIB: u64 = 5 << 20;

/// What `cargo xtask lab` may be told.
#[derive(Debug, clap::Args)]
pub struct LabArgs {
    /// Run the tests in it; without, a shell on this terminal
    #[arg(long, conflicts_with = "command")]
    test: bool,
    /// The tests that fit a check of every change
    #[arg(long, requires = "test")]
    quick: bool,
    /// Measure our own VMM beside QEMU in it, in so many rounds
    #[arg(long, value_name = "ROUNDS", num_args = 0..=1, default_missing_value = "5", conflicts_with = "test")]
    bench: Option<u32>,
    /// Only suites whose name holds this word
    #[arg(long, value_name = "WORD", requires = "test")]
    only: Option<String>,
    /// Of these suites only the tests whose name holds this word
    #[arg(long, value_name = "WORD", requires = "test")]
    matching: Option<String>,
    /// Take the release binaries as they are
    #[arg(long, conflicts_with = "test")]
    no_build: bool,
    /// How long it may take, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    limit: u64,
    /// A command to run in it instead of a shell; with --bench, flags of the benchmark for a part of it
    #[arg(last = true)]
    command: Vec<String>,
}

/// Runs the lab.
///
/// # Errors
/// When it cannot be made, does not end in time, or when the job in it fails. A machine that cannot have a lab is no
/// error for `--test`: it says so and skips.
pub fn run(args: &LabArgs) -> Result<()> {
    if let Some(reason) = missing() {
        ensure!(args.test, "the lab cannot run here: {reason}");
        println!("SKIPPED lab: ALL TESTS ON KVM AND ON CGROUP VERSION 2 WERE SKIPPED: {reason}");
        return Ok(());
    }
    let target = std::path::absolute(workspace::target_dir()).context("cannot tell where the target folder is")?;
    let cache = target.join("lab");
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let wanted = Wanted { binaries: !args.no_build, tests: args.test, bench: args.bench.is_some() };
    let builds = Builds::make(&target, wanted)?;
    let environment = suites::Environment { root: &workspace::root(), target: &target };
    let mut limits = Limits { whole: Duration::from_secs(args.limit), silence: None };
    let job = if args.test {
        let chosen = suites::choose(args.quick, args.only.as_deref());
        ensure!(!chosen.is_empty(), "no suite has that word in its name: {}", suites::names().join(", "));
        limits.silence = Some(suites::silence(&chosen));
        suites::job(&environment, &builds, &chosen, args.matching.as_deref())?
    } else if let Some(rounds) = args.bench {
        suites::bench(&environment, rounds, &args.command)
    } else {
        suites::shell(&environment, &args.command)
    };
    let seat = if args.test || args.bench.is_some() || !args.command.is_empty() { Seat::Log } else { Seat::Terminal };
    let began = Instant::now();
    let run = || in_machine(&cache, &target, &builds, &job, (seat, limits));
    let code = match run() {
        // Virtualization as this QEMU emulates it has crashed the lab's own kernel, or kept it; a test that fails is another matter.
        Err(error) if args.test && error.is::<MachineDied>() => {
            println!("ONCE MORE: {error:#}");
            run()?
        }
        ended => ended?,
    };
    println!("the lab took {} s", began.elapsed().as_secs());
    if code != 0 {
        bail!("the lab's job ended with {code}");
    }
    Ok(())
}

/// Why this machine cannot have a lab, if it cannot.
fn missing() -> Option<String> {
    let program = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
        std::env::split_paths(&path).chain(system).any(|folder| folder.join(name).is_file())
    };
    if !cfg!(target_arch = "x86_64") {
        return Some("it emulates an x86-64 machine that runs this build's programs".to_owned());
    }
    for name in ["apt-get", "dpkg-deb", "qemu-system-x86_64", "mkfs.erofs", "mkfs.ext4"] {
        if !program(name) {
            return Some(format!("{name} is missing (scripts/setup lab)"));
        }
    }
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().split(' ').next());
    let available: u64 = available.and_then(|kib| kib.parse().ok()).unwrap_or(u64::MAX);
    (available < LEAST_MEMORY_KIB).then(|| {
        format!("it needs {} MiB of memory, and {} MiB are available", LEAST_MEMORY_KIB >> 10, available >> 10)
    })
}

fn in_machine(cache: &Path, target: &Path, builds: &Builds, job: &str, (seat, limits): (Seat, Limits)) -> Result<i32> {
    let source = workspace::root().join("tests/lab");
    let text = |name: &str| {
        let path = source.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let lock = File::create(cache.join("lock")).context("cannot open the lab's lock file")?;
    lock.lock().context("cannot lock the lab")?;
    let root = root::find_or_make(&text("packages")?, cache)?;
    let run = tempfile::Builder::new().prefix("run-").tempdir_in(cache).context("cannot make the run's folder")?;
    let kernel = boot::packaged_kernel()?;
    let machine = Machine {
        kernel: uncompressed(&kernel, cache)?,
        initramfs: run.path().join("initramfs.cpio"),
        root: root.image,
        payload: run.path().join("payload.erofs"),
        folder: run.path().to_path_buf(),
    };
    let modules = boot::modules::resolve(&kernel.modules, &boot::modules::parse_list(&text("modules")?))?;
    let busybox = fs::read(&root.busybox).with_context(|| format!("cannot read {}", root.busybox.display()))?;
    let archive =
        boot::initramfs::build(text("initramfs-init")?.as_bytes(), &modules, &[("busybox", busybox.as_slice())])?;
    fs::write(&machine.initramfs, archive).context("cannot write the lab's initramfs")?;
    let (init, run_test) = (text("init")?, text("run-test")?);
    let scripts = [("init", init.as_str()), ("run-test", run_test.as_str()), ("job", job)];
    let payload = Payload { scripts: &scripts, target, files: &builds.files() };
    payload.pack(&run.path().join("payload"), &machine.payload)?;
    let code = machine.run(seat, limits);
    for name in ["console.log", "output.log"] {
        let log = run.path().join(name);
        if log.exists() {
            fs::copy(&log, cache.join(name)).with_context(|| format!("cannot keep {}", log.display()))?;
        }
    }
    code
}

/// The kernel as an ELF file, taken out of its image once.
fn uncompressed(kernel: &boot::kernel::KernelFiles, cache: &Path) -> Result<PathBuf> {
    let path = cache.join(format!("vmlinux-{}", kernel.version));
    if !path.exists() {
        let image = fs::read(&kernel.image).with_context(|| format!("cannot read {}", kernel.image.display()))?;
        let partial = path.with_extension("part");
        fs::write(&partial, boot::vmlinux::extract(&image)?).context("cannot write the lab's kernel")?;
        fs::rename(&partial, &path).context("cannot name the lab's kernel")?;
    }
    Ok(path)
}
