//! Memory that the guest does not use goes back to the host, where the machine has a balloon to report it to.
//!
//! Reporting has a price: the kernel looks through all free memory, which dirties a megabyte of its own in a fork that would never
//! touch it. So it begins only once a container has used some, which no sum of what is free now would tell: what was freed in
//! between would be missed.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::devices;

/// How often to look. A look is one file of the kernel's.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Pages that may be handed out before what is free is worth reporting: 64 MiB.
const PAGES: u64 = (64 << 20) / 4096;

/// What free memory can be reported to.
pub struct Reporter {
    balloons: Vec<PathBuf>,
}

impl Reporter {
    /// Looks for it. When: before the fork, so that no fork has to look; none where the machine has no balloon.
    pub fn find() -> Option<Self> {
        match devices::balloons() {
            Ok(balloons) if balloons.is_empty() => None,
            Ok(balloons) => Some(Self { balloons }),
            Err(error) => {
                tracing::warn!("cannot look for a balloon: {error}");
                None
            }
        }
    }

    /// Waits until memory was used, and has the kernel report what is free from then on. When: once, after the fork.
    pub async fn report(self) {
        if let Err(error) = self.report_once_used().await {
            tracing::warn!("free memory does not go back to the host: {error}");
        }
    }

    async fn report_once_used(self) -> io::Result<()> {
        let before = pages_handed_out()?;
        while pages_handed_out()?.saturating_sub(before) < PAGES {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.balloons.iter().try_for_each(|balloon| devices::bind_balloon(balloon))
    }
}

/// Pages that the kernel has handed out since its boot, those given back included.
fn pages_handed_out() -> io::Result<u64> {
    Ok(sum_of_allocations(&fs::read_to_string("/proc/vmstat")?))
}

/// One line for each zone of memory. Source: Linux mm/vmstat.c, `PGALLOC`.
fn sum_of_allocations(vmstat: &str) -> u64 {
    let lines = vmstat.lines().filter(|line| line.starts_with("pgalloc_"));
    lines.filter_map(|line| line.split(' ').nth(1)?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_zones_are_counted() {
        let text =
            "nr_free_pages 9\npgalloc_dma 1\npgalloc_dma32 20\npgalloc_normal 300\npgalloc_movable 0\npgfree 7\n";
        assert_eq!(sum_of_allocations(text), 321);
        assert_eq!(sum_of_allocations(""), 0);
    }

    #[test]
    fn what_is_handed_out_only_grows() {
        let before = pages_handed_out().unwrap();
        let memory = std::hint::black_box(vec![1_u8; 8 << 20]);
        let after = pages_handed_out().unwrap();
        assert!(before > 0 && after >= before + memory.len() as u64 / 4096 / 2, "{before} {after}");
    }
}
