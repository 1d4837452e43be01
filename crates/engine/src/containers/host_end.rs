//! What containers get when the host goes down: their stop signal and their time, as from a client's `stop`, instead of the
//! sudden end that a utility VM would have and that a file system in it would have to recover from.

use std::sync::Arc;

use futures_util::future::join_all;

use super::stop;
use crate::container::Container;
use crate::engine::Engine;

/// Stops every container, all at once. From its begin on nothing is started any more; restart policies wait for the next
/// engine, for which none of them was stopped by a client.
pub async fn stop_all(engine: &Arc<Engine>) {
    engine.host_goes_down.cancel();
    let all = engine.containers.all();
    join_all(all.iter().map(|container| stop_one(engine, container))).await;
}

async fn stop_one(engine: &Arc<Engine>, container: &Arc<Container>) {
    // A start that is under way comes to its end first. One that is removed meanwhile needs nothing.
    let Ok(lifecycle) = container.hold().await else { return };
    drop(lifecycle);
    if container.running().is_err() {
        return;
    }
    match stop::end_with_host(engine, container).await {
        Ok(()) => container.emit(&engine.events, "stop", &[]),
        Err(error) => tracing::error!(id = %container.id, "cannot stop a container as the host goes down: {error}"),
    }
}
