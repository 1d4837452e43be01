//! Requests to the guest's kernel by route netlink, as few as a fork needs. By hand, since whatever runs after the fork is
//! code that each fork runs for the first time; the typed crates are some hundred blocks more for every request.
//!
//! Source: rtnetlink(7), netlink(7).

use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use libc::{
    AF_INET, AF_INET6, AF_UNSPEC, IFA_ADDRESS, IFA_LOCAL, IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_NET_NS_FD,
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NLMSG_ERROR, RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PRIORITY,
    RTM_DELADDR, RTM_DELROUTE, RTM_NEWADDR, RTM_NEWROUTE, RTM_SETLINK,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Bytes of a message's own header.
const HEADER: usize = 16;
const IFA_F_NODAD: u8 = 0x02;
/// Source: Linux include/uapi/linux/rtnetlink.h.
const RTNH_F_ONLINK: u32 = 4;
const IFF_UP: u32 = libc::IFF_UP as u32;

/// Which routes a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// What is not for neighbours goes to this gateway.
    Default(IpAddr),
    /// What is for this address goes out by this link, though the address is one of the loopback device's.
    OnLink(IpAddr, u32),
    /// What is for these addresses.
    To(RouteTo),
}

/// A route in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteTo {
    /// The addresses, and how many of their bits count.
    pub to: (IpAddr, u8),
    /// The link by which it leaves.
    pub link: u32,
    /// Who takes it; without one, the addresses are neighbours.
    pub gateway: Option<IpAddr>,
    /// The gateway is a neighbour though no route says so.
    pub on_link: bool,
    /// 0 is the kernel's own choice.
    pub metric: u32,
}

/// What is to be done to a link.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkChange<'a> {
    /// Its hardware address.
    pub mac: Option<&'a [u8]>,
    /// Its largest packet.
    pub mtu: Option<u32>,
    /// It goes to another namespace, and is down there.
    pub namespace: Option<BorrowedFd<'a>>,
    /// It is switched on or off.
    pub up: Option<bool>,
}

/// Requests that go together. Each is tried, whatever became of those before it.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    steps: Vec<&'static str>,
}

impl Batch {
    /// True if there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn message(&mut self, step: &'static str, kind: u16, flags: libc::c_int, head: &[u8], attributes: &[(u16, &[u8])]) {
        let start = self.bytes.len();
        let number = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        // No flag is beyond the lowest 16 bits.
        let flags = u16::try_from(NLM_F_REQUEST | NLM_F_ACK | flags).unwrap_or_default();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(number.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(head);
        for (name, value) in attributes {
            let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
            self.bytes.extend(length.to_ne_bytes());
            self.bytes.extend(name.to_ne_bytes());
            self.bytes.extend(*value);
            self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        }
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.steps.push(step);
    }

