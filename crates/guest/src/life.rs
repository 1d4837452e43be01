//! Where the guest is in its life.

use std::sync::{Mutex, MutexGuard, PoisonError};

use container::rootfs::LayerSource;
use proto::{ErrorKind, Status};

use crate::archive::{FilesOwner, MountedFiles};
use crate::compute::{Compute, ComputeError};
use crate::machine::Machine;
use crate::pod::{ONLY, Pod};
use crate::shares::SharedMount;

/// It has one life, and one more after each rehearsal.
///
/// ```text
///   ┌─────────────────────────┬── Renew, of a rehearsal only ──────────────────────┐
///   ▼                         │                                                    │
/// Blank ──Personalize──▶ Personalized ──CreateContainer──▶ Pod (CreateContainer, RemoveContainer) ──Shutdown──▶ Over
///                             ├── MountRoot ──▶ Mounted ──────────────────────────────Shutdown──────────────────▲
///                             └── Shutdown; MountRoot or Renew fails
/// ```
///
/// In `Pod`, when it has the container [`ONLY`], and in `Mounted` the container's files can be read and written.
pub enum Life {
    Blank(Machine),
    Personalized { machine: Machine, rehearsal: bool },
    Pod { pod: Box<Pod>, rehearsal: bool },
    Mounted(Box<MountedFiles>),
    Over,
}

/// What a rehearsal has come to when it is taken out of the guest's life.
pub enum Rehearsed {
    Nothing(Machine),
    Pod(Box<Pod>),
}

impl Life {
    /// Ends a rehearsal, and nothing else: the life is over until the guest is blank again.
    pub fn take_rehearsal(&mut self) -> Result<Rehearsed, Status> {
        match std::mem::replace(self, Self::Over) {
            Self::Personalized { machine, rehearsal: true } => Ok(Rehearsed::Nothing(machine)),
            Self::Pod { pod, rehearsal: true } => Ok(Rehearsed::Pod(pod)),
            other => {
                *self = other;
                Err(out_of_order("the guest is not in a rehearsal"))
            }
        }
    }

    /// Where a container of that number is created.
    ///
    /// # Errors
    /// `FailedPrecondition` when there can be none: [`ONLY`] comes first, and nothing beside it.
    pub fn pod_for(&mut self, container: u32) -> Result<&mut Pod, Status> {
        if let Self::Personalized { .. } = self
            && let Self::Personalized { machine, rehearsal } = std::mem::replace(self, Self::Over)
        {
            *self = Self::Pod { pod: Box::new(Pod::new(machine)), rehearsal };
            return self.pod();
        }
        let pod = self.pod()?;
        if container == ONLY || pod.container(ONLY).is_ok() {
            return Err(out_of_order("the guest has had its container already"));
        }
        Ok(pod)
    }

    /// What runs.
    ///
    /// # Errors
    /// `FailedPrecondition` when nothing does.
    pub fn pod(&mut self) -> Result<&mut Pod, Status> {
        match self {
            Self::Pod { pod, .. } => Ok(pod),
            Self::Blank(_) => Err(out_of_order("the guest has no identity yet")),
            Self::Personalized { .. } => Err(out_of_order("there is no container yet")),
            Self::Mounted(_) => Err(out_of_order("there are a container's files, and no container")),
            Self::Over => Err(out_of_order("the container is gone")),
        }
    }

    fn only(&self) -> Option<&Compute> {
        let Self::Pod { pod, .. } = self else { return None };
        pod.container(ONLY).ok()
    }
}

impl FilesOwner for Mutex<Life> {
    fn layers(&self) -> Result<Vec<LayerSource>, Status> {
        let life = lock(self);
        if let Some(compute) = life.only() {
            return Ok(compute.layers().to_vec());
        }
        match &*life {
            Life::Mounted(files) => Ok(files.layers().to_vec()),
            _ => Err(out_of_order("no container's files are here")),
        }
    }

    fn shared(&self) -> Vec<SharedMount> {
        lock(self).only().map(|compute| compute.shared().to_vec()).unwrap_or_default()
    }

    fn first_process(&self) -> Option<u32> {
        lock(self).only().map(|compute| compute.first().1.pid())
    }

    fn set_frozen(&self, frozen: bool) -> Result<bool, Status> {
        let life = lock(self);
        let Some(compute) = life.only() else { return Ok(false) };
        let set = if frozen { compute.container().pause() } else { compute.container().resume() };
        set.map(|()| true).map_err(|error| Status::from_error(error.kind(), &error))
    }
}

/// The guest's life, whoever broke off while holding it.
pub fn lock(life: &Mutex<Life>) -> MutexGuard<'_, Life> {
    life.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer to a call that there cannot be now.
pub fn out_of_order(message: &str) -> Status {
    Status::new(ErrorKind::FailedPrecondition, message)
}

/// The answer to a call that failed.
pub fn failed(error: &ComputeError) -> Status {
    Status::from_error(error.kind(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A life with a machine in it takes PID 1; the e2e tests have those.
    #[test]
    fn a_life_that_is_over_is_not_renewed() {
        let mut life = Life::Over;
        let refused = life.take_rehearsal().err().unwrap();
        assert_eq!(refused.kind, ErrorKind::FailedPrecondition);
        assert!(matches!(life, Life::Over));
        assert_eq!(life.pod_for(1).err().unwrap().kind, ErrorKind::FailedPrecondition);
    }
}
