//! One QEMU process.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use proto::control::DiskRates;
use proto::network::NetworkRates;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::arguments::{Arguments, CONSOLE_ID};
use super::installation::QemuInstallation;
use super::slots::{self, SlotNode};
use crate::console_text::{panic_text, printable};
use crate::hypervisor::{ExitReason, HypervisorError, SlotBinding, SlotBindings, VirtualMachine, VmExit};
use crate::machine::MachineConfig;
use crate::process::{Log, Running, Watched};
use crate::qmp::{GuestEnd, MigrationEnd, Qmp, QmpError};
use crate::{spawn, sys};

/// How long QEMU may take to save the state; it takes 0.03 s.
const FREEZE_LIMIT: Duration = Duration::from_secs(60);
/// How long QEMU may take for a small command. It answers at once unless the host is very busy.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// How long QEMU may take to hand out the console's last output.
const CONSOLE_LIMIT: Duration = Duration::from_secs(2);

/// Saving and loading leave the memory where it is (`x-ignore-shared`) and tell when they have ended (`events`).
pub(super) fn frozen_capabilities() -> Value {
    json!([{"capability": "x-ignore-shared", "state": true}, {"capability": "events", "state": true}])
}

/// What is behind a slot's upper node.
#[derive(Debug, Clone, Copy)]
struct Behind {
    /// Its node's name has it.
    generation: u32,
    /// It is nothing, and has no descriptors.
    is_nothing: bool,
}

/// A machine in a QEMU process of its own. Dropping it kills the process; a task reaps it.
#[derive(Debug)]
pub(super) struct QemuMachine {
    running: Running,
    qmp: Arc<Qmp>,
    port: Mutex<Option<StdUnixStream>>,
    log: Arc<Log>,
    config: MachineConfig,
    /// What is behind each slot.
    behind: Mutex<Vec<Behind>>,
    /// The one that comes next.
    next_generation: AtomicU32,
}

impl QemuMachine {
    /// Starts QEMU. It has not been spoken to yet.
    pub(super) async fn start(
        installation: &QemuInstallation,
        mut arguments: Arguments,
        config: &MachineConfig,
        run_dir: &Path,
    ) -> Result<Self, HypervisorError> {
        let io_error = |action| move |source| HypervisorError::Io { action, source };
        let (port, guest_port) = StdUnixStream::pair().map_err(io_error("make the port's sockets"))?;
        let (control, qemu_control) = StdUnixStream::pair().map_err(io_error("make the monitor's sockets"))?;
        arguments.sockets(guest_port.into(), qemu_control.into());
        let (log, messages) = Log::make(run_dir, "qemu.log").map_err(io_error("open the hypervisor's log"))?;
        let bare = arguments.bare_slots();
        let (list, descriptors) = arguments.into_parts();
        let mut command = Command::new(installation.program());
        command.args(list).env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(messages);
        let keep = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        sys::confine(&mut command, keep, sys::QEMU_CAPABILITIES);
        let child = spawn::spawn(command)
            .await
            .map_err(|source| HypervisorError::Spawn { program: installation.program().to_owned(), source })?;
        drop(descriptors);
        Self::adopt(child, control, port, log, (config.clone(), bare))
            .map_err(io_error("watch the hypervisor's process"))
    }

    /// Takes charge of a child that was just spawned; kills it if that fails.
    fn adopt(
        child: Child,
        control: StdUnixStream,
        port: StdUnixStream,
        log: Arc<Log>,
        (config, bare): (MachineConfig, Vec<bool>),
    ) -> io::Result<Self> {
        let watched = Watched::adopt(child, Arc::clone(&log))?;
        let process = Arc::clone(watched.process());
        let connect = || -> io::Result<UnixStream> {
            control.set_nonblocking(true)?;
            UnixStream::from_std(control)
        };
        let control = connect().inspect_err(|_| process.kill())?;
        let qmp = Arc::new(Qmp::connect(control));
        let watcher = Watcher { watched, qmp: Arc::clone(&qmp) };
        let running = Running::watched_by(process, watcher.run());
        let behind = bare.into_iter().map(|is_nothing| Behind { generation: 0, is_nothing }).collect();
        let next_generation = AtomicU32::new(1);
        Ok(Self {
            running,
            qmp,
            port: Mutex::new(Some(port)),
            log,
            config,
            behind: Mutex::new(behind),
            next_generation,
        })
    }

