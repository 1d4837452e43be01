//! Which registries may be talked to how.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use url::{Host, Url};

use super::error::LocalError;

/// Docker Hub as names have it, and the host that serves it.
const HUB_DOMAIN: &str = "docker.io";
const HUB_HOST: &str = "registry-1.docker.io";

/// How a client reaches registries; [`Default`] is what dockerd does without flags.
#[derive(Debug, Clone)]
pub struct RegistrySettings {
    /// URLs that are asked for `docker.io`'s images first, in this order; without credentials.
    pub mirrors: Vec<String>,
    /// Registries (`HOST[:PORT]`, or addresses `A.B.C.D/N`) whose certificate is not verified and that may speak plain HTTP.
    pub insecure: Vec<String>,
    /// Folder with a folder `HOST[:PORT]` for each registry with certificates of its own: `*.crt` are CAs, `*.cert` with
    /// `*.key` identify the client. Source: docs.docker.com, "Verify repository client with certificates".
    pub certificates: Option<PathBuf>,
    /// How long things may take.
    pub timing: Timing,
    /// Layers of one engine that are fetched, or sent, at once.
    pub transfers: usize,
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Name resolution, TCP and TLS together.
    pub connect: Duration,
    /// Without a byte.
    pub idle: Duration,
    /// A transfer has to bring [`Timing::least_bytes`] within each such span.
    pub stall: Duration,
    /// See [`Timing::stall`].
    pub least_bytes: u64,
    /// Tries of one request; a transfer that moves on has as many again.
    pub attempts: u32,
    /// Before the second try; doubled before each further one.
    pub backoff: Duration,
    /// The longest wait between two tries, whatever the registry asks for.
    pub longest_backoff: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            idle: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            least_bytes: 4096,
            attempts: 5,
            backoff: Duration::from_millis(500),
            longest_backoff: Duration::from_secs(20),
        }
    }
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self { mirrors: Vec::new(), insecure: Vec::new(), certificates: None, timing: Timing::default(), transfers: 3 }
    }
}

/// What is asked of the other side's certificate, and whether plain HTTP will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Security {
    /// TLS with a certificate that is right.
    Verified,
    /// The host's own: plain HTTP will do; where TLS is spoken, the certificate must be right.
    Loopback,
    /// TLS with any certificate, or plain HTTP.
    Unverified,
}

/// One place that may serve a registry.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// Scheme, host and port; no path.
    pub base: Url,
    pub security: Security,
    pub mirror: bool,
}

impl RegistrySettings {
    /// Checks what a user wrote.
    ///
    /// # Errors
    /// [`LocalError::Setting`]: a mirror that is no URL of a host, an insecure registry that is none.
    pub fn check(&self) -> Result<(), LocalError> {
        for mirror in &self.mirrors {
            self.mirror(mirror)?;
        }
        for entry in &self.insecure {
            let valid = match entry.split_once('/') {
                Some(_) => parse_network(entry).is_some(),
                None => Url::parse(&format!("https://{entry}/")).is_ok_and(|url| url.host().is_some()),
            };
            if !valid {
                return Err(LocalError::Setting { what: format!("{entry:?} is no registry and no network") });
            }
        }
        Ok(())
    }

    /// Where a registry is, in the order to try.
    pub(super) fn endpoints(&self, domain: &str) -> Result<Vec<Endpoint>, LocalError> {
        let mut endpoints = Vec::new();
        let host = if domain == HUB_DOMAIN {
            for mirror in &self.mirrors {
                endpoints.push(self.mirror(mirror)?);
            }
            HUB_HOST
        } else {
            domain
        };
        let url = |scheme: &str| {
            let text = format!("{scheme}://{host}/");
            Url::parse(&text).map_err(|_| LocalError::Setting { what: format!("{domain:?} is no registry") })
        };
        let base = url("https")?;
        let security = self.security(&base);
        endpoints.push(Endpoint { base, security, mirror: false });
        if security != Security::Verified {
            endpoints.push(Endpoint { base: url("http")?, security, mirror: false });
        }
        Ok(endpoints)
    }

