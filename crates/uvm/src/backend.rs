//! Chooses what runs a utility VM on this host.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proto::control::{Accelerator, BackendChoice};
use serde::{Deserialize, Serialize};

use crate::hypervisor::{Hypervisor, HypervisorError};
use crate::kvm::OwnVmm;
use crate::probe::probe_kvm;
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
/// a process of its own and asking costs 30 ms (QEMU's version) to 1.5 s (an unusable KVM).
pub(crate) async fn choose(
    choice: BackendChoice,
    store: &TemplateStore,
) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let store = store.clone();
    let work = move || -> Result<Arc<dyn Hypervisor>, HypervisorError> {
        if choice == BackendChoice::Kvm {
            return Ok(Arc::new(OwnVmm::find()?));
        }
        let installation = QemuInstallation::find_cached(&store.cache("qemu"))?;
        let accelerator = match choice {
            BackendChoice::Kvm | BackendChoice::QemuKvm => Accelerator::Kvm,
            BackendChoice::QemuTcg => Accelerator::Tcg,
            BackendChoice::Auto if kvm_is_usable(&store.cache("kvm")) => Accelerator::Kvm,
            BackendChoice::Auto => Accelerator::Tcg,
        };
        Ok(Arc::new(Qemu::new(installation, accelerator)))
    };
    let chosen = tokio::task::spawn_blocking(work).await;
    chosen.unwrap_or_else(|error| {
        Err(HypervisorError::Io { action: "look for a hypervisor", source: std::io::Error::other(error) })
    })
}

fn kvm_is_usable(cache: &Path) -> bool {
    let host_boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let known = record::read::<KnownKvm>(cache);
    if let Some(known) = known.filter(|known| known.host_boot_id == host_boot_id) {
        return known.usable;
    }
    let found = probe_kvm();
    tracing::info!(usable = found.usable, reason = found.reason, "probed /dev/kvm");
    let known = KnownKvm { host_boot_id, usable: found.usable, reason: found.reason };
    if let Err(error) = record::write(cache, &known) {
        tracing::warn!(%error, "cannot remember whether KVM is usable; each start probes it");
    }
    known.usable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_remembered_until_the_host_boots() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join(".kvm.json");
        let host_boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        for usable in [true, false] {
            let known = KnownKvm { host_boot_id: host_boot_id.clone(), usable, reason: "planted".into() };
            record::write(&cache, &known).unwrap();
            assert_eq!(kvm_is_usable(&cache), usable);
        }
        let stale = KnownKvm { host_boot_id: "before".into(), usable: true, reason: "planted".into() };
        record::write(&cache, &stale).unwrap();
        let _ = kvm_is_usable(&cache);
        let renewed: KnownKvm = serde_json::from_slice(&fs::read(&cache).unwrap()).unwrap();
        assert_ne!(renewed.reason, "planted");
    }
}
