//! What a utility VM may send, and what may reach it: rules of the bridge family in its container's namespace, out of reach of
//! whoever changes the host's.
//!
//! ```text
//!  guest ══ nicN ─▶ first: its own addresses only ─▶ through: nothing for 127.0.0.0/8 ─▶ ethN ─▶ network
//!                                                └─▶ own: questions to the name server only
//! ```
//!
//! The guest asks its name server at an address of 127.0.0.0/8 on the other side of its interface, so nobody else may speak to
//! it from there, or to what it has there itself. Source: docs/design/0014-networks.md.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use proto::network::{NETWORK_SLOTS, SandboxInterface, tap_name};

use super::elements::{Addition, Elements};
use super::{LOOPBACK_TABLE, nft};
use crate::error::NetworkError;
use crate::failpoint;

const TABLE: &str = "bulkhead";

/// Puts the rules for these interfaces in the place of all earlier ones; names are asked for at an address of 127.0.0.0/8. When:
/// in the namespace.
pub(crate) fn load(interfaces: &[SandboxInterface], names: Ipv4Addr) -> Result<(), NetworkError> {
    nft::run(&render(interfaces, names))
}

/// The rules of a namespace whose guest's addresses are not known yet: none passes, until they are told.
#[derive(Debug)]
pub struct GuardInWaiting(Elements);

impl GuardInWaiting {
    /// Lets nothing pass. When: in the namespace.
    pub(crate) fn open(names: Ipv4Addr) -> Result<Self, NetworkError> {
        load(&[], names)?;
        Elements::open().map(Self).map_err(NetworkError::kernel("open the firewall of a network namespace"))
    }

    /// Lets the guest's own pass, on these interfaces, which are all that it has. When: once, from anywhere.
    ///
    /// # Errors
    /// `Kernel`; nothing passes then.
    pub fn tell(self, interfaces: &[SandboxInterface]) -> Result<(), NetworkError> {
        const WHAT: &str = "let a utility VM send";
        failpoint::step(WHAT)?;
        let additions: Vec<Addition> = interfaces.iter().flat_map(own).collect();
        self.0.add(TABLE, &additions).map_err(NetworkError::kernel(WHAT))
    }
}

/// Takes the rules away, and those of the namespace's loopback. When: in the namespace.
pub(crate) fn unload() -> Result<(), NetworkError> {
    let table = |name: &str| format!("table {name}\ndelete table {name}\n");
    nft::run(&(table(&format!("bridge {TABLE}")) + &table(LOOPBACK_TABLE)))
}

/// What each slot has a set of, with its number behind the name, and the set's type.
const SETS: [(&str, &str); 6] = [
    ("mac", "type ether_addr"),
    ("arp", "type ipv4_addr"),
    ("four", "type ipv4_addr"),
    ("six", "type ipv6_addr"),
    // Targets of advertisements: behind type, code, checksum and flags.
    ("target", "typeof @th,64,128"),
    ("probe", "type ipv6_addr"),
];

/// What is an interface's own, by the sets in which it belongs.
fn own(interface: &SandboxInterface) -> Vec<Addition> {
    let mut own = vec![("mac", vec![interface.mac.to_vec()])];
    if let Some((address, _)) = interface.ipv4 {
        let address = address.octets().to_vec();
        // From 0.0.0.0 a host asks whether an address is free.
        own.push(("arp", vec![address.clone(), vec![0; 4]]));
        own.push(("four", vec![address]));
    }
    if let Some((address, _)) = interface.ipv6 {
        let addresses: Vec<_> = [address, link_local(interface.mac)].map(|own| own.octets().to_vec()).into();
        own.push(("six", addresses.clone()));
        own.push(("target", addresses));
        own.push(("probe", vec![vec![0; 16]]));
    }
    own.into_iter().map(|(set, elements)| (format!("{set}{}", interface.slot), elements)).collect()
}

/// An element as the program reads it.
fn written(set: &str, element: &[u8]) -> String {
    let hex = || element.iter().map(|byte| format!("{byte:02x}"));
    match (set.starts_with("target"), element.len()) {
        (true, _) => format!("0x{}", hex().collect::<String>()),
        (_, 6) => hex().collect::<Vec<_>>().join(":"),
        (_, 4) => element.iter().map(u8::to_string).collect::<Vec<_>>().join("."),
        _ => hex().collect::<Vec<_>>().chunks(2).map(<[String]>::concat).collect::<Vec<_>>().join(":"),
    }
}

