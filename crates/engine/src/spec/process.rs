//! The process of a container, and of an exec: command, environment, user, terminal, limits.

use std::path::PathBuf;

use bollard::models::{ExecConfig, HostConfig, ResourcesUlimits};
use oci_spec::runtime::{
    Box as ConsoleSize, BoxBuilder, Capabilities, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Spec, User,
};
use proto::Isolation;

use super::{FILES_ANNOTATION, SpecError, SpecInput, capabilities};

/// Where programs are looked for when the image does not say. Source: moby `oci.DefaultPathEnv`.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The container's first process, without capabilities, user and limits.
pub(super) fn init(input: &SpecInput<'_>) -> Result<Process, SpecError> {
    let (config, host) = (input.config, input.host_config);
    let arguments: Vec<String> =
        config.entrypoint.iter().flatten().chain(config.cmd.iter().flatten()).cloned().collect();
    if arguments.first().is_none_or(String::is_empty) {
        return Err(SpecError::Process("no command specified".into()));
    }
    let terminal = input.terminal;
    let mut process = Process::default();
    process
        .set_args(Some(arguments))
        .set_env(Some(environment(config.env.as_deref().unwrap_or_default(), input.hostname, terminal)?))
        .set_cwd(working_dir(config.working_dir.as_deref())?)
        .set_terminal(Some(terminal))
        .set_user(user(config.user.as_deref().unwrap_or_default(), host.group_add.as_deref().unwrap_or_default()))
        .set_rlimits(rlimits(host)?)
        .set_console_size(None);
    if terminal {
        process.set_console_size(host.console_size.as_deref().and_then(console_size));
    }
    Ok(process)
}

/// One more process in a running container, whose environment, folder, user and limits it inherits.
///
/// # Errors
/// [`SpecError::Process`] if the command, the folder or the environment cannot be.
pub fn build_exec_process(spec: &Spec, exec: &ExecConfig) -> Result<Process, SpecError> {
    let command = exec.cmd.as_deref().unwrap_or_default();
    if command.first().is_none_or(String::is_empty) {
        return Err(SpecError::Process("No exec command specified".into()));
    }
    let container = spec.process().as_ref().ok_or_else(|| SpecError::Process("no command specified".into()))?;
    let terminal = exec.tty.unwrap_or_default();
    let mut environment = container.env().clone().unwrap_or_default();
    if terminal && !environment.iter().any(|entry| entry.starts_with("TERM=")) {
        environment.push("TERM=xterm".into());
    }
    replace(&mut environment, exec.env.as_deref().unwrap_or_default())?;
    let cwd = match exec.working_dir.as_deref().filter(|path| !path.is_empty()) {
        Some(path) => working_dir(Some(path))?,
        None => container.cwd().clone(),
    };
    let user = match exec.user.as_deref().filter(|user| !user.is_empty()) {
        Some(typed) => user(typed, &[]),
        None => container.user().clone(),
    };
    let mut process = Process::default();
    process
        .set_args(Some(command.to_vec()))
        .set_env(Some(environment))
        .set_cwd(cwd)
        .set_user(user)
        .set_terminal(Some(terminal))
        .set_console_size(exec.console_size.as_deref().filter(|_| terminal).and_then(console_size))
        .set_rlimits(container.rlimits().clone())
        .set_no_new_privileges(container.no_new_privileges())
        .set_oom_score_adj(container.oom_score_adj())
        .set_capabilities(container.capabilities().clone());
    if exec.privileged.unwrap_or_default() {
        let all = capabilities::decide(&[], &[], true, isolation_of(spec))?;
        process.set_capabilities(Some(capabilities::sets(&all)));
    }
    Ok(process)
}

/// Which wall a spec of ours was built for: only a utility VM is sent files.
fn isolation_of(spec: &Spec) -> Isolation {
    let sent = spec.annotations().as_ref().is_some_and(|annotations| annotations.contains_key(FILES_ANNOTATION));
    if sent { Isolation::Hyperv } else { Isolation::Process }
}

/// Writes the capability sets and what goes with them.
pub(super) fn confine(process: &mut Process, granted: &Capabilities, no_new_privileges: bool, oom: Option<i32>) {
    process
        .set_capabilities(Some(capabilities::sets(granted)))
        .set_no_new_privileges(Some(no_new_privileges))
        .set_oom_score_adj(oom);
}

