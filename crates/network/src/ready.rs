//! A namespace that waits for a container, linked with a bridge.
//!
//! ```text
//!  process:  bridge ── veth host_link ═ veth eth0, down, no address
//!  guest:    bridge ── veth host_link ═ veth eth0 ── bridge br0 ── (tap nic0, of a VM that stands by, off); guard: all dropped
//! ```
//!
//! Nothing but an open file holds it: however its engine ends, the kernel takes namespace and link away.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::dns::{ADDRESS, NameSockets};
use crate::error::NetworkError;
use crate::firewall::guard::GuardInWaiting;
use crate::link::{Plug, READY_NAME, is_on, make, switch_on, unplug};
use crate::namespace::{Namespace, run_in, unbound};
use crate::netlink::set_sysctl;
use crate::sandbox::tie_slot;

/// The link of a namespace that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyEnd {
    /// Name of the bridge.
    pub bridge: String,
    /// Name of the end on the bridge, at most 15 bytes.
    pub host_link: String,
    /// Largest packet in bytes, if not the kernel's.
    pub mtu: Option<u32>,
    /// As [`Plug::isolated`].
    pub isolated: bool,
    /// Its containers have an address of IPv6.
    pub ipv6: bool,
    /// Its containers have a name server.
    pub names: bool,
    /// For a utility VM, whose slot 0 is behind the link.
    pub guest: bool,
}

/// What a container gets that takes a namespace which waited.
#[derive(Debug)]
pub struct Bound {
    /// The namespace.
    pub namespace: Namespace,
    /// The sockets of its name server, if it has one.
    pub names: Option<NameSockets>,
    /// A utility VM's guard.
    pub guard: Option<GuardInWaiting>,
}

/// A namespace with a link whose end in it has no address.
#[derive(Debug)]
pub struct ReadySandbox {
    namespace: File,
    end: ReadyEnd,
    names: Option<NameSockets>,
    guard: Option<GuardInWaiting>,
}

impl ReadySandbox {
    /// Makes one.
    ///
    /// # Errors
    /// What the kernel or `nft` says; nothing stays.
    pub fn new(end: ReadyEnd) -> Result<Self, NetworkError> {
        let namespace = unbound()?;
        let plug = Plug {
            bridge: end.bridge.clone(),
            host_link: end.host_link.clone(),
            name: None,
            mac: first_mac()?,
            mtu: end.mtu,
            ipv4: None,
            ipv6: None,
            link_local: Vec::new(),
            isolated: end.isolated,
            ready: false,
        };
        make(&namespace, &plug, READY_NAME)?;
        let made = run_in(&namespace, || if end.guest { furnish_for_guest(&end, &plug) } else { furnish(&end) });
        // The namespace takes its link along, but not at once.
        let (names, guard) = made.inspect_err(|_| {
            if let Err(error) = unplug(&end.host_link) {
                tracing::warn!(link = end.host_link, error = &error as &dyn std::error::Error, "left behind");
            }
        })?;
        Ok(Self { namespace, end, names, guard })
    }

    /// A path by which other processes open the namespace while this one is there.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd()).into()
    }

    /// What it was made for.
    #[must_use]
    pub fn end(&self) -> &ReadyEnd {
        &self.end
    }

    /// True if its link is where it was made: anybody may take a link off a bridge.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_whole(&self) -> Result<bool, NetworkError> {
        is_on(&self.end.host_link, &self.end.bridge)
    }

    /// Binds it on `path`, for a container. A process container's is made whole by [`crate::plug`] with [`Plug::ready`], a
    /// guest's by its guard.
    ///
    /// # Errors
    /// When the kernel refuses; nothing stays.
    pub fn bind(self, path: &Path) -> Result<Bound, NetworkError> {
        let namespace = Namespace::bind(&self.namespace, path)?;
        Ok(Bound { namespace, names: self.names, guard: self.guard })
    }
}

