//! Flags of `build`.

use std::path::PathBuf;

use clap::Args;

use crate::parse::size;

/// `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Name for the image
    #[arg(short, long, value_name = "NAME[:TAG]")]
    pub tag: Vec<String>,
    /// The Dockerfile [default: PATH/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The wall around what is run: process, hyperv or default
    #[arg(long, value_name = "WALL")]
    pub isolation: Option<String>,
    /// Value of an ARG; without a value that of the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub build_arg: Vec<String>,
    /// Label of the image
    #[arg(long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,
    /// The stage to end with
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Do everything anew
    #[arg(long)]
    pub no_cache: bool,
    /// Image that may serve as the cache
    #[arg(long, value_name = "IMAGE", value_delimiter = ',')]
    pub cache_from: Vec<String>,
    /// Ask the registries for newer base images
    #[arg(long)]
    pub pull: bool,
    /// Remove a step's container when it went well
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub rm: bool,
    /// Remove a step's container always
    #[arg(long)]
    pub force_rm: bool,
    /// Print the image's id only
    #[arg(short, long)]
    pub quiet: bool,
    /// File that takes the image's id
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,
    /// Platform, of which the host's is the only one
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Network of what is run
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// Entry of /etc/hosts
    #[arg(long, value_name = "HOST:IP")]
    pub add_host: Vec<String>,
    /// Memory of what is run
    #[arg(short, long, value_name = "BYTES", value_parser = size::bytes)]
    pub memory: Option<i64>,
    /// Memory and swap; -1 for any
    #[arg(long, value_name = "BYTES", value_parser = size::bytes_or_unlimited, allow_hyphen_values = true)]
    pub memory_swap: Option<i64>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", value_parser = size::bytes)]
    pub shm_size: Option<i64>,
    /// Share of the processors, relative to others
    #[arg(short, long, value_name = "N")]
    pub cpu_shares: Option<i64>,
    /// Period of the processor quota, microseconds
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<i64>,
    /// Processor quota, microseconds
    #[arg(long, value_name = "US")]
    pub cpu_quota: Option<i64>,
    /// Processors, such as 0-2,5
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, such as 0-1
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// The cgroup above that of what is run
    #[arg(long, value_name = "GROUP")]
    pub cgroup_parent: Option<String>,
    /// Limit of a resource, such as nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<String>,
    /// Security option
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// The folder with the files, or - for a Dockerfile or an archive on standard input
    #[arg(value_name = "PATH | -")]
    pub context: String,
}
