//! The bundle: what a shim needs to run a container.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bollard::models::HostConfig;
use oci_spec::runtime::Spec;
use proto::control::{ContainerBundle, DiskRates, UpperDisk, UtilityVmRequest, VolumePart, Writable};
use proto::network::SandboxNetwork;
use proto::{ContainerId, Isolation};

use super::create::{SCRATCH, UPPER_DISK};
use super::networking::{self, Place};
use super::standby::Reserved;
use super::{links, shim};
use crate::container::mount_point::MountPoint;
use crate::container::{Container, kept};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::spec::{self, NetworkNamespace, SpecInput};
use crate::streams::fifo::{self, FifoSet};
use crate::task::StdioPaths;
use crate::volumes;

/// Name of the folder in the bundle on which a process container's root is mounted, by the shim, for itself alone.
pub const ROOTFS: &str = "rootfs";
/// Name of the folder in the bundle on which the disk with a process container's changes is mounted, if they have one.
pub const CHANGES: &str = "changes";
/// OCI's file in a bundle.
pub const SPEC_FILE: &str = "config.json";

/// A bundle on disk, with its shim started. On drop nothing is undone: [`shim::delete_leftovers`] does.
pub struct Bundle {
    /// Its folder.
    pub dir: PathBuf,
    /// The shim's socket.
    pub socket: PathBuf,
    /// The first process' fifos.
    pub stdio: StdioPaths,
    /// The shim's process id.
    pub shim_pid: u32,
}

/// Where a container's cgroup is, relative to each hierarchy's root.
#[must_use]
pub fn cgroup_path(engine: &Engine, host: &HostConfig, id: &ContainerId) -> String {
    let asked = host.cgroup_parent.as_deref().unwrap_or_default().trim_matches('/');
    if asked.is_empty() { format!("{}/{id}", engine.settings.cgroup_parent) } else { format!("/{asked}/{id}") }
}

/// Makes the bundle and starts the shim, or takes the one that stands by; while that comes up, the files are written.
///
/// When: in a blocking thread; no bundle of this container is there.
///
/// # Errors
/// 400 and 501 for a configuration that cannot be, 500 for what cannot be made or started.
pub fn prepare(engine: &Arc<Engine>, container: &Container) -> ApiResult<Bundle> {
    let (dir, socket) = (engine.bundle(&container.id), engine.socket(&container.id));
    let failed =
        |what: &str, error: io::Error| ApiError::caused(format!("cannot prepare the container: {what}"), &error);
    let (config, host) = (container.config()?, container.host()?);
    let standby = Reserved::take(engine, container, &host);
    let mounts = container.record().mounts.clone();
    let standby = standby.with_sandbox(|waiting| {
        // First, since a port that is taken is to be found out before anything runs.
        networking::attach(engine, container, (&config, &host), waiting)?;
        volumes::prepare(engine, container, &mounts)
    })?;
    let (shim_pid, spawned) = match standby.hand_over(container, (&dir, &socket)) {
        Some(pid) => (pid, false),
        None => {
            std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|error| failed("its bundle", error))?;
            let pid = shim::spawn(engine, &container.id, &dir, &socket)
                .map_err(|error| failed(&format!("its shim {}", engine.settings.shim.display()), error))?;
            (pid, true)
        }
    };
    let fifos = FifoSet::for_container(config.open_stdin.unwrap_or_default(), container.terminal);
    let stdio = fifos.paths(&dir, "");
    let fill = || {
        fifo::make(&stdio).map_err(|error| failed("its fifos", error))?;
        std::fs::create_dir(dir.join(ROOTFS)).map_err(|error| failed("its root", error))?;
        write_json(&dir.join(SPEC_FILE), &build_spec(engine, container)?)?;
        write_json(&dir.join(ContainerBundle::FILE_NAME), &describe(engine, container, &host, &dir)?)
    };
    // A shim that has only just been started is not known to its `delete` command yet.
    fill().inspect_err(|_| {
        if spawned {
            shim::kill_new(shim_pid)
        }
    })?;
    Ok(Bundle { dir, socket, stdio, shim_pid })
}

/// The container's OCI spec.
///
/// # Errors
/// As [`spec::build`].
pub fn build_spec(engine: &Engine, container: &Container) -> ApiResult<Spec> {
    let (mut config, host) = (container.config()?, container.host()?);
    // In front: what the container was given itself replaces it.
    let given = config.env.take().unwrap_or_default();
    config.env = Some(links::environment(engine, container).into_iter().chain(given).collect());
    let rootfs = engine.bundle(&container.id).join(ROOTFS);
    let mounts = container.record().mounts.clone();
    let networking = networking::networking(engine, container)?;
    let input = SpecInput {
        isolation: container.isolation,
        config: &config,
        host_config: &host,
        mounts: &mounts,
        rootfs: &rootfs,
        network: match &networking.place {
            Place::Own => NetworkNamespace::Own,
            Place::Host => NetworkNamespace::Host,
            Place::At(path) => NetworkNamespace::At(path),
        },
        files: &networking.files,
        hostname: &networking.hostname,
        cgroup: &cgroup_path(engine, &host, &container.id),
        terminal: container.terminal,
    };
    spec::build(&input).map_err(|error| ApiError::new(error.kind(), chain(&error)))
}

