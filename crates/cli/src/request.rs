//! Turns the flags of `run` and `create` into the body of `POST /containers/create`.

pub mod networks;

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigIsolationEnum,
    HostConfigLogConfig,
};
use proto::Isolation;

use crate::args::container::{CreateArgs, HealthArgs};
use crate::args::limits::LimitArgs;
use crate::error::{CliError, CliResult};
use crate::parse::block::{self, Rate};
use crate::parse::{environment, gpus, mount, ports, restart, ulimit};
use crate::terminal;

/// Which of the container's streams are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// The user's input goes to the container.
    pub stdin: bool,
    /// The container's output comes to the user.
    pub stdout: bool,
    /// Its errors too.
    pub stderr: bool,
}

impl Attached {
    /// Everything by default, input only with `-i`; only what is named with `-a`; nothing in the background.
    ///
    /// # Errors
    /// [`CliError::Usage`] for an unknown stream.
    pub fn choose(streams: &[String], interactive: bool, detach: bool) -> CliResult<Self> {
        if detach {
            return Ok(Self { stdin: false, stdout: false, stderr: false });
        }
        if streams.is_empty() {
            return Ok(Self { stdin: interactive, stdout: true, stderr: true });
        }
        let mut attached = Self { stdin: false, stdout: false, stderr: false };
        for stream in streams {
            match stream.to_ascii_lowercase().as_str() {
                "stdin" => attached.stdin = true,
                "stdout" => attached.stdout = true,
                "stderr" => attached.stderr = true,
                _ => return Err(CliError::Usage(format!("invalid stream {stream:?}: choose stdin, stdout or stderr"))),
            }
        }
        Ok(attached)
    }
}

/// The body of the request.
///
/// # Errors
/// [`CliError::Usage`] for values that cannot be, [`CliError::Local`] for files that cannot be read.
pub fn create_body(args: &CreateArgs, attached: Attached, auto_remove: bool) -> CliResult<ContainerCreateBody> {
    let own = |name: &str| std::env::var(name).ok();
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let mut exposed = Vec::new();
    for port in &args.expose {
        exposed.push(ports::exposed(port).ok_or_else(|| CliError::Usage(format!("invalid port: {port:?}")))?);
    }
    let (mode, networking_config) = networks::join(&args.join)?;
    let mut host_config = HostConfig { network_mode: Some(mode), ..host_config(args, auto_remove)? };
    exposed.extend(host_config.port_bindings.iter().flat_map(HashMap::keys).cloned());
    exposed.sort();
    exposed.dedup();
    host_config.console_size =
        terminal::size().filter(|_| args.tty).map(|(height, width)| vec![height.into(), width.into()]);
    Ok(ContainerCreateBody {
        image: Some(args.image().to_owned()),
        cmd: some(args.command()),
        entrypoint: args.entrypoint.clone().map(|entrypoint| vec![entrypoint]),
        env: some(&environment::variables(&args.env_file, &args.env, own)?),
        labels: Some(environment::labels(&args.label_file, &args.label)?),
        working_dir: args.workdir.clone(),
        user: args.user.clone(),
        hostname: args.hostname.clone(),
        domainname: args.domainname.clone(),
        tty: Some(args.tty),
        open_stdin: Some(args.interactive),
        stdin_once: Some(args.interactive && attached.stdin),
        attach_stdin: Some(attached.stdin),
        attach_stdout: Some(attached.stdout),
        attach_stderr: Some(attached.stderr),
        stop_signal: args.stop_signal.clone(),
        stop_timeout: args.stop_timeout,
        exposed_ports: (!exposed.is_empty()).then_some(exposed),
        host_config: Some(host_config),
        networking_config,
        healthcheck: health(&args.health),
        ..Default::default()
    })
}

