//! What a container costs while it idles, and what a fork saves.

use std::time::Duration;

use anyhow::Context;
use bulkhead_e2e::{TestHost, procfs};
use comfy_table::{Table, presets};

use crate::series::{Series, print};

/// Forks, and compares each fork's own time with the boot that made the template.
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

/// Starts one idle container behind each wall and sums the private memory of every process that exists because of it.
pub fn idle_memory(host: &TestHost) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["isolation", "private memory", "processes"]);
    for isolation in ["process", "hyperv"] {
        let before = host.processes();
        let flag = format!("--isolation={isolation}");
        let id = host.run_detached(&[&flag], &["sleep", "1000"]);
        // Idle: what start-up touched and gave back is counted as the kernel counts it a moment later.
        std::thread::sleep(Duration::from_secs(3));
        let mut pids: Vec<i32> = host.processes().into_iter().filter(|pid| !before.contains(pid)).collect();
        pids.extend(procfs::find_cgroup(&id));
        pids.sort_unstable();
        pids.dedup();
        let each: Vec<String> = pids
            .iter()
            .map(|&pid| {
                let command = procfs::command_line(pid);
                let program =
                    command.split_whitespace().next().unwrap_or("?").rsplit('/').next().unwrap_or("?").to_owned();
                format!("{program} {:.1} MiB", mib(procfs::private_kib(pid)))
            })
            .collect();
        let total: u64 = pids.iter().map(|&pid| procfs::private_kib(pid)).sum();
        table.add_row([isolation.to_owned(), format!("{:.1} MiB", mib(total)), each.join(", ")]);
        host.docker(&["rm", "-f", &id]).ok();
    }
    println!("{table}");
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people, with one digit")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
