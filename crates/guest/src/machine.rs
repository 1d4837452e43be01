//! What the freeze point leaves for a fork: the machine's parts that wait for a container.

use std::path::Path;

use container::{Helper, Zygote, ZygoteError};

use crate::devices::Slots;

/// How many zygotes a template has: one for a rehearsal, one for the container after it.
const ZYGOTES: usize = 2;
/// Where zygotes make their mounts, in their own mount namespaces.
const STAGES: &str = "/run/bulkhead/zygotes";

/// A machine that has no container yet.
pub struct Machine {
    /// The disk slots, bound.
    pub slots: Slots,
    /// What waits for a container.
    pub spare: Spare,
}

/// Processes that wait to be needed. Nothing of any container is in them.
pub struct Spare {
    /// To become a plain container's first process.
    pub zygotes: Vec<Zygote>,
    /// To create a container from its specification.
    pub create_helper: Option<Helper>,
    /// To start a further process in a container.
    pub exec_helper: Option<Helper>,
}

impl Spare {
    /// Starts all of them and waits until they wait: what is left of their start would be a container's.
    ///
    /// # Errors
    /// When the guest has no room for them.
    pub fn prepare() -> Result<Self, ZygoteError> {
        let zygotes = (0..ZYGOTES).map(spawn).collect::<Result<_, _>>()?;
        Self { zygotes, create_helper: None, exec_helper: None }.complete()
    }

    /// Starts what was used up and a container might need.
    ///
    /// # Errors
    /// When the guest has no room for it.
    pub fn complete(mut self) -> Result<Self, ZygoteError> {
        if self.zygotes.is_empty() {
            self.zygotes.push(spawn(0)?);
        }
        for helper in [&mut self.create_helper, &mut self.exec_helper] {
            if helper.is_none() {
                let spawned = Helper::spawn()?;
                spawned.await_ready();
                *helper = Some(spawned);
            }
        }
        Ok(self)
    }

    /// Has a helper ready for the next exec.
    pub fn warm_up(&mut self) {
        if self.exec_helper.is_none() {
            // Without one, the next exec tries again and says why it cannot.
            self.exec_helper = Helper::spawn().inspect_err(|error| tracing::warn!("no warm helper: {error}")).ok();
        }
    }
}

fn spawn(number: usize) -> Result<Zygote, ZygoteError> {
    Zygote::spawn(&Path::new(STAGES).join(number.to_string()), Path::new(&format!("/container-{number}")))
}
