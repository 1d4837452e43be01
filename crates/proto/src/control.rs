//! The files and messages by which engine and shim work together beside containerd's Task API.
//!
//! A bundle is a folder with OCI's `config.json` and, when the engine made it, [`ContainerBundle::FILE_NAME`]. The shim
//! writes [`UtilityVmReport::FILE_NAME`] into it once a utility VM runs. A bundle without our file is a foreign
//! containerd's: root file system from the Create request, isolation from the runtime's options; for hyperv the shim then writes our file.

use std::num::NonZeroU64;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::network::SandboxNetwork;
use crate::{Digest, Isolation, TemplateId};

/// What the engine tells the shim about a container beyond OCI's `config.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerBundle {
    /// The wall around it.
    pub isolation: Isolation,
    /// The image's layers as EROFS files, lowest first, at least one.
    pub layers: Vec<LayerFile>,
    /// Where the container's changes go.
    pub writable: Writable,
    /// The cgroup for everything of this container on the host, relative to each hierarchy's root, such as
    /// `/bulkhead/<id>`. The OCI spec's `cgroupsPath` is below it or equal to it.
    pub cgroup: String,
    /// Needed for [`Isolation::Hyperv`], absent otherwise.
    pub utility_vm: Option<UtilityVmRequest>,
    /// Parts of volumes that the OCI spec mounts.
    #[serde(default)]
    pub parts: Vec<VolumePart>,
    /// What a hyperv container has beside its loopback device; `None` for nothing, and for process isolation, where the OCI
    /// spec names the namespace.
    #[serde(default)]
    pub network: Option<SandboxNetwork>,
}

impl ContainerBundle {
    /// Name of the file in the bundle.
    pub const FILE_NAME: &'static str = "bulkhead.json";
}

/// A part of a volume. What is in the volume is its containers', so the path to the part is looked up anew at every start, and
/// follows no link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumePart {
    /// The folder with the volume's content.
    pub volume: PathBuf,
    /// The part, relative to it.
    pub path: PathBuf,
    /// Where the shim has the part for itself: a mount's source in the OCI spec.
    pub point: PathBuf,
}

/// What `containerd-shim-bulkhead-v2 copy-up` is to do; it reads this from its standard input, and writes a
/// `Result<(), Status>` to its standard output. JSON both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyUpRequest {
    /// The image's layers, lowest first.
    pub layers: Vec<LayerFile>,
    /// What is copied.
    pub copy: CopyUp,
}

/// A folder of an image whose content goes into a new volume, with its owner and mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyUp {
    /// In the image; links are followed within it. `InvalidArgument` is answered when it is no folder; when there is
    /// nothing, nothing is copied.
    pub path: PathBuf,
    /// The folder with the volume's content.
    pub into: PathBuf,
    /// What is there is left of a copy that broke off, and goes first.
    pub again: bool,
}

/// One layer, converted and committed by the image store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerFile {
    /// The layer's diffID: the digest of its uncompressed tar stream.
    pub diff_id: Digest,
    /// The EROFS file, a multiple of 4096 bytes long.
    pub path: PathBuf,
}

/// Name of the socket in the bundle of a running hyperv container over which [`crate::files`] is spoken, one connection an
/// operation.
pub const FILES_SOCKET: &str = "files.sock";

/// A file with an ext4 file system that bounds what a process container can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpperDisk {
    /// The file, made by the engine; nothing but the host's kernel has ever written its structures.
    pub file: PathBuf,
    /// Where it is mounted; made if missing.
    pub point: PathBuf,
}

/// Where a container's changes go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Writable {
    /// Process isolation: overlayfs on the host. `merged` is an existing empty folder to mount on.
    Upper {
        /// Holds the changes.
        upper: PathBuf,
        /// overlayfs' work folder, same file system as `upper`.
        work: PathBuf,
        /// Mount point of the whole.
        merged: PathBuf,
        /// What `upper` and `work` are on, if they are not to grow without bound.
        #[serde(default)]
        disk: Option<UpperDisk>,
    },
    /// Hyperv isolation: a sparse disk file with an ext4 file system, given to the utility VM.
    Scratch {
        /// The disk file.
        disk: PathBuf,
    },
}

/// What a hyperv container asks of its utility VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UtilityVmRequest {
    /// Folder of the template store.
    pub template_store: PathBuf,
    /// Folder with the guest image (`vmlinux`, `initramfs.cpio`, `manifest.json`).
    pub guest_image: PathBuf,
    /// Which backend to use.
    pub backend: BackendChoice,
    /// Memory that the container may use, bytes; `None` is the nominal size.
    pub memory_bytes: Option<u64>,
    /// Processors in thousandths, as `--cpus` times 1000; `None` is the nominal number.
    pub cpus_milli: Option<u64>,
    /// Refuse to start where the VM is no security boundary (software emulation).
    pub boundary_required: bool,
    /// 32 hexadecimal digits for `/etc/machine-id` and the guest's own identity.
    pub machine_id: String,
    /// How long the guest may take to personalize, milliseconds (2000 unless a test says otherwise).
    pub personalize_timeout_ms: u64,
    /// How fast its disks may be.
    #[serde(default)]
    pub disk_rates: DiskRates,
}

/// How fast a utility VM's disks, all together, may be read and written, each a second; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskRates {
    /// Bytes read.
    pub read_bytes: Option<NonZeroU64>,
    /// Bytes written.
    pub write_bytes: Option<NonZeroU64>,
    /// Requests that read.
    pub read_requests: Option<NonZeroU64>,
    /// Requests that write or discard.
    pub write_requests: Option<NonZeroU64>,
}

