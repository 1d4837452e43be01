//! In the helper: creating a container by libcontainer.

use std::fs;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;

use libcontainer::capabilities;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::oci_spec::runtime::{LinuxCapabilities, Spec};
use libcontainer::syscall::syscall::{SyscallType, create_syscall};
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::diagnostics::Diagnostics;
use crate::failure::{CommandError, SetupError};
use crate::lock::Lock;
use crate::seccomp::Filter;
use crate::terminal::prepare_terminal;
use crate::wire::{Answer, Confinement, CreateRequest, Outcome, StreamFds};
use crate::{executable, network};

/// Marks a [`CommandError`] in JSON within libcontainer's error texts, which are all that it passes on.
const COMMAND_MARK: &str = "bulkhead-command-error:";
/// Name of the socket over which libcontainer hands out the terminal's master.
const CONSOLE_SOCKET: &str = "console.sock";

/// What is written to the launch pipe before the command is executed. After it comes end of file when the command runs, or
/// a [`CommandError`] in JSON. End of file without it: the process never got that far.
pub const LAUNCHING: u8 = b'!';

/// Creates the container; its process then waits to be started.
pub fn create(request: &CreateRequest, launch: OwnedFd, streams: Option<StreamFds>) -> Outcome {
    let mut diagnostics = Diagnostics::install();
    match build(request, launch, streams) {
        Ok((pid, terminal)) => Outcome { answer: Answer::Started { pid }, terminal },
        Err(error) => {
            let text = chain(error.as_ref());
            let pid = diagnostics.init();
            let answer = match command_error(&text) {
                Some(error) => Answer::Command { error, pid },
                None => Answer::Failed { error: SetupError::new(diagnostics.explain(&text)), pid },
            };
            Outcome { answer, terminal: None }
        }
    }
}

type Failure = Box<dyn std::error::Error>;

fn build(
    request: &CreateRequest,
    launch: OwnedFd,
    streams: Option<StreamFds>,
) -> Result<(u32, Option<OwnedFd>), Failure> {
    // Until this process ends: kept from being dropped below, since the caller may be gone when the answer is sent.
    std::mem::forget(Lock::for_making(&request.state)?);
    let launch = Launch { pipe: Rc::new(fs::File::from(launch)), last: Rc::new(Last::read(&request.confinement)?) };
    let mut builder = ContainerBuilder::new(request.id.clone(), SyscallType::Linux)
        .with_root_path(&request.state)?
        .with_executor(launch);
    let console = match streams {
        Some(streams) => {
            builder = with_streams(builder, streams);
            None
        }
        None => Some(listen(&request.state)?),
    };
    if console.is_some() {
        builder = builder.with_console_socket(Some(request.state.join(CONSOLE_SOCKET)));
    }
    let built = builder.as_init(&request.bundle).with_systemd(false).with_detach(true).as_sibling(true).build();
    let container = built.map_err(Box::<LibcontainerError>::new)?;
    let pid = container.pid().and_then(|pid| u32::try_from(pid.as_raw()).ok()).ok_or("no process id")?;
    if request.new_network {
        network::bring_up_loopback(pid)?;
    }
    let terminal = match console {
        Some(listener) => Some(receive_terminal(&listener, request)?),
        None => None,
    };
    Ok((pid, terminal))
}

fn with_streams(mut builder: ContainerBuilder, streams: StreamFds) -> ContainerBuilder {
    if let Some(fd) = streams.stdin {
        builder = builder.with_stdin(fd);
    }
    if let Some(fd) = streams.stdout {
        builder = builder.with_stdout(fd);
    }
    if let Some(fd) = streams.stderr {
        builder = builder.with_stderr(fd);
    }
    builder
}

/// Binds the console socket by a short relative name, since a full path may be longer than a socket's address.
fn listen(folder: &Path) -> io::Result<UnixListener> {
    std::env::set_current_dir(folder)?;
    let listener = UnixListener::bind(CONSOLE_SOCKET);
    std::env::set_current_dir("/")?;
    listener
}

/// Takes the master that libcontainer has sent by now, sets its size and gives its other side to the container's user.
fn receive_terminal(listener: &UnixListener, request: &CreateRequest) -> io::Result<OwnedFd> {
    // The container's process has sent it before it said that it is ready; nobody may make us wait.
    listener.set_nonblocking(true)?;
    let (socket, _) = listener.accept()?;
    let _ = fs::remove_file(request.state.join(CONSOLE_SOCKET));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(&socket, &mut [IoSliceMut::new(&mut name)], &mut control, flags)?;
    let master = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let master = master.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no terminal came"))?;
    prepare_terminal(&master, request.width, request.height, request.user_id)?;
    Ok(master)
}

/// Runs the command in the container's first process, and tells the launch pipe how that went.
#[derive(Clone)]
struct Launch {
    pipe: Rc<fs::File>,
    last: Rc<Last>,
}

/// What is done when everything else is set up.
struct Last {
    filter: Option<Filter>,
    capabilities: Option<LinuxCapabilities>,
}

impl Last {
    /// Reads it now, since a container does not see the caller's files.
    fn read(confinement: &Confinement) -> Result<Self, Failure> {
        let bytes = confinement.seccomp.as_ref().map(fs::read).transpose()?;
        let filter = bytes.as_deref().map(Filter::from_bytes).transpose()?;
        Ok(Self { filter, capabilities: confinement.capabilities.clone() })
    }

    /// Loads the filter, then gives up the capabilities that this took. The order is libcontainer's own and runc's.
    fn confine(&self) -> Result<(), String> {
        if let Some(filter) = &self.filter {
            filter.load().map_err(|error| format!("cannot load the seccomp profile: {error}"))?;
        }
        if let Some(wanted) = &self.capabilities {
            let given_up = capabilities::drop_privileges(wanted, create_syscall().as_ref());
            given_up.map_err(|error| format!("cannot set capabilities: {error}"))?;
        }
        Ok(())
    }
}

impl Executor for Launch {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let mut pipe = &*self.pipe;
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        // A pipe that nobody reads any more is no reason not to run.
        let _ = pipe.write_all(&[LAUNCHING]);
        let error = executable::execute(process);
        let _ = pipe.write_all(&serde_json::to_vec(&error).unwrap_or_default());
        Err(ExecutorError::Other(error.to_string()))
    }

    /// libcontainer asks this when all is set up but the wait for the start, in the container's process.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.last.confine().map_err(ExecutorValidationError::ArgValidationError)?;
        let found = spec.process().as_ref().ok_or(CommandError::Empty).and_then(executable::find);
        found.map(drop).map_err(|error| {
            let text = serde_json::to_string(&error).unwrap_or_default();
            ExecutorValidationError::ArgValidationError(format!("{COMMAND_MARK}{text}"))
        })
    }

    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment goes to execve(2) in the spec's own order.
        Ok(())
    }
}

/// Finds the command error in a text of libcontainer's.
fn command_error(text: &str) -> Option<CommandError> {
    let (_, json) = text.split_once(COMMAND_MARK)?;
    serde_json::Deserializer::from_str(json).into_iter().next()?.ok()
}

/// An error and its sources on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // libcontainer's errors often repeat their source.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_error_survives_libcontainers_texts() {
        let error = CommandError::NotInPath { name: "a \"b\"".into() };
        let json = serde_json::to_string(&error).unwrap();
        let text = format!("failed: exec process failed with error {COMMAND_MARK}{json}: and more {{}}");
        assert_eq!(command_error(&text), Some(error));
        assert_eq!(command_error("anything else"), None);
    }
}