fn render(interfaces: &[SandboxInterface], names: Ipv4Addr) -> String {
    let mut text = format!("table bridge {TABLE}\ndelete table bridge {TABLE}\ntable bridge {TABLE} {{\n");
    let own: Vec<Addition> = interfaces.iter().flat_map(own).collect();
    // Writing to a string cannot fail.
    for slot in 0..NETWORK_SLOTS {
        for (name, kind) in SETS {
            let name = format!("{name}{slot}");
            let elements = own.iter().filter(|(set, _)| *set == name).flat_map(|(_, elements)| elements);
            let elements: Vec<String> = elements.map(|element| written(&name, element)).collect();
            let given =
                if elements.is_empty() { String::new() } else { format!(" elements = {{ {} }};", elements.join(", ")) };
            let _ = writeln!(text, "set {name} {{ {kind};{given} }}");
        }
        let _ = writeln!(text, "chain guest{slot} {{\n{}\n}}", allowed(slot).join("\n"));
    }
    let _ = writeln!(text, "chain first {{ type filter hook prerouting priority -200;");
    for slot in 0..NETWORK_SLOTS {
        let _ = writeln!(text, "iifname \"{}\" jump guest{slot}", tap_name(slot));
    }
    let _ = write!(
        text,
        "iifname \"nic*\" drop
ip saddr 127.0.0.0/8 drop
ip daddr 127.0.0.0/8 drop
arp saddr ip 127.0.0.0/8 drop
arp daddr ip 127.0.0.0/8 drop
}}
chain through {{ type filter hook forward priority -200;
ip daddr 127.0.0.0/8 drop
arp daddr ip 127.0.0.0/8 drop
}}
chain own {{ type filter hook input priority -200; policy drop;
iifname \"nic*\" arp daddr ip {names} accept
iifname \"nic*\" ip daddr {names} udp dport 53 accept
iifname \"nic*\" ip daddr {names} tcp dport 53 accept
}}
chain answers {{ type filter hook output priority -200;
oifname != \"nic*\" drop
}}
}}
"
    );
    text
}

/// What ends in `accept` may pass; the rest of what a slot's guest sends is dropped: all of it, while the sets are empty.
fn allowed(slot: u32) -> Vec<String> {
    [
        "ether saddr != @mac# drop",
        "arp saddr ether != @mac# drop",
        "arp saddr ip @arp# accept",
        // It leases no addresses to others.
        "ip saddr @four# udp sport 67 drop",
        "ip saddr @four# accept",
        // It is no router, and answers for nobody else.
        "icmpv6 type { nd-router-advert, nd-redirect } drop",
        "icmpv6 type nd-neighbor-advert @th,64,128 @target# ip6 saddr @six# accept",
        "icmpv6 type nd-neighbor-advert drop",
        "ip6 saddr @probe# icmpv6 type { nd-neighbor-solicit, 143 } accept",
        "ip6 saddr @six# udp sport 547 drop",
        "ip6 saddr @six# accept",
        "drop",
    ]
    .map(|rule| rule.replace('#', &slot.to_string()))
    .into()
}

/// The address that a kernel makes of a hardware address. Source: RFC 4291, appendix A.
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use proto::network::NetworkRates;

    use super::*;

    #[test]
    fn a_link_local_address_is_made_of_the_hardware_address() {
        assert_eq!(link_local([2, 0x42, 0xac, 0x11, 0, 2]).to_string(), "fe80::42:acff:fe11:2");
    }

    /// In whichever way the guest's addresses are told, the same rules come of it.
    #[test]
    fn what_is_told_later_is_what_would_have_been_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(space) = crate::Namespace::make(&folder.path().join("ns")) else {
            eprintln!("SKIPPED: no rights for a network namespace");
            return;
        };
        let interfaces = [(0, Some(2)), (3, None)].map(|(slot, v6)| SandboxInterface {
            slot,
            mac: [2, 0, 0, 0, 0, 2],
            mtu: None,
            ipv4: Some((Ipv4Addr::new(10, 9, 0, 2), 24)),
            ipv6: v6.map(|last| (Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, last), 64)),
            names: true,
            rates: NetworkRates::default(),
        });
        let names = Ipv4Addr::new(127, 0, 0, 11);
        let listed = || nft::listing("bridge", TABLE).map(Option::unwrap);
        let compared = space.run(|| {
            let waiting = match GuardInWaiting::open(names) {
                Err(error) if error.to_string().contains("install nftables") => {
                    eprintln!("SKIPPED: no nft");
                    return Ok(());
                }
                outcome => outcome?,
            };
            let closed = listed()?;
            waiting.tell(&interfaces)?;
            let told = listed()?;
            load(&interfaces, names)?;
            assert_eq!(told, listed()?);
            assert!(told != closed && told.contains("fd000009000000000000000000000002"), "{told}");
            Ok(())
        });
        crate::Namespace::remove(space.path()).unwrap();
        compared.unwrap();
    }

    #[test]
    fn elements_are_written_as_what_they_are() {
        let address: Ipv6Addr = "fd00::2".parse().unwrap();
        for (set, element, text) in [
            ("mac0", vec![2, 0x42, 0xac, 0x11, 0, 2], "02:42:ac:11:00:02"),
            ("four1", vec![10, 0, 0, 2], "10.0.0.2"),
            ("six0", address.octets().to_vec(), "fd00:0000:0000:0000:0000:0000:0000:0002"),
            ("target3", address.octets().to_vec(), "0xfd000000000000000000000000000002"),
        ] {
            assert_eq!(written(set, &element), text);
        }
    }
}
