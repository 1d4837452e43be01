//! In the helper: starting a further process in a running container.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::confine::{Confinement, Failure};
use crate::seccomp::Filter;
use crate::wire::{self, Answer, ExecRequest, Outcome, StreamFds};
use crate::{executable, sys};

/// Starts the process; answers when its command runs.
pub fn start(request: &ExecRequest, container: &OwnedFd, streams: Option<StreamFds>) -> Outcome {
    // While the caller's files are in sight.
    match read_filter(request).and_then(|filter| enter(request, container).map(|()| filter)) {
        Ok(filter) => fork(request, filter.as_ref(), streams),
        Err(failure) => failure.answer(None),
    }
}

fn read_filter(request: &ExecRequest) -> Result<Option<Filter>, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::step("cannot read the seccomp profile", error);
    let Some(file) = &request.seccomp else { return Ok(None) };
    let bytes = std::fs::read(file).map_err(|error| failed(&error))?;
    Filter::from_bytes(&bytes).map(Some).map_err(|error| failed(&error))
}

/// Makes this helper a member of the container's cgroups and namespaces, which the new process then inherits.
fn enter(request: &ExecRequest, container: &OwnedFd) -> Result<(), Failure> {
    if let Some(score) = request.process.oom_score_adj() {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| Failure::step("cannot set oom_score_adj", &error))?;
    }
    for cgroup in &request.cgroups {
        let file = cgroup.join("cgroup.procs");
        let joined = OpenOptions::new().write(true).open(&file).and_then(|mut file| file.write_all(b"0"));
        joined.map_err(|error| Failure::step(&format!("cannot join {}", file.display()), &error))?;
    }
    let namespaces = ThreadNameSpaceType::from_bits_retain(request.namespaces);
    if namespaces.is_empty() {
        return Ok(());
    }
    move_into_thread_name_spaces(container.as_fd(), namespaces)
        .map_err(|error| Failure::step("cannot join the container's namespaces", &error))
}

fn fork(request: &ExecRequest, filter: Option<&Filter>, streams: Option<StreamFds>) -> Outcome {
    let made = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).and_then(|pipe| Ok((pipe, UnixStream::pair()?)));
    let ((failure_read, failure_write), (console, console_child)) = match made {
        Ok(made) => made,
        Err(error) => return Failure::step("cannot make a pipe", &error).answer(None),
    };
    let pid = match sys::fork_sibling() {
        Ok(sys::Forked::Parent(pid)) => pid,
        Ok(sys::Forked::Child) => {
            drop((failure_read, console));
            let failure = become_command(request, filter, streams, &console_child);
            let _ = File::from(failure_write).write_all(&serde_json::to_vec(&failure).unwrap_or_default());
            sys::exit_now(127)
        }
        Err(error) => return Failure::step("cannot fork", &error).answer(None),
    };
    drop((failure_write, console_child, streams));
    // Ends when the command is executed, since that closes the last writing end.
    let mut failure = Vec::new();
    let read = File::from(failure_read).read_to_end(&mut failure);
    if let Err(error) = read {
        return Failure::step("cannot learn what became of the process", &error).answer(Some(pid));
    }
    if !failure.is_empty() {
        let failure =
            serde_json::from_slice(&failure).unwrap_or_else(|error| Failure::step("malformed failure", &error));
        return failure.answer(Some(pid));
    }
    let terminal = if request.streams.is_none() {
        match wire::receive::<()>(&console) {
            Ok(Some(((), fds))) => fds.into_iter().next(),
            _ => return Failure::Step("no terminal came".to_owned()).answer(Some(pid)),
        }
    } else {
        None
    };
    Outcome { answer: Answer::Started { pid }, terminal }
}

/// In the new process: becomes the command; returns only with the reason why not.
fn become_command(
    request: &ExecRequest,
    filter: Option<&Filter>,
    streams: Option<StreamFds>,
    console: &UnixStream,
) -> Failure {
    let confinement = Confinement {
        process: &request.process,
        personality: request.personality.as_ref(),
        filter,
        size: (request.width, request.height),
        is_first: false,
    };
    match confinement.apply(streams, |master| wire::send(console, &(), &[master.as_fd()])) {
        Ok(()) => Failure::Command(executable::execute(&request.process)),
        Err(failure) => failure,
    }
}

/// Which namespaces of another process are not ours, as clone(2)'s flags.
pub fn foreign_namespaces(pid: Pid) -> io::Result<u32> {
    use rustix::thread::ThreadNameSpaceType as Type;
    let kinds = [
        ("user", Type::USER),
        ("mnt", Type::MOUNT),
        ("uts", Type::HOST_NAME_AND_NIS_DOMAIN_NAME),
        ("ipc", Type::INTER_PROCESS_COMMUNICATION),
        ("net", Type::NETWORK),
        ("pid", Type::PROCESS_ID),
        ("cgroup", Type::CONTROL_GROUP),
        ("time", Type::TIME),
    ];
    let mut flags = Type::empty();
    for (name, flag) in kinds {
        let identity = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{name}"));
        match (identity("self"), identity(&pid.as_raw_nonzero().to_string())) {
            (Ok(ours), Ok(theirs)) if ours == theirs => {}
            (Ok(_), Ok(_)) => flags |= flag,
            // A kernel without this kind.
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {}
            (Err(error), _) | (_, Err(error)) => return Err(error),
        }
    }
    Ok(flags.bits())
}