/// What the shim is to know of a container beyond its spec, with its mount points in the folder `bundle`.
///
/// # Errors
/// 404 when its image was removed, 500 when its layers are not there.
pub fn describe(
    engine: &Engine,
    container: &Container,
    host: &HostConfig,
    bundle: &Path,
) -> ApiResult<ContainerBundle> {
    let image_id = container.record().image_id.clone();
    let image = engine.images.image(&image_id).ok_or_else(|| {
        ApiError::not_found(format!("the container's image {image_id} was removed; make the container again"))
    })?;
    let layers = engine.images.layer_files(&image).map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
    let utility_vm = match container.isolation {
        Isolation::Process => None,
        Isolation::Hyperv => {
            let disk_rates = spec::disk_rates(host, &container.dir);
            let disk_rates = disk_rates.map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
            Some(UtilityVmRequest { disk_rates, ..utility_vm(engine, host, machine_id(&container.id)) })
        }
    };
    Ok(ContainerBundle {
        isolation: container.isolation,
        layers,
        writable: writable(container, bundle),
        cgroup: cgroup_path(engine, host, &container.id),
        utility_vm,
        parts: parts(container, bundle),
        network: network(engine, container)?,
    })
}

/// What a utility VM is to have of networks.
fn network(engine: &Engine, container: &Container) -> ApiResult<Option<SandboxNetwork>> {
    let endpoints = container.record().network.clone();
    let is_on_any = container.isolation == Isolation::Hyperv && endpoints.sandbox;
    is_on_any.then(|| engine.networks.sandbox_network(container.id.as_str(), &endpoints)).transpose()
}

/// The parts of volumes that are mounted.
fn parts(container: &Container, bundle: &Path) -> Vec<VolumePart> {
    let part = |(number, point): (usize, &MountPoint)| {
        let path = point.subpath.clone()?;
        let at = spec::subpath_point(&bundle.join(ROOTFS), number);
        Some(VolumePart { volume: point.source.clone(), path, point: at })
    };
    container.record().mounts.iter().enumerate().filter_map(part).collect()
}

fn writable(container: &Container, bundle: &Path) -> Writable {
    match container.isolation {
        Isolation::Process => {
            let file = kept(&container.dir, UPPER_DISK);
            let disk = file.exists().then(|| UpperDisk { file, point: bundle.join(CHANGES) });
            let folder = disk.as_ref().map_or(&container.dir, |disk| &disk.point);
            let (upper, work) = (kept(folder, "upper"), kept(folder, "work"));
            Writable::Upper { upper, work, merged: bundle.join(ROOTFS), disk }
        }
        Isolation::Hyperv => Writable::Scratch { disk: kept(&container.dir, SCRATCH) },
    }
}

pub(super) fn machine_id(id: &ContainerId) -> String {
    id.as_str()[..32].to_owned()
}

/// What a container that is configured so asks of its utility VM, but for its disks' rates, which a VM that stands by takes.
#[must_use]
pub fn utility_vm(engine: &Engine, host: &HostConfig, machine_id: String) -> UtilityVmRequest {
    let positive = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0);
    let settings = &engine.settings;
    UtilityVmRequest {
        template_store: settings.template_store.clone(),
        guest_image: settings.guest_image.clone(),
        backend: settings.backend,
        memory_bytes: positive(host.memory),
        cpus_milli: cpus_milli(host),
        boundary_required: settings.boundary_required || spec::boundary_required(host),
        machine_id,
        personalize_timeout_ms: settings.personalize_timeout_ms,
        disk_rates: DiskRates::default(),
    }
}

/// `--cpus`, or what `--cpu-quota` and `--cpu-period` make of it, in thousandths.
#[must_use]
pub fn cpus_milli(host: &HostConfig) -> Option<u64> {
    const DEFAULT_PERIOD_US: u64 = 100_000;
    let positive = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0);
    if let Some(nanos) = positive(host.nano_cpus) {
        return Some(nanos.div_ceil(1_000_000));
    }
    let quota = positive(host.cpu_quota)?;
    Some((quota * 1000).div_ceil(positive(host.cpu_period).unwrap_or(DEFAULT_PERIOD_US)))
}

/// Writes a file of a bundle.
///
/// # Errors
/// 500 when it cannot be written.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> ApiResult<()> {
    serde_json::to_vec(value)
        .map_err(io::Error::other)
        .and_then(|text| std::fs::write(path, text))
        .map_err(|error| ApiError::caused("cannot write the container's bundle", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_in_thousandths() {
        let host =
            |nano_cpus, cpu_quota, cpu_period| HostConfig { nano_cpus, cpu_quota, cpu_period, ..HostConfig::default() };
        assert_eq!(cpus_milli(&host(Some(1_500_000_000), None, None)), Some(1500));
        assert_eq!(cpus_milli(&host(Some(0), Some(50_000), None)), Some(500));
        assert_eq!(cpus_milli(&host(None, Some(50_000), Some(25_000))), Some(2000));
        assert_eq!(cpus_milli(&host(None, Some(-1), None)), None);
    }
}
