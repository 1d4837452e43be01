//! What a network costs a start and an end by themselves, through the API: the default network beside none.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_e2e::api::ApiConnection;
use bulkhead_e2e::{IMAGE, TestHost};
use serde_json::json;

use crate::reference::Dockerd;
use crate::series::Series;
use crate::standby::Standby;

/// Between two starts: what is made in the background for the next one is there by then.
const PAUSE: Duration = Duration::from_millis(300);

/// One daemon, without a network and with the default one.
struct Side<'a> {
    name: String,
    socket: &'a Path,
    isolation: &'a str,
    starts: [Series; 2],
    ends: [Series; 2],
}

const NETWORKS: [&str; 2] = ["none", "default"];

/// How often each kind is started in a row: what stands by is for what the last container had, so only the last one counts.
const IN_A_ROW: usize = 2;

/// Starts `true` on every side with and without a network, in turn; the first round does not count.
pub fn measure(host: &TestHost, dockerd: Option<&Dockerd>, rounds: usize) -> anyhow::Result<()> {
    let side = |name: &str, socket, isolation| Side {
        name: name.to_owned(),
        socket,
        isolation,
        starts: NETWORKS.map(Series::new),
        ends: NETWORKS.map(Series::new),
    };
    let mut sides = vec![side("process", host.socket(), "process"), side("hyperv", host.socket(), "hyperv")];
    let socket = dockerd.map(Dockerd::socket);
    if let (Some(dockerd), Some(socket)) = (dockerd, &socket) {
        sides.push(side(&format!("dockerd {}", dockerd.version), socket, ""));
    }
    let standby = Standby::new(host);
    for round in 0..=rounds {
        for side in &mut sides {
            for turn in 0..NETWORKS.len() {
                // Which comes first changes.
                let which = (turn + round) % NETWORKS.len();
                let mut last = None;
                for _ in 0..IN_A_ROW {
                    std::thread::sleep(PAUSE);
                    if round > 0 {
                        standby.wait();
                    }
                    last = Some(side.start_and_end(NETWORKS[which])?);
                }
                if let Some((start, end)) = last.filter(|_| round > 0) {
                    side.starts[which].push(start);
                    side.ends[which].push(end);
                }
            }
        }
    }
    println!("{:>18} | start: none, default, network's share | start to end: none, default, network's share", "side");
    for side in &sides {
        let [starts, ends] = [&side.starts, &side.ends].map(shares);
        println!("{:>18} | {starts} | {ends}", side.name);
    }
    Ok(())
}

fn shares(series: &[Series; 2]) -> String {
    let [none, default] = [0, 1].map(|which| series[which].median().as_secs_f64() * 1e3);
    format!("{none:.1} ms, {default:.1} ms, {:.1} ms", default - none)
}

impl Side<'_> {
    /// From the request to start to its answer, and to the container's end as a client that waits sees it.
    fn start_and_end(&self, network: &str) -> anyhow::Result<(Duration, Duration)> {
        // One each: `wait` answers in two parts.
        let ask = |verb: &str, path: &str, body: Option<&[u8]>| -> anyhow::Result<_> {
            let answer = ApiConnection::open(self.socket)?.request(verb, path, body)?;
            ensure!(answer.status < 300, "{}: {path}: {} {}", self.name, answer.status, answer.message());
            Ok(answer)
        };
        let host = json!({ "NetworkMode": network, "Isolation": self.isolation });
        let body = json!({ "Image": IMAGE, "Cmd": ["true"], "HostConfig": host }).to_string();
        let made = ask("POST", "/containers/create", Some(body.as_bytes()))?.json();
        let id = made["Id"].as_str().context("no id")?;
        let began = Instant::now();
        ask("POST", &format!("/containers/{id}/start"), None)?;
        let started = began.elapsed();
        ask("POST", &format!("/containers/{id}/wait"), None)?;
        let ended = began.elapsed();
        ask("DELETE", &format!("/containers/{id}?force=1"), None)?;
        Ok((started, ended))
    }
}
