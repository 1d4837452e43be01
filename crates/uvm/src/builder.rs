//! Makes a template: boots a utility VM, waits for the freeze point, freezes and seals it.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::TemplateId;
use proto::control::Accelerator;
use proto::gcs::READY;
use tokio::io::AsyncReadExt as _;

use crate::guest_image::GuestImage;
use crate::hypervisor::{ExitReason, Hypervisor, HypervisorError, VirtualMachine, VmExit};
use crate::key::TemplateKey;
use crate::store::{Found, TemplateError, TemplateStore};
use crate::template::{Digests, MEMORY_FILE, Manifest, STATE_FILE, Template, seal};

/// How long a guest may take to boot. Emulated on an idle machine it takes 3 s.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long to wait for the guest to have nothing to do any more before it is frozen.
const QUIET_LIMIT: Duration = Duration::from_secs(3);
/// How long the end of a machine whose port was closed may take.
const END_LIMIT: Duration = Duration::from_secs(5);
const QUIET_SAMPLE: Duration = Duration::from_millis(50);
/// Samples in a row without processor time that count as quiet.
const QUIET_SAMPLES: u32 = 3;

/// What hypervisors write beside a template while they make it.
const LOGS: [&str; 2] = ["qemu.log", "vmm.log"];

/// What is needed to make one template.
pub(crate) struct Builder<'a> {
    pub(crate) store: &'a TemplateStore,
    pub(crate) image: &'a GuestImage,
    pub(crate) hypervisor: &'a dyn Hypervisor,
    pub(crate) key: &'a TemplateKey,
}

impl Builder<'_> {
    /// Finds the template, or makes it. Returns it and whether it had to be made.
    ///
    /// When: two callers at once, in one process or several, make one template: the second waits for the first. A
    /// damaged template is removed and made again, with a warning.
    pub(crate) async fn find_or_build(&self) -> Result<(Template, bool), TemplateError> {
        let id = self.key.id();
        if let Found::Sound(template) = self.look(&id).await? {
            return Ok((template, false));
        }
        let _lock = self.store.lock(&id).await?;
        match self.look(&id).await? {
            Found::Sound(template) => return Ok((template, false)),
            Found::Damaged(damage) => {
                tracing::warn!(%id, %damage, "the template is damaged: it is removed and made again");
                self.store.discard(&id)?;
            }
            Found::Missing => {}
        }
        match self.build(&id).await {
            // QEMU's emulation miscalculates now and then on a busy host; once it found a module's signature to be wrong.
            Err(TemplateError::Boot { detail }) if self.key.backend().accelerator == Accelerator::Tcg => {
                tracing::warn!(%id, detail, "an emulated guest did not start: it is booted once more");
                self.build(&id).await?;
            }
            built => built?,
        }
        match self.look(&id).await? {
            Found::Sound(template) => Ok((template, true)),
            Found::Damaged(damage) => Err(TemplateError::Boot { detail: format!("the new template: {damage}") }),
            Found::Missing => Err(TemplateError::NotFound(id)),
        }
    }

    /// Looks without blocking the runtime: comparing the content takes 0.2 s.
    async fn look(&self, id: &TemplateId) -> Result<Found, TemplateError> {
        let (store, id) = (self.store.clone(), id.clone());
        let task = tokio::task::spawn_blocking(move || store.find(&id));
        task.await.unwrap_or_else(|error| Err(TemplateError::Boot { detail: error.to_string() }))
    }

    async fn build(&self, id: &TemplateId) -> Result<(), TemplateError> {
        tracing::info!(%id, "no template yet: booting a utility VM to freeze one");
        let folder = self.store.begin_build(id)?;
        let made = self.build_in(&folder, id).await;
        if let Err(error) = &made {
            tracing::warn!(%id, %error, "making the template failed");
            // Nothing half-made stays; the failure itself says more than a failure to clean up.
            if let Err(error) = fs::remove_dir_all(&folder) {
                tracing::warn!(folder = %folder.display(), %error, "cannot remove an unfinished template");
            }
            return made;
        }
        self.store.commit_build(&folder, id)
    }

    async fn build_in(&self, folder: &Path, id: &TemplateId) -> Result<(), TemplateError> {
        let image = self.image.clone();
        let verified = tokio::task::spawn_blocking(move || image.verify());
        verified.await.map_err(|error| TemplateError::Boot { detail: error.to_string() })??;
        let began = Instant::now();
        let machine = self.boot(folder).await?;
        let boot_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        quiet(&machine.process_ids()).await;
        let path = folder.join(STATE_FILE);
        let state = File::options().create_new(true).write(true).open(&path);
        machine.freeze(state.map_err(TemplateError::store("make", &path))?).await?;
        self.seal(folder.to_owned(), id.clone(), boot_ms).await?;
        tracing::info!(%id, boot_ms, total_ms = began.elapsed().as_millis(), "template made");
        Ok(())
    }

    /// Boots the guest up to the freeze point.
    async fn boot(&self, folder: &Path) -> Result<Box<dyn VirtualMachine>, TemplateError> {
        let path = folder.join(MEMORY_FILE);
        let memory = File::options().create_new(true).read(true).write(true).open(&path).and_then(|file| {
            file.set_len(self.key.machine().memory_bytes())?;
            Ok(file)
        });
        let memory = memory.map_err(TemplateError::store("make", &path))?;
        let machine = self.hypervisor.boot(self.image, self.key.machine(), memory, folder).await?;
        let mut port = machine.connect()?;
        machine.resume().await?;
        let mut ready = [0; READY.len()];
        let read = tokio::time::timeout(BOOT_LIMIT, port.read_exact(&mut ready));
        let outcome = tokio::select! {
            outcome = read => outcome,
            exit = machine.wait() => return Err(died(&exit)),
        };
        match outcome {
            Ok(Ok(_)) if ready == *READY => Ok(machine),
            Ok(Ok(_)) => Err(TemplateError::Boot { detail: format!("it sent {:?}", String::from_utf8_lossy(&ready)) }),
            // The port closes just before the machine's end is noticed.
            Ok(Err(source)) => match tokio::time::timeout(END_LIMIT, machine.wait()).await {
                Ok(exit) => Err(died(&exit)),
                Err(_) => Err(HypervisorError::Io { action: "read from the guest", source }.into()),
            },
            Err(_) => {
                let (said, standing) = (machine.console().await, machine.standing().await);
                let by = &self.key.backend().name;
                let detail = format!(" on {by}; the guest said last: {}; {standing}", last_lines(&said));
                Err(HypervisorError::Deadline { during: "booting the guest", limit_s: BOOT_LIMIT.as_secs(), detail }
                    .into())
            }
        }
    }

    async fn seal(&self, folder: std::path::PathBuf, id: TemplateId, boot_ms: u64) -> Result<(), TemplateError> {
        let (machine, backend) = (self.key.machine(), self.key.backend());
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut manifest = Manifest {
            id,
            created_at_ns: i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX),
            accelerator: backend.accelerator,
            backend: backend.name.clone(),
            kernel_version: self.key.kernel_version().to_owned(),
            memory_bytes: machine.memory_bytes(),
            vcpus: machine.vcpus(),
            boot_ms,
            memory_sha256: String::new(),
            state_bytes: 0,
            state_sha256: String::new(),
        };
        let work = move || -> Result<(), TemplateError> {
            let digests = Digests::of(&folder).map_err(TemplateError::store("digest", &folder))?;
            manifest.memory_sha256 = digests.memory_sha256;
            manifest.state_bytes = digests.state_bytes;
            manifest.state_sha256 = digests.state_sha256;
            for log in LOGS.map(|name| folder.join(name)) {
                if log.exists() {
                    fs::remove_file(&log).map_err(TemplateError::store("remove", &log))?;
                }
            }
            seal(&folder, &manifest).map_err(TemplateError::store("seal", &folder))
        };
        let sealed = tokio::task::spawn_blocking(work).await;
        sealed.map_err(|error| TemplateError::Boot { detail: error.to_string() })?
    }
}

