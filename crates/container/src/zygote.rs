//! A container's first process, made before its container is known.
//!
//! Half of a plain container is the same for all of them: its namespaces, the kernel's file systems in them, what of those is
//! hidden or read-only, the devices, an empty cgroup. A zygote has all that and waits. In a utility VM's template it is made
//! before the freeze; what is left for the fork is to put the container's root below the mounts, and to take on the
//! container's names, identity and confinement.
//!
//! ```text
//!  caller                         helper             zygote, process 1 of a new pid namespace
//!  Zygote::spawn ─── request ───▶ clone3 ──────────▶ mounts below a stage
//!                ◀── pid ──────── (ends)   ready ◀──
//!  Container::specialize ── root, streams, Specialization ─▶ mounts moved, pivot_root, confined
//!                ◀───────────────────────────── created, terminal
//!  Container::start ──────────── one byte ────▶ executes the command
//! ```
//!
//! Source: docs/design/0011.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use proto::ErrorKind;

use crate::cgroup::{Cgroup, CgroupError};
use crate::error::{CreateError, HelperError};
use crate::failure::SetupError;
use crate::helper::Helper;
use crate::processes::Stat;
use crate::wire::{self, Answer, Request, SpecializeRequest, Streams, ZygoteReport as Report, ZygoteRequest};

/// A zygote that could not be made; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum ZygoteError {
    /// The helper failed, or the zygote ended without a word.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// Its cgroup cannot be made or used. Only version 2 will do.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// It could not make its mounts.
    #[error("cannot prepare a container: {0}")]
    Setup(SetupError),
}

impl ZygoteError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Helper(error) => error.kind(),
            Self::Cgroup(error) => error.kind(),
            Self::Setup(error) => error.kind,
        }
    }
}

/// A process that waits to become a container's first. Dropping it ends it and removes its cgroup.
#[derive(Debug)]
pub struct Zygote {
    socket: UnixStream,
    /// `None` once it has become a container.
    parts: Option<Parts>,
}

/// What a container takes over from its zygote.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) pid: u32,
    /// When it began, in the kernel's ticks.
    pub(crate) began: u64,
    pub(crate) cgroup: Cgroup,
    stage: PathBuf,
}

impl Zygote {
    /// Makes one and waits until it waits itself.
    ///
    /// Shape: `stage` is its own folder for mount points and small files, made if missing; `cgroup` is an absolute path below
    /// the root of version 2's hierarchy that does not exist. When: version 2 has all controllers; it is the caller's child.
    ///
    /// # Errors
    /// [`ZygoteError`].
    pub fn spawn(stage: &Path, cgroup: &Path) -> Result<Self, ZygoteError> {
        let cgroup = Cgroup::locate(cgroup)?;
        let folder = cgroup.unified().ok_or_else(|| CgroupError::Path(stage.to_owned()))?.to_owned();
        let failed = |source| CgroupError::File { path: folder.clone(), source };
        fs::create_dir(&folder).map_err(failed)?;
        let made = Self::spawn_in(stage, &cgroup, &folder);
        if made.is_err() {
            clean_up(&cgroup);
        }
        made
    }

    fn spawn_in(stage: &Path, cgroup: &Cgroup, folder: &Path) -> Result<Self, ZygoteError> {
        let (socket, theirs) = UnixStream::pair().map_err(HelperError::Spawn)?;
        let handle = fs::File::open(folder).map_err(|source| CgroupError::File { path: folder.to_owned(), source })?;
        fs::create_dir_all(stage).map_err(|source| CgroupError::File { path: stage.to_owned(), source })?;
        let request = Request::Zygote(ZygoteRequest { stage: stage.to_owned() });
        let (answer, _) = Helper::spawn()?.ask(&request, &[theirs.as_fd(), handle.as_fd()])?;
        drop(theirs);
        let pid = match answer {
            Answer::Started { pid } => pid,
            Answer::Failed { error, .. } => return Err(ZygoteError::Setup(error)),
            Answer::Command { error, .. } => return Err(ZygoteError::Setup(SetupError::new(error.to_string()))),
        };
        match receive(&socket)?.0 {
            Report::Ready => {}
            Report::Failed(error) | Report::Refused(error) => return Err(ZygoteError::Setup(error)),
            Report::Terminal | Report::Created | Report::Command(_) => return Err(HelperError::Died.into()),
        }
        cgroup.restrict_devices_plainly()?;
        let began = Stat::of(pid).map_err(HelperError::Spawn)?.started;
        let parts = Parts { pid, began, cgroup: cgroup.clone(), stage: stage.to_owned() };
        Ok(Self { socket, parts: Some(parts) })
    }

    /// Lets it become a container's first process, which then waits for one byte on the socket.
    pub(crate) fn specialize(
        mut self,
        task: &Task<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Parts, UnixStream, Option<OwnedFd>), CreateError> {
        let (width, height) = task.size;
        let talk = |error| CreateError::Helper(HelperError::Talk(error));
        wire::send(&self.socket, &SpecializeRequest { streams: task.streams, width, height }, fds).map_err(talk)?;
        wire::send_body(&self.socket, task.specialization).map_err(talk)?;
        wire::send_body(&self.socket, task.seccomp).map_err(talk)?;
        let mut terminal = None;
        loop {
            match receive(&self.socket)? {
                (Report::Terminal, fds) => terminal = fds.into_iter().next(),
                (Report::Created, _) => break,
                (Report::Command(error), _) => return Err(CreateError::Command(error)),
                (Report::Refused(error), _) => return Err(CreateError::Refused(error)),
                (Report::Failed(error), _) => return Err(CreateError::Setup(error)),
                (Report::Ready, _) => return Err(HelperError::Died.into()),
            }
        }
        let parts = self.parts.take().ok_or(HelperError::Died)?;
        let socket = self.socket.try_clone().map_err(HelperError::Spawn)?;
        Ok((parts, socket, terminal))
    }
}

/// What a zygote is to become, as it goes to it.
pub(crate) struct Task<'a> {
    /// A [`Specialization`] in JSON.
    pub(crate) specialization: &'a [u8],
    /// A filter's bytes; empty for none.
    pub(crate) seccomp: &'a [u8],
    pub(crate) streams: Option<Streams>,
    /// Of the terminal.
    pub(crate) size: (u16, u16),
}

impl Drop for Zygote {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            clean_up(&parts.cgroup);
            parts.clear();
        }
    }
}

impl Parts {
    /// Removes what is in its stage. When: its process has ended.
    pub(crate) fn clear(&self) {
        match fs::remove_dir_all(&self.stage) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.stage.display(), %error, "left behind");
            }
            _ => {}
        }
    }
}

fn clean_up(cgroup: &Cgroup) {
    if let Err(error) = cgroup.empty().and_then(|()| cgroup.remove()) {
        tracing::warn!(error = &error as &dyn std::error::Error, "a zygote leaves remains");
    }
}

fn receive(socket: &UnixStream) -> Result<(Report, Vec<OwnedFd>), HelperError> {
    wire::receive(socket).map_err(HelperError::Talk)?.ok_or(HelperError::Died)
}
