//! What a utility VM rehearses with that is to stand by for a foreign containerd's containers: the container that `ctr run` makes
//! when it is told nothing, with a program that ends at once. Nothing of it is anybody's.

use std::path::Path;

use image::{Scratch, rehearsal};
use oci_spec::OciSpecError;
use oci_spec::runtime::Spec;
use proto::control::{ContainerBundle, LayerFile, UtilityVmRequest, Writable};
use proto::{ErrorKind, Isolation, Status};

use super::layers::{self, CacheError};
use super::unnamed::Unnamed;
use super::{CACHED_LAYERS, Options, Part, Prepared, STATE, adapt, blank_folder, likeness, utility_vm};

/// What `ctr oci spec` of containerd 1.6 prints, with a command.
const OF_CONTAINERD: &str = include_str!("containerd-spec.json");
/// Its name, in the guest too.
const NAME: &str = "standby";
/// Nobody is in it: a VM that stands by has no cgroup of its own.
const CGROUP: &str = "/bulkhead/standby";

/// containerd's default container.
///
/// # Errors
/// It cannot be read, which does not happen.
pub fn of_containerd() -> Result<Spec, OciSpecError> {
    Ok(serde_json::from_str(OF_CONTAINERD)?)
}

/// What containerd's default container asks of its utility VM.
///
/// # Errors
/// As [`of_containerd`].
pub fn likely_vm(options: &Options, namespace: &str) -> Result<UtilityVmRequest, OciSpecError> {
    Ok(utility_vm(&of_containerd()?, options, namespace, Path::new("/")))
}

/// The container of a rehearsal. Shape: its files have no name. When: blocks; the first disk of a size is formatted.
///
/// # Errors
/// The state folder cannot be written to.
pub fn rehearsal(options: &Options, namespace: &str) -> Result<(Spec, Prepared), Status> {
    let invalid = |error: OciSpecError| Status::from_error(ErrorKind::Internal, &error);
    let of_cache = |error: CacheError| Status::from_error(error.kind(), &error);
    let mut spec = of_containerd().map_err(invalid)?;
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(vec![rehearsal::PROGRAM.to_owned()]));
    spec.set_process(Some(process)).set_hostname(Some(NAME.to_owned()));
    adapt(&mut spec, CGROUP, Part::Alone);
    likeness::make_plain(&mut spec).map_err(invalid)?;
    let folder = options.state.join(STATE).join(CACHED_LAYERS);
    layers::make_folder(&folder).map_err(of_cache)?;
    let layer = Unnamed::new(&folder).map_err(layers::at("make a layer in", &folder)).map_err(of_cache)?;
    let diff_id = rehearsal::write_layer(layer.file()).map_err(|error| Status::from_error(error.kind(), &error))?;
    let blank = blank_folder(options).map_err(of_cache)?;
    let disk = Unnamed::new(&blank).map_err(layers::at("make a disk in", &blank)).map_err(of_cache)?;
    Scratch::fill(&blank, disk.file(), options.scratch_bytes())
        .map_err(|error| Status::from_error(error.kind(), &error))?;
    let container = ContainerBundle {
        isolation: Isolation::Hyperv,
        layers: vec![LayerFile { diff_id, path: layer.path() }],
        writable: Writable::Scratch { disk: disk.path() },
        cgroup: CGROUP.to_owned(),
        utility_vm: Some(utility_vm(&spec, options, namespace, Path::new("/"))),
        parts: Vec::new(),
        network: None,
    };
    Ok((spec, Prepared { part: Part::Alone, container, files: vec![layer, disk] }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_plain_container_without_limits() {
        let state = tempfile::tempdir().unwrap();
        let options = Options { state: state.path().to_owned(), ..Options::default() };
        let (spec, prepared) = match rehearsal(&options, "default") {
            Err(status) if status.message.contains("e2fsprogs") => return eprintln!("SKIPPED: {status}"),
            made => made.unwrap(),
        };
        assert!(container::Specialization::of(&spec, &std::collections::BTreeMap::new()).is_some());
        let vm = prepared.container.utility_vm.unwrap();
        assert_eq!((vm.memory_bytes, vm.cpus_milli), (None, None));
        assert!(super::super::suits_standby(&spec));
        let layer = std::fs::read(&prepared.container.layers[0].path).unwrap();
        assert!(layer.windows(9).any(|window| window == b"rehearsal"));
    }
}