    fn mirror(&self, text: &str) -> Result<Endpoint, LocalError> {
        let invalid =
            || LocalError::Setting { what: format!("{text:?} is no registry mirror: a URL of a host is needed") };
        let base = Url::parse(text).map_err(|_| invalid())?;
        let plain = base.path() == "/" && base.query().is_none() && base.fragment().is_none();
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() || !plain || !base.username().is_empty()
        {
            return Err(invalid());
        }
        let security = match self.security(&base) {
            // Whoever writes http:// has chosen it.
            Security::Verified if base.scheme() == "http" => Security::Unverified,
            security => security,
        };
        Ok(Endpoint { base, security, mirror: true })
    }

    fn security(&self, base: &Url) -> Security {
        let authority = authority(base);
        let host = base.host_str().unwrap_or_default();
        let address = address_of(base);
        let listed = |entry: &String| match (parse_network(entry), address) {
            (Some(network), Some(address)) => network.contains(address),
            _ => *entry == authority || entry == host,
        };
        match () {
            () if self.insecure.iter().any(listed) => Security::Unverified,
            () if is_loopback(base) => Security::Loopback,
            () => Security::Verified,
        }
    }
}

/// Host, and the port if it is not the scheme's.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The address that a URL names literally; `localhost` is 127.0.0.1.
pub(super) fn address_of(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain("localhost") => Some(IpAddr::from([127, 0, 0, 1])),
        Host::Domain(_) => None,
    }
}

pub(super) fn is_loopback(url: &Url) -> bool {
    address_of(url).is_some_and(|address| address.to_canonical().is_loopback())
}

struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - self.bits).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - self.bits).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

fn parse_network(text: &str) -> Option<Network> {
    let (address, bits) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u32 = bits.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    (bits <= most).then_some(Network { address, bits })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(settings: &RegistrySettings, domain: &str) -> Vec<(String, Security)> {
        let endpoints = settings.endpoints(domain).unwrap();
        endpoints.into_iter().map(|endpoint| (endpoint.base.to_string(), endpoint.security)).collect()
    }

    #[test]
    fn only_the_hosts_own_registries_may_be_plain_unless_others_are_named() {
        let settings = RegistrySettings {
            insecure: vec!["reg.lan:5000".into(), "10.1.0.0/16".into(), "::1/128".into()],
            ..RegistrySettings::default()
        };
        for (domain, security) in [
            ("reg.example.com", Security::Verified),
            ("reg.lan", Security::Verified),
            ("reg.lan:5000", Security::Unverified),
            ("10.1.2.3:5000", Security::Unverified),
            ("10.2.2.3:5000", Security::Verified),
            ("127.0.0.1:5000", Security::Loopback),
            ("localhost:5000", Security::Loopback),
            ("[::1]:5000", Security::Unverified),
            ("128.0.0.1", Security::Verified),
        ] {
            let found = reached(&settings, domain);
            assert_eq!(found[0].1, security, "{domain}");
            assert_eq!(found.len(), if security == Security::Verified { 1 } else { 2 }, "{domain}");
            assert!(found[0].0.starts_with("https://"), "TLS is tried first");
        }
    }

    #[test]
    fn mirrors_are_asked_for_the_hub_only_and_first() {
        let settings =
            RegistrySettings { mirrors: vec!["http://mirror.lan:5000".into()], ..RegistrySettings::default() };
        let hub = reached(&settings, "docker.io");
        assert_eq!(hub[0], ("http://mirror.lan:5000/".into(), Security::Unverified));
        assert_eq!(hub[1], ("https://registry-1.docker.io/".into(), Security::Verified));
        assert_eq!(reached(&settings, "quay.io").len(), 1);
    }

    #[test]
    fn settings_that_cannot_be_are_refused() {
        for mirror in ["mirror.lan", "ftp://mirror.lan", "http://a/b", "http://u:p@a", "http://a/?q"] {
            let settings = RegistrySettings { mirrors: vec![mirror.into()], ..RegistrySettings::default() };
            assert!(settings.check().is_err(), "{mirror}");
        }
        for insecure in ["10.0.0.0/33", "a b", "x/8", ""] {
            let settings = RegistrySettings { insecure: vec![insecure.into()], ..RegistrySettings::default() };
            assert!(settings.check().is_err(), "{insecure}");
        }
    }
}
