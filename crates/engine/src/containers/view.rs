//! Containers as Docker's clients expect to see them.

use proto::Isolation;
use serde_json::{Map, Value, json};

use super::create::{SCRATCH, UPPER_DISK};
use crate::clock::{Timestamp, ZERO_TIME};
use crate::container::health::HealthStatus;
use crate::container::record::{Phase, Record};
use crate::container::{Container, kept};
use crate::engine::Engine;

/// `Config` with every key that Docker shows.
#[must_use]
pub fn config(record: &Record) -> Value {
    let defaults = json!({
        "Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "AttachStdout": false,
        "AttachStderr": false, "Tty": false, "OpenStdin": false, "StdinOnce": false, "Env": null, "Cmd": null,
        "Image": "", "Volumes": null, "WorkingDir": "", "Entrypoint": null, "OnBuild": null, "Labels": {},
    });
    let mut config = over(defaults, &record.config);
    if config["Volumes"].as_object().is_some_and(Map::is_empty) {
        config["Volumes"] = Value::Null;
    }
    config
}

/// `HostConfig` with every key that Docker shows.
#[must_use]
pub fn host_config(record: &Record) -> Value {
    let mut defaults = json!({
        "Binds": null, "ContainerIDFile": "", "LogConfig": { "Type": "json-file", "Config": {} },
        "NetworkMode": "default", "PortBindings": {}, "RestartPolicy": { "Name": "no", "MaximumRetryCount": 0 },
        "AutoRemove": false, "VolumeDriver": "", "VolumesFrom": null, "ConsoleSize": [0, 0], "CapAdd": null,
        "CapDrop": null, "CgroupnsMode": "private", "Dns": [], "DnsOptions": [], "DnsSearch": [], "ExtraHosts": null,
        "GroupAdd": null, "IpcMode": "private", "Cgroup": "", "Links": null, "OomScoreAdj": 0, "PidMode": "",
        "Privileged": false, "PublishAllPorts": false, "ReadonlyRootfs": false, "SecurityOpt": null, "UTSMode": "",
        "UsernsMode": "", "ShmSize": 67_108_864, "Runtime": super::config::RUNTIME, "Isolation": "",
    });
    let resources = json!({
        "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "", "BlkioWeight": 0, "BlkioWeightDevice": [],
        "BlkioDeviceReadBps": [], "BlkioDeviceWriteBps": [], "BlkioDeviceReadIOps": [], "BlkioDeviceWriteIOps": [],
        "CpuPeriod": 0, "CpuQuota": 0, "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0, "CpusetCpus": "",
        "CpusetMems": "", "Devices": [], "DeviceCgroupRules": null, "DeviceRequests": null, "MemoryReservation": 0,
        "MemorySwap": 0, "MemorySwappiness": null, "OomKillDisable": null, "PidsLimit": null, "Ulimits": [],
        "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0, "IOMaximumBandwidth": 0, "MaskedPaths": null,
        "ReadonlyPaths": null,
    });
    if let (Value::Object(all), Value::Object(resources)) = (&mut defaults, resources) {
        all.extend(resources);
    }
    over(defaults, &record.host)
}

/// What was given over what is shown otherwise; nothing given shows the default.
fn over(mut defaults: Value, given: &Value) -> Value {
    if let (Value::Object(all), Value::Object(given)) = (&mut defaults, given) {
        all.extend(
            given.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.clone(), value.clone())),
        );
    }
    defaults
}

/// `State`.
#[must_use]
pub fn state(record: &Record) -> Value {
    let phase = &record.phase;
    let time = |time: Option<Timestamp>| time.map_or_else(|| ZERO_TIME.to_owned(), Timestamp::to_rfc3339_nano);
    let ended = phase.ended();
    let pid = if let Phase::Running { pid, .. } = phase { *pid } else { 0 };
    let mut state = json!({
        "Status": phase.word(),
        "Running": phase.is_running() || matches!(phase, Phase::Restarting(_)),
        "Paused": phase.is_paused(),
        "Restarting": matches!(phase, Phase::Restarting(_)),
        "OOMKilled": phase.oom_killed(),
        "Dead": false,
        "Pid": pid,
        "ExitCode": phase.code(),
        "Error": phase.error(),
        "StartedAt": time(phase.started_at()),
        "FinishedAt": time(ended.map(|ended| ended.finished_at)),
    });
    if let Some(health) = &record.health {
        state["Health"] = health.shown();
    }
    state
}

