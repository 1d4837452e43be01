//! What our engine asks beside containerd's Task API: `proto::notices`.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use proto::notices::wire::{WaitOomKillRequest, WaitOomKillResponse};
use proto::notices::wire_ttrpc::{Notices, create_notices};
use ttrpc::asynchronous::{Service, TtrpcContext};

use crate::shim::Shim;

struct NoticesService(Arc<Shim>);

/// The service, by its name.
#[must_use]
pub fn services(shim: &Arc<Shim>) -> HashMap<String, Service> {
    create_notices(Arc::new(NoticesService(Arc::clone(shim))))
}

#[async_trait]
impl Notices for NoticesService {
    async fn wait_oom_kill(&self, _: &TtrpcContext, request: WaitOomKillRequest) -> ttrpc::Result<WaitOomKillResponse> {
        let task = self.0.task(&request.id).await.map_err(|status| status.to_ttrpc())?;
        let kills = task.oom_kills_after(request.seen).await;
        Ok(WaitOomKillResponse { kills, ..WaitOomKillResponse::default() })
    }
}
