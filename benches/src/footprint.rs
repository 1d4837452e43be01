//! What a container costs while it idles, and what a fork saves.

use std::time::Duration;

use anyhow::Context;
use bulkhead_e2e::{TestHost, procfs};
use comfy_table::{Table, presets};

use crate::series::{Series, print};
use crate::standby::Standby;

/// Forks, and compares each fork's own time with the boot that made the template. When: the host keeps no standby, so that
/// every container forks.
pub fn fork_against_boot(host: &TestHost, rounds: usize) -> anyhow::Result<()> {
    let templates = host.get_json("/bulkhead/templates");
    let boot_ms = templates[0]["boot_ms"].as_u64().context("boot_ms of the template")?;
    let mut boot = Series::new("template: boot to frozen, once per host");
    boot.push(Duration::from_millis(boot_ms));
    let mut fork = Series::new("fork: to acknowledged personalization");
    for _ in 0..rounds {
        let id = host.run_detached(&["--isolation=hyperv"], &["sleep", "1000"]);
        let inspected = host.inspect(&id);
        let fork_us = inspected["Bulkhead"]["ForkMicroseconds"].as_u64().context("Bulkhead.ForkMicroseconds")?;
        fork.push(Duration::from_micros(fork_us));
        host.docker(&["rm", "-f", &id]).ok();
    }
    println!(
        "a fork is {:.1}x quicker than its template's boot\n",
        boot.median().as_secs_f64() / fork.median().as_secs_f64()
    );
    let series = [fork, boot];
    print(&series, &[&series[1]]);
    Ok(())
}

/// What a container waits for its utility VM when one stands by.
pub fn adoption(host: &TestHost, rounds: usize) -> anyhow::Result<()> {
    let mut adoption = Series::new("adoption");
    let standby = Standby::new(host);
    for _ in 0..rounds {
        if !standby.wait() {
            break;
        }
        let id = host.run_detached(&["--isolation=hyperv"], &["sleep", "1000"]);
        match host.inspect(&id)["Bulkhead"]["StandbyMicroseconds"].as_u64() {
            Some(standby_us) => adoption.push(Duration::from_micros(standby_us)),
            None => eprintln!("a container did not get the utility VM that stood by"),
        }
        host.docker(&["rm", "-f", &id]).ok();
    }
    print(&[adoption], &[]);
    Ok(())
}

/// Private memory of what idles: what no other process on this machine maps as well.
pub struct IdleMemory {
    table: Table,
}

impl IdleMemory {
    /// An empty table.
    pub fn new() -> Self {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["what", "private memory", "processes"]);
        Self { table }
    }

    /// One idle container behind each wall, alone, and then while a second of its kind idles beside it, which maps the same
    /// programs and the same template. When: nothing of ours runs on this machine but the host's engine.
    pub fn of_containers(&mut self, host: &TestHost) {
        for isolation in ["process", "hyperv"] {
            let flag = format!("--isolation={isolation}");
            let start = || {
                let before = host.processes();
                let id = host.run_detached(&[&flag], &["sleep", "1000"]);
                settle();
                let mut pids: Vec<i32> = host.processes().into_iter().filter(|pid| !before.contains(pid)).collect();
                pids.extend(procfs::find_cgroup(&id));
                (id, pids)
            };
            let (first, pids) = start();
            self.add(&format!("{isolation}, alone"), &pids);
            let (second, _) = start();
            self.add(&format!("{isolation}, a second one beside it"), &pids);
            host.docker(&["rm", "-f", &first, &second]).ok();
        }
    }

    /// What stands by, and a container that got it while the next stands by. When: no container of the host runs.
    pub fn of_standby(&mut self, host: &TestHost) {
        let standby = Standby::new(host);
        let but = |known: &[i32]| -> Vec<i32> {
            let all = with_children(host.processes().into_iter().filter(|&pid| program(pid) != "bulkheadd").collect());
            all.into_iter().filter(|pid| !known.contains(pid)).collect()
        };
        if !standby.wait() {
            return;
        }
        settle();
        let first = but(&[]);
        self.add("standby, alone", &first);
        let id = host.run_detached(&["--isolation=hyperv"], &["sleep", "1000"]);
        if standby.wait() {
            settle();
            let adopted = [first, procfs::find_cgroup(&id)].concat();
            self.add("hyperv that stood by, the next standby beside it", &adopted);
            self.add("standby, beside that container", &but(&adopted));
        }
        host.docker(&["rm", "-f", &id]).ok();
    }

    fn add(&mut self, what: &str, pids: &[i32]) {
        let mut pids: Vec<i32> = pids.iter().copied().filter(|&pid| procfs::is_alive(pid)).collect();
        pids.sort_unstable();
        pids.dedup();
        let kib: Vec<u64> = pids.iter().map(|&pid| procfs::private_kib(pid)).collect();
        let each: Vec<String> =
            pids.iter().zip(&kib).map(|(&pid, &kib)| format!("{} {:.1} MiB", program(pid), mib(kib))).collect();
        let total: u64 = kib.iter().sum();
        self.table.add_row([what.to_owned(), format!("{:.1} MiB", mib(total)), each.join(", ")]);
    }

    /// Prints what was added.
    pub fn print(&self) {
        println!("{}", self.table);
    }
}

/// The processes and what they started: the VMM of a VM that stands by has no cgroup and no environment to be found by.
fn with_children(mut pids: Vec<i32>) -> Vec<i32> {
    let children = procfs::pids().into_iter().filter(|&pid| pids.contains(&procfs::parent(pid)));
    let children: Vec<i32> = children.collect();
    pids.extend(children);
    pids
}

/// What start-up touched and gave back is counted as the kernel counts it a moment later.
fn settle() {
    std::thread::sleep(Duration::from_secs(3));
}

/// A process's program, without its folder.
fn program(pid: i32) -> String {
    let command = procfs::command_line(pid);
    command.split_whitespace().next().unwrap_or("?").rsplit('/').next().unwrap_or("?").to_owned()
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people, with one digit")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