/// Where a container's changes are on the host, and over what they lie.
#[must_use]
pub fn graph_driver(engine: &Engine, container: &Container) -> Value {
    let text = |path: std::path::PathBuf| path.display().to_string();
    let image = container.record().image_id.clone();
    let layers =
        engine.images.image(&image).and_then(|image| engine.images.layer_files(&image).ok()).unwrap_or_default();
    // Highest first, as overlayfs writes it.
    let lower: Vec<String> = layers.into_iter().rev().map(|layer| text(layer.path)).collect();
    let lower = lower.join(":");
    match container.isolation {
        Isolation::Process => {
            let bundle = engine.bundle(&container.id);
            let disk = Some(kept(&container.dir, UPPER_DISK)).filter(|disk| disk.exists());
            let changes = disk.as_ref().map_or_else(|| container.dir.clone(), |_| bundle.join(super::bundle::CHANGES));
            let mut data = json!({
                "LowerDir": lower,
                "UpperDir": text(kept(&changes, "upper")),
                "WorkDir": text(kept(&changes, "work")),
                "MergedDir": text(bundle.join(super::bundle::ROOTFS)),
            });
            if let Some(disk) = disk {
                data["Scratch"] = text(disk).into();
            }
            json!({ "Name": "erofs", "Data": data })
        }
        Isolation::Hyperv => json!({
            "Name": "erofs",
            "Data": { "LowerDir": lower, "Scratch": text(kept(&container.dir, SCRATCH)) },
        }),
    }
}

/// `docker ps`' status, such as `Up 3 minutes` or `Exited (1) 2 hours ago`. Source: moby `container/state.go`.
#[must_use]
pub fn status_text(record: &Record) -> String {
    let since = |time: Timestamp| human_duration(time.elapsed().as_secs());
    match &record.phase {
        Phase::Created { .. } => "Created".into(),
        Phase::Running { started_at, paused: true, .. } => format!("Up {} (Paused)", since(*started_at)),
        Phase::Running { started_at, .. } => match record.health.as_ref().map(|health| health.status) {
            None => format!("Up {}", since(*started_at)),
            Some(HealthStatus::Starting) => format!("Up {} (health: starting)", since(*started_at)),
            Some(status) => format!("Up {} ({})", since(*started_at), status.word()),
        },
        Phase::Restarting(ended) => format!("Restarting ({}) {} ago", ended.code, since(ended.finished_at)),
        Phase::Exited(ended) => format!("Exited ({}) {} ago", ended.code, since(ended.finished_at)),
    }
}

/// Source: docker/go-units `HumanDuration`.
fn human_duration(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, seconds.saturating_add(1800) / 3600);
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::health::Health;
    use crate::container::record::tests::record;
    use crate::container::record::{Ended, Fault};

    #[test]
    fn every_key_is_there_and_what_was_given_wins() {
        let record = record("abc", "n");
        let (config, host) = (config(&record), host_config(&record));
        assert_eq!((&config["Image"], &config["Tty"]), (&json!("busybox"), &json!(false)));
        assert_eq!((&host["NetworkMode"], &host["ShmSize"]), (&json!("none"), &json!(67_108_864)));
        assert!(host.as_object().unwrap().len() > 60);
    }

    #[test]
    fn a_failed_start_shows_in_the_state() {
        let phase = Phase::Created { fault: Some(Fault { code: 127, error: "no".into() }) };
        let state = state(&Record { phase, ..record("abc", "n") });
        assert_eq!(
            (&state["Status"], &state["ExitCode"], &state["Error"]),
            (&json!("created"), &json!(127), &json!("no"))
        );
        assert_eq!(state["StartedAt"], ZERO_TIME);
    }

    #[test]
    fn durations_read_as_docker_writes_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (86_400 * 3, "3 days"),
            (86_400 * 100, "3 months"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
        let ended = Ended {
            started_at: Timestamp(0),
            finished_at: Timestamp::now(),
            code: 3,
            error: String::new(),
            oom_killed: false,
        };
        let mut record = Record { phase: Phase::Exited(ended), ..record("abc", "n") };
        assert_eq!(status_text(&record), "Exited (3) Less than a second ago");
        record.phase = Phase::Running { pid: 1, started_at: Timestamp::now(), paused: false, oom_kills: 0 };
        record.health = Some(Health::starting(None));
        assert_eq!(status_text(&record), "Up Less than a second (health: starting)");
        assert_eq!(state(&record)["Health"]["Status"], "starting");
        assert_eq!(state(&record)["OOMKilled"], false);
        record.phase = Phase::Running { pid: 1, started_at: Timestamp::now(), paused: false, oom_kills: 1 };
        assert_eq!(state(&record)["OOMKilled"], true);
    }
}
