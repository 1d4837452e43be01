//! What `deploy` puts onto a node. (Its handlers' lines are those that every test with CRI runs.)

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use proto::control::{Accelerator, HostProbe};
use serde_json::{Value, json};

use crate::daemon::{HANDLER, HYPERV_HANDLER, can_run};
use crate::support::{SHIM, run};

/// A node's root, and what the installer brings.
struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir_all(this.at("files/boot")).unwrap();
        fs::create_dir(this.at("host")).unwrap();
        fs::write(this.at("files/containerd.toml"), HANDLER).unwrap();
        fs::write(this.at("files/containerd-hyperv.toml"), HYPERV_HANDLER).unwrap();
        for name in ["bulkhead-vmm", "boot/vmlinux", "boot/initramfs.cpio", "boot/manifest.json"] {
            fs::write(this.at("files").join(name), name).unwrap();
        }
        fs::copy(SHIM, this.at("files/containerd-shim-bulkhead-v2")).unwrap();
        this
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self, text: &str) -> PathBuf {
        let config = self.at("host/etc/containerd/config.toml");
        fs::create_dir_all(config.parent().unwrap()).unwrap();
        fs::write(&config, text).unwrap();
        config
    }

    /// Installs. Shape: `probe` is what the shim says on the node; the answer is whether containerd was restarted.
    fn install(&self, probe: &str) -> (Output, bool) {
        fs::write(self.at("probe"), format!("echo '{probe}'\n")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/installer/install");
        let restarted = self.at("restarted");
        let _ = fs::remove_file(&restarted);
        let said = Command::new(script)
            .args(["files", "host", "labels"].map(|name| self.at(name)))
            .env("RESTART", format!("touch {}", restarted.display()))
            .env("ON_NODE", format!("sh {}", self.at("probe").display()))
            .output()
            .unwrap();
        (said, restarted.exists())
    }

    fn labels(&self) -> Value {
        let patch: Value = serde_json::from_slice(&fs::read(self.at("labels")).unwrap()).unwrap();
        patch["metadata"]["labels"].clone()
    }
}

fn probe(accelerator: Accelerator, missing: &[&str]) -> String {
    let probe = HostProbe {
        accelerator: Some(accelerator),
        accelerator_reason: String::new(),
        hypervisor: None,
        qemu: None,
        guest_kernel: None,
        missing: missing.iter().map(ToString::to_string).collect(),
    };
    serde_json::to_string(&probe).unwrap()
}

const CONFIG: &str = "root = \"/kept\"\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"mine\"\n";

#[test]
fn the_installer_adds_each_handler_once_and_restarts_for_them_only() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let (tcg, kvm) = (probe(Accelerator::Tcg, &[]), probe(Accelerator::Kvm, &[]));
    assert!(!node.install(&kvm).0.status.success(), "a node without containerd");
    node.configure("version = 1\n");
    let (said, restarted) = node.install(&kvm);
    assert!(!said.status.success() && !restarted, "an old configuration");
    let config = node.configure(&format!("version = 2\n{CONFIG}"));
    let lacking = probe(Accelerator::Kvm, &["the program nft"]);
    let rounds = [
        (&tcg, true, Value::Null),
        (&lacking, false, Value::Null),
        (&kvm, true, json!("true")),
        (&kvm, false, json!("true")),
    ];
    for (says, restarts, hyperv) in rounds {
        let (said, restarted) = node.install(says);
        assert!(said.status.success(), "{said:?}");
        assert_eq!(restarted, restarts, "{says}: {said:?}");
        assert_eq!(node.labels(), json!({"dev.bulkhead/installed": "true", "dev.bulkhead/hyperv": hyperv}));
        assert_eq!(fs::read_to_string(&config).unwrap().contains("bulkhead-hyperv"), !hyperv.is_null(), "{says}");
    }
    assert!(!node.install("'; exit 1; '").0.status.success(), "a shim that does not run");
    for name in ["containerd-shim-bulkhead-v2", "containerd-shim-bulkhead-hyperv-v2"] {
        run(Command::new(node.at("host/usr/local/bin").join(name)).arg("-v"));
    }
    assert_eq!(fs::read_to_string(node.at("host/usr/local/lib/bulkhead/vmlinux")).unwrap(), "boot/vmlinux");
    // As containerd itself understands it.
    let dump = Command::new("containerd").arg("--config").arg(&config).args(["config", "dump"]).output().unwrap();
    let dump = String::from_utf8(dump.stdout).unwrap();
    let types = ["bulkhead", "bulkhead-hyperv"].map(|name| format!("runtime_type = \"io.containerd.{name}.v2\""));
    for words in ["root = \"/kept\"", "sandbox_image = \"mine\"", &types[0], &types[1]] {
        assert_eq!(dump.matches(words).count(), 1, "{words} in {dump}");
    }
}

#[test]
fn a_configuration_of_version_3_has_the_handlers_where_containerd_2_looks() {
    if !can_run() {
        return;
    }
    let node = Node::new();
    let config = node.configure("version = 3\n");
    for restarts in [true, false] {
        let (said, restarted) = node.install(&probe(Accelerator::Kvm, &[]));
        assert!(said.status.success() && restarted == restarts, "{said:?}");
    }
    let text = fs::read_to_string(&config).unwrap();
    for name in ["bulkhead", "bulkhead-hyperv"] {
        let section = format!("[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.{name}]");
        assert_eq!(text.matches(&section).count(), 1, "{text}");
    }
}
