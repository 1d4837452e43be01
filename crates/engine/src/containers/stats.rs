//! `GET /containers/{id}/stats`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use containerd_shim_protos::cgroups::metrics::{BlkIOEntry, Metrics};
use containerd_shim_protos::protobuf::Message;
use futures_util::stream;
use proto::Isolation;
use proto::control::UtilityVmRequest;
use serde_json::{Map, Value, json};

use crate::clock::{Timestamp, ZERO_TIME};
use crate::container::Container;
use crate::container::record::Phase;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::network::endpoint::Endpoints;
use crate::query::Query;

/// From here on a limit is none: more than any host has.
const NO_LIMIT: u64 = 1 << 60;
/// Time between two samples.
const PERIOD: Duration = Duration::from_secs(1);

/// Sends a container's counters: once, or every second.
///
/// # Errors
/// 404; what the shim says when a single sample was asked for.
pub async fn stats(State(engine): State<Arc<Engine>>, Path(id): Path<String>, query: Query) -> ApiResult<Response> {
    let container = engine.containers.find(&id)?;
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    if !query.flag_or("stream", true) {
        let mut sampler = Sampler::new(container);
        let mut sample = sampler.next().await?;
        if !query.flag("one-shot") && sampler.container.running().is_ok() {
            // Two samples, so that the client can tell the processor's use.
            tokio::time::sleep(PERIOD).await;
            sample = sampler.next().await?;
        }
        return Ok((content_type, line(&sample)).into_response());
    }
    let first = (Sampler::new(container), true);
    let lines = stream::unfold(first, |(mut sampler, first)| async move {
        if !first {
            tokio::time::sleep(PERIOD).await;
        }
        if sampler.container.progress().borrow().removed {
            return None;
        }
        match sampler.next().await {
            Ok(sample) => Some((Ok::<_, Infallible>(line(&sample)), (sampler, false))),
            Err(error) => {
                tracing::debug!(id = %sampler.container.id, "cannot sample a container: {error}");
                None
            }
        }
    });
    Ok((content_type, Body::from_stream(lines)).into_response())
}

fn line(sample: &Value) -> Bytes {
    Bytes::from(sample.to_string() + "\n")
}

struct Sampler {
    container: Arc<Container>,
    previous: Option<(String, Value)>,
}

impl Sampler {
    fn new(container: Arc<Container>) -> Self {
        Self { container, previous: None }
    }

    /// A sample; of a container that does not run (any more) an empty one.
    async fn next(&mut self) -> ApiResult<Value> {
        let name = format!("/{}", self.container.name());
        let Ok(running) = self.container.running() else {
            self.previous = None;
            return Ok(empty(&name, self.container.id.as_str()));
        };
        let metrics = match running.task.stats().await {
            Ok(any) => Metrics::parse_from_bytes(&any.value)
                .map_err(|error| ApiError::caused("cannot understand the shim's counters", &error))?,
            // It ended in this moment.
            Err(_) if self.container.running().is_err() => return Ok(empty(&name, self.container.id.as_str())),
            Err(status) => return Err(status.into()),
        };
        let read = Timestamp::now().to_rfc3339_nano();
        let cpu = cpu(&metrics, &HostCpu::read());
        let (preread, precpu) =
            self.previous.replace((read.clone(), cpu.clone())).unwrap_or_else(|| (ZERO_TIME.to_owned(), empty_cpu()));
        let mut sample = json!({
            "name": name,
            "id": self.container.id,
            "read": read,
            "preread": preread,
            "pids_stats": { "current": metrics.pids.current, "limit": metrics.pids.limit },
            "blkio_stats": block(&metrics),
            "num_procs": 0,
            "storage_stats": {},
            "cpu_stats": cpu,
            "precpu_stats": precpu,
            "memory_stats": memory(&metrics, self.memory_bytes()),
        });
        if let Some(networks) = self.networks() {
            sample["networks"] = networks;
        }
        Ok(sample)
    }
}

