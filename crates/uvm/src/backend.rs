//! Chooses what runs a utility VM on this host.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proto::control::{Accelerator, BackendChoice};
use serde::{Deserialize, Serialize};

use crate::hypervisor::{Hypervisor, HypervisorError};
use crate::kvm::OwnVmm;
use crate::kvm_probe::{KvmProbe, probe_kvm};
use crate::qemu::{Qemu, QemuInstallation};
use crate::record;
use crate::store::TemplateStore;

/// A probe's outcome, valid until the host boots again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KnownKvm {
    host_boot_id: String,
    usable: bool,
    reason: String,
}

/// Makes the backend for a choice. What was found out about the host is kept in the template store, since each start is
/// a process of its own and asking costs 30 ms (QEMU's version) to 0.3 s (an unusable KVM).
pub(crate) async fn choose(
    choice: BackendChoice,
    store: &TemplateStore,
) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let store = store.clone();
    let work =
        move || make(choice, || known_kvm(&store).usable, || QemuInstallation::find_cached(&store.cache("qemu")));
    let chosen = tokio::task::spawn_blocking(work).await;
    chosen.unwrap_or_else(|error| {
        Err(HypervisorError::Io { action: "look for a hypervisor", source: std::io::Error::other(error) })
    })
}

/// What a choice comes to on this host: left to us, our own VMM where KVM is usable, QEMU otherwise. Asks for no more than the choice
/// depends on.
pub(crate) fn make(
    choice: BackendChoice,
    kvm_is_usable: impl FnOnce() -> bool,
    qemu: impl FnOnce() -> Result<QemuInstallation, HypervisorError>,
) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let accelerator = match choice {
        BackendChoice::Kvm => return Ok(Arc::new(OwnVmm::find()?)),
        BackendChoice::QemuKvm => Accelerator::Kvm,
        BackendChoice::QemuTcg => Accelerator::Tcg,
        BackendChoice::Auto if !kvm_is_usable() => Accelerator::Tcg,
        BackendChoice::Auto => match OwnVmm::find() {
            Ok(own) => return Ok(Arc::new(own)),
            // An installation without it: the boundary is the same with QEMU.
            Err(_) => Accelerator::Kvm,
        },
    };
    Ok(Arc::new(Qemu::new(qemu()?, accelerator)))
}

/// What was found out about KVM since the host has booted; the first one asks.
pub(crate) fn known_kvm(store: &TemplateStore) -> KvmProbe {
    known_in(&store.cache("kvm"))
}

fn known_in(cache: &Path) -> KvmProbe {
    let host_boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let known = record::read::<KnownKvm>(cache);
    if let Some(known) = known.filter(|known| known.host_boot_id == host_boot_id) {
        return KvmProbe { usable: known.usable, reason: known.reason };
    }
    let found = probe_kvm();
    tracing::info!(usable = found.usable, reason = found.reason, "probed /dev/kvm");
    let known = KnownKvm { host_boot_id, usable: found.usable, reason: found.reason.clone() };
    if let Err(error) = record::write(cache, &known) {
        tracing::warn!(%error, "cannot remember whether KVM is usable; each start probes it");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_to_us_it_is_our_own_vmm_on_kvm_and_qemu_without() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("qemu-system-x86_64");
        let qemu = |usable: bool, choice| {
            let asked = std::cell::Cell::new(false);
            let missing = || {
                asked.set(true);
                Err(HypervisorError::UnknownVersion { program: program.clone(), output: String::new() })
            };
            (make(choice, || usable, missing).map(|made| made.identity().name.clone()), asked.get())
        };
        // Without QEMU, on a host whose KVM interprets: emulation is all that is left, and it is missing.
        assert!(matches!(qemu(false, BackendChoice::Auto), (Err(HypervisorError::UnknownVersion { .. }), true)));
        for choice in [BackendChoice::QemuKvm, BackendChoice::QemuTcg] {
            assert!(matches!(qemu(true, choice), (Err(HypervisorError::UnknownVersion { .. }), true)), "{choice:?}");
        }
        // Where our own VMM is installed nobody asks for QEMU; where it is not, QEMU takes its place only if that was left open.
        match (OwnVmm::find(), qemu(true, BackendChoice::Auto), qemu(true, BackendChoice::Kvm)) {
            (Ok(_), (Ok(auto), false), (Ok(named), false)) => {
                assert!(auto.starts_with("bulkhead-vmm ") && named == auto, "{auto} {named}");
            }
            (Err(_), (Err(auto), true), (Err(named), false)) => {
                assert!(matches!(auto, HypervisorError::UnknownVersion { .. }), "{auto}");
                assert!(matches!(named, HypervisorError::NoVmm { .. }), "{named}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_probe_is_remembered_until_the_host_boots() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join(".kvm.json");
        let host_boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        for usable in [true, false] {
            let known = KnownKvm { host_boot_id: host_boot_id.clone(), usable, reason: "planted".into() };
            record::write(&cache, &known).unwrap();
            assert_eq!(known_in(&cache), KvmProbe { usable, reason: "planted".into() });
        }
        let stale = KnownKvm { host_boot_id: "before".into(), usable: true, reason: "planted".into() };
        record::write(&cache, &stale).unwrap();
        let _ = known_in(&cache);
        let renewed: KnownKvm = serde_json::from_slice(&fs::read(&cache).unwrap()).unwrap();
        assert_ne!(renewed.reason, "planted");
    }
}
