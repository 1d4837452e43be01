//! Address pools: which subnets are free on the host, which addresses of a subnet.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Every address is taken. Source: moby `ipamapi.ErrNoAvailableIPs`.
    #[error("no available addresses on this pool")]
    Exhausted,
    /// Source: moby `ipamapi.ErrIPAlreadyAllocated`.
    #[error("Address already in use")]
    InUse,
    /// Source: moby `ipamapi.ErrIPOutOfRange`.
    #[error("Requested address is out of range")]
    OutOfRange,
}

/// The addresses of one subnet. Shape: network and broadcast address are never given, and the gateway is taken.
#[derive(Debug, Clone)]
pub struct Pool {
    subnet: IpNet,
    /// Where addresses that nobody asked for come from.
    range: IpNet,
    taken: BTreeSet<IpAddr>,
    /// Where the search goes on, so that an address is not given again at once.
    next: u128,
}

impl Pool {
    /// A pool with nothing taken but the gateway.
    #[must_use]
    pub fn new(subnet: IpNet, range: Option<IpNet>, reserved: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            subnet: subnet.trunc(),
            range: range.unwrap_or(subnet).trunc(),
            taken: reserved.into_iter().collect(),
            next: 0,
        }
    }

    /// The whole subnet.
    #[must_use]
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// Takes a free address.
    ///
    /// # Errors
    /// `Exhausted`.
    pub fn take_any(&mut self) -> Result<IpAddr, PoolError> {
        let size = size(self.range);
        // As many tries as there can be taken ones, and a few for the edges.
        let tries = size.min(self.taken.len() as u128 + 4);
        let mut at = self.next;
        let mut left = tries.max(1).saturating_mul(2).min(size);
        while left > 0 {
            let address = nth(self.range, at % size);
            at = (at + 1) % size;
            left -= 1;
            if self.may_be_given(address) && self.taken.insert(address) {
                self.next = at;
                return Ok(address);
            }
        }
        // The bounded search began in the middle of a crowded part: look at all of a small range.
        let all = (0..size.min(1 << 16)).map(|n| nth(self.range, n));
        let found = all.into_iter().find(|address| self.may_be_given(*address) && !self.taken.contains(address));
        let address = found.ok_or(PoolError::Exhausted)?;
        self.taken.insert(address);
        Ok(address)
    }

    /// Takes this address.
    ///
    /// # Errors
    /// `InUse`, `OutOfRange`.
    pub fn take(&mut self, address: IpAddr) -> Result<(), PoolError> {
        if !self.may_be_given(address) {
            return Err(PoolError::OutOfRange);
        }
        if self.taken.insert(address) { Ok(()) } else { Err(PoolError::InUse) }
    }

    /// Gives an address back.
    pub fn release(&mut self, address: IpAddr) {
        self.taken.remove(&address);
    }

    fn may_be_given(&self, address: IpAddr) -> bool {
        self.subnet.contains(&address) && !is_edge(self.subnet, address)
    }
}

/// The subnet's own address, or the one of everybody in it. The smallest subnets have neither.
fn is_edge(subnet: IpNet, address: IpAddr) -> bool {
    match subnet {
        IpNet::V4(net) if net.prefix_len() < 31 => address == net.network() || address == net.broadcast(),
        IpNet::V6(net) if net.prefix_len() < 127 => address == net.network(),
        IpNet::V4(_) | IpNet::V6(_) => false,
    }
}

fn size(net: IpNet) -> u128 {
    let bits = u32::from(net.max_prefix_len() - net.prefix_len());
    1_u128.checked_shl(bits).unwrap_or(u128::MAX)
}

fn nth(net: IpNet, number: u128) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            let first = u32::from(net.network());
            IpAddr::V4(Ipv4Addr::from(first.wrapping_add(u32::try_from(number).unwrap_or(u32::MAX))))
        }
        IpNet::V6(net) => IpAddr::V6(u128::from(net.network()).wrapping_add(number).into()),
    }
}

/// The first address of a subnet that may be given: the gateway, unless the user says another.
#[must_use]
pub fn first_address(net: IpNet) -> IpAddr {
    let first = nth(net.trunc(), 0);
    if is_edge(net.trunc(), first) { nth(net.trunc(), 1) } else { first }
}

/// Two subnets have an address in common.
#[must_use]
pub fn overlaps(a: IpNet, b: IpNet) -> bool {
    match (a, b) {
        (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_)) => {
            a.contains(&b.network()) || b.contains(&a.network())
        }
        _ => false,
    }
}

/// Docker's default pools in their order: sixteen bits from 172.17 to 172.31, then twenty bits from 192.168.
fn defaults() -> impl Iterator<Item = Ipv4Net> {
    let large = (17..=31).map(|second| Ipv4Net::new_assert(Ipv4Addr::new(172, second, 0, 0), 16));
    let small = (0..16).map(|part: u8| Ipv4Net::new_assert(Ipv4Addr::new(192, 168, part * 16, 0), 20));
    large.chain(small)
}

