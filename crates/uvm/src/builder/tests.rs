//! Facts about making templates, with machines whose guests do as they are told.

use std::io::Write as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use proto::network::NetworkRates;
use tokio::net::UnixStream;

use super::*;
use crate::hypervisor::{FrozenMachine, SlotBinding, SlotBindings};
use crate::key::{BackendIdentity, tests as keys};
use crate::machine::MachineConfig;
use crate::network_slots::NetworkSlots;

/// A hypervisor whose first guests panic.
struct Shaky {
    identity: BackendIdentity,
    panics: u32,
    boots: AtomicU32,
}

/// Its machine: what the guest says, if it does not panic.
struct Guest {
    port: Mutex<Option<StdUnixStream>>,
    panics: bool,
}

#[async_trait]
impl Hypervisor for Shaky {
    fn identity(&self) -> &BackendIdentity {
        &self.identity
    }

    async fn boot(
        &self,
        _: &GuestImage,
        _: &MachineConfig,
        _: File,
        _: &Path,
    ) -> Result<Box<dyn VirtualMachine>, HypervisorError> {
        let panics = self.boots.fetch_add(1, Ordering::SeqCst) < self.panics;
        let (port, mut guests) = StdUnixStream::pair().unwrap();
        if !panics {
            guests.write_all(READY).unwrap();
        }
        Ok(Box::new(Guest { port: Mutex::new(Some(port)), panics }))
    }

    async fn prepare(&self, _: &MachineConfig, _: &Path) -> Result<Vec<u32>, HypervisorError> {
        unreachable!("a template is booted")
    }

    async fn fork(
        &self,
        _: FrozenMachine,
        _: &MachineConfig,
        _: &SlotBindings,
        _: &NetworkSlots,
        _: &Path,
    ) -> Result<Box<dyn VirtualMachine>, HypervisorError> {
        unreachable!("a template is booted")
    }
}

#[async_trait]
impl VirtualMachine for Guest {
    fn connect(&self) -> Result<UnixStream, HypervisorError> {
        let port = self.port.lock().unwrap().take().unwrap();
        port.set_nonblocking(true).unwrap();
        Ok(UnixStream::from_std(port).unwrap())
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        Ok(())
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        unreachable!()
    }

    async fn rebind(&self, _: &SlotBindings) -> Result<(), HypervisorError> {
        unreachable!()
    }

    async fn rebind_slot(&self, _: u32, _: &SlotBinding) -> Result<(), HypervisorError> {
        unreachable!()
    }

    async fn limit_network(&self, _: u32, _: NetworkRates) -> Result<(), HypervisorError> {
        unreachable!()
    }

    async fn freeze(self: Box<Self>, mut state: File) -> Result<(), HypervisorError> {
        state.write_all(b"state").unwrap();
        Ok(())
    }

    fn kill(&self) {}

    async fn wait(&self) -> VmExit {
        if !self.panics {
            std::future::pending::<()>().await;
        }
        VmExit { reason: ExitReason::GuestPanic, detail: "not syncing".into() }
    }

    fn process_ids(&self) -> Vec<u32> {
        Vec::new()
    }

    async fn console(&self) -> String {
        String::new()
    }
}

/// The outcome with so many guests that panic, and how many were booted.
async fn built(accelerator: Accelerator, panics: u32) -> (Result<bool, TemplateError>, u32) {
    let folder = tempfile::tempdir().unwrap();
    let image = keys::image(folder.path(), "a");
    let store = TemplateStore::open(&folder.path().join("store")).unwrap();
    let identity = BackendIdentity { accelerator, ..keys::backend() };
    let machine = MachineConfig::for_request(accelerator, None, None).unwrap();
    let key = TemplateKey::new(&image, &machine, &identity);
    let hypervisor = Shaky { identity, panics, boots: AtomicU32::new(0) };
    let builder = Builder { store: &store, image: &image, hypervisor: &hypervisor, key: &key };
    let built = builder.find_or_build().await.map(|(_, built)| built);
    (built, hypervisor.boots.load(Ordering::SeqCst))
}

#[tokio::test]
async fn an_emulated_guest_that_did_not_start_is_booted_once_more() {
    assert!(matches!(built(Accelerator::Tcg, 0).await, (Ok(true), 1)));
    assert!(matches!(built(Accelerator::Tcg, 1).await, (Ok(true), 2)));
    let (failed, boots) = built(Accelerator::Tcg, 9).await;
    assert!(matches!(&failed, Err(TemplateError::Boot { detail }) if detail.contains("not syncing")), "{failed:?}");
    assert_eq!(boots, 2);
}

#[tokio::test]
async fn a_processors_word_counts_the_first_time() {
    assert!(matches!(built(Accelerator::Kvm, 1).await, (Err(TemplateError::Boot { .. }), 1)));
}

#[test]
fn processor_time_grows_with_work() {
    let own = [std::process::id()];
    let before = processor_time(&own);
    let began = Instant::now();
    let mut sum = 0_u64;
    while began.elapsed() < Duration::from_millis(100) {
        sum = std::hint::black_box(sum.wrapping_add(1));
    }
    assert!(processor_time(&own) > before);
    assert_eq!(processor_time(&[u32::MAX]), 0);
}