    pub(super) fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// What QEMU printed last.
    pub(super) fn last_words(&self) -> String {
        self.log.last_words()
    }

    /// Gives a command without waiting for the answer.
    pub(super) async fn begin(
        &self,
        during: &'static str,
        command: &'static str,
        arguments: Value,
    ) -> Result<impl Future<Output = Result<Value, QmpError>> + use<>, HypervisorError> {
        match self.qmp.send(command, arguments).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.explain(during, error).await),
        }
    }

    /// Turns an answer's error into one that says what became of QEMU.
    pub(super) async fn finish(
        &self,
        during: &'static str,
        answer: Result<Value, QmpError>,
    ) -> Result<Value, HypervisorError> {
        match answer {
            Ok(value) => Ok(value),
            Err(error) => Err(self.explain(during, error).await),
        }
    }

    /// Gives a command and waits for its answer.
    pub(super) async fn command(
        &self,
        during: &'static str,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, HypervisorError> {
        match tokio::time::timeout(COMMAND_LIMIT, self.qmp.execute(command, arguments)).await {
            Ok(answer) => self.finish(during, answer).await,
            Err(_) => {
                let limit_s = COMMAND_LIMIT.as_secs();
                Err(HypervisorError::Deadline { during, limit_s, detail: String::new() })
            }
        }
    }

    async fn explain(&self, during: &'static str, source: QmpError) -> HypervisorError {
        if matches!(source, QmpError::Refused { .. }) {
            return HypervisorError::Command { during, source };
        }
        // A lost connection means that QEMU ends; how it ended says more.
        match tokio::time::timeout(CONSOLE_LIMIT, self.wait()).await {
            Ok(exit) => HypervisorError::Ended { during, detail: exit.detail },
            Err(_) => HypervisorError::Command { during, source },
        }
    }

    async fn save(&self, state: File) -> Result<(), HypervisorError> {
        let during = "saving the template";
        self.command(during, "stop", json!({})).await?;
        self.command(during, "migrate-set-capabilities", json!({"capabilities": frozen_capabilities()})).await?;
        self.command(during, "migrate-set-parameters", json!({"max-bandwidth": 1_u64 << 40})).await?;
        let given = self.qmp.execute_with_descriptor("getfd", json!({"fdname": "state"}), state.as_fd()).await;
        self.finish(during, given).await?;
        self.command(during, "migrate", json!({"uri": "fd:state"})).await?;
        match self.qmp.migration_end().await {
            Ok(MigrationEnd::Completed) => {}
            Ok(MigrationEnd::Failed) => {
                let detail = self.migration_error().await.unwrap_or_else(|| self.last_words());
                return Err(HypervisorError::State { verb: "saved", detail });
            }
            Err(lost) => return self.finish(during, Err(lost)).await.map(|_| ()),
        }
        // An orderly end, so that everything is written to the files.
        self.command(during, "quit", json!({})).await?;
        self.wait().await;
        Ok(())
    }

    /// Limits how fast the disks may be. When: no limits were set before.
    pub(super) async fn limit(&self, rates: DiskRates) -> Result<(), HypervisorError> {
        if rates != DiskRates::default() {
            for slot in 0..self.config.disk_slots() {
                let arguments = slots::throttle(slot, rates);
                self.command("limiting the disks", "block_set_io_throttle", arguments).await?;
            }
        }
        Ok(())
    }

    /// Exchanges what is under slots' upper nodes, and lets go of what was there. Shape: the generations that it was of.
    async fn exchange(&self, nodes: Vec<SlotNode>) -> Result<BTreeSet<u32>, HypervisorError> {
        let during = "binding the disks";
        for (set, descriptor) in nodes.iter().flat_map(|node| &node.descriptors) {
            let to = json!({"fdset-id": set});
            // One at a time: QEMU takes the descriptor that has come last.
            let given = self.qmp.execute_with_descriptor("add-fd", to, descriptor.as_fd()).await;
            self.finish(during, given).await?;
        }
        let (mut earlier, mut answers) = (BTreeSet::new(), Vec::new());
        for node in nodes {
            let (slot, disk) = (node.slot(), node.disk());
            let before = self.replace(&node);
            earlier.insert(before);
            // At once, since every round trip is one more time that two processes take turns.
            answers.push(self.begin(during, "blockdev-add", node.backing).await?);
            answers.push(self.begin(during, "blockdev-reopen", json!({"options": [disk]})).await?);
            let old = json!({"node-name": slots::backing_name(slot, before)});
            answers.push(self.begin(during, "blockdev-del", old).await?);
        }
        for answer in answers {
            self.finish(during, answer.await).await?;
        }
        Ok(earlier)
    }

    /// Notes what is to be behind a slot. Shape: the generation of what was there.
    fn replace(&self, node: &SlotNode) -> u32 {
        let now = Behind { generation: node.generation(), is_nothing: node.is_nothing() };
        let mut all = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        let place = usize::try_from(node.slot()).ok().and_then(|slot| all.get_mut(slot));
        place.map_or(0, |place| std::mem::replace(place, now).generation)
    }

    /// There is nothing behind a slot, and there is to be nothing.
    fn stays_bare(&self, node: &SlotNode) -> bool {
        let all = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = usize::try_from(node.slot()).ok().and_then(|slot| all.get(slot));
        node.is_nothing() && behind.is_some_and(|behind| behind.is_nothing)
    }

    /// Closes the files of a generation, if that is behind no slot any more.
    async fn drop_descriptors(&self, generation: u32) -> Result<(), HypervisorError> {
        let has_files = |behind: &Behind| behind.generation == generation && !behind.is_nothing;
        if self.behind.lock().unwrap_or_else(PoisonError::into_inner).iter().any(has_files) {
            return Ok(());
        }
        let during = "letting go of the earlier disks";
        let sets = self.command(during, "query-fdsets", json!({})).await?;
        let numbers = sets.as_array().into_iter().flatten().filter_map(|set| set["fdset-id"].as_u64());
        for set in numbers.filter(|&set| slots::is_of_generation(set, generation)) {
            self.command(during, "remove-fd", json!({"fdset-id": set})).await?;
        }
        Ok(())
    }

    async fn migration_error(&self) -> Option<String> {
        let answer = self.qmp.execute("query-migrate", json!({})).await.ok()?;
        Some(answer["error-desc"].as_str()?.chars().take(500).collect())
    }
}