    /// Changes a link of this name.
    pub fn change_link(&mut self, step: &'static str, name: &str, change: &LinkChange<'_>) {
        use std::os::fd::AsRawFd;
        let mut head = [0; 16];
        head[0] = family(AF_UNSPEC);
        if let Some(up) = change.up {
            head[8..12].copy_from_slice(&(if up { IFF_UP } else { 0 }).to_ne_bytes());
            head[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
        }
        let name = [name.as_bytes(), &[0]].concat();
        let mtu = change.mtu.map(u32::to_ne_bytes);
        let namespace = change.namespace.map(|fd| fd.as_raw_fd().to_ne_bytes());
        let mut attributes: Vec<(u16, &[u8])> = vec![(IFLA_IFNAME, &name)];
        attributes.extend(change.mac.map(|mac| (IFLA_ADDRESS, mac)));
        attributes.extend(mtu.as_ref().map(|mtu| (IFLA_MTU, mtu.as_slice())));
        attributes.extend(namespace.as_ref().map(|fd| (IFLA_NET_NS_FD, fd.as_slice())));
        self.message(step, RTM_SETLINK, 0, &head, &attributes);
    }

    /// Gives a link an address. Nobody else has it, so nobody is asked.
    pub fn add_address(&mut self, link: u32, address: IpAddr, prefix: u8) {
        self.address("set an address", RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, (link, address, prefix));
    }

    /// Takes an address from a link.
    pub fn remove_address(&mut self, link: u32, address: IpAddr, prefix: u8) {
        self.address("take an address away", RTM_DELADDR, 0, (link, address, prefix));
    }

    fn address(&mut self, step: &'static str, kind: u16, flags: libc::c_int, what: (u32, IpAddr, u8)) {
        let (link, address, prefix) = what;
        let index = link.to_ne_bytes();
        let (family, bytes) = parts(address);
        let head = [family, prefix, IFA_F_NODAD, 0, index[0], index[1], index[2], index[3]];
        let attributes: [(u16, &[u8]); 2] = [(IFA_LOCAL, &bytes), (IFA_ADDRESS, &bytes)];
        self.message(step, kind, flags, &head, &attributes);
    }

    /// Adds a route, in place of the one that leads to the same.
    pub fn add_route(&mut self, route: Route) {
        self.route("set a route", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route);
    }

    /// Removes a route.
    pub fn remove_route(&mut self, route: Route) {
        self.route("remove a route", RTM_DELROUTE, 0, route);
    }

    fn route(&mut self, step: &'static str, kind: u16, flags: libc::c_int, route: Route) {
        // Source: rtnetlink(7), struct rtmsg: family, lengths of prefixes, tos, table, protocol, scope, type.
        let head = |family, length, table, scope| {
            [family, length, 0, 0, table, libc::RTPROT_BOOT, scope, libc::RTN_UNICAST, 0, 0, 0, 0]
        };
        match route {
            Route::Default(gateway) => {
                let (family, bytes) = parts(gateway);
                let head = head(family, 0, libc::RT_TABLE_MAIN, libc::RT_SCOPE_UNIVERSE);
                self.message(step, kind, flags, &head, &[(RTA_GATEWAY, &bytes)]);
            }
            Route::OnLink(address, link) => {
                let (family, bytes) = parts(address);
                let length = u8::try_from(bytes.len() * 8).unwrap_or(u8::MAX);
                let head = head(family, length, libc::RT_TABLE_LOCAL, libc::RT_SCOPE_LINK);
                self.message(step, kind, flags, &head, &[(RTA_DST, &bytes), (RTA_OIF, &link.to_ne_bytes())]);
            }
            Route::To(route) => {
                let (family, bytes) = parts(route.to.0);
                let scope = if route.gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
                let mut head = head(family, route.to.1, libc::RT_TABLE_MAIN, scope);
                if route.on_link {
                    head[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
                }
                let (link, metric) = (route.link.to_ne_bytes(), route.metric.to_ne_bytes());
                let gateway = route.gateway.map(|gateway| parts(gateway).1);
                let mut attributes: Vec<(u16, &[u8])> = vec![(RTA_OIF, &link)];
                attributes.extend((route.to.1 > 0).then_some((RTA_DST, bytes.as_slice())));
                attributes.extend(gateway.as_ref().map(|gateway| (RTA_GATEWAY, gateway.as_slice())));
                attributes.extend((route.metric > 0).then_some((RTA_PRIORITY, metric.as_slice())));
                self.message(step, kind, flags, &head, &attributes);
            }
        }
    }
}

fn family(number: libc::c_int) -> u8 {
    u8::try_from(number).unwrap_or_default()
}

fn parts(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (family(AF_INET), address.octets().into()),
        IpAddr::V6(address) => (family(AF_INET6), address.octets().into()),
    }
}

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct Refused {
    /// What was to be done.
    pub step: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// A socket to the kernel, for the namespace in which it was opened.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Opens one, of the protocol 0 that is for routes, for the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        Ok(Self(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?))
    }

