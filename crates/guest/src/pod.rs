//! What runs in this utility VM: one container, or a pod's, each added and removed while the others run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use proto::ErrorKind;
use proto::gcs::wire::{CreateContainerRequest, ExecRequest};

use crate::compute::{self, Compute, ComputeError, signal_pid};
use crate::machine::Machine;
use crate::places::Places;
use crate::process::{Attendants, Process};
use crate::shares::Shares;
use crate::substreams::StdioStreams;

/// The number of the one container of a VM that is no pod's.
pub const ONLY: u32 = 0;

/// The containers by the host's numbers, their processes by the host's numbers, and what the next one needs.
pub struct Pod {
    machine: Machine,
    containers: BTreeMap<u32, Compute>,
    /// With the container that each is of. First processes stay until their container is removed.
    processes: HashMap<u32, (u32, Arc<Process>)>,
}

impl Pod {
    /// Without a container.
    pub fn new(machine: Machine) -> Self {
        Self { machine, containers: BTreeMap::new(), processes: HashMap::new() }
    }

    /// Creates a container, not started; the answer is its first process.
    ///
    /// # Errors
    /// `Container`, `Process` — the number is in use; else as [`Compute::create`]. Nothing of it stays.
    pub fn create(
        &mut self,
        request: &CreateContainerRequest,
        streams: StdioStreams,
        shares: Shares,
        attendants: &Attendants,
    ) -> Result<Arc<Process>, ComputeError> {
        let number = request.container;
        if self.containers.contains_key(&number) {
            let problem = "exists already";
            return Err(ComputeError::Container { number, problem, kind: ErrorKind::AlreadyExists });
        }
        self.require_unused(request.process)?;
        let created = Compute::create(request, streams, shares, &mut self.machine, attendants);
        let compute = created.inspect_err(|_| self.let_go_of(number, &compute::disks(request)))?;
        let first = Arc::clone(compute.first().1);
        self.processes.insert(request.process, (number, Arc::clone(&first)));
        self.containers.insert(number, compute);
        Ok(first)
    }

    /// Lets go of what a container that did not come to be has been given: the next one in its place has other disks.
    fn let_go_of(&mut self, number: u32, disks: &BTreeSet<u32>) {
        Places::of(number).remove();
        if let Err(error) = self.machine.slots.forget(|slot| disks.contains(&slot)) {
            tracing::warn!("a disk is still in use: {error}");
        }
    }

    fn require_unused(&self, number: u32) -> Result<(), ComputeError> {
        if self.processes.contains_key(&number) {
            return Err(ComputeError::Process { number, problem: "exists already", kind: ErrorKind::AlreadyExists });
        }
        Ok(())
    }

    /// A container by the host's number.
    ///
    /// # Errors
    /// `Container`.
    pub fn container(&self, number: u32) -> Result<&Compute, ComputeError> {
        self.containers.get(&number).ok_or_else(|| unknown(number))
    }

    /// Starts a created container's first process.
    ///
    /// # Errors
    /// `Container`, `Start`.
    pub fn start(&mut self, number: u32) -> Result<(), ComputeError> {
        self.containers.get_mut(&number).ok_or_else(|| unknown(number))?.start()
    }

    /// Every container.
    pub fn containers(&self) -> impl Iterator<Item = &Compute> {
        self.containers.values()
    }

    /// Starts a further process; the answer is its process id.
    ///
    /// # Errors
    /// `Container`; `Process` — the number is in use; else as [`Compute::exec`].
    pub fn exec(
        &mut self,
        request: &ExecRequest,
        streams: StdioStreams,
        attendants: &Attendants,
    ) -> Result<u32, ComputeError> {
        self.require_unused(request.process)?;
        let compute = self.containers.get(&request.container).ok_or_else(|| unknown(request.container))?;
        let process = compute.exec(request, streams, &mut self.machine.spare, attendants)?;
        let pid = process.pid();
        self.processes.insert(request.process, (request.container, Arc::new(process)));
        Ok(pid)
    }

    /// Has a helper ready for the next exec.
    pub fn warm_up(&mut self) {
        self.machine.spare.warm_up();
    }

    /// A process by the host's number.
    ///
    /// # Errors
    /// `Process`.
    pub fn process(&self, number: u32) -> Result<&Arc<Process>, ComputeError> {
        Ok(&self.entry(number)?.1)
    }

    fn entry(&self, number: u32) -> Result<&(u32, Arc<Process>), ComputeError> {
        let unknown = ComputeError::Process { number, problem: "does not exist", kind: ErrorKind::NotFound };
        self.processes.get(&number).ok_or(unknown)
    }

    /// The container that a process is of.
    ///
    /// # Errors
    /// `Process`.
    pub fn container_of(&self, process: u32) -> Result<&Compute, ComputeError> {
        self.container(self.entry(process)?.0)
    }

    /// The container whose first process this is.
    pub fn container_begun_by(&self, process: u32) -> Option<&Compute> {
        self.container_of(process).ok().filter(|compute| compute.first().0 == process)
    }

    /// Drops a further process whose end the host has learnt, so that no number of them fills the guest.
    pub fn forget(&mut self, number: u32) {
        if self.container_begun_by(number).is_none() {
            self.processes.remove(&number);
        }
    }

    /// Sends a signal to one process.
    ///
    /// # Errors
    /// `Process` — unknown, or it has ended; `Kernel`.
    pub fn signal(&self, number: u32, signal: u32) -> Result<(), ComputeError> {
        let process = self.process(number)?;
        if process.has_ended() {
            return Err(ComputeError::Process { number, problem: "has already finished", kind: ErrorKind::NotFound });
        }
        signal_pid(process.pid(), signal).map_err(|source| ComputeError::Kernel { what: "signal", number, source })
    }

    /// Removes a container, whose processes have been killed, and lets go of its disks. Whatever fails, it is no container any more.
    ///
    /// # Errors
    /// `Container`; as [`Compute::remove`]; `Slot` — a disk is still in use.
    pub fn remove(&mut self, number: u32) -> Result<(), ComputeError> {
        let compute = self.containers.remove(&number).ok_or_else(|| unknown(number))?;
        self.processes.retain(|_, (container, _)| *container != number);
        let disks = compute.disks();
        let removed = compute.remove();
        let forgotten = self.machine.slots.forget(|slot| disks.contains(&slot));
        removed.and(forgotten.map_err(ComputeError::from))
    }

    /// Removes all containers, whose processes have been killed, and leaves the slots, and what was not used.
    ///
    /// # Errors
    /// As [`Compute::remove`], of the first that fails; the others are removed all the same.
    pub fn dissolve(self) -> Result<Machine, ComputeError> {
        let Self { machine, containers, processes } = self;
        drop(processes);
        containers.into_values().map(Compute::remove).fold(Ok(()), Result::and)?;
        Ok(machine)
    }
}

fn unknown(number: u32) -> ComputeError {
    ComputeError::Container { number, problem: "does not exist", kind: ErrorKind::NotFound }
}
