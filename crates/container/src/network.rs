//! In the helper: the loopback device of a container's new network namespace.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys;

/// Brings `lo` up where the process is. libcontainer leaves it down; runc does not.
///
/// When: in the helper, which is a stranger in that namespace from then on.
pub fn bring_up_loopback(pid: u32) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sys::bring_up_loopback(socket.as_fd())
}
