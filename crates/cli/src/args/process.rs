//! Flags of the commands for containers that exist.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::limits::LimitArgs;

/// Containers.
#[derive(Debug, Args)]
pub struct Names {
    /// Containers, by name or id
    #[arg(required = true, value_name = "CONTAINER")]
    pub names: Vec<String>,
}

/// `start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Attach to what it writes
    #[arg(short, long)]
    pub attach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Keys that detach from the container
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<String>,
    /// Pass signals on to the container
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub sig_proxy: bool,
    /// Containers.
    #[command(flatten)]
    pub names: Names,
}

/// `attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Keys that detach from the container
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<String>,
    /// Do not pass standard input on
    #[arg(long)]
    pub no_stdin: bool,
    /// Pass signals on to the container
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub sig_proxy: bool,
    /// Container, by name or id
    pub container: String,
}

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Run in the background
    #[arg(short, long)]
    pub detach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Environment variable NAME=VALUE
    #[arg(short, long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// File of environment variables
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Folder in which the command runs
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User name or id, perhaps with :group
    #[arg(short, long)]
    pub user: Option<String>,
    /// With every capability
    #[arg(long)]
    pub privileged: bool,
    /// Keys that detach from the command
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<String>,
    /// Container, command and arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"])]
    pub container_and_command: Vec<String>,
}

/// `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Also containers that do not run
    #[arg(short, long)]
    pub all: bool,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Ids and commands in full
    #[arg(long)]
    pub no_trunc: bool,
    /// What the container has written on its disk
    #[arg(short, long)]
    pub size: bool,
    /// The newest one
    #[arg(short, long)]
    pub latest: bool,
    /// The N newest ones
    #[arg(short = 'n', long, value_name = "N")]
    pub last: Option<i64>,
    /// Only those that fit, KEY=VALUE
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// table, json, a template, or table TEMPLATE
    #[arg(long)]
    pub format: Option<String>,
}

/// `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on with what is written from now on
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, default_value = "all", value_name = "N")]
    pub tail: String,
    /// From this time on: a timestamp, or a duration back such as 10m
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Up to this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// With the labels and variables that --log-opt labels= and env= have named
    #[arg(long)]
    pub details: bool,
    /// With the time of every line
    #[arg(short, long)]
    pub timestamps: bool,
    /// Container, by name or id
    pub container: String,
}

/// `kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// Signal
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<String>,
    /// Containers.
    #[command(flatten)]
    pub names: Names,
}

/// `stop` and `restart`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Seconds to wait before SIGKILL; -1 for no end
    #[arg(short = 't', long, visible_alias = "timeout", value_name = "SECONDS", allow_hyphen_values = true)]
    pub time: Option<i64>,
    /// Signal
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<String>,
    /// Containers.
    #[command(flatten)]
    pub names: Names,
}

/// `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Also those that run; they are killed
    #[arg(short, long)]
    pub force: bool,
    /// Only the link of this name
    #[arg(short, long)]
    pub link: bool,
    /// With their anonymous volumes
    #[arg(short, long)]
    pub volumes: bool,
    /// Containers.
    #[command(flatten)]
    pub names: Names,
}

/// `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Container, by name or id
    pub container: String,
    /// Options of ps
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PS OPTIONS")]
    pub options: Vec<String>,
}

/// `stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Also containers that do not run
    #[arg(short, long)]
    pub all: bool,
    /// Once, not again and again
    #[arg(long)]
    pub no_stream: bool,
    /// Ids in full
    #[arg(long)]
    pub no_trunc: bool,
    /// table, json, a template, or table TEMPLATE
    #[arg(long)]
    pub format: Option<String>,
    /// Containers, by name or id; all that run if none is given
    #[arg(value_name = "CONTAINER")]
    pub names: Vec<String>,
}

/// `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// From this time on
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Up to this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only those that fit, KEY=VALUE
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// json, or a template
    #[arg(long)]
    pub format: Option<String>,
}

/// `rename`.
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// Container, by name or id
    pub container: String,
    /// Its new name
    pub new_name: String,
}

/// `port`.
#[derive(Debug, Args)]
pub struct PortArgs {
    /// Container, by name or id
    pub container: String,
    /// Only this port of it, such as 80 or 53/udp
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub port: Option<String>,
}

/// `update`.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// What they may use.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// When to start them again: no, on-failure[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// Containers.
    #[command(flatten)]
    pub names: Names,
}

/// `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// json, or a template
    #[arg(short, long)]
    pub format: Option<String>,
    /// Only this kind of thing: container, image, network or volume
    #[arg(long = "type", value_name = "KIND", value_parser = ["container", "image", "network", "volume"])]
    pub kind: Option<String>,
    /// With what containers have written on their disks
    #[arg(short, long)]
    pub size: bool,
    /// Containers, images, networks or volumes, by name or id
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}
