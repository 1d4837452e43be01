//! The command line, and what is resolved from it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bollard::models::ResourcesUlimits;
use clap::{ArgAction, Parser, ValueEnum};
use image::registry::RegistrySettings;
use ipnet::IpNet;
use proto::Isolation;
use proto::control::BackendChoice;

use crate::defaults::{self, ContainerDefaults};
use crate::log::LogOptionsError;

/// The engine of Bulkhead, with dockerd's flags where it has them.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "bulkheadd",
    version,
    about = "Serves the Docker Engine API; runs containers as processes or in utility VMs",
    after_help = "Signals: HUP takes over a changed configuration. TERM and INT end the engine; containers go on, and the next \
                  engine takes them up. PWR, for a host that goes down, stops the containers first."
)]
pub struct Flags {
    /// Folder for everything that is kept: images, containers, templates
    #[arg(long, default_value = "/var/lib/bulkhead", value_name = "DIR")]
    pub data_root: PathBuf,

    /// Folder for everything that ends with the host's run: bundles, sockets, fifos
    #[arg(long, default_value = "/run/bulkhead", value_name = "DIR")]
    pub exec_root: PathBuf,

    /// Address to serve, unix://PATH or fd:// (repeatable) [default: the socket that a service manager
    /// passed, else unix:///run/bulkhead.sock]
    #[arg(short = 'H', long = "host", value_name = "ADDRESS")]
    pub hosts: Vec<String>,

    /// File to write the process id to
    #[arg(short = 'p', long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,

    /// Log at level debug
    #[arg(short = 'D', long, action = ArgAction::SetTrue)]
    pub debug: bool,

    /// Log level: debug, info, warn, error or fatal
    #[arg(short = 'l', long, default_value = "info", value_name = "LEVEL")]
    pub log_level: LogLevel,

    /// Isolation of containers that ask for none: process or hyperv
    #[arg(long, visible_alias = "default-isolation", default_value = "process", value_name = "ISOLATION")]
    pub isolation: Isolation,

    /// Folder with the guest image [default: ../boot or ../lib/bulkhead beside this program]
    #[arg(long, value_name = "DIR")]
    pub guest_image: Option<PathBuf>,

    /// The shim's program [default: beside this program, else in $PATH]
    #[arg(long, value_name = "FILE")]
    pub shim: Option<PathBuf>,

    /// Hypervisor backend for hyperv containers
    #[arg(long, default_value = "auto", value_name = "BACKEND")]
    pub backend: Backend,

    /// Refuse hyperv containers where the utility VM is no security boundary (software emulation)
    #[arg(long)]
    pub require_boundary: bool,

    /// Utility VMs that stand by once a hyperv container has started, 0 or 1: costs about 60 MiB of memory, and the next
    /// hyperv container starts several times quicker under software emulation [default: 1 under software emulation; with KVM a
    /// process without a guest in which the next one is forked, 1.5 to 3 MiB with its shim]
    #[arg(long, value_name = "N", value_parser = standby_vms)]
    pub standby_vms: Option<u32>,

    /// Network namespaces that stand by for each of the last two networks on which containers were started, linked with it, 0
    /// for none: the next container's start does not wait for the kernel to make one
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=64))]
    pub standby_networks: u16,

    /// Folder of the templates, which engines may share [default: DATA_ROOT/templates]
    #[arg(long, value_name = "DIR")]
    pub template_store: Option<PathBuf>,

    /// URL of a registry that is asked for docker.io's images first (repeatable)
    #[arg(long = "registry-mirror", value_name = "URL")]
    pub registry_mirrors: Vec<String>,

    /// Registry HOST[:PORT], or network A.B.C.D/N, that may speak plain HTTP or have any certificate (repeatable). One on
    /// 127.0.0.0/8 may always speak plain HTTP
    #[arg(long = "insecure-registry", value_name = "REGISTRY")]
    pub insecure_registries: Vec<String>,

    /// Folder with a folder HOST[:PORT] for each registry with certificates of its own
    #[arg(long, default_value = "/etc/docker/certs.d", value_name = "DIR")]
    pub certs_dir: PathBuf,

    /// Layers that are pulled at once
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub max_concurrent_downloads: u16,

    /// Address and subnet of the default bridge, such as 172.17.0.1/16 [default: a subnet that the host does not use]
    #[arg(long, value_name = "CIDR")]
    pub bip: Option<IpNet>,

    /// Cgroup below which every container gets its own
    #[arg(long, default_value = "/bulkhead", value_name = "CGROUP")]
    pub cgroup_parent: String,

    /// Group that may use the sockets beside root [default: bulkhead, if there is such a group]
    #[arg(short = 'G', long, value_name = "GROUP")]
    pub group: Option<String>,

    /// Label NAME=VALUE of the engine (repeatable)
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    pub labels: Vec<String>,

    /// Log driver of containers that name none: json-file, local or none
    #[arg(long, default_value = "json-file", value_name = "DRIVER", value_parser = defaults::log_driver)]
    pub log_driver: String,

    /// Option NAME=VALUE of that log driver, for containers that do not set it themselves (repeatable)
    #[arg(long = "log-opt", value_name = "NAME=VALUE", value_parser = label)]
    pub log_opts: Vec<String>,

    /// Limit NAME=SOFT[:HARD] of containers that do not set it themselves (repeatable)
    #[arg(long = "default-ulimit", value_name = "NAME=SOFT[:HARD]", value_parser = defaults::limit)]
    pub default_ulimits: Vec<ResourcesUlimits>,

    /// Configuration file, TOML, or JSON if its name ends so [default: /etc/bulkhead/bulkheadd.toml, if it is there]
    #[arg(long, visible_alias = "config-file", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Check command line and configuration file, and end
    #[arg(long, visible_alias = "validate")]
    pub check_config: bool,

    /// Print something that goes with this program, and end
    #[arg(long, value_name = "WHAT", hide = true)]
    pub print: Option<Print>,

    /// How long a forked utility VM may take to personalize, in milliseconds: one that is slower is destroyed
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    pub personalize_timeout_ms: u64,
}

