//! Tells when somebody changes the host's nftables rules, or its links.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::error::NetworkError;
use crate::firewall::Firewall;

/// The group that hears of nftables, as a bit. Source: Linux include/uapi/linux/netfilter/nfnetlink.h, `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = 1 << 6;
/// The group that hears of links, as a bit. Source: Linux include/uapi/linux/rtnetlink.h, `RTNLGRP_LINK`.
const LINK_GROUP: u32 = 1;
/// Others make many changes at a time; one look after the last is enough.
const SETTLED: Duration = Duration::from_millis(150);
/// However much goes on, a look is taken this often.
const AT_MOST: Duration = Duration::from_secs(2);

impl Firewall {
    /// Puts the table back whenever somebody else has changed it, in a thread that ends with the process.
    ///
    /// # Errors
    /// When the kernel tells nothing of its rules, or there is no thread to be had.
    pub fn guard(self: &Arc<Self>) -> Result<(), NetworkError> {
        let failed = || NetworkError::kernel("watch the firewall");
        let socket = listen(Some(NETFILTER), NFTABLES_GROUP).map_err(failed())?;
        let firewall = Arc::clone(self);
        let watch = move || {
            while let Err(error) = firewall.watch(&socket) {
                tracing::error!(%error, "cannot watch the firewall");
                std::thread::sleep(AT_MOST);
            }
        };
        std::thread::Builder::new().name("firewall".into()).spawn(watch).map(drop).map_err(failed())
    }

    fn watch(&self, socket: &OwnedFd) -> io::Result<()> {
        loop {
            hear_of_changes(socket)?;
            match self.restore() {
                Ok(false) => {}
                Ok(true) => tracing::warn!("somebody changed this engine's rules in the firewall; they were put back"),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the firewall's rules are gone");
                }
            }
        }
    }
}

/// Hears of the links of the namespace in which it was made.
#[derive(Debug)]
pub struct LinkWatch(OwnedFd);

impl LinkWatch {
    /// Begins to listen, by the protocol 0 that is for links and routes.
    ///
    /// # Errors
    /// When the kernel tells nothing of its links.
    pub fn new() -> Result<Self, NetworkError> {
        listen(None, LINK_GROUP).map(Self).map_err(NetworkError::kernel("watch the links"))
    }

    /// Waits until links came, went or changed, by whomever, and that has settled.
    ///
    /// # Errors
    /// When the kernel tells nothing any more.
    pub fn wait(&self) -> Result<(), NetworkError> {
        hear_of_changes(&self.0).map_err(NetworkError::kernel("watch the links"))
    }
}

fn listen(protocol: Option<Protocol>, groups: u32) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

fn hear_of_changes(socket: &OwnedFd) -> io::Result<()> {
    hear(socket, None)?;
    let until = Instant::now() + AT_MOST;
    while Instant::now() < until && hear(socket, Some(SETTLED))? {}
    Ok(())
}

/// Waits for news and forgets them: what counts is how the table looks afterwards. False when none came in time.
fn hear(socket: &OwnedFd, patience: Option<Duration>) -> io::Result<bool> {
    let timeout = patience.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    if poll(&mut [PollFd::new(socket, PollFlags::IN)], timeout.as_ref())? == 0 {
        return Ok(false);
    }
    match recv(socket, &mut [0_u8; 4096][..], RecvFlags::DONTWAIT) {
        // More happened than was kept, or it is gone already.
        Ok(_) | Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::AGAIN) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