fn died(exit: &VmExit) -> TemplateError {
    let what = match exit.reason {
        ExitReason::GuestPanic => "its kernel panicked",
        ExitReason::Shutdown => "it switched itself off",
        ExitReason::Killed | ExitReason::Exited(_) => "the hypervisor ended",
    };
    TemplateError::Boot { detail: format!("{what}: {}", exit.detail) }
}

fn last_lines(console: &str) -> String {
    let last: Vec<&str> = console.lines().rev().take(8).collect();
    last.into_iter().rev().collect::<Vec<_>>().join("; ")
}

/// Waits until the machine's processes use no processor time: what the guest still does after it said that it is ready
/// would be done again in every fork.
async fn quiet(process_ids: &[u32]) {
    let began = Instant::now();
    let mut still = 0;
    let mut before = processor_time(process_ids);
    while still < QUIET_SAMPLES && began.elapsed() < QUIET_LIMIT {
        tokio::time::sleep(QUIET_SAMPLE).await;
        let now = processor_time(process_ids);
        // One tick is what the emulator itself needs now and then.
        still = if now <= before + 1 { still + 1 } else { 0 };
        before = now;
    }
}

/// Clock ticks of processor time that these processes have used.
fn processor_time(process_ids: &[u32]) -> u64 {
    let one = |id: &u32| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // Fields 14 and 15, counted behind the name, which may hold anything.
        let mut fields = text.rsplit_once(") ")?.1.split(' ').skip(11);
        Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
    };
    process_ids.iter().filter_map(one).sum()
}

#[cfg(test)]
mod tests;
