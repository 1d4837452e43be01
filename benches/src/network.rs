//! Throughput and round trips of containers' networks: iperf3 and ping, from one container to another, from the host, and
//! through published ports.

mod plain;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bulkhead_e2e::archive::{self, Tar};
use bulkhead_e2e::{TestHost, Wall};
use comfy_table::{Table, presets};
use serde_json::Value;

use crate::reference::Dockerd;
use plain::PlainMachine;

const IMAGE: &str = "iperf:1";
/// Of one measurement.
const SECONDS: &str = "2";
/// How often a server is asked that is busy.
const BUSY: usize = 50;
/// Where a container's server is published on the host.
const PUBLISHED: &str = "15201";
/// iperf3's own.
const PORT: &str = "5201";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    BetweenContainers,
    FromHost,
    Published,
    PublishedOnLoopback,
    RoundTrip,
}

impl Figure {
    const ALL: [(Self, &str); 5] = [
        (Self::BetweenContainers, "container to container, Gbit/s"),
        (Self::FromHost, "host to container, Gbit/s"),
        (Self::Published, "published port, Gbit/s"),
        (Self::PublishedOnLoopback, "published port, 127.0.0.1, Gbit/s"),
        (Self::RoundTrip, "round trip from the host, ms"),
    ];
}

/// What one side reached, round by round.
struct Column {
    name: String,
    figures: Vec<(Figure, f64)>,
}

impl Column {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), figures: Vec::new() }
    }

    /// The middle one; none where it was not measured.
    fn median(&self, figure: Figure) -> Option<f64> {
        let mut sorted: Vec<f64> =
            self.figures.iter().filter(|(of, _)| *of == figure).map(|(_, value)| *value).collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }
}

/// Makes a command of the words behind `docker`.
type Docker<'a> = Box<dyn Fn(&[&str]) -> Command + 'a>;

/// One daemon, with two containers.
struct Side<'a> {
    column: Column,
    isolation: &'a [&'a str],
    docker: Docker<'a>,
    /// A program on the daemon's host.
    on_host: Box<dyn Fn(&str) -> Command + 'a>,
}

/// Measures every side once a round, in turn. The first round does not count.
pub fn measure(host: &TestHost, dockerd: Option<&Dockerd>, rounds: usize) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    std::fs::create_dir_all(&folder)?;
    let image = folder.join("iperf.tar");
    std::fs::write(&image, archive::saved_image(IMAGE, &[archive::busybox_rootfs(), iperf_layer()?]))?;
    let image = image.to_str().context("the image's path is no text")?;
    let ours = |wall: Wall, isolation| Side {
        column: Column::new(wall.word()),
        isolation,
        docker: Box::new(|args| host.docker_command(args)),
        on_host: Box::new(|program| host.on_host(program)),
    };
    let mut sides = vec![ours(Wall::Process, &["--isolation=process"]), ours(Wall::Hyperv, &["--isolation=hyperv"])];
    output(&mut host.docker_command(&["load", "-q", "-i", image]))?;
    if let Some(dockerd) = dockerd {
        output(&mut dockerd.docker(&["load", "-q", "-i", image]))?;
        sides.push(Side {
            column: Column::new(format!("dockerd {}", dockerd.version)),
            isolation: &[],
            docker: Box::new(|args| dockerd.docker(args)),
            on_host: Box::new(|program| dockerd.on_host(program)),
        });
    }
    let machines = [PlainMachine::in_a_containers_place(&folder, host)?, PlainMachine::on_a_host(&folder)?];
    let mut plain = ["QEMU/TCG, a container's tap", "QEMU/TCG, a tap of the host's"].map(Column::new);
    for round in 0..=rounds {
        for side in &mut sides {
            // The sides have the same host port, so one is up at a time.
            side.start()?;
            let figures = side.measure();
            side.docker_says(&["rm", "-f", "server", "client"])?;
            side.column.figures.extend(figures?.into_iter().filter(|_| round > 0));
        }
        for (machine, column) in machines.iter().zip(&mut plain) {
            let figures = [
                (Figure::FromHost, throughput(&|| machine.on_host("iperf3"), machine.address(), PORT)?),
                (Figure::RoundTrip, round_trip(machine.on_host("busybox"), machine.address())?),
            ];
            column.figures.extend(figures.into_iter().filter(|_| round > 0));
        }
    }
    let columns: Vec<Column> = sides.into_iter().map(|side| side.column).collect();
    let (ours, dockerd) = columns.split_at(2);
    print(&ours[0], &ours[1], dockerd.first(), &plain);
    Ok(())
}

