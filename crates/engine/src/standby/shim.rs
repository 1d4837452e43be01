//! A shim that holds a utility VM, or a process to fork one in, and has no container yet.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use hostnet::ReadySandbox;
use proto::control::UtilityVmRequest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Kind, Vm};

/// Name of the shim's socket in its folder: short, since a socket's path may have 107 characters only.
const SOCKET: &str = "s";

/// A shim that was started to stand by. Whoever takes it or takes it down reaps it.
#[derive(Debug)]
pub struct StandbyShim {
    /// Its bundle, with its socket in it.
    pub folder: PathBuf,
    /// What it holds.
    pub kind: Kind,
    /// What the rehearsal works on, apart from its layer: of no use once the VM is ready.
    pub rehearsal: PathBuf,
    /// The shim's process id.
    pub shim_pid: u32,
    /// The namespace in which its taps are, if that is linked with a network.
    pub sandbox: Option<ReadySandbox>,
    request: UtilityVmRequest,
    pidfd: OwnedFd,
}

impl StandbyShim {
    /// Takes a shim that was just started in `folder` for this request.
    ///
    /// # Errors
    /// What the kernel says to a handle of the process.
    pub fn new(
        kind: Kind,
        folder: PathBuf,
        rehearsal: PathBuf,
        shim_pid: u32,
        request: UtilityVmRequest,
    ) -> io::Result<Self> {
        let pid = i32::try_from(shim_pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { kind, folder, rehearsal, shim_pid, sandbox: None, request, pidfd })
    }

    /// Where the shim in this folder listens.
    #[must_use]
    pub fn socket(folder: &Path) -> PathBuf {
        folder.join(SOCKET)
    }

    /// A container that asks for this can have it: the VM if it is of the nominal size and from the same template; the process whatever
    /// its size, since the shim makes another where it must.
    #[must_use]
    pub fn fits(&self, asked: &UtilityVmRequest) -> bool {
        let nominal = asked.memory_bytes.is_none() && asked.cpus_milli.is_none();
        (nominal || self.kind == Kind::Process)
            && self.request.template_store == asked.template_store
            && self.request.guest_image == asked.guest_image
            && self.request.backend == asked.backend
            && self.request.boundary_required == asked.boundary_required
    }

    /// Makes its folder a container's bundle and its socket that container's. The shim's working folder goes along.
    ///
    /// # Errors
    /// What rename says; everything is where it was then.
    pub fn hand_over(&self, bundle: &Path, socket: &Path) -> io::Result<()> {
        // The folder first: what a killed engine leaves in a bundle is found by the next one.
        std::fs::rename(&self.folder, bundle)?;
        std::fs::rename(Self::socket(bundle), socket).inspect_err(|_| {
            if let Err(error) = std::fs::rename(bundle, &self.folder) {
                tracing::warn!(folder = %bundle.display(), %error, "a standby's folder is in a container's place");
            }
        })
    }

    /// Kills the shim. One that has ended already is as dead as it should be.
    pub fn kill(&self) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, Signal::KILL) {
            tracing::debug!(pid = self.shim_pid, %error, "a standby's shim had ended");
        }
    }
}

impl Vm for StandbyShim {
    fn is_alive(&self) -> bool {
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        // A process handle becomes readable when the process has ended. Source: pidfd_open(2).
        poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn asked() -> UtilityVmRequest {
        UtilityVmRequest {
            template_store: "/t".into(),
            guest_image: "/g".into(),
            backend: proto::control::BackendChoice::Auto,
            memory_bytes: None,
            cpus_milli: None,
            boundary_required: false,
            machine_id: "0".repeat(32),
            personalize_timeout_ms: 2000,
            disk_rates: proto::control::DiskRates::default(),
        }
    }

    #[test]
    fn it_becomes_a_bundle_with_its_socket_and_dies_when_told() {
        let root = tempfile::tempdir().unwrap();
        let (folder, bundle, socket) = (root.path().join("1"), root.path().join("c"), root.path().join("sock"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(StandbyShim::socket(&folder), "socket").unwrap();
        let mut child = Command::new("/bin/sleep").arg("100").spawn().unwrap();
        let vm = StandbyShim::new(Kind::Vm, folder.clone(), root.path().join("r"), child.id(), asked()).unwrap();
        assert!(vm.is_alive());
        vm.hand_over(&bundle, &socket).unwrap();
        assert!(bundle.is_dir() && socket.exists() && !folder.exists() && !StandbyShim::socket(&bundle).exists());
        vm.kill();
        child.wait().unwrap();
        assert!(!vm.is_alive());
        vm.kill();
    }

    #[test]
    fn a_handover_that_fails_leaves_everything_in_place() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("1");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(StandbyShim::socket(&folder), "socket").unwrap();
        let vm =
            StandbyShim::new(Kind::Vm, folder.clone(), root.path().join("r"), std::process::id(), asked()).unwrap();
        vm.hand_over(&root.path().join("c"), &root.path().join("missing/sock")).unwrap_err();
        assert!(StandbyShim::socket(&folder).exists() && !root.path().join("c").exists());
    }

    #[test]
    fn only_the_nominal_size_of_the_same_template_fits_a_vm() {
        let root = tempfile::tempdir().unwrap();
        let shim = |kind| StandbyShim::new(kind, root.path().into(), root.path().into(), std::process::id(), asked());
        let (vm, process) = (shim(Kind::Vm).unwrap(), shim(Kind::Process).unwrap());
        let other_machine = UtilityVmRequest { machine_id: "1".repeat(32), ..asked() };
        assert!(vm.fits(&other_machine) && process.fits(&other_machine));
        for limited in [
            UtilityVmRequest { memory_bytes: Some(1 << 30), ..asked() },
            UtilityVmRequest { cpus_milli: Some(500), ..asked() },
        ] {
            assert!(!vm.fits(&limited) && process.fits(&limited), "{limited:?}");
        }
        for other in [
            UtilityVmRequest { boundary_required: true, ..asked() },
            UtilityVmRequest { guest_image: "/other".into(), ..asked() },
            UtilityVmRequest { template_store: "/other".into(), ..asked() },
            UtilityVmRequest { backend: proto::control::BackendChoice::QemuTcg, ..asked() },
        ] {
            assert!(!vm.fits(&other) && !process.fits(&other), "{other:?}");
        }
    }
}
