//! Pseudo-terminals: whose they are, how large, and whether they are true ones.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcsetwinsize};

/// Sets a terminal's size and owner.
pub fn prepare_terminal(master: &OwnedFd, width: u16, height: u16, user_id: u32) -> io::Result<()> {
    if width != 0 && height != 0 {
        tcsetwinsize(master, Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 })?;
    }
    if user_id != 0 {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(master.as_fd(), flags)?;
        rustix::fs::fchown(&slave, Some(rustix::process::Uid::from_raw(user_id)), None)?;
    }
    Ok(())
}

/// Refuses what only looks like a terminal (CVE-2025-52565). Shape: `device` is major and minor, `u32::MAX` for any minor.
pub fn verify_terminal(fd: &OwnedFd, device: (u32, u32)) -> io::Result<()> {
    const DEVPTS_MAGIC: i64 = 0x1cd1;
    let stat = rustix::fs::fstat(fd)?;
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let character = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice;
    let devpts = rustix::fs::fstatfs(fd)?.f_type == DEVPTS_MAGIC;
    if devpts && character && major == device.0 && (device.1 == u32::MAX || minor == device.1) {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "/dev/ptmx is no terminal multiplexer"))
    }
}
