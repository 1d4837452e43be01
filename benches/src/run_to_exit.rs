//! `docker run --rm IMAGE true`, from the CLI's start to its exit.

use std::io;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use bulkhead_e2e::{IMAGE, TestHost};

use crate::reference::Dockerd;
use crate::series::{Series, print};
use crate::standby::Standby;
use crate::working_set::{ONE_BY_ONE, forget};

/// How a side without a network is called, behind the name of the one with.
const NO_NETWORK: &str = ", --network none";

type Side<'a> = (Series, Box<dyn Fn() -> io::Result<Command> + 'a>);

/// Runs every side once per round, in turn, after one round that does not count. Every timed run, also the peers', waits
/// until `host` has a utility VM standing by and prepares none.
pub fn measure(
    host: &TestHost,
    without_standby: &TestHost,
    dockerd: Option<&Dockerd>,
    rounds: usize,
) -> anyhow::Result<()> {
    let mut sides: Vec<Side<'_>> = vec![
        ours(host, "process", &["--isolation=process"]),
        ours(host, "process, --network none", &["--isolation=process", "--network=none"]),
        ours(host, "hyperv", &["--isolation=hyperv"]),
        ours(host, "hyperv, --network none", &["--isolation=hyperv", "--network=none"]),
        ours(without_standby, "hyperv, no standby", &["--isolation=hyperv"]),
    ];
    let own = sides.len();
    if let Some(dockerd) = dockerd {
        let name = format!("dockerd {}", dockerd.version);
        sides.push(theirs(dockerd, name.clone(), &[]));
        sides.push(theirs(dockerd, format!("{name}, --network none"), &["--network=none"]));
    }
    time(&mut sides, &[host], rounds)?;
    let series: Vec<Series> = sides.into_iter().map(|(series, _)| series).collect();
    let peers: Vec<&Series> = series[own..].iter().collect();
    print(&series, &peers);
    print_shares(&series);
    Ok(())
}

/// Our own VMM's containers beside process containers; without a network, which the lab has not.
pub fn measure_on_kvm(
    host: &TestHost,
    by_default: &TestHost,
    without_standby: &TestHost,
    rounds: usize,
) -> anyhow::Result<()> {
    let (process, hyperv) = (["--isolation=process", "--network=none"], ["--isolation=hyperv", "--network=none"]);
    let unknowing = || {
        forget(without_standby.template_store())?;
        Ok(without_standby.docker_command(&words(&hyperv)))
    };
    let mut sides: Vec<Side<'_>> = vec![
        ours(host, "process", &process),
        ours(host, "hyperv, a VM standing by", &hyperv),
        ours(by_default, "hyperv, a process waiting", &hyperv),
        ours(without_standby, "hyperv, nothing standing by", &hyperv),
        (Series::new(format!("hyperv, nothing standing by, {ONE_BY_ONE}")), Box::new(unknowing)),
    ];
    time(&mut sides, &[host, by_default], rounds)?;
    let series: Vec<Series> = sides.into_iter().map(|(series, _)| series).collect();
    print(&series, &[&series[0]]);
    println!("\n(at most 2x of process is asked for)");
    Ok(())
}

/// Every side once per round, in turn, after one round that does not count.
fn time(sides: &mut [Side<'_>], hosts: &[&TestHost], rounds: usize) -> anyhow::Result<()> {
    let standbys: Vec<Standby<'_>> = hosts.iter().map(|host| Standby::new(host)).collect();
    for round in 0..=rounds {
        for (series, command) in sides.iter_mut() {
            let mut command = command().with_context(|| format!("{} cannot be prepared", series.name))?;
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            // Before the first round has ended, none is prepared.
            if round > 0 {
                standbys.iter().for_each(|standby| _ = standby.wait());
            }
            let began = Instant::now();
            let output = command.output().context("the docker CLI does not start")?;
            let took = began.elapsed();
            if !output.status.success() {
                bail!("{}: {}", series.name, String::from_utf8_lossy(&output.stderr));
            }
            // The first round builds the template and warms the caches of every side.
            if round > 0 {
                series.push(took);
            }
        }
    }
    Ok(())
}

/// What a network costs a start: the medians with the default one and without any. The last side is the peer's.
fn print_shares(series: &[Series]) {
    let mut shares = Vec::new();
    for without in series {
        let Some(name) = without.name.strip_suffix(NO_NETWORK) else { continue };
        let Some(with) = series.iter().find(|with| with.name == name) else { continue };
        shares.push((name, with.median().as_secs_f64() - without.median().as_secs_f64()));
    }
    println!("\nThe network's share of a start (medians with it less medians without it):\n");
    let peer = shares.last().map_or(f64::NAN, |(_, share)| *share);
    for (name, share) in &shares {
        println!("- {name}: {:.1} ms, ratio {:.2}x", share * 1e3, share / peer);
    }
}

fn words<'a>(options: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["run", "--rm"];
    words.extend(options);
    words.extend([IMAGE, "true"]);
    words
}

fn ours<'a>(host: &'a TestHost, name: &str, options: &[&'a str]) -> Side<'a> {
    let words = words(options);
    (Series::new(name), Box::new(move || Ok(host.docker_command(&words))))
}

fn theirs<'a>(dockerd: &'a Dockerd, name: String, options: &[&'a str]) -> Side<'a> {
    let words = words(options);
    (Series::new(name), Box::new(move || Ok(dockerd.docker(&words))))
}