impl Sampler {
    /// Counters of its interfaces; none on the host's network, and without any.
    fn networks(&self) -> Option<Value> {
        let record = self.container.record();
        let Phase::Running { pid, .. } = record.phase else { return None };
        if record.host_text("NetworkMode") == "host" {
            return None;
        }
        let counted = match record.isolation {
            Isolation::Process => interfaces(&std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?),
            Isolation::Hyperv => guest_interfaces(&record.network),
        };
        Some(counted).filter(|interfaces| !interfaces.is_empty()).map(Value::Object)
    }

    /// The memory that a container without a limit has: its host's, or its utility VM's.
    fn memory_bytes(&self) -> u64 {
        match self.container.isolation {
            Isolation::Process => host_memory_bytes(),
            Isolation::Hyperv => UtilityVmRequest::NOMINAL_MEMORY_BYTES,
        }
    }
}

/// A utility VM's, counted on the host's end of each, where what the guest receives is sent.
fn guest_interfaces(endpoints: &Endpoints) -> Map<String, Value> {
    let live = endpoints.all.values().filter_map(|endpoint| endpoint.live.as_ref());
    let counted = live.filter(|live| !live.interface.is_empty()).map(|live| {
        let count = |name: &str| -> u64 {
            let path = format!("/sys/class/net/{}/statistics/{name}", live.host_link);
            std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        };
        let counters = json!({
            "rx_bytes": count("tx_bytes"), "rx_packets": count("tx_packets"), "rx_errors": count("tx_errors"),
            "rx_dropped": count("tx_dropped"), "tx_bytes": count("rx_bytes"), "tx_packets": count("rx_packets"),
            "tx_errors": count("rx_errors"), "tx_dropped": count("rx_dropped"),
        });
        (live.interface.clone(), counters)
    });
    counted.collect()
}

/// What Docker sends of a container that does not run.
fn empty(name: &str, id: &str) -> Value {
    json!({
        "name": name, "id": id, "read": ZERO_TIME, "preread": ZERO_TIME, "pids_stats": {}, "blkio_stats": block(&Metrics::new()),
        "num_procs": 0, "storage_stats": {}, "cpu_stats": empty_cpu(), "precpu_stats": empty_cpu(), "memory_stats": {},
    })
}