fn standby_vms(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number @ 0..=1) => Ok(number),
        _ => Err("this version keeps 0 (none) or 1 utility VM standing by".to_owned()),
    }
}

/// Source: docker/cli `opts.ValidateLabel`.
fn label(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("bad attribute format: {text}")),
    }
}

/// What `--print` can print; installations are made with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Print {
    /// A configuration file with every key, explained and commented out.
    Config,
    /// The manual page, in roff.
    Man,
}

/// Log levels by dockerd's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What an operator wants to see.
    Info,
    /// What may need attention.
    Warn,
    /// What failed.
    Error,
    /// The same as error: a fatal error ends the engine with one line on standard error.
    Fatal,
}

/// `--backend`'s words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Our own VMM where a probe finds KVM usable, QEMU otherwise.
    Auto,
    /// Our own VMM, which needs hardware virtualization.
    Kvm,
    /// QEMU with hardware virtualization.
    #[value(alias = "qemukvm")]
    QemuKvm,
    /// QEMU with software emulation: no security boundary.
    #[value(alias = "qemutcg")]
    QemuTcg,
}

impl From<Backend> for BackendChoice {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Auto => Self::Auto,
            Backend::Kvm => Self::Kvm,
            Backend::QemuKvm => Self::QemuKvm,
            Backend::QemuTcg => Self::QemuTcg,
        }
    }
}

/// What the engine works with after every default was filled in. Paths are absolute.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Kept data.
    pub data_root: PathBuf,
    /// Run-time data.
    pub exec_root: PathBuf,
    /// Isolation of containers that ask for none.
    pub default_isolation: Isolation,
    /// Folder with `vmlinux`, `initramfs.cpio`, `manifest.json`; it may not exist (process containers work without).
    pub guest_image: PathBuf,
    /// The shim's program.
    pub shim: PathBuf,
    /// What a container has that was given nothing else.
    pub container_defaults: ContainerDefaults,
    /// Which hypervisor backend to use.
    pub backend: BackendChoice,
    /// Refuse hyperv containers without a security boundary.
    pub boundary_required: bool,
    /// How many utility VMs stand by: 0 or 1.
    /// `None`: one under software emulation.
    pub standby_vms: Option<u32>,
    /// How many network namespaces stand by.
    pub standby_networks: u16,
    /// Folder of the template store.
    pub template_store: PathBuf,
    /// How registries are reached.
    pub registries: RegistrySettings,
    /// Address and subnet of the default bridge, if the user chooses them.
    pub bip: Option<IpNet>,
    /// Absolute cgroup path below which each container gets its own, without a trailing slash.
    pub cgroup_parent: String,
    /// Bound on a utility VM's personalization.
    pub personalize_timeout_ms: u64,
    /// What a reload may change, as it is at the start.
    pub changeable: Changeable,
}

/// What a running engine takes over from a changed configuration, beside registries and the log's level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changeable {
    /// `-D` was given or the log level is debug.
    pub debug: bool,
    /// `NAME=VALUE`.
    pub labels: Vec<String>,
}

impl Flags {
    /// What a reload may change.
    #[must_use]
    pub fn changeable(&self) -> Changeable {
        Changeable { debug: self.debug || self.log_level == LogLevel::Debug, labels: self.labels.clone() }
    }

    /// What containers have that were given nothing else.
    ///
    /// # Errors
    /// As [`ContainerDefaults::new`].
    pub fn container_defaults(&self) -> Result<ContainerDefaults, LogOptionsError> {
        ContainerDefaults::new(&self.log_driver, &self.log_opts, &self.default_ulimits)
    }