#[async_trait]
impl VirtualMachine for QemuMachine {
    fn connect(&self) -> Result<UnixStream, HypervisorError> {
        let port = self.port.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(HypervisorError::PortTaken)?;
        let convert = |port: StdUnixStream| {
            port.set_nonblocking(true)?;
            UnixStream::from_std(port)
        };
        convert(port).map_err(|source| HypervisorError::Io { action: "use the port's socket", source })
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.command("resuming", "cont", json!({})).await.map(|_| ())
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.command("pausing", "stop", json!({})).await.map(|_| ())
    }

    async fn rebind(&self, bindings: &SlotBindings) -> Result<(), HypervisorError> {
        let generation = self.next_generation.fetch_add(1, Ordering::SeqCst);
        let mut nodes = slots::bound(&self.config, bindings, generation)?;
        nodes.retain(|node| !self.stays_bare(node));
        let earlier = self.exchange(nodes).await?;
        self.limit(bindings.rates).await?;
        for generation in earlier {
            self.drop_descriptors(generation).await?;
        }
        Ok(())
    }

    async fn rebind_slot(&self, slot: u32, binding: &SlotBinding) -> Result<(), HypervisorError> {
        let generation = self.next_generation.fetch_add(1, Ordering::SeqCst);
        let node = slots::bound_one(&self.config, slot, binding, generation)?;
        for earlier in self.exchange(vec![node]).await? {
            self.drop_descriptors(earlier).await?;
        }
        Ok(())
    }

