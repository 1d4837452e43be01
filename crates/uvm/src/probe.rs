//! What this host can do for utility VMs, for people and for the engine.

use std::path::Path;

use proto::control::{BackendChoice, HostProbe};

use crate::backend;
use crate::guest_image::GuestImage;
use crate::kvm_probe::{KvmProbe, probe_kvm};
use crate::qemu::QemuInstallation;
use crate::store::TemplateStore;

/// Says what this host can do. When: takes 0.3 s on a host with an unusable KVM, ten where it hangs (blocking); the caller keeps the
/// answer, which changes only with a reboot or an installation.
///
/// Shape: `known` is the store whose starts have found out about KVM, so that they are told as they are; without one it is found out anew.
#[must_use]
pub fn probe(guest_image: &Path, backend: BackendChoice, known: Option<&TemplateStore>) -> HostProbe {
    let kvm = (backend == BackendChoice::Auto).then(|| known.map_or_else(probe_kvm, backend::known_kvm));
    let qemu = QemuInstallation::find();
    let version = qemu.as_ref().ok().map(|qemu| qemu.version().to_owned());
    let usable = kvm.as_ref().is_some_and(|kvm| kvm.usable);
    let chosen = backend::make(backend, || usable, || qemu);
    let mut missing: Vec<String> = chosen.as_ref().err().map(ToString::to_string).into_iter().collect();
    let guest_kernel = match GuestImage::open(guest_image) {
        Ok(image) => Some(image.kernel_version().to_owned()),
        Err(error) => {
            missing.push(error.to_string());
            None
        }
    };
    let identity = chosen.as_ref().ok().map(|chosen| chosen.identity());
    let accelerator_reason = match backend {
        BackendChoice::QemuTcg => "software emulation was asked for".to_owned(),
        BackendChoice::QemuKvm => "KVM was asked for (not probed)".to_owned(),
        BackendChoice::Kvm => "our own VMM was asked for (KVM was not probed)".to_owned(),
        BackendChoice::Auto => automatic(kvm, identity.map(|identity| identity.name.as_str())),
    };
    HostProbe {
        accelerator: identity.map(|identity| identity.accelerator),
        accelerator_reason,
        hypervisor: identity.map(|identity| identity.name.clone()),
        qemu: version,
        guest_kernel,
        missing,
    }
}

/// Why it is what nobody has asked for by name.
fn automatic(kvm: Option<KvmProbe>, hypervisor: Option<&str>) -> String {
    let KvmProbe { usable, reason } = kvm.unwrap_or(KvmProbe { usable: false, reason: String::new() });
    let is_qemu = hypervisor.is_some_and(|name| name.starts_with("qemu"));
    let without = if usable && is_qemu { "; bulkhead-vmm is not installed, so QEMU is taken" } else { "" };
    format!("{reason}{without}")
}

#[cfg(test)]
mod tests {
    use proto::control::Accelerator;

    use super::*;

    #[test]
    fn qemu_on_kvm_is_told_why() {
        let told = |usable, name| automatic(Some(KvmProbe { usable, reason: "r".into() }), Some(name));
        assert!(told(true, "qemu 7.2").contains("not installed"));
        assert_eq!((told(true, "bulkhead-vmm 1"), told(false, "qemu 7.2")), ("r".into(), "r".into()));
    }

    #[test]
    fn what_is_said_fits_what_is_chosen() {
        let nowhere = Path::new("/nonexistent");
        let automatic = probe(nowhere, BackendChoice::Auto, None);
        let named = automatic.hypervisor.clone().unwrap_or_default();
        match automatic.accelerator {
            // A KVM that interprets, as on the machines that this is developed on, is no KVM.
            Some(Accelerator::Tcg) => assert!(named.starts_with("qemu ") && automatic.qemu.is_some(), "{automatic:?}"),
            Some(Accelerator::Kvm) => assert!(automatic.accelerator_reason.contains("on hardware"), "{automatic:?}"),
            None => assert!(named.is_empty() && automatic.missing.len() == 2, "{automatic:?}"),
        }
        let asked = probe(nowhere, BackendChoice::QemuTcg, None);
        assert_eq!(
            (asked.hypervisor.is_some(), asked.accelerator),
            (asked.qemu.is_some(), asked.qemu.map(|_| Accelerator::Tcg))
        );
    }
}
