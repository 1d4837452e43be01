//! Limits, which `run`, `create` and `update` set.

use clap::Args;

use crate::parse::size;

/// What a container may use.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct LimitArgs {
    /// Memory, such as 512m
    #[arg(short, long, value_name = "BYTES", value_parser = size::bytes)]
    pub memory: Option<i64>,
    /// Memory and swap together; -1 for no limit
    #[arg(long, value_name = "BYTES", value_parser = size::bytes_or_unlimited, allow_hyphen_values = true)]
    pub memory_swap: Option<i64>,
    /// Memory that is kept when memory is scarce
    #[arg(long, value_name = "BYTES", value_parser = size::bytes)]
    pub memory_reservation: Option<i64>,
    /// Processors, such as 1.5
    #[arg(long, value_name = "NUMBER", value_parser = size::nano_cpus)]
    pub cpus: Option<i64>,
    /// Weight among containers
    #[arg(short = 'c', long, value_name = "WEIGHT")]
    pub cpu_shares: Option<i64>,
    /// Scheduler's quota, microseconds
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Scheduler's period, microseconds
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<i64>,
    /// Period of the real-time scheduler, microseconds
    #[arg(long, value_name = "US")]
    pub cpu_rt_period: Option<i64>,
    /// Run time of the real-time scheduler, microseconds
    #[arg(long, value_name = "US")]
    pub cpu_rt_runtime: Option<i64>,
    /// Processors to run on, such as 0-2,4
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Number of processes; -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Weight for block devices, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,
}