/// The first of the default pools that touches none of `used`.
#[must_use]
pub fn free_subnet(used: &[IpNet]) -> Option<Ipv4Net> {
    defaults().find(|net| !used.iter().any(|other| other.prefix_len() > 0 && overlaps(IpNet::V4(*net), *other)))
}

/// The networks that the host routes, its default route aside.
#[must_use]
pub fn host_networks() -> Vec<IpNet> {
    let v4 = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let v4 = v4.lines().skip(1).filter_map(v4_route).map(IpNet::V4);
    v4.chain(v6.lines().filter_map(v6_route)).filter(|net| net.prefix_len() > 0).collect()
}

/// Interface, destination, gateway, flags, ..., mask; numbers in the host's byte order. Source: proc(5).
fn v4_route(line: &str) -> Option<Ipv4Net> {
    let mut fields = line.split_whitespace();
    let number = |text: Option<&str>| u32::from_str_radix(text?, 16).ok();
    let destination = number(fields.nth(1))?;
    let mask = number(fields.nth(5))?;
    let to = |number: u32| Ipv4Addr::from(number.to_ne_bytes());
    Ipv4Net::with_netmask(to(destination), to(mask)).ok()
}

fn v6_route(line: &str) -> Option<IpNet> {
    let mut fields = line.split_whitespace();
    let address = u128::from_str_radix(fields.next()?, 16).ok()?;
    let length = u8::from_str_radix(fields.next()?, 16).ok()?;
    let device = line.split_whitespace().last()?;
    // The loopback's table has a route for every address of the host's own.
    (device != "lo").then(|| IpNet::new(IpAddr::V6(address.into()), length).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn every_address_is_given_once() {
        let gateway: IpAddr = "10.0.0.1".parse().unwrap();
        let mut pool = Pool::new(net("10.0.0.0/29"), None, [gateway]);
        let given: BTreeSet<IpAddr> = (0..5).map(|_| pool.take_any().unwrap()).collect();
        assert_eq!(given.len(), 5);
        assert!(!given.contains(&gateway) && !given.contains(&"10.0.0.7".parse().unwrap()));
        assert_eq!(pool.take_any(), Err(PoolError::Exhausted));
        pool.release("10.0.0.4".parse().unwrap());
        assert_eq!(pool.take_any().unwrap().to_string(), "10.0.0.4");
    }

    #[test]
    fn an_address_is_not_given_again_at_once() {
        let mut pool = Pool::new(net("10.0.0.0/24"), None, []);
        let first = pool.take_any().unwrap();
        pool.release(first);
        assert_ne!(pool.take_any().unwrap(), first);
    }

    #[test]
    fn an_address_that_is_asked_for_is_checked() {
        let mut pool = Pool::new(net("10.0.0.0/24"), Some(net("10.0.0.128/25")), ["10.0.0.1".parse().unwrap()]);
        assert_eq!(pool.take("10.0.0.1".parse().unwrap()), Err(PoolError::InUse));
        assert_eq!(pool.take("10.0.0.255".parse().unwrap()), Err(PoolError::OutOfRange));
        assert_eq!(pool.take("10.1.0.9".parse().unwrap()), Err(PoolError::OutOfRange));
        pool.take("10.0.0.9".parse().unwrap()).unwrap();
        assert_eq!(pool.take_any().unwrap().to_string(), "10.0.0.128");
    }

    #[test]
    fn a_subnet_is_chosen_that_the_host_does_not_use() {
        assert_eq!(free_subnet(&[]).unwrap().to_string(), "172.17.0.0/16");
        let used = [net("172.16.0.0/14"), net("0.0.0.0/0"), net("172.20.4.0/24")];
        assert_eq!(free_subnet(&used).unwrap().to_string(), "172.21.0.0/16");
        assert_eq!(free_subnet(&[net("128.0.0.0/1")]), None);
        assert_eq!(first_address(net("172.18.0.0/16")).to_string(), "172.18.0.1");
        assert_eq!(first_address(net("fd00::/64")).to_string(), "fd00::1");
    }

    #[test]
    fn routes_are_read() {
        let line = "eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0";
        assert_eq!(v4_route(line).unwrap().to_string(), "172.17.0.0/16");
        assert!(v4_route("x").is_none());
        let line = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0";
        assert_eq!(v6_route(line).unwrap().to_string(), "fd00::/64");
    }

    #[test]
    fn a_large_pool_is_quick_when_crowded() {
        let mut pool = Pool::new(net("fd00::/64"), None, []);
        for _ in 0..1000 {
            pool.take_any().unwrap();
        }
        pool.next = 0;
        assert_eq!(pool.take_any().unwrap().to_string(), "fd00::3e9");
    }
}