fn host_config(args: &CreateArgs, auto_remove: bool) -> CliResult<HostConfig> {
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let map = |list: &[String], what: &str| (!list.is_empty()).then(|| environment::pairs(list, what)).transpose();
    let mut host = HostConfig {
        isolation: Some(isolation(args.isolation.as_deref())?),
        runtime: args.runtime.clone(),
        port_bindings: (!args.publish.is_empty()).then(|| ports::bindings(&args.publish)).transpose()?,
        publish_all_ports: args.publish_all.then_some(true),
        dns: some(&args.dns),
        dns_search: some(&args.dns_search),
        dns_options: some(&args.dns_option),
        extra_hosts: some(&args.add_host),
        auto_remove: Some(auto_remove),
        restart_policy: args.restart.as_deref().map(restart::policy).transpose()?,
        log_config: log_config(args)?,
        annotations: map(&args.annotation, "annotation")?,
        binds: some(&args.volume),
        tmpfs: (!args.tmpfs.is_empty()).then(|| mount::tmpfs(&args.tmpfs)),
        readonly_rootfs: Some(args.read_only),
        shm_size: args.shm_size,
        storage_opt: map(&args.storage_opt, "storage option")?,
        device_cgroup_rules: some(&args.device_cgroup_rule),
        device_requests: gpus::requests(&args.gpus)?,
        cap_add: some(&args.cap_add),
        cap_drop: some(&args.cap_drop),
        privileged: Some(args.privileged),
        sysctls: map(&args.sysctl, "sysctl")?,
        group_add: some(&args.group_add),
        pid_mode: args.pid.clone(),
        ipc_mode: args.ipc.clone(),
        uts_mode: args.uts.clone(),
        userns_mode: args.userns.clone(),
        cgroupns_mode: args.cgroupns.as_deref().map(cgroup_namespace),
        init: args.init.then_some(true),
        volumes_from: some(&args.volumes_from),
        volume_driver: args.volume_driver.clone(),
        cgroup_parent: args.cgroup_parent.clone(),
        memory_swappiness: args.memory_swappiness,
        oom_kill_disable: args.oom_kill_disable.then_some(true),
        oom_score_adj: args.oom_score_adj,
        ..limits(&args.limits)
    };
    if !args.mount.is_empty() {
        host.mounts = Some(args.mount.iter().map(|text| mount::mount(text)).collect::<CliResult<_>>()?);
    }
    if !args.device.is_empty() {
        host.devices = Some(args.device.iter().map(|text| mount::device(text)).collect::<CliResult<_>>()?);
    }
    fine_limits(&mut host, args)?;
    security(&mut host, &args.security_opt)?;
    Ok(host)
}

/// The limits, as the engine has them for new containers and for `update`.
#[must_use]
pub fn limits(args: &LimitArgs) -> HostConfig {
    HostConfig {
        memory: args.memory,
        memory_swap: args.memory_swap,
        memory_reservation: args.memory_reservation,
        nano_cpus: args.cpus,
        cpu_shares: args.cpu_shares,
        cpu_quota: args.cpu_quota,
        cpu_period: args.cpu_period,
        cpu_realtime_period: args.cpu_rt_period,
        cpu_realtime_runtime: args.cpu_rt_runtime,
        cpuset_cpus: args.cpuset_cpus.clone(),
        cpuset_mems: args.cpuset_mems.clone(),
        pids_limit: args.pids_limit,
        blkio_weight: args.blkio_weight,
        ..Default::default()
    }
}

/// What is limited by device and by process.
fn fine_limits(host: &mut HostConfig, args: &CreateArgs) -> CliResult<()> {
    if !args.ulimit.is_empty() {
        host.ulimits = Some(args.ulimit.iter().map(|text| ulimit::ulimit(text)).collect::<CliResult<_>>()?);
    }
    host.blkio_weight_device = block::weights(&args.blkio_weight_device)?;
    host.blkio_device_read_bps = block::throttles(&args.device_read_bps, Rate::Bytes)?;
    host.blkio_device_write_bps = block::throttles(&args.device_write_bps, Rate::Bytes)?;
    host.blkio_device_read_iops = block::throttles(&args.device_read_iops, Rate::Operations)?;
    host.blkio_device_write_iops = block::throttles(&args.device_write_iops, Rate::Operations)?;
    Ok(())
}

/// The health check; none if no flag asks for one.
fn health(args: &HealthArgs) -> Option<HealthConfig> {
    if args.no_healthcheck {
        return Some(HealthConfig { test: Some(vec!["NONE".into()]), ..Default::default() });
    }
    let config = HealthConfig {
        test: args.health_cmd.clone().map(|command| vec!["CMD-SHELL".into(), command]),
        interval: args.health_interval,
        timeout: args.health_timeout,
        retries: args.health_retries,
        start_period: args.health_start_period,
        start_interval: args.health_start_interval,
    };
    (config != HealthConfig::default()).then_some(config)
}

/// The isolation, checked here already so that a wrong word is told without an engine.
fn isolation(word: Option<&str>) -> CliResult<HostConfigIsolationEnum> {
    let Some(word) = word.filter(|word| !word.is_empty() && !word.eq_ignore_ascii_case("default")) else {
        return Ok(HostConfigIsolationEnum::DEFAULT);
    };
    match word.parse::<Isolation>() {
        Ok(Isolation::Process) => Ok(HostConfigIsolationEnum::PROCESS),
        Ok(Isolation::Hyperv) => Ok(HostConfigIsolationEnum::HYPERV),
        Err(error) => Err(CliError::Usage(error.to_string())),
    }
}

fn cgroup_namespace(word: &str) -> HostConfigCgroupnsModeEnum {
    if word == "host" { HostConfigCgroupnsModeEnum::HOST } else { HostConfigCgroupnsModeEnum::PRIVATE }
}

