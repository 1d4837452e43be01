//! Flags of `run` and `create`.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::limits::LimitArgs;
use super::network::JoinArgs;
use crate::parse::isolation::IsolationWord;
use crate::parse::{duration, size};

/// `run`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct RunArgs {
    /// Run in the background and print the container's id
    #[arg(short, long)]
    pub detach: bool,
    /// Pass signals on to the container
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub sig_proxy: bool,
    /// Keys that detach from the container
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<String>,
    /// Everything about the container.
    #[command(flatten)]
    pub create: CreateArgs,
}

/// `create`, and what `run` has in common with it.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct CreateArgs {
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    pub help: Option<bool>,

    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Attach only these: stdin, stdout, stderr
    #[arg(short, long, value_name = "STREAM")]
    pub attach: Vec<String>,
    /// Name
    #[arg(long)]
    pub name: Option<String>,
    /// The wall around it: process, hyperv or default
    #[arg(long, value_name = "ISOLATION", value_parser = IsolationWord, hide_possible_values = true)]
    pub isolation: Option<String>,
    /// Write the container's id to this file
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Platform, such as linux/amd64
    #[arg(long)]
    pub platform: Option<String>,
    /// When to pull the image: always, missing or never
    #[arg(long, default_value = "missing", value_name = "WHEN", value_parser = ["always", "missing", "never"])]
    pub pull: String,

    /// Without the progress of a pull
    #[arg(short, long)]
    pub quiet: bool,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// Cgroup below which it is
    #[arg(long, value_name = "CGROUP")]
    pub cgroup_parent: Option<String>,
    /// Environment variable NAME=VALUE, or NAME for the own value
    #[arg(short, long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// File of environment variables
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Label NAME=VALUE
    #[arg(short, long, value_name = "LABEL")]
    pub label: Vec<String>,
    /// File of labels
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<PathBuf>,
    /// Annotation NAME=VALUE for the runtime
    #[arg(long, value_name = "ANNOTATION")]
    pub annotation: Vec<String>,
    /// Folder in which the command runs
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User name or id, perhaps with :group
    #[arg(short, long)]
    pub user: Option<String>,
    /// Further groups of the user
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// Another entrypoint than the image's; empty for none
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Signal that stops the container
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds from that signal to SIGKILL
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<i64>,
    /// When to start it again: no, on-failure[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,

    /// Host name
    #[arg(short = 'h', long)]
    pub hostname: Option<String>,
    /// Domain name
    #[arg(long)]
    pub domainname: Option<String>,
    /// Its networks.
    #[command(flatten)]
    pub join: JoinArgs,
    /// Publish a port
    #[arg(short, long, value_name = "PORT")]
    pub publish: Vec<String>,
    /// Publish all exposed ports
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Expose a port
    #[arg(long, value_name = "PORT")]
    pub expose: Vec<String>,
    /// Name server
    #[arg(long)]
    pub dns: Vec<String>,
    /// Search domain
    #[arg(long)]
    pub dns_search: Vec<String>,
    /// Option for the resolver
    #[arg(long, value_name = "OPTION")]
    pub dns_option: Vec<String>,
    /// Line for /etc/hosts, NAME:ADDRESS
    #[arg(long, value_name = "HOST")]
    pub add_host: Vec<String>,

    /// The container cannot change its root file system
    #[arg(long)]
    pub read_only: bool,
    /// Bind a folder: SOURCE:DESTINATION[:ro]
    #[arg(short, long, value_name = "BIND")]
    pub volume: Vec<String>,
    /// With the volumes of another container, CONTAINER[:ro]
    #[arg(long, value_name = "CONTAINER")]
    pub volumes_from: Vec<String>,
    /// Driver of volumes that are made
    #[arg(long, value_name = "DRIVER")]
    pub volume_driver: Option<String>,
    /// Mount: type=bind|volume|tmpfs,source=...,target=...
    #[arg(long)]
    pub mount: Vec<String>,
    /// Folder in memory: PATH[:OPTIONS]
    #[arg(long, value_name = "PATH")]
    pub tmpfs: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", value_parser = size::bytes)]
    pub shm_size: Option<i64>,
    /// Option for the container's disk, such as size=20g
    #[arg(long, value_name = "OPTION")]
    pub storage_opt: Vec<String>,
    /// Device of the host
    #[arg(long)]
    pub device: Vec<String>,
    /// Rule for devices, such as "c 10:200 rwm"
    #[arg(long, value_name = "RULE")]
    pub device_cgroup_rule: Vec<String>,
    /// GPUs: all, a number, or device=...,driver=...,capabilities=...,options=...
    #[arg(long, value_name = "GPUS")]
    pub gpus: Vec<String>,

    /// What the container may do besides the default
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// What the container may not do
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// Everything is allowed to the container, within its kernel
    #[arg(long)]
    pub privileged: bool,
    /// Security option: seccomp=unconfined|FILE, no-new-privileges, boundary=required
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// Setting of the container's kernel, NAME=VALUE
    #[arg(long, value_name = "SETTING")]
    pub sysctl: Vec<String>,
    /// Limit of a process, NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT")]
    pub ulimit: Vec<String>,
    /// PID namespace
    #[arg(long, value_name = "MODE")]
    pub pid: Option<String>,
    /// IPC namespace
    #[arg(long, value_name = "MODE")]
    pub ipc: Option<String>,
    /// UTS namespace
    #[arg(long, value_name = "MODE")]
    pub uts: Option<String>,
    /// User namespace
    #[arg(long, value_name = "MODE")]
    pub userns: Option<String>,
    /// Cgroup namespace: private or host
    #[arg(long, value_name = "MODE", value_parser = ["private", "host"])]
    pub cgroupns: Option<String>,
    /// Run an init that reaps processes
    #[arg(long)]
    pub init: bool,
    /// Runtime, an older way to say the isolation
    #[arg(long)]
    pub runtime: Option<String>,

    /// What it may use.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Weight for a block device, DEVICE:WEIGHT
    #[arg(long, value_name = "DEVICE")]
    pub blkio_weight_device: Vec<String>,
    /// Bytes a second read from a device, DEVICE:BYTES
    #[arg(long, value_name = "DEVICE")]
    pub device_read_bps: Vec<String>,
    /// Bytes a second written to a device, DEVICE:BYTES
    #[arg(long, value_name = "DEVICE")]
    pub device_write_bps: Vec<String>,
    /// Reads a second from a device, DEVICE:NUMBER
    #[arg(long, value_name = "DEVICE")]
    pub device_read_iops: Vec<String>,
    /// Writes a second to a device, DEVICE:NUMBER
    #[arg(long, value_name = "DEVICE")]
    pub device_write_iops: Vec<String>,
    /// How eagerly its memory is swapped out, 0 to 100
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub memory_swappiness: Option<i64>,
    /// It is not killed when memory is short
    #[arg(long)]
    pub oom_kill_disable: bool,
    /// Adjustment of the out-of-memory score
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub oom_score_adj: Option<i64>,

    /// How it is found out whether it works.
    #[command(flatten)]
    pub health: HealthArgs,

    /// Where the container's output is kept: json-file or none
    #[arg(long, value_name = "DRIVER")]
    pub log_driver: Option<String>,
    /// Option for that, such as max-size=10m
    #[arg(long, value_name = "OPTION")]
    pub log_opt: Vec<String>,

    /// Image, command and arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    pub image_and_command: Vec<String>,
}