    /// Fills in every default.
    ///
    /// # Errors
    /// When the shim's program is nowhere, or the current folder is needed for a relative path and is gone.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let data_root = absolute(&self.data_root)?;
        let exe = std::env::current_exe().context("cannot find this program's own path")?;
        let exe_dir = exe.parent().unwrap_or(Path::new("/"));
        Ok(Settings {
            exec_root: absolute(&self.exec_root)?,
            default_isolation: self.isolation,
            container_defaults: self.container_defaults().map_err(|error| anyhow::anyhow!("log-opts: {error}"))?,
            guest_image: match &self.guest_image {
                Some(path) => absolute(path)?,
                None => default_guest_image(exe_dir),
            },
            shim: match &self.shim {
                Some(path) => absolute(path)?,
                None => find_shim(exe_dir, std::env::var_os("PATH").as_deref())?,
            },
            backend: self.backend.into(),
            boundary_required: self.require_boundary,
            standby_vms: self.standby_vms,
            standby_networks: self.standby_networks,
            template_store: match &self.template_store {
                Some(path) => absolute(path)?,
                None => data_root.join("templates"),
            },
            registries: RegistrySettings {
                mirrors: self.registry_mirrors.clone(),
                insecure: self.insecure_registries.clone(),
                certificates: Some(absolute(&self.certs_dir)?),
                transfers: usize::from(self.max_concurrent_downloads),
                ..RegistrySettings::default()
            },
            bip: self.bip.map(checked_bip).transpose()?,
            cgroup_parent: format!("/{}", self.cgroup_parent.trim_matches('/')),
            personalize_timeout_ms: self.personalize_timeout_ms,
            changeable: self.changeable(),
            data_root,
        })
    }
}

/// The bridge's own address, so not the one of the subnet or of everybody in it.
fn checked_bip(bip: IpNet) -> anyhow::Result<IpNet> {
    let room = bip.max_prefix_len() - bip.prefix_len();
    let IpNet::V4(net) = bip else { anyhow::bail!("--bip {bip}: the default bridge has IPv4 addresses only") };
    if room < 2 || net.addr() == net.network() || net.addr() == net.broadcast() {
        anyhow::bail!("--bip {bip}: not the address of a bridge, such as 172.17.0.1/16");
    }
    Ok(bip)
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot make {} absolute", path.display()))
}

/// The first place that holds a guest image, or the first place, so that a later error names it.
fn default_guest_image(exe_dir: &Path) -> PathBuf {
    let places = [exe_dir.join("../boot"), exe_dir.join("../lib/bulkhead")];
    let found = places.iter().find(|dir| dir.join("manifest.json").exists()).unwrap_or(&places[0]);
    found.canonicalize().unwrap_or_else(|_| found.clone())
}

const SHIM_NAME: &str = "containerd-shim-bulkhead-v2";

fn find_shim(exe_dir: &Path, search_path: Option<&std::ffi::OsStr>) -> anyhow::Result<PathBuf> {
    let beside = std::iter::once(exe_dir.to_path_buf());
    let in_path = search_path.map(|path| std::env::split_paths(path).collect::<Vec<_>>()).unwrap_or_default();
    beside.chain(in_path).map(|dir| dir.join(SHIM_NAME)).find(|path| path.is_file()).with_context(|| {
        format!("cannot find {SHIM_NAME}, neither in {} nor in $PATH; name it with --shim", exe_dir.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_dockerd_are_taken() {
        let flags = Flags::parse_from([
            "bulkheadd",
            "--data-root",
            "/d",
            "--exec-root=/e",
            "-H",
            "unix:///a.sock",
            "--host=fd://",
            "-D",
            "-p",
            "/p",
            "--isolation",
            "HyperV",
            "--backend",
            "qemu-tcg",
            "--log-level",
            "warn",
        ]);
        assert_eq!(flags.hosts, ["unix:///a.sock", "fd://"]);
        assert_eq!(flags.isolation, Isolation::Hyperv);
        assert_eq!(BackendChoice::from(flags.backend), BackendChoice::QemuTcg);
        assert!(flags.debug);
    }

    #[test]
    fn an_unknown_isolation_is_refused_with_the_choices() {
        let error = Flags::try_parse_from(["bulkheadd", "--isolation", "vm"]).unwrap_err().to_string();
        assert!(error.contains("'process' or 'hyperv'"), "{error}");
    }

    #[test]
    fn one_utility_vm_stands_by_or_none() {
        let parse = |args: &[&str]| Flags::try_parse_from([&["bulkheadd"], args].concat());
        assert_eq!(parse(&[]).unwrap().standby_vms, None);
        assert_eq!(parse(&["--standby-vms", "0"]).unwrap().standby_vms, Some(0));
        for wrong in ["2", "-1", "on"] {
            let error = parse(&[&format!("--standby-vms={wrong}")]).unwrap_err().to_string();
            assert!(error.contains("0 (none) or 1"), "{error}");
        }
    }

    #[test]
    fn the_shim_beside_the_program_wins() {
        let dir = tempfile::tempdir().unwrap();
        let (beside, path) = (dir.path().join("bin"), dir.path().join("path"));
        for folder in [&beside, &path] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join(SHIM_NAME), "").unwrap();
        }
        assert_eq!(find_shim(&beside, Some(path.as_os_str())).unwrap(), beside.join(SHIM_NAME));
        std::fs::remove_file(beside.join(SHIM_NAME)).unwrap();
        assert_eq!(find_shim(&beside, Some(path.as_os_str())).unwrap(), path.join(SHIM_NAME));
        assert!(find_shim(&beside, None).is_err());
    }
}