fn empty_cpu() -> Value {
    json!({
        "cpu_usage": { "total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0 },
        "throttling_data": { "periods": 0, "throttled_periods": 0, "throttled_time": 0 },
    })
}

fn cpu(metrics: &Metrics, host: &HostCpu) -> Value {
    let (usage, throttling) = (&metrics.cpu.usage, &metrics.cpu.throttling);
    let mut cpu = json!({
        "cpu_usage": {
            "total_usage": usage.total, "usage_in_kernelmode": usage.kernel, "usage_in_usermode": usage.user,
        },
        "system_cpu_usage": host.total_ns,
        "online_cpus": host.online,
        "throttling_data": {
            "periods": throttling.periods, "throttled_periods": throttling.throttled_periods,
            "throttled_time": throttling.throttled_time,
        },
    });
    if !usage.per_cpu.is_empty() {
        cpu["cpu_usage"]["percpu_usage"] = json!(usage.per_cpu);
    }
    cpu
}

fn memory(metrics: &Metrics, whole_bytes: u64) -> Value {
    let memory = &metrics.memory;
    // "No limit" is zero or a very large number; what there is in all is the true bound then.
    let unlimited = memory.usage.limit == 0 || memory.usage.limit >= NO_LIMIT;
    let limit = if unlimited { whole_bytes } else { memory.usage.limit };
    json!({
        "usage": memory.usage.usage,
        "max_usage": memory.usage.max,
        "failcnt": memory.usage.failcnt,
        "limit": limit,
        "stats": {
            "cache": memory.total_cache, "rss": memory.total_rss,
            "inactive_file": memory.total_inactive_file, "total_inactive_file": memory.total_inactive_file,
            "active_file": memory.total_active_file, "total_active_file": memory.total_active_file,
            "pgfault": memory.pg_fault, "pgmajfault": memory.pg_maj_fault,
        },
    })
}

/// The interfaces in `/proc/PID/net/dev`, but for loopback. Source: proc_pid_net(5); moby `daemon/stats_unix.go`.
fn interfaces(text: &str) -> Map<String, Value> {
    let interface = |line: &str| {
        let (name, counters) = line.split_once(':').filter(|(name, _)| name.trim() != "lo")?;
        let counters: Vec<u64> = counters.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let counter = |at: usize| counters.get(at).copied().unwrap_or(0);
        let shown = json!({
            "rx_bytes": counter(0), "rx_packets": counter(1), "rx_errors": counter(2), "rx_dropped": counter(3),
            "tx_bytes": counter(8), "tx_packets": counter(9), "tx_errors": counter(10), "tx_dropped": counter(11),
        });
        Some((name.trim().to_owned(), shown))
    };
    text.lines().filter_map(interface).collect()
}

fn block(metrics: &Metrics) -> Value {
    let entries = |list: &[BlkIOEntry]| -> Value {
        if list.is_empty() {
            return Value::Null;
        }
        list.iter()
            .map(|e| json!({ "major": e.major, "minor": e.minor, "op": e.op.to_ascii_lowercase(), "value": e.value }))
            .collect()
    };
    json!({
        "io_service_bytes_recursive": entries(&metrics.blkio.io_service_bytes_recursive),
        "io_serviced_recursive": entries(&metrics.blkio.io_serviced_recursive),
        "io_queue_recursive": null, "io_service_time_recursive": null, "io_wait_time_recursive": null,
        "io_merged_recursive": null, "io_time_recursive": null, "sectors_recursive": null,
    })
}

/// Processor time of the whole host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct HostCpu {
    total_ns: u64,
    online: usize,
}

impl HostCpu {
    fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// The first seven columns of the `cpu` line, in hundredths of a second. Source: moby `daemon/stats/collector_unix.go`.
    fn parse(text: &str) -> Self {
        const NANOS_PER_TICK: u64 = 10_000_000;
        let total: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix("cpu "))
            .map(|line| line.split_whitespace().take(7).filter_map(|ticks| ticks.parse::<u64>().ok()).sum())
            .unwrap_or(0);
        let is_one =
            |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        Self { total_ns: total * NANOS_PER_TICK, online: text.lines().filter(is_one).count() }
    }
}

fn host_memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).map_or(u64::MAX, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_time_is_the_sum_of_its_columns() {
        let text = "cpu  1 2 3 4 5 6 7 8 0 0\ncpu0 1 1 1 1\ncpu1 1 1 1 1\nintr 5\n";
        assert_eq!(HostCpu::parse(text), HostCpu { total_ns: 280_000_000, online: 2 });
    }

    #[test]
    fn no_limit_is_the_hosts_memory() {
        let mut metrics = Metrics::new();
        let memory_stat = metrics.memory.mut_or_insert_default();
        memory_stat.usage.mut_or_insert_default().limit = u64::MAX - 4095;
        memory_stat.usage.mut_or_insert_default().usage = 5;
        let shown = memory(&metrics, 1 << 30);
        assert_eq!((&shown["limit"], &shown["usage"]), (&json!(1 << 30), &json!(5)));
    }

    #[test]
    fn interfaces_are_counted_but_for_loopback() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop\n    lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n";
        let shown = interfaces(text);
        assert_eq!(shown.keys().collect::<Vec<_>>(), ["eth0"]);
        assert_eq!((&shown["eth0"]["rx_bytes"], &shown["eth0"]["tx_dropped"]), (&json!(1), &json!(8)));
    }

    #[test]
    fn a_container_that_does_not_run_has_the_empty_shape() {
        let sample = empty("/n", "id");
        assert_eq!((&sample["read"], &sample["pids_stats"]), (&json!(ZERO_TIME), &json!({})));
    }
}