/// Locally administered, and no guest's: a bridge keeps frames for its own ports' addresses. A process container's own takes
/// its place.
fn first_mac() -> Result<[u8; 6], NetworkError> {
    let mut mac = [0; 6];
    rustix::rand::getrandom(&mut mac[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|error| NetworkError::kernel("draw a hardware address")(error.into()))?;
    mac[0] = 6;
    Ok(mac)
}

type Furnished = (Option<NameSockets>, Option<GuardInWaiting>);

fn furnish(end: &ReadyEnd) -> Result<Furnished, NetworkError> {
    set_sysctl(&format!("ipv6/conf/{READY_NAME}/disable_ipv6"), if end.ipv6 { "0" } else { "1" });
    Ok((end.names.then(NameSockets::open_here).transpose()?, None))
}

/// Everything up to the tap. Whoever asks the name server is found behind the bridge, whatever its address.
fn furnish_for_guest(end: &ReadyEnd, plug: &Plug) -> Result<Furnished, NetworkError> {
    // First, so that nothing passes at any time.
    let guard = GuardInWaiting::open(ADDRESS)?;
    switch_on(READY_NAME)?;
    tie_slot(0, READY_NAME, plug.mac, Some((Ipv4Addr::UNSPECIFIED, 0)), None)?;
    Ok((end.names.then(|| NameSockets::open_for_guest(ADDRESS)).transpose()?, Some(guard)))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::link::{BridgeSpec, delete_link, ensure_bridge, plug};

    fn wait_gone(link: &str) {
        let begin = Instant::now();
        while is_on(link, "bh-r").unwrap() {
            assert!(begin.elapsed() < Duration::from_secs(10), "{link} stays");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn use_one(folder: &Path) -> Result<(), NetworkError> {
        let bridge = BridgeSpec {
            name: "bh-r".into(),
            alias: "mine".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
            addresses: vec!["10.9.0.1/24".parse().unwrap()],
            may_exist: false,
        };
        ensure_bridge(&bridge)?;
        let end = |host_link: &str| ReadyEnd {
            bridge: "bh-r".into(),
            host_link: host_link.into(),
            mtu: Some(1400),
            isolated: false,
            ipv6: false,
            names: false,
            guest: false,
        };
        let (taken, unused) = (ReadySandbox::new(end("bhv-r1"))?, ReadySandbox::new(end("bhv-r2"))?);
        assert!(taken.is_whole()? && unused.is_whole()?);
        let space = taken.bind(&folder.join("taken"))?.namespace;
        let wanted = Plug {
            bridge: "bh-r".into(),
            host_link: "bhv-r1".into(),
            name: None,
            mac: [2, 0, 0, 0, 0, 9],
            mtu: None,
            ipv4: Some("10.9.0.9/24".parse().unwrap()),
            ipv6: None,
            link_local: Vec::new(),
            isolated: false,
            ready: true,
        };
        assert_eq!(plug(&space, &wanted)?.name, "eth0");
        let receiver = space.run(|| Ok(UdpSocket::bind("10.9.0.9:7").unwrap()))?;
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        UdpSocket::bind("10.9.0.1:0").unwrap().send_to(b"hello", "10.9.0.9:7").unwrap();
        assert_eq!(receiver.recv(&mut [0; 16]).unwrap(), 5);
        drop(receiver);
        // One that nobody takes goes with its file, one that was taken with what is bound.
        drop(unused);
        wait_gone("bhv-r2");
        Namespace::remove(space.path())?;
        wait_gone("bhv-r1");
        delete_link("bh-r")
    }

    #[test]
    fn a_namespace_waits_is_taken_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(outer) = Namespace::make(&folder.path().join("outer")) else {
            eprintln!("SKIPPED: no rights for a network namespace");
            return;
        };
        let done = outer.run(|| use_one(folder.path()));
        Namespace::remove(outer.path()).unwrap();
        done.unwrap();
    }
}
