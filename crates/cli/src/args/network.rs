//! Flags of `network`, and of `run` and `create` for networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::{Args, Subcommand};

use super::storage::{DriverArgs, PruneArgs};

/// `network`.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// List networks
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Create a network
    Create(Box<CreateArgs>),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Show everything about networks
    Inspect(InspectArgs),
    /// Connect a container to a network
    Connect(Box<ConnectArgs>),
    /// Disconnect a container from a network
    Disconnect(DisconnectArgs),
    /// Remove all networks that no container uses
    Prune(PruneArgs),
}

/// `network ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Ids in full
    #[arg(long)]
    pub no_trunc: bool,
    /// Only those that fit, KEY=VALUE
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// table, json, a template, or table TEMPLATE
    #[arg(long)]
    pub format: Option<String>,
}

/// `network create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its driver, and its labels.
    #[command(flatten)]
    pub driver: DriverArgs,
    /// Without a way out of the host
    #[arg(long)]
    pub internal: bool,
    /// Containers may be connected by hand
    #[arg(long)]
    pub attachable: bool,
    /// Without IPv4 if false
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub ipv4: Option<bool>,
    /// With IPv6
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub ipv6: Option<bool>,
    /// Subnet, such as 10.9.0.0/16
    #[arg(long, value_name = "NETWORK")]
    pub subnet: Vec<String>,
    /// Part of a subnet from which containers get addresses
    #[arg(long, value_name = "NETWORK")]
    pub ip_range: Vec<String>,
    /// Gateway of a subnet
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Vec<IpAddr>,
    /// Address that no container gets, NAME=ADDRESS
    #[arg(long, value_name = "ADDRESS")]
    pub aux_address: Vec<String>,
    /// Driver that gives addresses
    #[arg(long, default_value = "default", value_name = "DRIVER")]
    pub ipam_driver: String,
    /// Option of that driver, NAME=VALUE
    #[arg(long, value_name = "OPTION")]
    pub ipam_opt: Vec<String>,
    /// Scope
    #[arg(long)]
    pub scope: Option<String>,
    /// Name
    pub name: String,
}

/// `network rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// No failure if one is not there
    #[arg(short, long)]
    pub force: bool,
    /// Networks, by name or id
    #[arg(required = true, value_name = "NETWORK")]
    pub names: Vec<String>,
}

/// `network inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// json, or a template
    #[arg(short, long)]
    pub format: Option<String>,
    /// More about services
    #[arg(short, long)]
    pub verbose: bool,
    /// Networks, by name or id
    #[arg(required = true, value_name = "NETWORK")]
    pub names: Vec<String>,
}

/// `network connect`.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// Further name of the container in this network
    #[arg(long, value_name = "NAME")]
    pub alias: Vec<String>,
    /// Option of the driver, NAME=VALUE
    #[arg(long, value_name = "OPTION")]
    pub driver_opt: Vec<String>,
    /// The network with the highest one is the way out
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub gw_priority: Option<i64>,
    /// Addresses.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// Network, by name or id
    pub network: String,
    /// Container, by name or id
    pub container: String,
}

/// `network disconnect`.
#[derive(Debug, Args)]
pub struct DisconnectArgs {
    /// Even if the container is in a bad way
    #[arg(short, long)]
    pub force: bool,
    /// Network, by name or id
    pub network: String,
    /// Container, by name or id
    pub container: String,
}

/// Where in a network a container is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct AddressArgs {
    /// IPv4 address
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<Ipv4Addr>,
    /// IPv6 address
    #[arg(long, value_name = "ADDRESS")]
    pub ip6: Option<Ipv6Addr>,
    /// Link-local address
    #[arg(long, value_name = "ADDRESS")]
    pub link_local_ip: Vec<IpAddr>,
    /// Another container that is known here, CONTAINER[:NAME]
    #[arg(long, value_name = "LINK")]
    pub link: Vec<String>,
}

/// Networks of a new container.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// Network, or mode: none, host, container:NAME; also name=NETWORK,alias=NAME,ip=ADDRESS,...
    #[arg(long, alias = "net")]
    pub network: Vec<String>,
    /// Further name of the container in its network
    #[arg(long, alias = "net-alias", value_name = "NAME")]
    pub network_alias: Vec<String>,
    /// MAC address
    #[arg(long, value_name = "ADDRESS")]
    pub mac_address: Option<String>,
    /// Addresses.
    #[command(flatten)]
    pub addresses: AddressArgs,
}
