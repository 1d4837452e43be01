//! bollard: the tests in the release of the Rust client whose models this engine uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::Folders;
use super::results::{Case, Cases, Outcome};
use super::session::Session;
use super::side::SOCKET;
use crate::workspace;

/// Its test programs but those about swarm mode, managed plugins and podman.
const PROGRAMS: &[&str] = &[
    "container_test",
    "distribution",
    "exec_test",
    "export_test",
    "image_test",
    "network_test",
    "race_test",
    "system_test",
    "version_test",
    "volume_test",
];
const CASE_SECONDS: u32 = 60;

fn home(folders: &Folders) -> PathBuf {
    folders.root.join("bollard")
}

/// Unpacks the release that `Cargo.lock` names and builds its tests, unless that is done.
pub fn prepare(folders: &Folders) -> anyhow::Result<()> {
    let release = release()?;
    let (home, stamp) = (home(folders), home(folders).join("ready"));
    if fs::read_to_string(&stamp).is_ok_and(|made| made == release) {
        return Ok(());
    }
    let source = home.join("source");
    if source.exists() {
        fs::remove_dir_all(&source).with_context(|| format!("cannot clear {}", source.display()))?;
    }
    fs::create_dir_all(&source)?;
    workspace::run_checked(workspace::cargo().args(["fetch", "--quiet"]))?;
    let mut unpack = Command::new("tar");
    unpack.arg("--extract").arg("--file").arg(downloaded(&release)?).args(["--strip-components=1", "--directory"]);
    workspace::run_checked(unpack.arg(&source))?;
    let mut build = cargo(&home);
    build.args(["test", "--locked", "--no-run"]).args(PROGRAMS.iter().flat_map(|program| ["--test", program]));
    workspace::run_checked(&mut build)?;
    fs::write(&stamp, release).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Cargo for the release's own workspace; nothing of it is optimized.
fn cargo(home: &Path) -> Command {
    let mut command = workspace::cargo();
    command.current_dir(home.join("source")).env("CARGO_TARGET_DIR", home.join("target"));
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "0");
    command
}

/// `bollard-VERSION` as `Cargo.lock` has it.
fn release() -> anyhow::Result<String> {
    let lock = fs::read_to_string(workspace::root().join("Cargo.lock")).context("no Cargo.lock")?;
    let rest = lock.split("name = \"bollard\"\nversion = \"").nth(1).context("no bollard in Cargo.lock")?;
    let version = rest.split('"').next().unwrap_or_default();
    Ok(format!("bollard-{version}"))
}

/// The release's archive among those that cargo has downloaded.
fn downloaded(release: &str) -> anyhow::Result<PathBuf> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let user = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let cache = cargo_home.or_else(user).context("neither CARGO_HOME nor HOME is set")?.join("registry/cache");
    let registries = fs::read_dir(&cache).with_context(|| format!("cannot read {}", cache.display()))?;
    for registry in registries {
        let file = registry?.path().join(format!("{release}.crate"));
        if file.is_file() {
            return Ok(file);
        }
    }
    bail!("{release}.crate is not below {}", cache.display())
}

/// A line of `cargo test --no-run --message-format=json`.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Runs every test in a process of its own, one after the other: they share names of containers.
pub fn run(session: &Session<'_>) -> anyhow::Result<Cases> {
    let mut cases = Cases::new();
    for (name, program) in programs(&home(session.folders))? {
        let listed = Command::new(&program).args(["--list", "--format=terse"]).output()?;
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let Some(test) = line.strip_suffix(": test") else { continue };
            let case = format!("{name}::{test}");
            if session.wants(&case) {
                let ended = one(session, &program, test)?;
                println!("{case} ... {:?}", ended.outcome);
                cases.insert(case, ended);
            }
        }
    }
    Ok(cases)
}

/// The test programs by name.
fn programs(home: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut command = cargo(home);
    command.args(["test", "--locked", "--offline", "--no-run", "--quiet", "--message-format=json"]);
    let output = command.args(PROGRAMS.iter().flat_map(|program| ["--test", program])).output()?;
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Message = serde_json::from_str(line).context("cargo's messages are not understood")?;
        if let (Some(target), Some(program)) = (message.target, message.executable) {
            found.push((target.name, program));
        }
    }
    if found.len() != PROGRAMS.len() {
        bail!("bollard's tests are not built: {}", String::from_utf8_lossy(&output.stderr));
    }
    // In the order of names, whatever order they were built in.
    found.sort();
    Ok(found)
}

fn one(session: &Session<'_>, program: &Path, test: &str) -> anyhow::Result<Case> {
    let began = Instant::now();
    let mut command = Command::new("timeout");
    command.arg("--kill-after=5").arg((CASE_SECONDS * session.patience()).to_string()).arg(program);
    command.args(["--exact", test, "--test-threads=1"]).current_dir(home(session.folders).join("source"));
    command.env("DOCKER_HOST", format!("unix://{SOCKET}")).env("REGISTRY_HTTP_ADDR", "localhost:5000");
    command.env("RUST_BACKTRACE", "0");
    let output = command.output().context("a test does not start")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let outcome = match output.status.code() {
        Some(0) if text.contains("1 passed") => Outcome::Passed,
        Some(0) => Outcome::Skipped,
        _ => Outcome::Failed,
    };
    let detail = match (outcome, output.status.code()) {
        (Outcome::Failed, Some(124)) => format!("not in time\n{text}"),
        (Outcome::Failed, _) => text,
        _ => String::new(),
    };
    Ok(Case { outcome, detail, shown: None, seconds: began.elapsed().as_secs_f64() })
}
