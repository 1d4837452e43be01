//! `network`.

use std::collections::HashMap;
use std::net::IpAddr;

use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use hyper::Method;
use serde_json::{Value, json};

use super::inspect::{Kind, inspect_all};
use super::{filters, for_each, print, prune, say, short_id, text};
use crate::args::network::{ConnectArgs, CreateArgs, DisconnectArgs, LsArgs, NetworkCommand, RmArgs};
use crate::client::Client;
use crate::client::body::RequestBody;
use crate::client::url::Url;
use crate::error::{CliError, CliResult};
use crate::output::listing::{Column, Columns, Row, Style};
use crate::parse::environment;
use crate::preferences::Preferences;
use crate::request::networks;

const SHOWN: [Column; 4] = [("ID", "NETWORK ID"), ("Name", "NAME"), ("Driver", "DRIVER"), ("Scope", "SCOPE")];
const HIDDEN: [Column; 5] =
    [("CreatedAt", "CREATED AT"), ("IPv4", "IPV4"), ("IPv6", "IPV6"), ("Internal", "INTERNAL"), ("Labels", "LABELS")];

/// `network`.
pub(super) async fn network(client: &Client, command: NetworkCommand) -> CliResult<()> {
    match command {
        NetworkCommand::Ls(args) => ls(client, &args).await,
        NetworkCommand::Create(args) => create(client, &args).await,
        NetworkCommand::Rm(args) => rm(client, &args).await,
        NetworkCommand::Inspect(args) => {
            inspect_all(client, &[Kind::Network], &args.names, args.format.as_deref(), false).await
        }
        NetworkCommand::Connect(args) => connect(client, &args).await,
        NetworkCommand::Disconnect(args) => disconnect(client, &args).await,
        NetworkCommand::Prune(args) => prune::networks(client, &args).await,
    }
}

async fn ls(client: &Client, args: &LsArgs) -> CliResult<()> {
    let url = Url::new("/networks").with_some("filters", filters(&args.filter)?.as_deref());
    let mut networks: Vec<Value> = client.get(&url).await?;
    networks.sort_by(|one, other| text(one, "Name").cmp(text(other, "Name")));
    let rows: Vec<Row> = networks.iter().map(|network| row(network, args.no_trunc)).collect();
    let format = Preferences::format(args.format.as_deref(), &client.preferences().networks_format, args.quiet);
    let style = Style { format, quiet: args.quiet.then_some("ID") };
    print(Columns { shown: &SHOWN, hidden: &HIDDEN }, &rows, style)
}

fn row(network: &Value, full: bool) -> Row {
    let mut row = Row::default();
    let id = text(network, "Id");
    let truth = |name: &str| network[name].as_bool().unwrap_or(name == "EnableIPv4").to_string();
    row.set("ID", if full { id.to_owned() } else { short_id(id) })
        .set("Name", text(network, "Name"))
        .set("Driver", text(network, "Driver"))
        .set("Scope", text(network, "Scope"))
        .set("CreatedAt", text(network, "Created"))
        .set("IPv4", truth("EnableIPv4"))
        .set("IPv6", truth("EnableIPv6"))
        .set("Internal", truth("Internal"))
        .set("Labels", super::labels(&network["Labels"]));
    row
}

async fn create(client: &Client, args: &CreateArgs) -> CliResult<()> {
    let map = |list: &[String], what| (!list.is_empty()).then(|| environment::pairs(list, what)).transpose();
    let request = NetworkCreateRequest {
        name: args.name.clone(),
        driver: Some(args.driver.driver.clone().unwrap_or_else(|| "bridge".into())),
        scope: args.scope.clone(),
        internal: Some(args.internal),
        attachable: Some(args.attachable),
        ingress: Some(false),
        config_only: None,
        config_from: None,
        ipam: Some(Ipam {
            driver: Some(args.ipam_driver.clone()),
            options: map(&args.ipam_opt, "option")?,
            config: address_plan(args)?,
        }),
        enable_ipv4: args.ipv4,
        enable_ipv6: args.ipv6,
        options: map(&args.driver.options, "option")?,
        labels: map(&args.driver.label, "label")?,
    };
    let made: Value = client.post(&Url::new("/networks/create"), &request).await?;
    super::warn(made["Warning"].as_str().filter(|warning| !warning.is_empty()));
    say(text(&made, "Id"))
}

