//! Making a container: from a blueprint to a process that waits to be started.

use std::fs;
use std::io;
use std::path::Path;

use oci_spec::runtime::Spec;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{
    BUNDLE, CONFIG, Container, Gate, Known, RECORD, Record, SECCOMP, Started, Stdio, cgroup_path, take_apart,
    write_record,
};
use crate::cgroup::Cgroup;
use crate::error::CreateError;
use crate::first_process;
use crate::helper::Helper;
use crate::processes::Stat;
use crate::seccomp::Filter;
use crate::spec::{self, HostLimits, PrepareError, SpecError, Surroundings};
use crate::wire::{Answer, Confinement, CreateRequest, Request, borrow_all};

/// A container that is being made.
pub(super) struct Creation<'a> {
    pub(super) id: &'a str,
    pub(super) folder: &'a Path,
    pub(super) bundle: &'a Path,
    /// Its first process, which is to be reaped by the caller if the creation fails.
    pub(super) init: Option<u32>,
}

impl Creation<'_> {
    /// Prepares the specification, has the helper set the container up, and records it.
    pub(super) fn run(
        &mut self,
        helper: Helper,
        spec: Spec,
        seccomp: Option<&Filter>,
        stdio: Stdio,
    ) -> Result<(Container, Started), CreateError> {
        let spec = self.prepare_spec(spec, matches!(stdio, Stdio::Terminal { .. }))?;
        let confinement = self.write_bundle(&spec, seccomp)?;
        let (launch, launch_end) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| self.state_error(error.into()))?;
        let user_id = spec.process().as_ref().map_or(0, |process| process.user().uid());
        let linux = spec.linux().as_ref().ok_or(SpecError::Missing("linux"))?;
        let user_id = spec::host_id(user_id, linux.uid_mappings().as_ref());
        let (streams, fds, (width, height)) = take_apart(stdio, user_id);
        let request = Request::Create(Box::new(CreateRequest {
            state: self.folder.to_owned(),
            id: self.id.to_owned(),
            bundle: self.folder.join(BUNDLE),
            streams,
            user_id,
            width,
            height,
            new_network: spec::makes_network(linux),
            confinement,
        }));
        let (answer, terminal) = helper.ask(&request, &borrow_all(&launch_end, &fds))?;
        let pid = match answer {
            Answer::Started { pid } => pid,
            Answer::Command { error, pid } => {
                self.init = pid;
                return Err(CreateError::Command(error));
            }
            Answer::Failed { error, pid } => {
                self.init = pid;
                return Err(CreateError::Setup(error));
            }
        };
        self.init = Some(pid);
        let cgroup = cgroup_path(&spec).ok_or(SpecError::Missing("linux.cgroupsPath"))?;
        let cgroup = Cgroup::locate(&cgroup)?;
        if let Some(resources) = linux.resources() {
            cgroup.restrict_devices(resources)?;
        }
        let began = Stat::of(pid).map_err(|source| self.state_error(source))?.started;
        let record = Record { pid, began, started: false, bundle: self.bundle.to_owned() };
        write_record(&self.folder.join(RECORD), &record).map_err(|source| self.state_error(source))?;
        let container = Container {
            id: self.id.to_owned(),
            folder: self.folder.to_owned(),
            known: Some(Known { record, spec: Some(spec) }),
            cgroup: Some(cgroup),
            gate: Some(Gate::Libcontainer(fs::File::from(launch))),
            origin: None,
        };
        Ok((container, Started { pid, terminal: terminal.into_iter().next() }))
    }

    fn prepare_spec(&self, mut spec: Spec, terminal: bool) -> Result<Spec, CreateError> {
        first_process::add(&mut spec, self.folder).map_err(|source| self.state_error(source))?;
        let limits = HostLimits::of_this_process().map_err(|source| self.state_error(source))?;
        let around = Surroundings { id: self.id, bundle: self.bundle, terminal, limits };
        spec::prepare(spec, &around).map_err(|error| match error {
            PrepareError::Spec(error) => CreateError::Spec(error),
            PrepareError::User(error) => CreateError::User(error),
        })
    }

    /// Writes the specification where libcontainer reads it, without what [`Confinement`] does in libcontainer's place.
    fn write_bundle(&self, spec: &Spec, seccomp: Option<&Filter>) -> Result<Confinement, CreateError> {
        let mut spec = spec.clone();
        let mut confinement = Confinement { seccomp: None, capabilities: None };
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(None);
        }
        if let Some(filter) = seccomp {
            let file = self.folder.join(SECCOMP);
            fs::write(&file, filter.to_bytes()).map_err(|source| self.state_error(source))?;
            confinement.seccomp = Some(file);
            // With no_new_privs a filter takes no capability.
            if let Some(process) = spec.process_mut().as_mut().filter(|p| p.no_new_privileges() != Some(true)) {
                confinement.capabilities = process.capabilities().clone();
                process.set_capabilities(process.capabilities().as_ref().map(spec::with_confining));
            }
        }
        let folder = self.folder.join(BUNDLE);
        fs::create_dir(&folder).map_err(|source| self.state_error(source))?;
        let text = serde_json::to_vec(&spec).map_err(|error| self.state_error(error.into()))?;
        fs::write(folder.join(CONFIG), text).map_err(|source| self.state_error(source))?;
        Ok(confinement)
    }

    fn state_error(&self, source: io::Error) -> CreateError {
        CreateError::State { path: self.folder.to_owned(), source }
    }
}
