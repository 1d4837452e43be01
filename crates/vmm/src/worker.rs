//! The process: takes requests from the one socket, and tells the guest's end.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};

use crate::boot::Images;
use crate::jail::{self, JailError, filter, filter::Role};
use crate::machine::{Behind, Frozen, Machine, MachineError};
use crate::protocol::{self, DiskSpec, MOST_GATHERED, MachineSpec, Reply, Request};
use crate::sys;
use crate::virtio::block::disk::Disk;

/// Why the process ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The socket to whoever drives it is broken.
    #[error("the control socket failed")]
    Socket(#[from] io::Error),
    /// A request that there cannot be now.
    #[error("{0}")]
    Request(&'static str),
    /// A wall around it is missing.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Serves requests until the machine was frozen or the other side is gone.
///
/// # Errors
/// [`WorkerError`], which the other side was told too, if it is there.
pub fn serve(control: impl AsFd) -> Result<(), WorkerError> {
    let control = control.as_fd();
    let served = (|| {
        let leaving = jail::enter()?;
        let Some(machine) = first_requests(control)? else { return Ok(()) };
        // The guest has not run yet, and from here on nothing is made any more.
        leaving.finish()?;
        filter::install(Role::Control)?;
        protocol::send(control, &Reply::Done, &[])?;
        requests(control, &machine)
    })();
    if let Err(error) = &served {
        // Whoever is gone needs no answer.
        let _ = protocol::send(control, &Reply::Failed(chain(error)), &[]);
    }
    served
}

/// Makes the machine; nothing when nobody asks for one.
fn first_requests(control: impl AsFd) -> Result<Option<Machine>, WorkerError> {
    let control = control.as_fd();
    let Some((request, descriptors)) = next(control)? else { return Ok(None) };
    let Request::Prepare { machine } = request else { return Err(WorkerError::Request("there is no machine yet")) };
    let machine = Descriptors(descriptors.into_iter()).machine(machine)?;
    let Some((request, descriptors)) = next(control)? else { return Ok(None) };
    let mut descriptors = Descriptors(descriptors.into_iter());
    match request {
        Request::Boot { command_line } => {
            let memory = File::from(descriptors.next()?);
            let (mut kernel, mut initramfs) = (File::from(descriptors.next()?), File::from(descriptors.next()?));
            machine.attach(descriptors.taps(machine.spec())?)?;
            let mut images = Images { kernel: &mut kernel, initramfs: &mut initramfs, command_line: &command_line };
            Ok(Some(machine.boot(memory, &mut images)?))
        }
        Request::Fork { disks, rates, working_set } => {
            let (memory, state) = (File::from(descriptors.next()?), File::from(descriptors.next()?));
            let frozen = Frozen::read(machine.spec(), memory, state)?;
            let disks = descriptors.disks(disks)?;
            machine.attach(descriptors.taps(machine.spec())?)?;
            Ok(Some(machine.fork(frozen, disks, rates, &working_set)?))
        }
        _ => Err(WorkerError::Request("the machine has no memory yet")),
    }
}

fn requests(control: impl AsFd + Copy, machine: &Machine) -> Result<(), WorkerError> {
    let mut told = false;
    loop {
        let end = machine.end();
        let mut ready =
            [PollFd::new(&control, PollFlags::IN), PollFd::from_borrowed_fd(sys::borrow(&end.event), PollFlags::IN)];
        match poll(&mut ready[..if told { 1 } else { 2 }], None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let asked = !ready[0].revents().is_empty();
        if !told && let Some(how) = end.how() {
            machine.pause();
            protocol::send(control, &Reply::Ended(how), &[])?;
            told = true;
        }
        if asked {
            let Some((request, descriptors)) = next(control)? else { return Ok(()) };
            let last = matches!(request, Request::Freeze);
            let reply = answer(machine, request, Descriptors(descriptors.into_iter()))?;
            protocol::send(control, &reply, &[])?;
            if last {
                return Ok(());
            }
        }
    }
}

fn answer(machine: &Machine, request: Request, mut descriptors: Descriptors) -> Result<Reply, WorkerError> {
    match request {
        Request::Resume => machine.resume(),
        Request::Pause => machine.pause(),
        Request::Rebind { disks, rates } => machine.bind(descriptors.disks(disks)?, rates)?,
        Request::RebindSlot { slot, disk } => {
            let disk = descriptors.disks(vec![disk])?.pop().flatten();
            machine.bind_slot(slot, disk)?;
        }
        Request::LimitNetwork { slot, rates } => machine.limit_network(slot, rates)?,
        Request::Freeze => machine.freeze(File::from(descriptors.next()?))?,
        Request::Console => return Ok(Reply::Console(machine.console())),
        Request::Stand => return Ok(Reply::Standing(machine.stand())),
        Request::Prepare { .. } | Request::Boot { .. } | Request::Fork { .. } | Request::Descriptors => {
            return Err(WorkerError::Request("there is a machine already"));
        }
    }
    Ok(Reply::Done)
}

/// The next request with all of its descriptors.
fn next(control: impl AsFd) -> Result<Option<(Request, Vec<OwnedFd>)>, WorkerError> {
    let control = control.as_fd();
    let mut gathered = Vec::new();
    loop {
        let Some((request, descriptors)) = protocol::receive(control)? else { return Ok(None) };
        gathered.extend(descriptors);
        if gathered.len() > MOST_GATHERED {
            return Err(WorkerError::Request("too many descriptors"));
        }
        if request != Request::Descriptors {
            return Ok(Some((request, gathered)));
        }
    }
}

/// What came beside a request, in order.
struct Descriptors(std::vec::IntoIter<OwnedFd>);

impl Descriptors {
    fn next(&mut self) -> Result<OwnedFd, WorkerError> {
        self.0.next().ok_or(WorkerError::Request("a descriptor is missing"))
    }

    fn machine(&mut self, spec: MachineSpec) -> Result<Machine, WorkerError> {
        let (kvm, port, files, host) = (sys::kvm(self.next()?), self.next()?, self.next()?, self.next()?);
        Ok(Machine::new(kvm, spec, Behind { port, files, host })?)
    }

    /// All that is left: a tap for each network slot, or none at all.
    fn taps(&mut self, spec: &MachineSpec) -> Result<Vec<File>, WorkerError> {
        let taps: Vec<File> = self.0.by_ref().map(File::from).collect();
        let count = u32::try_from(taps.len()).unwrap_or(u32::MAX);
        if count == 0 || count == spec.network_slots {
            Ok(taps)
        } else {
            Err(WorkerError::Request("a tap is missing, or there are too many"))
        }
    }

    fn disks(&mut self, specs: Vec<Option<DiskSpec>>) -> Result<Vec<Option<Disk>>, WorkerError> {
        let mut disks = Vec::with_capacity(specs.len());
        for (slot, spec) in specs.into_iter().enumerate() {
            let disk = spec.map(|spec| -> Result<Disk, WorkerError> {
                let files = spec.parts.iter().map(|&bytes| Ok((File::from(self.next()?), bytes)));
                let files = files.collect::<Result<_, WorkerError>>()?;
                let disk = Disk::new(files, spec.read_only);
                Ok(disk.map_err(|source| MachineError::Disk { slot, source })?)
            });
            disks.push(disk.transpose()?);
        }
        Ok(disks)
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text.chars().take(1000).collect()
}
