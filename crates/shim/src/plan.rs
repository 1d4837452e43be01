//! What a hyperv container's bundle asks for, as requests to the utility VM and to its guest.

use std::path::PathBuf;

use container::Specialization;
use container::seccomp::Filter;
use oci_spec::runtime::{LinuxResources, Spec};
use proto::control::{ContainerBundle, UtilityVmRequest, Writable};
use proto::gcs::INIT_PROCESS;
use proto::gcs::wire::CreateContainerRequest;
use proto::network::SandboxNetwork;
use proto::{ErrorKind, Status};
use uvm::{PodDisks, StartRequest, UtilityVm};

use crate::bundle::Bundle;
use crate::shares::Share;
use crate::spec::{self, GuestNames};
use crate::terminal::console_size;

/// What Create needs, found in the bundle.
pub struct Plan {
    /// The OCI spec as the guest gets it.
    pub spec: Spec,
    /// What is asked of the utility VM.
    pub vm: UtilityVmRequest,
    /// The host's cgroup for the VMM.
    pub cgroup: String,
    /// Folders and files of the host.
    pub shares: Vec<Share>,
    /// What it has beside a loopback device.
    pub network: Option<SandboxNetwork>,
    /// A namespace that somebody else has furnished, whose network it is to have.
    pub foreign_namespace: Option<PathBuf>,
    /// The disk for its changes.
    pub scratch: PathBuf,
    /// Its layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// It asks for a vsock.
    pub vsock: bool,
    /// The spec's profile, compiled here: the guest would take many times as long.
    seccomp: Vec<u8>,
    /// What makes it of a process that the template has ready, if it is a plain container; with its limits.
    plain: Option<(Specialization, LinuxResources)>,
}

/// Where a container is in its utility VM, by the host's numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Seat {
    /// The container's own.
    pub container: u32,
    /// Its first process's.
    pub process: u32,
    /// Its first share's.
    pub first_share: u32,
    /// Its shares are in the machine's file system device.
    pub file_system: bool,
    /// Its disks.
    pub disks: PodDisks,
}

impl Seat {
    /// That of a VM's one container.
    #[must_use]
    pub fn alone(vm: &UtilityVm) -> Self {
        let disks = PodDisks { scratch_slot: vm.scratch_slot(), layers: vm.layer_devices() };
        Self { container: 0, process: INIT_PROCESS, first_share: 0, file_system: false, disks }
    }
}

impl Plan {
    /// Reads the bundle.
    ///
    /// # Errors
    /// `InvalidArgument` for a bundle that is not for hyperv isolation; what the spec's adaptation says.
    pub fn read(bundle: &Bundle, container: Option<ContainerBundle>) -> Result<Self, Status> {
        Self::read_as(bundle, container, &GuestNames::alone())
    }

    /// Reads the bundle of a container that has these names in its utility VM.
    ///
    /// # Errors
    /// As [`Plan::read`].
    pub fn read_as(bundle: &Bundle, container: Option<ContainerBundle>, names: &GuestNames) -> Result<Self, Status> {
        let spec = bundle.spec().map_err(|error| Status::from_error(error.kind(), &error))?;
        Self::of(spec, container, names)
    }