impl UtilityVmRequest {
    /// Memory of a utility VM of the nominal size, in bytes; larger sizes double it.
    pub const NOMINAL_MEMORY_BYTES: u64 = 1 << 30;
    /// Name of the file in the folder of a shim that is to have no more stand by than a hypervisor's process: what is asked for most
    /// likely. Without it there is a container's bundle to rehearse.
    pub const WAITING_FILE_NAME: &'static str = "waiting.json";
}

/// Which hypervisor backend to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// Our own VMM where the probe finds KVM usable, QEMU otherwise.
    #[default]
    Auto,
    /// Our own VMM, which needs hardware virtualization.
    Kvm,
    /// QEMU with hardware virtualization.
    QemuKvm,
    /// QEMU with software emulation: no security boundary.
    QemuTcg,
}

/// What executes a utility VM's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualization through /dev/kvm.
    Kvm,
    /// QEMU's software emulation.
    Tcg,
}

impl Accelerator {
    /// What wall this accelerator makes, as `info` and `inspect` print it.
    ///
    /// Source: QEMU, "Security": software emulation is no isolation boundary.
    #[must_use]
    pub fn boundary(self) -> &'static str {
        match self {
            Self::Kvm => "hardware virtualization",
            Self::Tcg => "none (software emulation)",
        }
    }

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What the shim says about a running utility VM, written into the bundle before Start answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UtilityVmReport {
    /// What executes it.
    pub accelerator: Accelerator,
    /// Backend, such as `qemu 7.2.22`.
    pub backend: String,
    /// The template it was forked from.
    pub template: TemplateId,
    /// True if this start had to boot and freeze the template first.
    pub template_built: bool,
    /// Process ids of the VMM's processes on the host.
    pub vmm_pids: Vec<u32>,
    /// The guest's boot id.
    pub boot_id: String,
    /// Hash of 32 bytes of the guest's generator, 64 hexadecimal digits; no two forks agree.
    pub entropy_fingerprint: String,
    /// Time from the fork's begin to its first acknowledged personalization, microseconds.
    pub fork_us: u64,
    /// For a VM that stood by: time from the container's Create to the acknowledged personalization, microseconds. `None`
    /// for one that was forked when the container was created.
    #[serde(default)]
    pub standby_us: Option<u64>,
    /// Difference between the guest's clock and the host's at personalization, microseconds (bounded by the round trip).
    pub clock_error_us: i64,
}

impl UtilityVmReport {
    /// Name of the file in the bundle.
    pub const FILE_NAME: &'static str = "utility-vm.json";
}

/// How a container's first process ended. The shim writes it into the bundle, for both isolations, before `Wait` answers, so
/// that an engine which was away, or whose shim is gone, can still read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// 0 to 255; killed by signal N is 128 + N.
    pub exit_code: u32,
    /// The kernel killed a process of the container for want of memory.
    pub oom_killed: bool,
    /// How many, as far as that is counted. Absent in what older shims wrote: [`ExitReport::least_oom_kills`].
    #[serde(default)]
    pub oom_kills: u64,
    /// Why it ended, when that was not its own doing, such as a panic of the utility VM's kernel.
    pub error: Option<String>,
    /// Nanoseconds since the epoch.
    pub exited_at_ns: i64,
}

impl ExitReport {
    /// Name of the file in the bundle.
    pub const FILE_NAME: &'static str = "exit.json";

    /// How many of the container's processes the kernel has killed for want of memory, at the least: older shims say whether, and not how many.
    #[must_use]
    pub fn least_oom_kills(&self) -> u64 {
        self.oom_kills.max(self.oom_killed.into())
    }
}

/// What this host can do, printed as JSON by the shim's `probe` command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostProbe {
    /// The accelerator that `auto` takes, if any works.
    pub accelerator: Option<Accelerator>,
    /// Why: one line, such as "/dev/kvm opens but interprets guest kernels (1.3 s for a loop that takes 3 ms on hardware)".
    pub accelerator_reason: String,
    /// The program that runs utility VMs, and its version, such as `bulkhead-vmm 0.1.0` or `qemu 7.2.22`, if any does.
    pub hypervisor: Option<String>,
    /// QEMU's version, if it is installed.
    pub qemu: Option<String>,
    /// The guest image's kernel version, if the image is there.
    pub guest_kernel: Option<String>,
    /// What is missing for `hyperv`, each with how to get it; empty when it works.
    pub missing: Vec<String>,
}

/// One template, printed as a JSON array by the shim's `template ls` command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateSummary {
    /// Digest of its inputs.
    pub id: TemplateId,
    /// Nanoseconds since the epoch.
    pub created_at_ns: i64,
    /// What it executes on.
    pub accelerator: Accelerator,
    /// Guest kernel version.
    pub kernel: String,
    /// Nominal memory, bytes.
    pub memory_bytes: u64,
    /// Processors.
    pub vcpus: u32,
    /// What its files take on disk, bytes.
    pub disk_bytes: u64,
    /// How long the boot took that it saves each fork, milliseconds.
    pub boot_ms: u64,
    /// True when today's configuration would use it.
    pub current: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_shims_report_says_of_one_kill_at_least() {
        let read = |more: &str| -> ExitReport {
            serde_json::from_str(&format!(r#"{{"exit_code":137,"error":null,"exited_at_ns":1,{more}}}"#)).unwrap()
        };
        for (text, kills) in [
            (r#""oom_killed":true"#, 1),
            (r#""oom_killed":false"#, 0),
            (r#""oom_killed":true,"oom_kills":3"#, 3),
            (r#""oom_killed":false,"oom_kills":0"#, 0),
        ] {
            assert_eq!(read(text).least_oom_kills(), kills, "{text}");
        }
    }
}
