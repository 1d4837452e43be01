//! Starting from a large image against starting from a small one: layers are mounted or mapped, not read.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use bulkhead_e2e::archive::{Tar, busybox_rootfs, saved_image};
use bulkhead_e2e::{IMAGE, TestHost};

use crate::series::{Series, print};

/// What the large image has beside busybox: this many files of this many bytes, 1 GiB.
const FILES: usize = 64;
const FILE_BYTES: usize = 16 << 20;
const LARGE: &str = "large:1";

/// Runs `true` from both images behind both walls, in turn.
pub fn measure(host: &TestHost, rounds: usize) -> anyhow::Result<()> {
    load_large(host)?;
    for wall in ["process", "hyperv"] {
        let mut small = Series::new(format!("{wall}, image of 2 MB"));
        let mut large = Series::new(format!("{wall}, image of 1 GiB"));
        for round in 0..=rounds {
            for (series, image) in [(&mut small, IMAGE), (&mut large, LARGE)] {
                let isolation = format!("--isolation={wall}");
                let mut command = host.docker_command(&["run", "--rm", "--network=none", &isolation, image, "true"]);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
                let began = Instant::now();
                let output = command.output().context("the docker CLI does not start")?;
                let took = began.elapsed();
                if !output.status.success() {
                    bail!("{}: {}", series.name, String::from_utf8_lossy(&output.stderr));
                }
                // The first round builds the template and warms the caches of both.
                if round > 0 {
                    series.push(took);
                }
            }
        }
        let sides = [small, large];
        print(&sides, &[&sides[0]]);
    }
    Ok(())
}

fn load_large(host: &TestHost) -> anyhow::Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut content = vec![0; FILE_BYTES];
    let mut tar = Tar::new();
    for number in 0..FILES {
        for word in content.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        tar = tar.file(&format!("large/{number}"), 0o644, &content);
    }
    let archive = saved_image(LARGE, &[busybox_rootfs(), tar.bytes()]);
    let mut load: Command = host.docker_command(&["load", "-q"]);
    let mut child =
        load.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("the docker CLI does not start")?;
    child.stdin.take().context("standard input")?.write_all(&archive)?;
    if !child.wait()?.success() {
        bail!("the image of 1 GiB cannot be loaded");
    }
    Ok(())
}