fn log_config(args: &CreateArgs) -> CliResult<Option<HostConfigLogConfig>> {
    if args.log_driver.is_none() && args.log_opt.is_empty() {
        return Ok(None);
    }
    let config = environment::pairs(&args.log_opt, "log option")?;
    Ok(Some(HostConfigLogConfig { typ: args.log_driver.clone(), config: Some(config) }))
}

/// A seccomp profile is read here, since the engine cannot see the user's files; `systempaths=unconfined` is a matter of
/// lists for the engine. Source: docker/cli `parseSecurityOpts`, `parseSystemPaths`.
fn security(host: &mut HostConfig, options: &[String]) -> CliResult<()> {
    let mut passed = Vec::new();
    for option in options {
        let (key, value) = option.split_once('=').or_else(|| option.split_once(':')).unwrap_or((option, ""));
        match (key, value) {
            ("seccomp", file) if !matches!(file, "unconfined" | "builtin" | "") => {
                let text = std::fs::read_to_string(file).map_err(CliError::file(Path::new(file)))?;
                let invalid = |error| CliError::Usage(format!("{file} is no seccomp profile: {error}"));
                let profile: serde_json::Value = serde_json::from_str(&text).map_err(invalid)?;
                passed.push(format!("seccomp={profile}"));
            }
            ("systempaths", "unconfined") => {
                host.masked_paths = Some(Vec::new());
                host.readonly_paths = Some(Vec::new());
            }
            _ => passed.push(option.clone()),
        }
    }
    host.security_opt = (!passed.is_empty()).then_some(passed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn body(words: &str) -> CliResult<ContainerCreateBody> {
        let cli = Cli::try_parse_from(["bulkhead", "create"].into_iter().chain(words.split(' '))).unwrap();
        let Command::Create(args) = cli.command else { panic!("not create") };
        create_body(&args, Attached::choose(&args.attach, args.interactive, false)?, false)
    }

    #[test]
    fn flags_arrive_in_their_fields() {
        let body = body(
            "-i --isolation=HyperV --cpus 1.5 -m 64m --cap-add SYS_TIME --tmpfs /t:size=1m -e A=1 --entrypoint /e --read-only --network none img x y",
        )
        .unwrap();
        assert_eq!((body.image.as_deref(), body.cmd.unwrap().len()), (Some("img"), 2));
        assert_eq!(body.entrypoint.unwrap(), ["/e"]);
        assert_eq!((body.open_stdin, body.stdin_once, body.attach_stdin), (Some(true), Some(true), Some(true)));
        let host = body.host_config.unwrap();
        assert_eq!(host.isolation, Some(HostConfigIsolationEnum::HYPERV));
        assert_eq!((host.nano_cpus, host.memory), (Some(1_500_000_000), Some(64 << 20)));
        assert_eq!(host.tmpfs.unwrap()["/t"], "size=1m");
        assert_eq!((host.readonly_rootfs, host.network_mode.as_deref()), (Some(true), Some("none")));
    }

    #[test]
    fn a_health_check_is_sent_only_if_it_is_asked_for() {
        assert_eq!(body("img").unwrap().healthcheck, None);
        let check = body("--health-cmd x --health-interval 1m30s --health-retries 2 img").unwrap().healthcheck.unwrap();
        assert_eq!(
            (check.test.unwrap(), check.interval),
            (vec!["CMD-SHELL".into(), "x".to_owned()], Some(90_000_000_000))
        );
        assert_eq!(body("--no-healthcheck img").unwrap().healthcheck.unwrap().test.unwrap(), ["NONE"]);
    }

    #[test]
    fn wrong_values_are_told_before_the_engine_is_asked() {
        for (words, text) in [
            ("--isolation=vm img", "invalid isolation \"vm\""),
            ("--expose x img", "invalid port"),
            ("--sysctl =1 img", "has no name"),
            ("--security-opt seccomp=/nonexistent img", "cannot read /nonexistent"),
            ("-a stdwhat img", "invalid stream"),
        ] {
            let error = body(words).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_seccomp_profile_is_sent_by_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.json");
        std::fs::write(&file, "{\n  \"defaultAction\": \"SCMP_ACT_ALLOW\"\n}").unwrap();
        let words = format!("--security-opt seccomp={} --security-opt systempaths=unconfined img", file.display());
        let host = body(&words).unwrap().host_config.unwrap();
        assert_eq!(host.security_opt.unwrap(), ["seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"]);
        assert_eq!(host.masked_paths, Some(Vec::new()));
    }

    #[test]
    fn streams_are_chosen() {
        let all = Attached { stdin: false, stdout: true, stderr: true };
        assert_eq!(Attached::choose(&[], false, false).unwrap(), all);
        let none = Attached { stdin: false, stdout: false, stderr: false };
        assert_eq!(Attached::choose(&[], true, true).unwrap(), none);
        assert!(Attached::choose(&["STDERR".into()], true, false).unwrap().stderr);
    }
}
