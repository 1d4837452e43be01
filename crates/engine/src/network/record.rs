//! What is kept of a network.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use hostnet::{BridgeSpec, NetworkRules};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// Version of the record's form.
const FORMAT: u32 = 1;

/// Who makes a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// A bridge on the host.
    Bridge,
    /// The host's own namespace.
    Host,
    /// Nobody: a loopback device only.
    Null,
}

impl Driver {
    /// Its name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::Null => "null",
        }
    }
}

/// The networks that are always there, with their drivers.
pub const PREDEFINED: [(&str, Driver); 3] =
    [("bridge", Driver::Bridge), ("host", Driver::Host), ("none", Driver::Null)];

/// True for a name that belongs to the engine.
#[must_use]
pub fn is_predefined(name: &str) -> bool {
    name == "default" || PREDEFINED.iter().any(|(predefined, _)| *predefined == name)
}

/// One subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// All of it.
    pub subnet: IpNet,
    /// Where addresses that nobody asks for come from.
    pub range: Option<IpNet>,
    /// The bridge's address.
    pub gateway: IpAddr,
    /// Addresses that are never given, by the name that the user gave them.
    pub reserved: BTreeMap<String, IpAddr>,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// [`FORMAT`].
    pub format: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Who makes it.
    pub driver: Driver,
    /// Nothing of it leaves the bridge.
    pub internal: bool,
    /// Said by the user; it means something to a swarm only.
    pub attachable: bool,
    /// It has IPv6 addresses.
    pub ipv6: bool,
    /// Its subnets: at most one of each family gives addresses.
    pub subnets: Vec<Subnet>,
    /// The user has chosen the subnets, and may choose addresses.
    pub subnets_given: bool,
    /// Name of its bridge.
    pub bridge: String,
    /// The driver's options.
    pub options: BTreeMap<String, String>,
    /// Options of the address pools, which there are none of: kept for show.
    pub ipam_options: Option<BTreeMap<String, String>>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NetworkRecordError {
    /// The file.
    #[error("cannot access the record")]
    Access(#[from] io::Error),
    /// Its text.
    #[error("cannot understand the record")]
    Form(#[from] serde_json::Error),
    /// A newer engine wrote it.
    #[error("the record has form {0}; this engine knows form {FORMAT} only")]
    Newer(u32),
}

impl Network {
    /// A network without anything of its own yet.
    #[must_use]
    pub fn new(id: String, name: &str, driver: Driver) -> Self {
        Self {
            format: FORMAT,
            id,
            name: name.to_owned(),
            created: Timestamp::now(),
            driver,
            internal: false,
            attachable: false,
            ipv6: false,
            subnets: Vec::new(),
            subnets_given: false,
            bridge: String::new(),
            options: BTreeMap::new(),
            ipam_options: None,
            labels: BTreeMap::new(),
        }
    }

    /// The engine made it, and nobody can remove it.
    #[must_use]
    pub fn is_predefined(&self) -> bool {
        is_predefined(&self.name)
    }

    /// Containers on it find each other by name.
    #[must_use]
    pub fn has_names(&self) -> bool {
        self.driver == Driver::Bridge && !self.is_predefined()
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    fn is_on(&self, name: &str) -> bool {
        !matches!(self.option(name), Some("false" | "0" | "False" | "f" | "F" | "FALSE"))
    }

    /// Containers on it reach each other.
    #[must_use]
    pub fn connects_neighbours(&self) -> bool {
        self.is_on("com.docker.network.bridge.enable_icc")
    }

    /// Largest packet in bytes.
    #[must_use]
    pub fn mtu(&self) -> Option<u32> {
        self.option("com.docker.network.driver.mtu")?.parse().ok()
    }

    /// Where ports are published when the client names no address.
    #[must_use]
    pub fn host_binding(&self) -> Option<IpAddr> {
        let address = self.option("com.docker.network.bridge.host_binding_ipv4")?.parse::<IpAddr>().ok()?;
        (!address.is_unspecified()).then_some(address)
    }

    /// What the firewall is to know.
    #[must_use]
    pub fn rules(&self) -> NetworkRules {
        NetworkRules {
            bridge: self.bridge.clone(),
            subnets: self.subnets.iter().map(|subnet| subnet.subnet).collect(),
            internal: self.internal,
            masquerade: self.is_on("com.docker.network.bridge.enable_ip_masquerade"),
        }
    }

    /// Its bridge as it should be. `alias` is the engine's mark.
    #[must_use]
    pub fn bridge_spec(&self, alias: &str) -> BridgeSpec {
        let bytes = hex::decode(self.id.get(..10).unwrap_or_default()).unwrap_or_default();
        let mut mac = [0x02, 0x42, 0, 0, 0, 0];
        mac[2..].iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        let address = |subnet: &Subnet| IpNet::new(subnet.gateway, subnet.subnet.prefix_len()).ok();
        BridgeSpec {
            name: self.bridge.clone(),
            alias: alias.to_owned(),
            mac,
            mtu: self.mtu(),
            addresses: self.subnets.iter().filter_map(address).collect(),
            may_exist: self.option(BRIDGE_NAME).is_some() && !self.is_predefined(),
        }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`NetworkRecordError`].
    pub fn read(path: &Path) -> Result<Self, NetworkRecordError> {
        let text = std::fs::read(path)?;
        let form: Form = serde_json::from_slice(&text)?;
        if form.format > FORMAT {
            return Err(NetworkRecordError::Newer(form.format));
        }
        Ok(serde_json::from_slice(&text)?)
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let fresh = path.with_extension("new");
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        std::fs::write(&fresh, text)?;
        std::fs::File::open(&fresh)?.sync_all()?;
        std::fs::rename(&fresh, path)?;
        path.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
    }
}

/// The option that names the bridge.
pub const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

#[derive(Deserialize)]
struct Form {
    format: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_file_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.json");
        let mut network = Network::new("ab".repeat(32), "web", Driver::Bridge);
        network.subnets.push(Subnet {
            subnet: "10.0.0.0/24".parse().unwrap(),
            range: None,
            gateway: "10.0.0.1".parse().unwrap(),
            reserved: BTreeMap::new(),
        });
        network.options.insert("com.docker.network.bridge.enable_icc".into(), "false".into());
        network.write(&path).unwrap();
        let read = Network::read(&path).unwrap();
        assert_eq!(read, network);
        assert!(!read.connects_neighbours() && read.rules().masquerade);
        let spec = read.bridge_spec("x");
        assert_eq!(
            (spec.mac[..3].to_vec(), spec.addresses[0].to_string()),
            (vec![2, 0x42, 0xab], "10.0.0.1/24".into())
        );
        Network { format: FORMAT + 1, ..network }.write(&path).unwrap();
        assert!(matches!(Network::read(&path), Err(NetworkRecordError::Newer(2))));
    }
}
