//! How much comes out of a container: over the guest connection where there is a utility VM, through a pipe where there is none.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bulkhead_e2e::{TestHost, Wall};

use crate::series::{Series, print};

/// What each exec prints.
pub const MIB: u32 = 32;

/// An exec in a container behind each wall, in turn; the first round does not count.
pub fn measure(host: &TestHost, rounds: usize) -> anyhow::Result<()> {
    let mut sides = [Wall::Process, Wall::Hyperv].map(|wall| {
        let isolation = format!("--isolation={}", wall.word());
        (host.run_detached(&[&isolation], &["sleep", "100000"]), Series::new(wall.word()))
    });
    let (size, count) = (format!("bs={}", 64 << 10), format!("count={}", MIB * 16));
    for round in 0..=rounds {
        for (id, series) in &mut sides {
            let mut command = host.docker_command(&["exec", id, "dd", "if=/dev/zero", &size, &count]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let began = Instant::now();
            ensure!(command.status().context("the docker CLI does not start")?.success(), "{}", series.name);
            if round > 0 {
                series.push(began.elapsed());
            }
        }
    }
    sides.iter().for_each(|(id, _)| drop(host.docker(&["rm", "-f", id]).ok()));
    let [process, hyperv] = sides.map(|(_, series)| series);
    print(&[process.clone(), hyperv], &[&process]);
    Ok(())
}
