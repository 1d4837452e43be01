//! What a container used between two moments. Source: docker/cli `command/container/stats_helpers.go`.

use std::ops::Add;

use serde_json::Value;

use crate::output::quantity::{binary_size, decimal_size};

/// One sample.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) pids: u64,
    cpu_percent: f64,
    memory_bytes: f64,
    memory_limit_bytes: f64,
    received_bytes: f64,
    sent_bytes: f64,
    read_bytes: f64,
    written_bytes: f64,
}

impl Sample {
    /// Reads the engine's answer.
    pub(super) fn read(value: &Value) -> Self {
        let memory = &value["memory_stats"];
        let details = &memory["stats"];
        // Pages of files that nobody uses are no use of memory; v1 and v2 call them differently.
        let inactive = ["total_inactive_file", "inactive_file"].iter().find_map(|name| details[*name].as_f64());
        let usage = number(&memory["usage"]);
        let networks = || value["networks"].as_object().into_iter().flatten().map(|(_, network)| network);
        let blocks = |operation: &str| -> f64 {
            let entries = value["blkio_stats"]["io_service_bytes_recursive"].as_array().into_iter().flatten();
            let fits = |entry: &&Value| entry["op"].as_str().is_some_and(|op| op.eq_ignore_ascii_case(operation));
            entries.filter(fits).map(|entry| number(&entry["value"])).fold(0.0, f64::add)
        };
        Self {
            name: value["name"].as_str().unwrap_or_default().trim_start_matches('/').to_owned(),
            pids: value["pids_stats"]["current"].as_u64().unwrap_or_default(),
            cpu_percent: cpu_percent(value),
            memory_bytes: inactive.filter(|inactive| *inactive < usage).map_or(usage, |inactive| usage - inactive),
            memory_limit_bytes: number(&memory["limit"]),
            received_bytes: networks().map(|network| number(&network["rx_bytes"])).fold(0.0, f64::add),
            sent_bytes: networks().map(|network| number(&network["tx_bytes"])).fold(0.0, f64::add),
            read_bytes: blocks("read"),
            written_bytes: blocks("write"),
        }
    }

    pub(super) fn cpu_percent(&self) -> String {
        format!("{:.2}%", self.cpu_percent)
    }

    pub(super) fn memory(&self) -> String {
        format!("{} / {}", binary_size(self.memory_bytes), binary_size(self.memory_limit_bytes))
    }

    pub(super) fn memory_percent(&self) -> String {
        let share = if self.memory_limit_bytes > 0.0 { self.memory_bytes / self.memory_limit_bytes } else { 0.0 };
        format!("{:.2}%", share * 100.0)
    }

    pub(super) fn network(&self) -> String {
        format!("{} / {}", decimal_size(self.received_bytes), decimal_size(self.sent_bytes))
    }

    pub(super) fn disk(&self) -> String {
        format!("{} / {}", decimal_size(self.read_bytes), decimal_size(self.written_bytes))
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

/// Share of the host's processor time between the two samples of the answer, times the number of processors.
fn cpu_percent(value: &Value) -> f64 {
    let (now, before) = (&value["cpu_stats"], &value["precpu_stats"]);
    let used = number(&now["cpu_usage"]["total_usage"]) - number(&before["cpu_usage"]["total_usage"]);
    let system = number(&now["system_cpu_usage"]) - number(&before["system_cpu_usage"]);
    let count = number(&now["online_cpus"]).max(1.0);
    // The first sample of a stream has nothing before it.
    if used > 0.0 && system > 0.0 && number(&before["system_cpu_usage"]) > 0.0 {
        used / system * count * 100.0
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn use_is_told_as_docker_tells_it() {
        let sample = Sample::read(&json!({
            "name": "/web", "pids_stats": {"current": 3},
            "cpu_stats": {"cpu_usage": {"total_usage": 300}, "system_cpu_usage": 2000, "online_cpus": 2},
            "precpu_stats": {"cpu_usage": {"total_usage": 200}, "system_cpu_usage": 1000},
            "memory_stats": {"usage": 3 << 20, "limit": 4 << 20, "stats": {"inactive_file": 1 << 20}},
            "networks": {"eth0": {"rx_bytes": 1000, "tx_bytes": 5}},
            "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 7}, {"op": "write", "value": 2000}]},
        }));
        assert_eq!((sample.name.as_str(), sample.pids), ("web", 3));
        assert_eq!(sample.cpu_percent(), "20.00%");
        assert_eq!((sample.memory().as_str(), sample.memory_percent().as_str()), ("2MiB / 4MiB", "50.00%"));
        assert_eq!((sample.network().as_str(), sample.disk().as_str()), ("1kB / 5B", "7B / 2kB"));
        let empty = Sample::read(&json!({}));
        assert_eq!((empty.cpu_percent().as_str(), empty.network().as_str()), ("0.00%", "0B / 0B"));
    }
}
