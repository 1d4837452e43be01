//! In the zygote itself: process 1 of a container that is not known yet. See [`crate::zygote`].

mod mounts;

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sched::CloneFlags;
use oci_spec::runtime::Process;

use mounts::Entrance;

use crate::confine::{Confinement, Failure, give_to};
use crate::failure::{CommandError, SetupError};
use crate::init::LAUNCHING;
use crate::plain::Specialization;
use crate::seccomp::Filter;
use crate::spec::{self, HostLimits, SpecError};
use crate::user::{Accounts, UserError};
use crate::wire::{
    self, Answer, Outcome, SpecializeRequest, StreamFds, WireError, ZygoteReport as Report, ZygoteRequest,
};
use crate::{executable, sys};

/// Makes the zygote, a sibling of this helper, in namespaces of its own.
pub fn create(request: &ZygoteRequest, socket: OwnedFd, cgroup: Option<OwnedFd>) -> Outcome {
    let Some(cgroup) = cgroup else {
        return Failure::Step("a zygote needs a cgroup".to_owned()).answer(None);
    };
    let namespaces =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    match sys::fork_sibling_into(namespaces.bits().unsigned_abs(), cgroup.as_fd()) {
        Ok(sys::Forked::Parent(pid)) => Outcome { answer: Answer::Started { pid }, terminal: None },
        Ok(sys::Forked::Child) => {
            drop(cgroup);
            // Nobody asks why it ended: what went wrong it has said on its socket, unless nobody listens any more.
            let _ = live(&request.stage, &UnixStream::from(socket));
            sys::exit_now(127)
        }
        Err(error) => Failure::step("cannot fork", &error).answer(None),
    }
}

/// Why it is not going to be a container's first process.
enum Refusal {
    Request(SetupError),
    Failure(Failure),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<UserError> for Refusal {
    fn from(error: UserError) -> Self {
        Self::Request(SetupError { kind: error.kind(), message: error.to_string() })
    }
}

impl From<SpecError> for Refusal {
    fn from(error: SpecError) -> Self {
        Self::Request(SetupError { kind: error.kind(), message: error.to_string() })
    }
}

/// Goes through its life up to the command. Returns when it cannot, or nobody wants it any more.
fn live(stage: &Path, socket: &UnixStream) -> Result<(), WireError> {
    let limits = match prepare(stage) {
        Ok(limits) => limits,
        Err(failure) => return report(socket, Refusal::Failure(failure)),
    };
    wire::send(socket, &Report::Ready, &[])?;
    let Some((request, fds)) = wire::receive::<SpecializeRequest>(socket)? else { return Ok(()) };
    let (Some((wanted, _)), Some((filter, _))) =
        (wire::receive::<Specialization>(socket)?, wire::receive_body(socket)?)
    else {
        return Ok(());
    };
    let task = Task { stage, socket, limits, size: (request.width, request.height) };
    let process = match task.specialize(wanted, &filter, request.streams, fds) {
        Ok(process) => process,
        Err(refusal) => return report(socket, refusal),
    };
    wire::send(socket, &Report::Created, &[])?;
    let mut go = [0];
    if { socket }.read(&mut go)? == 0 {
        return Ok(());
    }
    // A caller that does not read any more is no reason not to run.
    let _ = { socket }.write_all(&[LAUNCHING]);
    let error = executable::execute(&process);
    Ok({ socket }.write_all(&serde_json::to_vec(&error)?)?)
}

fn report(socket: &UnixStream, refusal: Refusal) -> Result<(), WireError> {
    let report = match refusal {
        Refusal::Request(error) => Report::Refused(error),
        Refusal::Failure(Failure::Command(error)) => Report::Command(error),
        Refusal::Failure(Failure::Step(message)) => Report::Failed(SetupError::new(message)),
    };
    wire::send(socket, &report, &[])
}

fn prepare(stage: &Path) -> Result<HostLimits, Failure> {
    // Now that it is in its cgroup, which is the root of what it sees.
    nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP)
        .map_err(|error| Failure::step("cannot make a cgroup namespace", &error))?;
    mounts::prepare(stage)?;
    HostLimits::of_this_process().map_err(|error| Failure::step("cannot read the limits", &error))
}

struct Task<'a> {
    stage: &'a Path,
    socket: &'a UnixStream,
    limits: HostLimits,
    /// Of the terminal.
    size: (u16, u16),
}

impl Task<'_> {
    /// Becomes the container's first process in all but its program.
    fn specialize(
        &self,
        wanted: Specialization,
        filter: &[u8],
        streams: Option<wire::Streams>,
        fds: Vec<OwnedFd>,
    ) -> Result<Process, Refusal> {
        let mut fds = fds.into_iter();
        let root = fds.next().ok_or_else(|| Failure::Step("no root came".to_owned()))?;
        let streams = streams.map(|streams| StreamFds::take(streams, &mut fds));
        let filter = if filter.is_empty() { None } else { Some(Filter::from_bytes(filter)?) };
        let process = self.enter(wanted, root)?;
        for stream in streams.iter().flat_map(StreamFds::each) {
            give_to(stream, process.user().uid());
        }
        let confinement = Confinement {
            process: &process,
            personality: None,
            filter: filter.as_ref(),
            size: self.size,
            is_first: true,
        };
        confinement.apply(streams, |master| wire::send(self.socket, &Report::Terminal, &[master.as_fd()]))?;
        let found = executable::find(&process);
        found.map(|_| process).map_err(|error: CommandError| Refusal::Failure(Failure::Command(error)))
    }

    /// Enters the container's root, and learns there whose process this is.
    fn enter(&self, wanted: Specialization, root: OwnedFd) -> Result<Process, Refusal> {
        let Specialization { mut process, groups, hostname, domainname, read_only, tmpfs, files } = wanted;
        spec::check_process(&process)?;
        let entrance = Entrance::open(self.stage, root)?;
        spec::resolve_user(&mut process, &Accounts::read(&entrance.root)?, groups.as_deref())?;
        spec::adjust_process(&mut process, &self.limits)?;
        let cwd = process.cwd().clone();
        let made = entrance.root.create_folders(&cwd);
        made.map_err(|source| SpecError::WorkingDirectory { path: cwd, source })?;
        entrance.furnish(&tmpfs, &files)?;
        if read_only {
            let set = sys::set_mount_read_only(entrance.mount());
            set.map_err(|error| Failure::step("cannot make the root read-only", &error))?;
        }
        entrance.enter()?;
        set_names(hostname.as_deref(), domainname.as_deref())?;
        if let Some(score) = process.oom_score_adj().filter(|score| *score != self.limits.oom_score_adj) {
            std::fs::write("/proc/self/oom_score_adj", score.to_string())
                .map_err(|error| Failure::step("cannot set oom_score_adj", &error))?;
        }
        Ok(process)
    }
}

fn set_names(hostname: Option<&str>, domainname: Option<&str>) -> Result<(), Failure> {
    if let Some(name) = hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|error| Failure::step("cannot set the host name", &error))?;
    }
    if let Some(name) = domainname {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(|error| Failure::step("cannot set the domain name", &error))?;
    }
    Ok(())
}