    /// As [`Plan::read_as`], of what a bundle would say.
    ///
    /// # Errors
    /// As [`Plan::read`].
    pub fn of(mut spec: Spec, container: Option<ContainerBundle>, names: &GuestNames) -> Result<Self, Status> {
        let invalid = |what: &str| Status::new(ErrorKind::InvalidArgument, what);
        let container = container.ok_or_else(|| invalid("hyperv isolation needs a bundle of our engine"))?;
        let vm = container.utility_vm.ok_or_else(|| invalid("the bundle says nothing about the utility VM"))?;
        let Writable::Scratch { disk } = container.writable else {
            return Err(invalid("hyperv isolation needs a scratch disk, not an upper folder"));
        };
        let vsock = spec::asks_for_vsock(&spec)?;
        let namespace = spec::network_namespace(&spec);
        let shares = spec::for_guest(&mut spec, &container.parts, names)
            .map_err(|error| Status::from_error(error.kind(), &error))?;
        let seccomp = take_seccomp(&mut spec)?;
        let layers = container.layers.into_iter().map(|layer| layer.path).collect();
        let files = spec::files(&spec).map_err(|error| Status::from_error(error.kind(), &error))?;
        // A template's processes that wait have the places of a VM's one container.
        let is_alone = *names == GuestNames::alone();
        let mut plain = Specialization::of(&spec, &files).filter(|_| is_alone);
        if let Some((specialization, _)) = &mut plain {
            // In the image's root it would be a change of the container's.
            specialization.provide("/etc/machine-id".into(), format!("{}\n", vm.machine_id));
        }
        tracing::debug!(plain = plain.is_some(), "read the bundle");
        let network = container.network;
        let foreign_namespace = namespace.filter(|_| network.is_none());
        let cgroup = container.cgroup;
        Ok(Self { shares, network, foreign_namespace, spec, vm, cgroup, scratch: disk, layers, vsock, seccomp, plain })
    }

    /// What the utility VM is started with, its logs in the folder `run_dir`.
    #[must_use]
    pub fn start_request(&self, run_dir: PathBuf) -> StartRequest<'_> {
        StartRequest {
            vm: &self.vm,
            scratch: self.scratch.clone(),
            layers: self.layers.clone(),
            run_dir,
            hostname: self.spec.hostname().clone().unwrap_or_default(),
            domainname: self.spec.domainname().clone().unwrap_or_default(),
            cgroup: Some(self.cgroup.clone()),
            rehearsal: false,
            namespace: self.network.as_ref().map(|network| network.namespace.clone()),
            network: self.network.as_ref().map(SandboxNetwork::for_guest).unwrap_or_default(),
            pod: false,
        }
    }

    /// What the guest is to create there, with a terminal or without, its input open or not.
    ///
    /// # Errors
    /// `InvalidArgument` when the spec is no JSON any more.
    pub fn container_request(
        &self,
        seat: &Seat,
        id: &str,
        terminal: bool,
        stdin: bool,
    ) -> Result<CreateContainerRequest, Status> {
        let (width, height) = self.spec.process().as_ref().map_or((0, 0), console_size);
        let mut request = CreateContainerRequest::new();
        request.id = id.to_owned();
        let invalid = |error: serde_json::Error| Status::from_error(ErrorKind::InvalidArgument, &error);
        match &self.plain {
            Some((specialization, limits)) => {
                request.plain = serde_json::to_vec(specialization).map_err(invalid)?;
                let limits = serde_json::to_vec(limits).map_err(invalid)?;
                // Without any it is an empty object.
                if limits != b"{}" {
                    request.resources = limits;
                }
            }
            None => request.spec = serde_json::to_vec(&self.spec).map_err(invalid)?,
        }
        request.container = seat.container;
        request.process = seat.process;
        request.first_share = seat.first_share;
        request.layers.clone_from(&seat.disks.layers);
        request.scratch_slot = seat.disks.scratch_slot;
        request.terminal = terminal;
        request.width = u32::from(width);
        request.height = u32::from(height);
        request.stdin = stdin;
        request.shares = u32::try_from(self.shares.len()).unwrap_or(u32::MAX);
        request.file_system = seat.file_system;
        request.vsock = self.vsock;
        request.seccomp.clone_from(&self.seccomp);
        Ok(request)
    }
}

fn take_seccomp(spec: &mut Spec) -> Result<Vec<u8>, Status> {
    let Some(linux) = spec.linux_mut() else { return Ok(Vec::new()) };
    let Some(profile) = linux.seccomp().clone() else { return Ok(Vec::new()) };
    linux.set_seccomp(None);
    let filter = Filter::compile(&profile).map_err(|error| Status::from_error(error.kind(), &error))?;
    Ok(filter.to_bytes())
}
