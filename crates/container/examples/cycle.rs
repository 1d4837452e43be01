//! Measures a container's whole life (create, start, wait, delete) with a helper that waits already, beside the same
//! bundle in another OCI runtime: `cycle BUNDLE ROUNDS [RUNTIME]`, as root. Prints medians, milliseconds.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bulkhead_container::{Container, Helper, Stdio, serve_if_helper};

/// One round of ours: create, start, wait and delete.
fn ours(root: &Path, bundle: &Path) -> anyhow::Result<[Duration; 4]> {
    let helper = Helper::spawn()?;
    // In an engine it was started long ago.
    std::thread::sleep(Duration::from_millis(60));
    let begin = Instant::now();
    let stdio = Stdio::Streams { stdin: None, stdout: None, stderr: None };
    let (mut container, started) = Container::create(helper, root, "cycle", bundle, stdio)?;
    let created = Instant::now();
    container.start()?;
    let running = Instant::now();
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(i32::try_from(started.pid)?), None)?;
    let ended = Instant::now();
    container.delete(false)?;
    Ok([created - begin, running - created, ended - running, ended.elapsed()])
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}

fn main() -> anyhow::Result<()> {
    serve_if_helper();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, rounds, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: cycle BUNDLE ROUNDS [RUNTIME]")
    };
    let (bundle, root) = (PathBuf::from(bundle), std::env::temp_dir().join(format!("cycle-{}", std::process::id())));
    let mut parts: [Vec<Duration>; 4] = Default::default();
    let mut totals = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..rounds.parse::<usize>()? {
        let round = ours(&root, &bundle)?;
        totals.push(round.iter().sum());
        parts.iter_mut().zip(round).for_each(|(part, time)| part.push(time));
        if let [runtime] = rest {
            std::thread::sleep(Duration::from_millis(60));
            let begin = Instant::now();
            let status = Command::new(runtime).args(["run", "--bundle"]).arg(&bundle).arg("cycle-other").status()?;
            anyhow::ensure!(status.success(), "{runtime}: {status}");
            theirs.push(begin.elapsed());
        }
    }
    let [create, start, wait, delete] = parts.map(median);
    println!("create {create:.1}  start {start:.1}  wait {wait:.1}  delete {delete:.1}  total {:.1}", median(totals));
    if let [runtime] = rest {
        println!("{runtime} run {:.1}", median(theirs));
    }
    std::fs::remove_dir_all(root)?;
    Ok(())
}