/// Puts ranges, gateways and reserved addresses to the subnet that holds them. Source: docker/cli
/// `network create`, `consolidateIpam`.
fn address_plan(args: &CreateArgs) -> CliResult<Option<Vec<IpamConfig>>> {
    let usage = |text: String| CliError::Usage(text).with_code(1);
    let mut plan = Vec::new();
    for subnet in &args.subnet {
        let parsed = Subnet::parse(subnet).ok_or_else(|| usage(format!("invalid subnet {subnet}")))?;
        plan.push((parsed, IpamConfig { subnet: Some(subnet.clone()), ..Default::default() }));
    }
    let nowhere = |what: &str, value: &str| usage(format!("no matching subnet for {what} {value}"));
    let holder = |plan: &[(Subnet, IpamConfig)], address| plan.iter().position(|(subnet, _)| subnet.holds(address));
    if plan.is_empty() && !(args.ip_range.is_empty() && args.gateway.is_empty() && args.aux_address.is_empty()) {
        return Err(usage("every ip-range or gateway must have a corresponding subnet".into()));
    }
    for range in &args.ip_range {
        let start = Subnet::parse(range).ok_or_else(|| usage(format!("invalid range {range}")))?.address;
        let at = holder(&plan, start).ok_or_else(|| nowhere("range", range))?;
        plan[at].1.ip_range = Some(range.clone());
    }
    for gateway in &args.gateway {
        let at = holder(&plan, *gateway).ok_or_else(|| nowhere("gateway", &gateway.to_string()))?;
        if plan[at].1.gateway.replace(gateway.to_string()).is_some() {
            return Err(usage(format!("cannot configure multiple gateways ({gateway}) for the same subnet")));
        }
    }
    for (name, value) in environment::pairs(&args.aux_address, "aux-address")? {
        let address = value.parse().map_err(|_| usage(format!("invalid aux-address {value}")))?;
        let at = holder(&plan, address).ok_or_else(|| nowhere("aux-address", &value))?;
        plan[at].1.auxiliary_addresses.get_or_insert_with(HashMap::new).insert(name, value);
    }
    Ok((!plan.is_empty()).then(|| plan.into_iter().map(|(_, config)| config).collect()))
}

/// A network by its address and the length of its prefix.
struct Subnet {
    address: IpAddr,
    bits: u32,
}

impl Subnet {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let (address, bits): (IpAddr, u32) = (address.parse().ok()?, bits.parse().ok()?);
        (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some(Self { address, bits })
    }

    fn holds(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - self.bits).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - self.bits).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            _ => false,
        }
    }
}

async fn rm(client: &Client, args: &RmArgs) -> CliResult<()> {
    for_each(&args.names, async |name| {
        match client.delete(&Url::named("/networks/", name, "")).await.map_err(CliError::from) {
            Err(error) if args.force && error.is_not_found() => Ok(()),
            Err(error) => Err(error),
            Ok(_) => say(name),
        }
    })
    .await
}

async fn connect(client: &Client, args: &ConnectArgs) -> CliResult<()> {
    let mut endpoint = networks::endpoint(&args.addresses, &args.alias);
    endpoint.driver_opts = networks::driver_options(&args.driver_opt)?;
    endpoint.gw_priority = args.gw_priority;
    let body = json!({"Container": args.container, "EndpointConfig": endpoint});
    act(client, &args.network, "/connect", &body).await
}

async fn disconnect(client: &Client, args: &DisconnectArgs) -> CliResult<()> {
    let body = json!({"Container": args.container, "Force": args.force});
    act(client, &args.network, "/disconnect", &body).await
}

async fn act(client: &Client, network: &str, verb: &str, body: &Value) -> CliResult<()> {
    let url = Url::named("/networks/", network, verb);
    client
        .send(Method::POST, &url, RequestBody::json(body).map_err(|error| CliError::Answer(error.to_string()))?)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn plan(words: &str) -> CliResult<Option<Vec<IpamConfig>>> {
        let words = ["bulkhead", "network", "create"].into_iter().chain(words.split(' '));
        let Command::Network(NetworkCommand::Create(args)) = Cli::try_parse_from(words).unwrap().command else {
            panic!("not create")
        };
        address_plan(&args)
    }

    #[test]
    fn addresses_find_their_subnet() {
        let plan_of = plan(
            "--subnet 10.1.0.0/16 --subnet fd00::/64 --gateway fd00::1 --gateway 10.1.0.9 --ip-range 10.1.5.0/24 --aux-address a=10.1.0.7 n",
        );
        let plan_of = plan_of.unwrap().unwrap();
        assert_eq!((plan_of[0].gateway.as_deref(), plan_of[1].gateway.as_deref()), (Some("10.1.0.9"), Some("fd00::1")));
        assert_eq!(plan_of[0].ip_range.as_deref(), Some("10.1.5.0/24"));
        assert_eq!(plan_of[0].auxiliary_addresses.as_ref().unwrap()["a"], "10.1.0.7");
        assert_eq!(plan("n").unwrap(), None);
        for (words, expected) in [
            ("--gateway 10.0.0.1 n", "must have a corresponding subnet"),
            ("--subnet 10.1.0.0/16 --gateway 10.2.0.1 n", "no matching subnet for gateway 10.2.0.1"),
            ("--subnet 10.1.0.0/16 --gateway 10.1.0.1 --gateway 10.1.0.2 n", "multiple gateways"),
            ("--subnet 10.1.0.0/33 n", "invalid subnet"),
        ] {
            let error = plan(words).unwrap_err().to_string();
            assert!(error.contains(expected), "{words}: {error}");
        }
    }
}
