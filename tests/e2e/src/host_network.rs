//! A network namespace for an engine, in the place of the machine's own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::patience::eventually;

/// A namespace that goes with its last process. Nobody else's rules, routes and ports are in it, and no way out.
pub struct HostNetwork {
    /// Holds it.
    holder: Child,
}

impl HostNetwork {
    /// Makes one, its loopback up.
    ///
    /// # Errors
    /// Without the rights, or without unshare(1) or ip(8).
    pub fn make() -> std::io::Result<Self> {
        let holder = Command::new("unshare").args(["--net", "sleep", "infinity"]).stdin(Stdio::null()).spawn()?;
        let this = Self { holder };
        let machines = std::fs::read_link("/proc/self/ns/net")?;
        let entered = || std::fs::read_link(this.path()).is_ok_and(|own| own != machines);
        if !eventually(Duration::from_secs(10), entered) {
            return Err(std::io::Error::other("unshare makes no network namespace"));
        }
        let up = this.command("ip").args(["link", "set", "lo", "up"]).status()?;
        if up.success() { Ok(this) } else { Err(std::io::Error::other("ip cannot bring lo up")) }
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// A program in it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).args(["--", program]);
        command
    }
}

impl Drop for HostNetwork {
    fn drop(&mut self) {
        // unshare(1) executes its program in place.
        if let Err(error) = self.holder.kill().and_then(|()| self.holder.wait()) {
            eprintln!("the holder of a network namespace was not ended: {error}");
        }
    }
}
