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

use super::nft::{self, Transaction};
use crate::error::NetworkError;
use crate::failpoint;

/// Puts the rules for these interfaces in the place of all earlier ones; names are asked for at an address of 127.0.0.0/8. When:
/// in the namespace.
pub(crate) fn load(interfaces: &[SandboxInterface], names: Ipv4Addr) -> Result<(), NetworkError> {
    nft::run(&render(interfaces, names))
}

/// The rules of a namespace whose guest's addresses are not known yet: none passes, until they are told.
#[derive(Debug)]
pub struct GuardInWaiting(Transaction);

impl GuardInWaiting {
    /// Lets nothing pass, and has the program ready that will let the guest's own pass. When: in the namespace.
    pub(crate) fn open(names: Ipv4Addr) -> Result<Self, NetworkError> {
        load(&[], names)?;
        Transaction::open().map(Self)
    }

    /// Tells it the guest's interfaces, all of them; [`GuardInWaiting::finish`] must follow.
    ///
    /// When: once. It adds rules and takes none away: whoever does has to wait until the kernel is sure that no packet is just
    /// passing them, ten milliseconds.
    pub fn begin(&mut self, interfaces: &[SandboxInterface]) {
        let chains: Vec<String> = interfaces.iter().map(own_chain).collect();
        self.0.give(&format!("table bridge bulkhead {{\n{}}}\n", chains.concat()));
    }

    /// Waits until the rules are there.
    ///
    /// # Errors
    /// `Firewall`; nothing passes then.
    pub fn finish(self) -> Result<(), NetworkError> {
        failpoint::step("let a utility VM send")?;
        self.0.finish()
    }
}

/// Takes the rules away. When: in the namespace.
pub(crate) fn unload() -> Result<(), NetworkError> {
    nft::run("table bridge bulkhead\ndelete table bridge bulkhead\n")
}

fn render(interfaces: &[SandboxInterface], names: Ipv4Addr) -> String {
    let mut text = String::from("table bridge bulkhead\ndelete table bridge bulkhead\ntable bridge bulkhead {\n");
    // A slot that is not in use has an empty chain, and what comes from it is dropped.
    (0..NETWORK_SLOTS).for_each(|slot| text.push_str(&format!("chain guest{slot} {{ }}\n")));
    interfaces.iter().for_each(|interface| text.push_str(&own_chain(interface)));
    // Writing to a string cannot fail.
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

fn own_chain(interface: &SandboxInterface) -> String {
    format!("chain guest{} {{\n{}\n}}\n", interface.slot, allowed(interface).join("\n"))
}

/// What ends in `accept` may pass; the rest of what the guest sends is dropped.
fn allowed(interface: &SandboxInterface) -> Vec<String> {
    let mac = interface.mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut rules = vec![format!("ether saddr != {mac} drop")];
    if let Some((address, _)) = interface.ipv4 {
        // From 0.0.0.0 a host asks whether an address is free.
        rules.push(format!("arp saddr ether {mac} arp saddr ip {{ {address}, 0.0.0.0 }} accept"));
        // It leases no addresses to others.
        rules.push(format!("ip saddr {address} udp sport 67 drop"));
        rules.push(format!("ip saddr {address} accept"));
    }
    if let Some((address, _)) = interface.ipv6 {
        let link_local = link_local(interface.mac);
        // It is no router, and answers for nobody else: the target is behind type, code, checksum and flags.
        rules.push("icmpv6 type { nd-router-advert, nd-redirect } drop".into());
        for own in [link_local, address] {
            let digits = hex(own);
            rules.push(format!(
                "icmpv6 type nd-neighbor-advert @th,64,128 0x{digits} ip6 saddr {{ {address}, {link_local} }} accept"
            ));
        }
        rules.push("icmpv6 type nd-neighbor-advert drop".into());
        rules.push("ip6 saddr :: icmpv6 type { nd-neighbor-solicit, 143 } accept".into());
        rules.push(format!("ip6 saddr {{ {address}, {link_local} }} udp sport 547 drop"));
        rules.push(format!("ip6 saddr {{ {address}, {link_local} }} accept"));
    }
    rules.push("drop".into());
    rules
}

fn hex(address: Ipv6Addr) -> String {
    address.octets().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The address that a kernel makes of a hardware address. Source: RFC 4291, appendix A.
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_is_made_of_the_hardware_address() {
        assert_eq!(link_local([2, 0x42, 0xac, 0x11, 0, 2]).to_string(), "fe80::42:acff:fe11:2");
        assert_eq!(hex("fd00::2".parse().unwrap()), "fd000000000000000000000000000002");
    }
}
