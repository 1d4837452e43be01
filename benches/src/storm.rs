//! Many at once: containers that are all started at the same moment, and a hundred execs a second. Nothing may be lost.

use std::path::Path;
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bulkhead_e2e::api::{self, ApiConnection};
use bulkhead_e2e::{IMAGE, TestHost};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::reference::Dockerd;
use crate::series::ms;

/// Execs begun in a second, whether the ones before have ended or not.
const RATE: u32 = 100;
/// How long they are begun.
const EXECS_FOR: Duration = Duration::from_secs(10);
/// How long one answer may take: far beyond anything that is not lost.
const PATIENCE: Duration = Duration::from_secs(300);

/// One daemon by its socket.
struct Side<'a> {
    name: String,
    socket: &'a Path,
    /// Further words in `HostConfig`.
    isolation: &'a str,
    /// Containers at once.
    containers: usize,
}

/// Measures every side in turn.
pub fn measure(host: &TestHost, dockerd: Option<&Dockerd>, containers: usize) -> anyhow::Result<()> {
    let side = |name: &str, isolation, containers| Side {
        name: name.to_owned(),
        socket: host.socket(),
        isolation,
        containers,
    };
    // A utility VM takes a hundred megabytes under emulation: as many as fit beside each other everywhere.
    let mut sides = vec![side("process", "process", containers), side("hyperv", "hyperv", containers / 10)];
    let socket = dockerd.map(Dockerd::socket);
    if let (Some(dockerd), Some(socket)) = (dockerd, &socket) {
        sides.push(Side { name: format!("dockerd {}", dockerd.version), socket, isolation: "", containers });
    }
    println!("\n# Containers created and started at the same moment, from the request to `started`\n");
    let mut table = table(&["side", "containers", "all up after", "median", "p99", "lost"]);
    for side in &sides {
        let began = Instant::now();
        let times = side.containers_at_once()?;
        let lost = (side.containers - times.len()).to_string();
        let row = [side.name.clone(), side.containers.to_string(), ms(began.elapsed())];
        table.add_row(row.into_iter().chain([ms(at(&times, 50)), ms(at(&times, 99)), lost]));
    }
    println!("{table}");
    println!("\n# {RATE} execs of `echo` a second for {} s, from the request to the exit code\n", EXECS_FOR.as_secs());
    let mut table = self::table(&["side", "execs", "median", "p99", "lost"]);
    for side in &sides {
        let (begun, times) = side.execs()?;
        let lost = (begun - times.len()).to_string();
        table.add_row([side.name.clone(), begun.to_string(), ms(at(&times, 50)), ms(at(&times, 99)), lost]);
    }
    println!("{table}");
    Ok(())
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(head);
    table
}

/// A percentile of sorted times.
fn at(times: &[Duration], percent: usize) -> Duration {
    times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

impl Side<'_> {
    fn connect(&self) -> anyhow::Result<ApiConnection> {
        let mut connection = ApiConnection::open(self.socket)?;
        connection.set_patience(PATIENCE)?;
        connection.set_pause(PATIENCE);
        Ok(connection)
    }

    fn post(connection: &mut ApiConnection, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = connection.request("POST", path, Some(body.to_string().as_bytes()))?;
        ensure!(answer.status < 300, "{path}: {} {}", answer.status, answer.message());
        Ok(answer.json())
    }

    /// Makes and starts one; gives its id.
    fn start(&self, connection: &mut ApiConnection) -> anyhow::Result<String> {
        let host = json!({ "NetworkMode": "none", "Isolation": self.isolation });
        let body = json!({ "Image": IMAGE, "Cmd": ["sleep", "100000"], "HostConfig": host });
        let id = Self::post(connection, "/containers/create", &body)?["Id"].as_str().context("no id")?.to_owned();
        Self::post(connection, &format!("/containers/{id}/start"), &json!({}))?;
        Ok(id)
    }

    fn remove(&self, ids: &[String]) -> anyhow::Result<()> {
        let mut connection = self.connect()?;
        for id in ids {
            let answer = connection.request("DELETE", &format!("/containers/{id}?force=1"), None)?;
            ensure!(answer.status == 204, "rm: {}", answer.message());
        }
        Ok(())
    }

    /// Times of those that came up and still run when all are up, the shortest first.
    fn containers_at_once(&self) -> anyhow::Result<Vec<Duration>> {
        let (barrier, started) = (Barrier::new(self.containers), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..self.containers {
                scope.spawn(|| {
                    let connection = self.connect();
                    barrier.wait();
                    let began = Instant::now();
                    match connection.and_then(|mut connection| self.start(&mut connection)) {
                        Ok(id) => lock(&started).push((id, began.elapsed())),
                        Err(error) => eprintln!("{}: {error:#}", self.name),
                    }
                });
            }
        });
        let started = started.into_inner().unwrap_or_default();
        let list = self.connect()?.request("GET", "/containers/json", None)?.json();
        let runs = |id: &str| list.as_array().is_some_and(|list| list.iter().any(|one| one["Id"] == *id));
        let mut times: Vec<Duration> = started.iter().filter(|(id, _)| runs(id)).map(|(_, time)| *time).collect();
        times.sort();
        self.remove(&started.into_iter().map(|(id, _)| id).collect::<Vec<_>>())?;
        Ok(times)
    }

    /// How many were begun, and the times of those that gave their output and exit code, the shortest first.
    fn execs(&self) -> anyhow::Result<(usize, Vec<Duration>)> {
        let id = self.start(&mut self.connect()?)?;
        let (times, began, mut begun) = (Mutex::new(Vec::new()), Instant::now(), 0);
        thread::scope(|scope| {
            while began.elapsed() < EXECS_FOR {
                let due = Duration::from_secs(1) / RATE * begun;
                thread::sleep(due.saturating_sub(began.elapsed()));
                let (id, times, number) = (&id, &times, begun);
                scope.spawn(move || match self.exec(id, number) {
                    Ok(time) => lock(times).push(time),
                    Err(error) => eprintln!("{}: {error:#}", self.name),
                });
                begun += 1;
            }
        });
        self.remove(&[id])?;
        let mut times = times.into_inner().unwrap_or_default();
        times.sort();
        Ok((begun as usize, times))
    }

    fn exec(&self, container: &str, number: u32) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let said = format!("said {number}");
        let (code, output) = api::exec(self.socket, container, &["echo", &said], PATIENCE)?;
        let took = began.elapsed();
        if code != 0 || !String::from_utf8_lossy(&output).contains(&said) {
            bail!("exec {number}: exit code {code}, output {:?}", String::from_utf8_lossy(&output));
        }
        Ok(took)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