impl Side<'_> {
    fn docker_says(&self, args: &[&str]) -> anyhow::Result<String> {
        output(&mut (self.docker)(args)).with_context(|| self.column.name.clone())
    }

    fn start(&self) -> anyhow::Result<()> {
        let publish = format!("{PUBLISHED}:{PORT}");
        let server = ["--name=server", "-p", &publish, IMAGE, "iperf3", "-s"];
        let client = ["--name=client", IMAGE, "sleep", "100000"];
        for words in [&server[..], &client[..]] {
            let words: Vec<&str> = ["run", "-d"].iter().chain(self.isolation).chain(words).copied().collect();
            self.docker_says(&words)?;
        }
        let server = self.address("IPAddress")?;
        let listens = format!("for i in $(seq 100); do iperf3 -c {server} -n 1K && exit; sleep 0.1; done; exit 1");
        self.docker_says(&["exec", "client", "sh", "-c", &listens])?;
        Ok(())
    }

    /// The server's, or that of its network's gateway, which is the host's.
    fn address(&self, which: &str) -> anyhow::Result<String> {
        let template = format!("{{{{range .NetworkSettings.Networks}}}}{{{{.{which}}}}}{{{{end}}}}");
        let address = self.docker_says(&["inspect", "-f", &template, "server"])?;
        ensure!(!address.is_empty(), "{}: the server has no {which}", self.column.name);
        Ok(address)
    }

    /// Whether they run, and what they said last, for an error's text.
    fn containers(&self) -> String {
        let states = self.docker_says(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]);
        let said = self.docker_says(&["logs", "--tail=3", "server"]);
        [states, said].map(|told| told.unwrap_or_else(|error| format!("{error:#}"))).join("; ").replace('\n', ", ")
    }

    fn measure(&self) -> anyhow::Result<Vec<(Figure, f64)>> {
        let (server, gateway) = (self.address("IPAddress")?, self.address("Gateway")?);
        let in_client = || (self.docker)(&["exec", "client", "iperf3"]);
        let on_host = || (self.on_host)("iperf3");
        let measured = || -> anyhow::Result<_> {
            Ok(vec![
                (Figure::BetweenContainers, throughput(&in_client, &server, PORT)?),
                (Figure::FromHost, throughput(&on_host, &server, PORT)?),
                (Figure::Published, throughput(&on_host, &gateway, PUBLISHED)?),
                (Figure::PublishedOnLoopback, throughput(&on_host, "127.0.0.1", PUBLISHED)?),
                (Figure::RoundTrip, round_trip((self.on_host)("busybox"), &server)?),
            ])
        };
        measured().with_context(|| format!("{}; its containers: {}", self.column.name, self.containers()))
    }
}

/// What iperf3's server has received, Gbit/s. Shape: `client` makes an iperf3.
fn throughput(client: &dyn Fn() -> Command, address: &str, port: &str) -> anyhow::Result<f64> {
    for _ in 0..BUSY {
        let mut command = client();
        command.args(["-J", "-t", SECONDS, "-c", address, "-p", port]).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("{command:?} does not start"))?;
        let said = || format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        let report: Value = serde_json::from_slice(&output.stdout).with_context(said)?;
        match report["error"].as_str() {
            None => {
                let rate =
                    report["end"]["sum_received"]["bits_per_second"].as_f64().context("no rate in the report")?;
                return Ok(rate / 1e9);
            }
            // It serves one client after the other, and the last one may have gone just now; between two it listens anew.
            Some(error) if ["busy", "refused"].iter().any(|word| error.contains(word)) => {
                std::thread::sleep(Duration::from_millis(100))
            }
            Some(error) => bail!("{command:?}: {error}"),
        }
    }
    bail!("iperf3 at {address} is busy and stays so")
}

/// Milliseconds, the mean of a hundred. Shape: `client` is busybox.
fn round_trip(mut client: Command, address: &str) -> anyhow::Result<f64> {
    let said = output(client.args(["ping", "-q", "-c", "100", "-i", "0.01", address]))?;
    let mean = said.rsplit_once("= ").and_then(|(_, times)| times.split('/').nth(1)?.parse().ok());
    mean.with_context(|| format!("no mean in: {said}"))
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?} does not start"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        bail!("{command:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// This machine's iperf3 and the libraries that it loads, by their paths.
fn iperf_files() -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let program = "/usr/bin/iperf3";
    ensure!(Path::new(program).exists(), "iperf3 (package iperf3) is missing");
    let libraries = output(Command::new("ldd").arg(program))?;
    let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    paths.chain([program]).map(|path| Ok((path.to_owned(), std::fs::read(path)?))).collect()
}

fn iperf_layer() -> anyhow::Result<Vec<u8>> {
    let mut tar = Tar::new();
    for (path, content) in iperf_files()? {
        tar = tar.file(path.trim_start_matches('/'), 0o755, &content);
    }
    Ok(tar.bytes())
}

/// Docker's daemon is the process container's peer, the plain machines are the emulated utility VM's.
fn print(process: &Column, hyperv: &Column, dockerd: Option<&Column>, plain: &[Column]) {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let columns: Vec<&Column> = [process, hyperv].into_iter().chain(dockerd).chain(plain).collect();
    let pairs = dockerd.map(|peer| (process, peer)).into_iter().chain(plain.iter().map(|peer| (hyperv, peer)));
    let pairs: Vec<(&Column, &Column)> = pairs.collect();
    let mut head = vec!["figure".to_owned()];
    head.extend(columns.iter().map(|column| column.name.clone()));
    head.extend(pairs.iter().map(|(one, peer)| format!("{} to {}", one.name, peer.name)));
    table.set_header(head);
    for (figure, name) in Figure::ALL {
        let mut row = vec![name.to_owned()];
        row.extend(
            columns.iter().map(|column| column.median(figure).map_or("-".into(), |value| format!("{value:.3}"))),
        );
        row.extend(pairs.iter().map(|(one, peer)| {
            let ratio = one.median(figure).zip(peer.median(figure)).map(|(one, peer)| one / peer);
            ratio.map_or("-".into(), |ratio| format!("{ratio:.2}x"))
        }));
        table.add_row(row);
    }
    println!("{table}");
}