/// PATH, HOSTNAME and TERM, then what image and user say: a later entry replaces an earlier one, and a name without
/// `=` removes it. Source: moby `container.ReplaceOrAppendEnvValues`.
fn environment(given: &[String], hostname: &str, terminal: bool) -> Result<Vec<String>, SpecError> {
    let mut environment = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if terminal {
        environment.push("TERM=xterm".into());
    }
    replace(&mut environment, given)?;
    Ok(environment)
}

fn replace(environment: &mut Vec<String>, given: &[String]) -> Result<(), SpecError> {
    for entry in given {
        let (name, value) = entry.split_once('=').map_or((entry.as_str(), None), |(name, value)| (name, Some(value)));
        if name.is_empty() || entry.contains('\0') {
            return Err(SpecError::Process(format!("invalid environment variable: {entry}")));
        }
        let same =
            environment.iter().position(|kept| kept.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')));
        match (same, value) {
            (Some(at), Some(_)) => environment[at].clone_from(entry),
            (Some(at), None) => {
                environment.remove(at);
            }
            (None, Some(_)) => environment.push(entry.clone()),
            (None, None) => {}
        }
    }
    Ok(())
}

fn working_dir(path: Option<&str>) -> Result<PathBuf, SpecError> {
    match path.filter(|path| !path.is_empty()) {
        None => Ok("/".into()),
        Some(path) if path.starts_with('/') => Ok(path.into()),
        Some(path) => Err(SpecError::Process(format!(
            "the working directory '{path}' is invalid, it needs to be an absolute path"
        ))),
    }
}

/// What can be said about the user without looking into the image: the numbers. The name as typed travels with it.
fn user(typed: &str, groups: &[String]) -> User {
    let (name, group) = typed.split_once(':').unwrap_or((typed, ""));
    let mut user = User::default();
    user.set_uid(name.parse().unwrap_or_default())
        .set_gid(group.parse().unwrap_or_default())
        .set_username(Some(if typed.is_empty() { "0".into() } else { typed.to_owned() }));
    let numbers: Vec<u32> = groups.iter().filter_map(|group| group.parse().ok()).collect();
    user.set_additional_gids((!numbers.is_empty()).then_some(numbers));
    user
}

fn console_size(size: &[usize]) -> Option<ConsoleSize> {
    let [height, width] = size else { return None };
    let (height, width) = (u16::try_from(*height).ok()?, u16::try_from(*width).ok()?);
    (height > 0 && width > 0).then(|| self::size(height, width))
}

fn size(height: u16, width: u16) -> ConsoleSize {
    BoxBuilder::default().height(height).width(width).build().expect("every field has a default")
}

/// `--ulimit`: names as in `ulimit`, -1 for none.
fn rlimits(host: &HostConfig) -> Result<Option<Vec<PosixRlimit>>, SpecError> {
    let limits = host.ulimits.as_deref().filter(|limits| !limits.is_empty());
    limits.map(|limits| limits.iter().map(rlimit).collect()).transpose()
}

/// One limit.
///
/// # Errors
/// A name that is none; a soft limit above the hard one.
pub fn rlimit(limit: &ResourcesUlimits) -> Result<PosixRlimit, SpecError> {
    let name = limit.name.as_deref().unwrap_or_default();
    let upper = name.to_ascii_uppercase();
    let name = upper.strip_prefix("RLIMIT_").unwrap_or(&upper);
    let typ: PosixRlimitType = format!("RLIMIT_{name}")
        .parse()
        .map_err(|_| SpecError::Limit(format!("invalid ulimit type: {}", name.to_ascii_lowercase())))?;
    let (soft, hard) = (bytes_or_none(limit.soft), bytes_or_none(limit.hard));
    if soft > hard {
        let text = "ulimit soft limit must be less than or equal to hard limit";
        return Err(SpecError::Limit(format!("{text}: {soft} > {hard}")));
    }
    let rlimit = PosixRlimitBuilder::default().typ(typ).soft(soft).hard(hard).build();
    Ok(rlimit.expect("every field has a default"))
}

fn bytes_or_none(value: Option<i64>) -> u64 {
    u64::try_from(value.unwrap_or_default()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bollard::models::ContainerConfig;

    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    fn init(config: &ContainerConfig, host_config: &HostConfig) -> Result<Process, SpecError> {
        let path = Path::new("/nonexistent");
        super::init(&SpecInput {
            isolation: Isolation::Process,
            config,
            host_config,
            mounts: &[],
            rootfs: path,
            network: super::super::NetworkNamespace::Own,
            files: path,
            hostname: "box",
            cgroup: "/bulkhead/x",
            terminal: config.tty.unwrap_or_default(),
        })
    }

    #[test]
    fn the_users_environment_wins_over_the_defaults() {
        let environment = environment(&strings(&["A=1", "PATH=/bin", "A=2", "TERM"]), "box", true).unwrap();
        assert_eq!(environment, ["PATH=/bin", "HOSTNAME=box", "A=2"]);
        assert!(super::environment(&strings(&["=x"]), "box", false).is_err());
    }

    #[test]
    fn entrypoint_and_command_are_joined() {
        let config = ContainerConfig {
            entrypoint: Some(strings(&["/e", "-x"])),
            cmd: Some(strings(&["y"])),
            tty: Some(true),
            ..Default::default()
        };
        let host = HostConfig { console_size: Some(vec![24, 80]), ..Default::default() };
        let process = init(&config, &host).unwrap();
        assert_eq!(process.args().clone().unwrap(), ["/e", "-x", "y"]);
        assert_eq!(process.console_size().map(|size| (size.height(), size.width())), Some((24, 80)));
        assert!(process.env().clone().unwrap().contains(&"HOSTNAME=box".to_owned()));
        let nothing = init(&ContainerConfig::default(), &host).unwrap_err();
        assert_eq!(nothing.to_string(), "no command specified");
    }

    #[test]
    fn a_relative_working_folder_is_refused() {
        let config =
            ContainerConfig { cmd: Some(strings(&["x"])), working_dir: Some("rel".into()), ..Default::default() };
        assert_eq!(
            init(&config, &HostConfig::default()).unwrap_err().to_string(),
            "the working directory 'rel' is invalid, it needs to be an absolute path"
        );
    }

    #[test]
    fn users_keep_their_name_for_the_image_to_resolve() {
        let numeric = user("1000:50", &strings(&["7", "video"]));
        assert_eq!((numeric.uid(), numeric.gid()), (1000, 50));
        assert_eq!(numeric.additional_gids().clone().unwrap(), [7]);
        assert_eq!(user("daemon", &[]).username().as_deref(), Some("daemon"));
        assert_eq!(user("", &[]).username().as_deref(), Some("0"));
    }

    #[test]
    fn ulimits_have_names_and_order() {
        let limit = |name: &str, soft, hard| HostConfig {
            ulimits: Some(vec![ResourcesUlimits { name: Some(name.into()), soft, hard }]),
            ..Default::default()
        };
        let limits = rlimits(&limit("nofile", Some(5), Some(-1))).unwrap().unwrap();
        assert_eq!((limits[0].soft(), limits[0].hard()), (5, u64::MAX));
        assert!(rlimits(&limit("nofile", Some(5), Some(4))).is_err());
        assert_eq!(rlimits(&limit("odd", None, None)).unwrap_err().to_string(), "invalid ulimit type: odd");
    }

    #[test]
    fn an_exec_inherits_what_it_does_not_say() {
        let config = ContainerConfig {
            cmd: Some(strings(&["x"])),
            env: Some(strings(&["A=1"])),
            user: Some("daemon".into()),
            working_dir: Some("/srv".into()),
            ..Default::default()
        };
        let mut spec = Spec::default();
        spec.set_process(Some(init(&config, &HostConfig::default()).unwrap()));
        let mut exec = ExecConfig {
            cmd: Some(strings(&["sh"])),
            env: Some(strings(&["B=2"])),
            tty: Some(true),
            console_size: Some(vec![24, 80]),
            ..Default::default()
        };
        let process = build_exec_process(&spec, &exec).unwrap();
        assert_eq!((process.user().username().as_deref(), process.cwd().to_str()), (Some("daemon"), Some("/srv")));
        let environment = process.env().clone().unwrap();
        assert!(["A=1", "B=2", "TERM=xterm"].iter().all(|entry| environment.contains(&(*entry).to_owned())));
        assert_eq!(process.console_size().map(|size| size.width()), Some(80));
        exec.user = Some("0:0".into());
        assert_eq!(build_exec_process(&spec, &exec).unwrap().user().username().as_deref(), Some("0:0"));
        exec.cmd = None;
        assert!(build_exec_process(&spec, &exec).is_err());
    }
}