/// A container's health check.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Command that tells by its exit code whether the container works
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// From one check to the next, such as 30s
    #[arg(long, value_name = "DURATION", value_parser = duration::nanoseconds)]
    pub health_interval: Option<i64>,
    /// How long a check may take
    #[arg(long, value_name = "DURATION", value_parser = duration::nanoseconds)]
    pub health_timeout: Option<i64>,
    /// Failures in a row that make it unhealthy
    #[arg(long, value_name = "NUMBER")]
    pub health_retries: Option<i64>,
    /// How long failures do not count after the start
    #[arg(long, value_name = "DURATION", value_parser = duration::nanoseconds)]
    pub health_start_period: Option<i64>,
    /// From one check to the next in that time
    #[arg(long, value_name = "DURATION", value_parser = duration::nanoseconds)]
    pub health_start_interval: Option<i64>,
    /// None, not the image's either
    #[arg(long, conflicts_with_all = ["health_cmd", "health_interval", "health_timeout", "health_retries", "health_start_period", "health_start_interval"])]
    pub no_healthcheck: bool,
}

impl CreateArgs {
    /// The image.
    #[must_use]
    pub fn image(&self) -> &str {
        self.image_and_command.first().map_or("", String::as_str)
    }

    /// Command and arguments; nothing for the image's own.
    #[must_use]
    pub fn command(&self) -> &[String] {
        self.image_and_command.get(1..).unwrap_or_default()
    }
}
