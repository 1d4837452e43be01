//! The template's key: the digest of everything that its bytes depend on.

use std::fs;

use proto::TemplateId;
use proto::control::Accelerator;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::guest_image::GuestImage;
use crate::machine::MachineConfig;

/// The build that made a template: this crate's version and the digest of its sources.
const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), "+", env!("BULKHEAD_UVM_BUILD"));

/// What a backend adds to the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackendIdentity {
    /// Name and version, such as `qemu 7.2.22`.
    pub name: String,
    /// What executes the guest.
    pub accelerator: Accelerator,
    /// What tells one installation from another of the same version (size and time of its program).
    pub installation: String,
}

/// Every input of a template. Two templates with the same key are interchangeable; there is no other versioning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TemplateKey {
    build: &'static str,
    protocol: u32,
    kernel_version: String,
    guest_image: [String; 2],
    machine: MachineConfig,
    backend: BackendIdentity,
    host_cpu: String,
    /// Release of the host's kernel, whose KVM the frozen state is for; nothing where KVM is not used.
    host_kernel: Option<String>,
}

impl TemplateKey {
    /// The key for a guest image on a machine on a backend on this host.
    #[must_use]
    pub fn new(image: &GuestImage, machine: &MachineConfig, backend: &BackendIdentity) -> Self {
        Self {
            build: BUILD,
            protocol: proto::gcs::VERSION,
            kernel_version: image.kernel_version().to_owned(),
            guest_image: image.digests().map(ToOwned::to_owned),
            machine: machine.clone(),
            backend: backend.clone(),
            host_cpu: host_cpu(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            host_kernel: (backend.accelerator == Accelerator::Kvm).then(host_kernel),
        }
    }

    /// The template's identifier: the digest of the key.
    #[must_use]
    pub fn id(&self) -> TemplateId {
        let text = serde_json::to_vec(self).expect("a struct of strings and numbers always serializes");
        hex::encode(Sha256::digest(text)).parse().expect("a SHA-256 has 64 hexadecimal digits")
    }

    /// Version of the guest's kernel.
    pub(crate) fn kernel_version(&self) -> &str {
        &self.kernel_version
    }

    pub(crate) fn machine(&self) -> &MachineConfig {
        &self.machine
    }

    pub(crate) fn backend(&self) -> &BackendIdentity {
        &self.backend
    }
}

fn host_kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The first processor's model and features, as `/proc/cpuinfo` has them: the lines that a guest may see through.
fn host_cpu(cpuinfo: &str) -> String {
    let relevant = ["vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags"];
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let kept: Vec<&str> =
        first.lines().filter(|line| relevant.contains(&line.split(':').next().unwrap_or_default().trim())).collect();
    hex::encode(Sha256::digest(kept.join("\n")))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::*;

    pub(crate) fn image(folder: &Path, kernel: &str) -> GuestImage {
        for file in ["vmlinux", "initramfs.cpio"] {
            fs::write(folder.join(file), kernel).unwrap();
        }
        let digest = crate::digest::sha256_of_reader(kernel.as_bytes()).unwrap();
        let manifest =
            serde_json::json!({"kernel_version": "6.1", "kernel_sha256": digest, "initramfs_sha256": digest});
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        GuestImage::open(folder).unwrap()
    }

    pub(crate) fn backend() -> BackendIdentity {
        BackendIdentity { name: "qemu 7.2".into(), accelerator: Accelerator::Tcg, installation: "1".into() }
    }

    #[test]
    fn each_input_changes_the_id_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let image_a = image(folder.path(), "a");
        let machine = MachineConfig::for_request(Accelerator::Tcg, None, None).unwrap();
        let id = TemplateKey::new(&image_a, &machine, &backend()).id();
        assert_eq!(id, TemplateKey::new(&image_a, &machine, &backend()).id());

        let larger = MachineConfig::for_request(Accelerator::Tcg, Some(1 << 32), None).unwrap();
        let newer = BackendIdentity { name: "qemu 7.3".into(), ..backend() };
        let replaced = BackendIdentity { installation: "2".into(), ..backend() };
        let kvm = BackendIdentity { accelerator: Accelerator::Kvm, ..backend() };
        let mut ids = vec![id, TemplateKey::new(&image_a, &larger, &backend()).id()];
        ids.extend([newer, replaced, kvm].map(|backend| TemplateKey::new(&image_a, &machine, &backend).id()));
        let image_b = image(folder.path(), "b");
        ids.push(TemplateKey::new(&image_b, &machine, &backend()).id());
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }

    #[test]
    fn f102_a_template_of_kvm_is_for_one_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path(), "a");
        let machine = MachineConfig::for_request(Accelerator::Kvm, None, None).unwrap();
        let kvm = BackendIdentity { accelerator: Accelerator::Kvm, ..backend() };
        let key = TemplateKey::new(&image, &machine, &kvm);
        assert_eq!(
            key.host_kernel.as_deref(),
            fs::read_to_string("/proc/sys/kernel/osrelease").ok().as_deref().map(str::trim)
        );
        let other = TemplateKey { host_kernel: Some("6.1.0-other".into()), ..key.clone() };
        assert_ne!(key.id(), other.id());
        assert_eq!(TemplateKey::new(&image, &machine, &backend()).host_kernel, None);
    }

    /// So one that an older build has made is left alone, and another is made.
    #[test]
    fn a_template_is_for_one_build_and_one_version_of_the_protocol() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path(), "a");
        let machine = MachineConfig::for_request(Accelerator::Tcg, None, None).unwrap();
        let key = TemplateKey::new(&image, &machine, &backend());
        assert_eq!(key.protocol, proto::gcs::VERSION);
        for other in [
            TemplateKey { protocol: proto::gcs::VERSION - 1, ..key.clone() },
            TemplateKey { build: "0.0.9+0", ..key.clone() },
        ] {
            assert_ne!(key.id(), other.id());
        }
    }

    #[test]
    fn the_clock_rate_of_the_moment_is_no_input() {
        let one = "model name\t: A\ncpu MHz\t\t: 2000.1\nflags\t: fpu\n\nmodel name\t: A\n";
        let two = "model name\t: A\ncpu MHz\t\t: 3000.7\nflags\t: fpu\n\nmodel name\t: A\n";
        assert_eq!(host_cpu(one), host_cpu(two));
        assert_ne!(host_cpu(one), host_cpu(&one.replace("fpu", "fpu avx")));
    }
}
