//! Making a container of a zygote.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::{Container, Gate, Known, Origin, Record, SECCOMP, Started, Stdio};
use crate::error::CreateError;
use crate::wire::{Streams, borrow_all};
use crate::zygote::{Task, Zygote};

/// What a zygote is specialized with.
#[derive(Debug)]
pub struct PlainBlueprint {
    /// A [`crate::Specialization`] in JSON, which the zygote reads and the caller does not.
    pub specialization: Vec<u8>,
    /// The seccomp filter's bytes, as [`crate::seccomp::Filter::to_bytes`] gives them; empty for an unconfined container.
    pub seccomp: Vec<u8>,
    /// The container's root: a detached mount, from `open_tree`.
    pub root: OwnedFd,
}

impl Container {
    /// Makes a container of a zygote; its process waits for [`Container::start`].
    ///
    /// Shape: `root` is the folder for what the container may need to write down. The container has no limits;
    /// [`Container::update`] sets them. When: waits until the container is set up. The process is the caller's child. The
    /// container is this process' only: [`Container::load`] does not find it.
    ///
    /// # Errors
    /// [`CreateError`]; nothing of the container is left then.
    pub fn specialize(
        zygote: Zygote,
        root: &Path,
        id: &str,
        blueprint: PlainBlueprint,
        stdio: Stdio,
    ) -> Result<(Self, Started), CreateError> {
        let PlainBlueprint { specialization, seccomp, root: mount } = blueprint;
        let (streams, fds, size) = match stdio {
            Stdio::Streams { stdin, stdout, stderr } => {
                let streams = Streams { stdin: stdin.is_some(), stdout: stdout.is_some(), stderr: stderr.is_some() };
                (Some(streams), [stdin, stdout, stderr].into_iter().flatten().collect(), (0, 0))
            }
            Stdio::Terminal { width, height } => (None, Vec::new(), (width, height)),
        };
        let task = Task { specialization: &specialization, seccomp: &seccomp, streams, size };
        let (parts, socket, terminal) = zygote.specialize(&task, &borrow_all(&mount, &fds))?;
        let record = Record { pid: parts.pid, began: parts.began, started: false, bundle: PathBuf::new() };
        let started = Started { pid: parts.pid, terminal };
        let container = Self {
            id: id.to_owned(),
            folder: root.join(id),
            known: Some(Known { record, spec: None }),
            cgroup: Some(parts.cgroup.clone()),
            gate: Some(Gate::Zygote(socket)),
            origin: Some(Origin { parts, seccomp }),
        };
        Ok((container, started))
    }

    /// The file with the seccomp filter, if there is one; a container that was a zygote writes it when it is first asked for.
    pub(super) fn seccomp_file(&self) -> io::Result<Option<PathBuf>> {
        let file = self.folder.join(SECCOMP);
        if file.exists() {
            return Ok(Some(file));
        }
        let Some(origin) = self.origin.as_ref().filter(|origin| !origin.seccomp.is_empty()) else { return Ok(None) };
        fs::create_dir_all(&self.folder)?;
        fs::write(&file, &origin.seccomp)?;
        Ok(Some(file))
    }
}
