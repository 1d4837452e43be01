//! `cargo xtask test`: unit, contract and e2e tests over the binaries of one build, with the skipped ones counted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::workspace;

/// The packages whose binaries the e2e tests start.
pub const BINARIES: &[&str] = &["bulkhead-engine", "bulkhead-shim", "bulkhead-cli", "bulkhead-vmm"];
const E2E: &str = "bulkhead-e2e";

/// Which tests, and over which build.
#[derive(clap::Args)]
pub struct TestArgs {
    /// Unit and contract tests only.
    #[arg(long, conflicts_with = "e2e")]
    unit: bool,
    /// End-to-end tests only.
    #[arg(long)]
    e2e: bool,
    /// Over the dev profile instead of the release profile.
    #[arg(long)]
    dev: bool,
    /// Build the engine that tests can kill at a point, though only some tests are to run.
    #[arg(long)]
    failpoints: bool,
    /// How many tests run at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Names of tests to run, all if none is given.
    filters: Vec<String>,
}

pub fn run(args: &TestArgs) -> anyhow::Result<()> {
    let skips = workspace::target_dir().join("e2e-skips");
    clear(&skips)?;
    let profile: &[&str] = if args.dev { &[] } else { &["--release"] };
    if !args.unit {
        if args.failpoints || args.filters.is_empty() {
            build_failpoints(args, profile)?;
        }
        let mut build = workspace::cargo();
        build.arg("build").args(profile);
        build.args(BINARIES.iter().flat_map(|package| ["-p", package]));
        workspace::run_checked(&mut build)?;
    }
    let began = Instant::now();
    let mut passed = true;
    for mut command in commands(args, has_nextest()) {
        let status = workspace::run(command.env("BULKHEAD_E2E_SKIPS", &skips))?;
        passed &= status.success();
    }
    report_skips(&skips)?;
    println!("tests took {} s", began.elapsed().as_secs());
    if !passed {
        bail!("tests failed");
    }
    Ok(())
}

/// Builds engine and shim with points at which they can be told to die, and steps that are refused, under names of their own. The
/// ordinary build follows, so that none of them is left as such a one.
fn build_failpoints(args: &TestArgs, profile: &[&str]) -> anyhow::Result<()> {
    let mut build = workspace::cargo();
    // As the ordinary build, so that what both have is built once.
    build.arg("build").args(profile).args(BINARIES.iter().flat_map(|package| ["-p", package]));
    build.args(["--features", "bulkhead-engine/failpoints,bulkhead-shim/failpoints"]);
    workspace::run_checked(&mut build)?;
    let folder = workspace::target_dir().join(if args.dev { "debug" } else { "release" });
    for name in ["bulkheadd", "containerd-shim-bulkhead-v2"] {
        let (built, named) = (folder.join(name), folder.join(format!("{name}-failpoints")));
        std::fs::copy(&built, &named).with_context(|| format!("cannot copy {}", built.display()))?;
        // Cargo puts the ordinary build's in its place.
        std::fs::remove_file(&built).with_context(|| format!("cannot remove {}", built.display()))?;
    }
    Ok(())
}

fn commands(args: &TestArgs, has_nextest: bool) -> Vec<Command> {
    let packages: &[&str] = match (args.unit, args.e2e) {
        (true, _) => &["--workspace", "--exclude", E2E],
        (_, true) => &["-p", E2E],
        _ => &["--workspace"],
    };
    if has_nextest {
        let mut command = workspace::cargo();
        command.args(["nextest", "run", "--no-fail-fast"]).args(packages);
        if !args.dev {
            command.args(["--cargo-profile", "release"]);
        }
        command.arg("--test-threads").arg(args.jobs.to_string()).args(&args.filters);
        return vec![command];
    }
    // Without nextest the e2e tests go last, and alone: they measure nothing, but they have deadlines.
    let mut runs: Vec<&[&str]> = Vec::new();
    if !args.e2e {
        runs.push(&["--workspace", "--exclude", E2E]);
    }
    if !args.unit {
        runs.push(&["-p", E2E]);
    }
    let with = |packages: &&[&str]| {
        let mut command = workspace::cargo();
        command.args(["test", "--no-fail-fast"]).args(*packages);
        if !args.dev {
            command.arg("--release");
        }
        command.arg("--").arg(format!("--test-threads={}", args.jobs)).args(&args.filters);
        command
    };
    runs.iter().map(with).collect()
}

fn has_nextest() -> bool {
    workspace::cargo().args(["nextest", "--version"]).output().is_ok_and(|output| output.status.success())
}

fn clear(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context("cannot clear skips"),
        _ => {}
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// Each skipped test left a file with its name, holding the reason.
fn report_skips(folder: &Path) -> anyhow::Result<()> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.sort();
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("SKIPPED {name}: {}", std::fs::read_to_string(file)?.trim());
    }
    println!("{} end-to-end tests were skipped for want of something", files.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(args: &TestArgs, has_nextest: bool) -> Vec<String> {
        let join = |c: &Command| c.get_args().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
        commands(args, has_nextest).iter().map(join).collect()
    }

    fn args(unit: bool, e2e: bool) -> TestArgs {
        TestArgs { unit, e2e, dev: false, failpoints: false, jobs: 2, filters: Vec::new() }
    }

    #[test]
    fn without_nextest_the_same_tests_run() {
        assert_eq!(words(&args(false, false), true).len(), 1);
        let plain = words(&args(false, false), false);
        assert_eq!(plain.len(), 2);
        assert!(plain[0].contains("--exclude bulkhead-e2e") && plain[1].contains("-p bulkhead-e2e"));
        assert!(words(&args(false, true), false)[0].contains("-p bulkhead-e2e"));
        assert_eq!(words(&args(true, false), false).len(), 1);
    }
}
