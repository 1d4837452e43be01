//! A namespace that waits for a container, linked with a bridge.
//!
//! Nothing but an open file holds it: however its engine ends, the kernel takes namespace and link away.

use std::fs::File;
use std::path::Path;

use crate::dns::NameSockets;
use crate::error::NetworkError;
use crate::link::{Plug, READY_NAME, is_on, make};
use crate::namespace::{Namespace, run_in, unbound};
use crate::netlink::set_sysctl;

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
    /// Its process containers have a name server.
    pub names: bool,
}

/// A namespace with a link whose end in it is down and has no address.
#[derive(Debug)]
pub struct ReadySandbox {
    namespace: File,
    end: ReadyEnd,
    names: Option<NameSockets>,
}

impl ReadySandbox {
    /// Makes one.
    ///
    /// # Errors
    /// What the kernel says; nothing stays.
    pub fn new(end: ReadyEnd) -> Result<Self, NetworkError> {
        let namespace = unbound()?;
        let plug = Plug {
            bridge: end.bridge.clone(),
            host_link: end.host_link.clone(),
            name: None,
            // Its container's takes its place.
            mac: [2, 0, 0, 0, 0, 1],
            mtu: end.mtu,
            ipv4: None,
            ipv6: None,
            link_local: Vec::new(),
            isolated: end.isolated,
            ready: false,
        };
        make(&namespace, &plug, READY_NAME)?;
        let names = run_in(&namespace, || {
            set_sysctl(&format!("ipv6/conf/{READY_NAME}/disable_ipv6"), if end.ipv6 { "0" } else { "1" });
            end.names.then(NameSockets::open_here).transpose()
        })?;
        Ok(Self { namespace, end, names })
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

    /// Binds it on `path`, for a container; it is made whole by [`crate::plug`] with [`Plug::ready`]. With the sockets of its
    /// name server, as of a process container.
    ///
    /// # Errors
    /// When the kernel refuses; nothing stays.
    pub fn bind(self, path: &Path) -> Result<(Namespace, Option<NameSockets>), NetworkError> {
        Ok((Namespace::bind(&self.namespace, path)?, self.names))
    }
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
        };
        let (taken, unused) = (ReadySandbox::new(end("bhv-r1"))?, ReadySandbox::new(end("bhv-r2"))?);
        assert!(taken.is_whole()? && unused.is_whole()?);
        let (space, _) = taken.bind(&folder.join("taken"))?;
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