    async fn limit_network(&self, _slot: u32, rates: NetworkRates) -> Result<(), HypervisorError> {
        if rates == NetworkRates::default() { Ok(()) } else { Err(HypervisorError::NoNetworkRates) }
    }

    async fn freeze(self: Box<Self>, state: File) -> Result<(), HypervisorError> {
        match tokio::time::timeout(FREEZE_LIMIT, self.save(state)).await {
            Ok(saved) => saved?,
            Err(_) => {
                let limit_s = FREEZE_LIMIT.as_secs();
                return Err(HypervisorError::Deadline {
                    during: "saving the template",
                    limit_s,
                    detail: String::new(),
                });
            }
        }
        Ok(())
    }

    fn kill(&self) {
        self.running.kill();
    }

    async fn wait(&self) -> VmExit {
        self.running.wait().await
    }

    fn process_ids(&self) -> Vec<u32> {
        vec![self.running.id()]
    }

    async fn console(&self) -> String {
        console(&self.qmp).await
    }

    async fn standing(&self) -> String {
        let arguments = json!({"command-line": "info registers -a"});
        match tokio::time::timeout(CONSOLE_LIMIT, self.qmp.execute("human-monitor-command", arguments)).await {
            Ok(Ok(Value::String(text))) => printable(&places(&text)).chars().take(2000).collect(),
            // One that does not even say so hangs itself.
            Ok(_) => "QEMU does not say where its processors are".to_owned(),
            Err(_) => "QEMU does not answer".to_owned(),
        }
    }
}

/// Each processor's instruction pointer, and whether it is asleep.
fn places(registers: &str) -> String {
    let lines =
        registers.lines().map(str::trim_end).filter(|line| line.starts_with("CPU#") || line.starts_with("RIP="));
    lines.collect::<Vec<_>>().join(" ")
}

/// Waits for the end, whatever it is, and says what it was.
struct Watcher {
    watched: Watched,
    qmp: Arc<Qmp>,
}

impl Watcher {
    async fn run(mut self) -> VmExit {
        let mut observed = self.qmp.observe();
        let guest_end = tokio::select! {
            () = self.watched.ended() => None,
            seen = observed.wait_for(|seen| seen.guest_end.is_some()) => seen.ok().and_then(|seen| seen.guest_end),
        };
        let exit = match guest_end {
            Some(GuestEnd::Reset) => {
                VmExit { reason: ExitReason::GuestPanic, detail: panic_text(&console(&self.qmp).await) }
            }
            Some(GuestEnd::PowerOff) => VmExit { reason: ExitReason::Shutdown, detail: String::new() },
            Some(GuestEnd::Host) | None => return self.watched.reap().await,
        };
        // QEMU keeps the stopped machine so that its console could be read; now it may go.
        let process = Arc::clone(self.watched.process());
        process.signal();
        let reaped = self.watched.reap().await;
        if process.was_killed() && exit.reason != ExitReason::GuestPanic { reaped } else { exit }
    }
}

async fn console(qmp: &Qmp) -> String {
    let arguments = json!({"device": CONSOLE_ID, "size": 64 * 1024, "format": "utf8"});
    match tokio::time::timeout(CONSOLE_LIMIT, qmp.execute("ringbuf-read", arguments)).await {
        Ok(Ok(Value::String(text))) => printable(&text),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_all_registers_the_places_are_kept() {
        let text = "CPU#0\r\nRAX=0 RBX=1\r\nRIP=ff81 RFL=2 HLT=1\r\n\r\nCPU#1\r\nRIP=7f00 RFL=2\r\n";
        assert_eq!(places(text), "CPU#0 RIP=ff81 RFL=2 HLT=1 CPU#1 RIP=7f00 RFL=2");
    }
}
