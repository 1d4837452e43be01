//! What the host can do for hyperv containers, found out once and kept.

use std::sync::Arc;

use proto::control::HostProbe;
use tokio::sync::Mutex;

use super::shim;
use crate::engine::Engine;
use crate::error::ApiResult;

/// The last probe. Probing times a loop in a throw-away VM, which takes up to some seconds on a host whose KVM
/// interprets, so `/info` asks for it once, if no start has, and whoever wants to know anew asks `/bulkhead/probe`.
#[derive(Default)]
pub(super) struct Probe {
    found: Mutex<Option<HostProbe>>,
}

impl Probe {
    /// What was found, probing if nobody has. A probe that fails is a host that can do nothing, and says why.
    pub(super) async fn known(&self, engine: &Arc<Engine>) -> HostProbe {
        let mut found = self.found.lock().await;
        if let Some(known) = &*found {
            return known.clone();
        }
        match shim::probe::<HostProbe>(engine, false).await {
            Ok(probed) => found.insert(probed).clone(),
            Err(error) => {
                tracing::warn!("cannot probe the host: {}", error.message);
                HostProbe {
                    accelerator: None,
                    accelerator_reason: "the host could not be probed".into(),
                    hypervisor: None,
                    qemu: None,
                    guest_kernel: None,
                    missing: vec![error.message],
                }
            }
        }
    }

    /// Probes anew.
    pub(super) async fn run(&self, engine: &Arc<Engine>) -> ApiResult<HostProbe> {
        let mut found = self.found.lock().await;
        let probed: HostProbe = shim::probe(engine, true).await?;
        Ok(found.insert(probed).clone())
    }
}