    /// The number of a link.
    ///
    /// # Errors
    /// `ENODEV`.
    pub fn index_of(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.0, name)?)
    }

    /// Carries requests out and waits for all answers.
    ///
    /// # Errors
    /// The first that was refused.
    pub fn carry_out(&self, batch: &Batch) -> Result<(), Refused> {
        if batch.is_empty() {
            return Ok(());
        }
        let broken = |source| Refused { step: "talk to the kernel", source };
        rustix::io::write(&self.0, &batch.bytes).map_err(|error| broken(error.into()))?;
        let mut outcome = Ok(());
        let mut answers = [0; 8192];
        let mut waiting = batch.steps.len();
        while waiting > 0 {
            let length = rustix::io::read(&self.0, &mut answers).map_err(|error| broken(error.into()))?;
            let mut rest = &answers[..length];
            while let Some((answer, after)) = next_answer(rest) {
                rest = after;
                waiting = waiting.saturating_sub(1);
                if let (Some(step), code @ 1..) = (batch.steps.get(answer.number), answer.code)
                    && outcome.is_ok()
                {
                    outcome = Err(Refused { step, source: io::Error::from_raw_os_error(code) });
                }
            }
        }
        outcome
    }
}

/// What became of one request.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    number: usize,
    /// 0 if it was carried out.
    code: i32,
}

fn next_answer(bytes: &[u8]) -> Option<(Answer, &[u8])> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let length = usize::try_from(word(0)?).ok()?;
    let after = bytes.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    if i32::from(kind) != NLMSG_ERROR {
        return next_answer(after);
    }
    let code = word(HEADER)?.cast_signed().wrapping_neg();
    Some((Answer { number: usize::try_from(word(8)?).ok()?, code }, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_requests_and_says_which_it_refuses() {
        // In a namespace of the test's own, whose loopback device stands for any.
        let done = std::thread::spawn(|| {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                eprintln!("SKIPPED: no rights for a network namespace");
                return;
            }
            let socket = Socket::open().unwrap();
            let link = socket.index_of("lo").unwrap();
            let mut batch = Batch::default();
            batch.change_link("switch on", "lo", &LinkChange { up: Some(true), mtu: Some(1400), ..Default::default() });
            batch.add_address(link, "10.1.2.3".parse().unwrap(), 24);
            batch.add_address(link, "fd00::3".parse().unwrap(), 64);
            batch.add_route(Route::Default("10.1.2.1".parse().unwrap()));
            batch.add_route(Route::OnLink("127.0.0.11".parse().unwrap(), link));
            batch.remove_route(Route::OnLink("127.0.0.11".parse().unwrap(), link));
            let to = |to: &str, prefix, gateway: Option<&str>| RouteTo {
                to: (to.parse().unwrap(), prefix),
                link,
                gateway: gateway.map(|gateway| gateway.parse().unwrap()),
                on_link: false,
                metric: 0,
            };
            // As Calico's: a gateway that is a neighbour by a route of its own; and one that is said to be.
            batch.add_route(Route::To(to("169.254.1.1", 32, None)));
            batch.add_route(Route::To(RouteTo { metric: 7, ..to("0.0.0.0", 0, Some("169.254.1.1")) }));
            batch.add_route(Route::To(RouteTo { on_link: true, ..to("10.5.0.0", 16, Some("172.31.0.1")) }));
            batch.add_route(Route::To(to("fd01::", 64, None)));
            socket.carry_out(&batch).unwrap();
            let local: std::net::SocketAddr = "10.1.2.3:0".parse().unwrap();
            std::net::UdpSocket::bind(local).unwrap();
            let mut batch = Batch::default();
            batch.add_address(link, "10.1.2.4".parse().unwrap(), 24);
            batch.change_link("change nothing", "none0", &LinkChange::default());
            let refused = socket.carry_out(&batch).unwrap_err();
            assert_eq!((refused.step, refused.source.raw_os_error()), ("change nothing", Some(libc::ENODEV)));
            std::net::UdpSocket::bind(local).unwrap();
            let mut batch = Batch::default();
            batch.remove_route(Route::To(RouteTo { on_link: true, ..to("10.5.0.0", 16, Some("172.31.0.1")) }));
            batch.remove_address(link, "10.1.2.3".parse().unwrap(), 24);
            batch.remove_address(link, "fd00::3".parse().unwrap(), 64);
            batch.change_link("switch off", "lo", &LinkChange { up: Some(false), ..Default::default() });
            socket.carry_out(&batch).unwrap();
            std::net::UdpSocket::bind(local).unwrap_err();
        });
        done.join().unwrap();
    }

    #[test]
    fn answers_that_are_cut_are_none() {
        assert_eq!(next_answer(&[]), None);
        assert_eq!(next_answer(&[20, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
