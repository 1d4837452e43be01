//! Events for containerd, in order.
//!
//! Source: containerd core/runtime/v2/README.md, "Events": TaskCreate, TaskStart, TaskExit, TaskDelete; TaskExecAdded,
//! TaskExecStarted, TaskExit; TaskOOM, TaskPaused, TaskResumed between them.

use std::time::Duration;

use containerd_shim_protos::events::task as message;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::EventsClient;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use tokio::sync::{mpsc, oneshot};
use ttrpc::asynchronous::Client;

use crate::clock;

const ATTEMPTS: u32 = 5;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a shim that ends waits for the queue to drain.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Something that happened to a task.
#[derive(Debug)]
pub enum Event {
    /// Task.Create succeeded.
    Create(message::TaskCreate),
    /// The first process runs.
    Start(message::TaskStart),
    /// An exec was announced.
    ExecAdded(message::TaskExecAdded),
    /// An exec runs.
    ExecStarted(message::TaskExecStarted),
    /// The kernel killed a process for want of memory.
    Oom(message::TaskOOM),
    /// A process has ended.
    Exit(message::TaskExit),
    /// Frozen.
    Paused(message::TaskPaused),
    /// No longer frozen.
    Resumed(message::TaskResumed),
    /// The task is gone.
    Delete(message::TaskDelete),
}

impl Event {
    fn topic(&self) -> &'static str {
        match self {
            Self::Create(_) => "/tasks/create",
            Self::Start(_) => "/tasks/start",
            Self::ExecAdded(_) => "/tasks/exec-added",
            Self::ExecStarted(_) => "/tasks/exec-started",
            Self::Oom(_) => "/tasks/oom",
            Self::Exit(_) => "/tasks/exit",
            Self::Paused(_) => "/tasks/paused",
            Self::Resumed(_) => "/tasks/resumed",
            Self::Delete(_) => "/tasks/delete",
        }
    }

    fn to_any(&self) -> protobuf::Result<Any> {
        match self {
            Self::Create(message) => any("containerd.events.TaskCreate", message),
            Self::Start(message) => any("containerd.events.TaskStart", message),
            Self::ExecAdded(message) => any("containerd.events.TaskExecAdded", message),
            Self::ExecStarted(message) => any("containerd.events.TaskExecStarted", message),
            Self::Oom(message) => any("containerd.events.TaskOOM", message),
            Self::Exit(message) => any("containerd.events.TaskExit", message),
            Self::Paused(message) => any("containerd.events.TaskPaused", message),
            Self::Resumed(message) => any("containerd.events.TaskResumed", message),
            Self::Delete(message) => any("containerd.events.TaskDelete", message),
        }
    }
}

/// A message in containerd's `Any`. Shape: `type_url` is the full message name without a host. (The message's descriptor
/// would know it, but building descriptors costs memory in every shim.)
///
/// # Errors
/// The message cannot be encoded.
pub fn any(type_url: &str, message: &impl Message) -> protobuf::Result<Any> {
    Ok(Any { type_url: type_url.to_owned(), value: message.write_to_bytes()?, ..Any::default() })
}

enum Order {
    Publish(Box<Envelope>),
    Flush(oneshot::Sender<()>),
}

/// Sends events to containerd, or to nobody when our engine is the caller.
#[derive(Debug, Clone)]
pub struct Publisher {
    queue: Option<mpsc::UnboundedSender<Order>>,
    namespace: String,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Publish(envelope) => write!(f, "Publish({})", envelope.topic),
            Self::Flush(_) => f.write_str("Flush"),
        }
    }
}

impl Publisher {
    /// A publisher. Shape: `address` is `$TTRPC_ADDRESS`. When: within the runtime.
    #[must_use]
    pub fn new(address: Option<&str>, namespace: &str) -> Self {
        let queue = address.filter(|address| !address.is_empty()).map(|address| {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(deliver(socket_address(address), receiver));
            sender
        });
        Self { queue, namespace: namespace.to_owned() }
    }

    /// containerd's namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// False when nobody is told anything.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.queue.is_some()
    }

    /// Puts an event behind those before it; never waits.
    pub fn publish(&self, event: &Event) {
        let Some(queue) = &self.queue else { return };
        let content = match event.to_any() {
            Ok(content) => content,
            Err(error) => return tracing::error!(%error, topic = event.topic(), "event cannot be encoded"),
        };
        let envelope = Envelope {
            timestamp: clock::timestamp(clock::now_ns()),
            namespace: self.namespace.clone(),
            topic: event.topic().to_owned(),
            event: Some(content).into(),
            ..Envelope::default()
        };
        // The receiver lives as long as a sender does.
        let _ = queue.send(Order::Publish(Box::new(envelope)));
    }

    /// Waits, not for ever, until everything published so far has been sent or given up.
    pub async fn flush(&self) {
        let Some(queue) = &self.queue else { return };
        let (done, flushed) = oneshot::channel();
        if queue.send(Order::Flush(done)).is_ok() && tokio::time::timeout(FLUSH_TIMEOUT, flushed).await.is_err() {
            tracing::warn!("not all events have been delivered");
        }
    }
}

/// containerd gives a path, with or without a scheme.
fn socket_address(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("unix://{address}") }
}

async fn deliver(address: String, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut client: Option<EventsClient> = None;
    while let Some(order) = orders.recv().await {
        match order {
            Order::Publish(envelope) => forward(&address, &mut client, *envelope).await,
            Order::Flush(done) => drop(done.send(())),
        }
    }
}

/// A containerd that restarts is away for a moment, and order matters: the event waits, and what comes behind it too.
async fn forward(address: &str, client: &mut Option<EventsClient>, envelope: Envelope) {
    let topic = envelope.topic.clone();
    let request = ForwardRequest { envelope: Some(envelope).into(), ..ForwardRequest::default() };
    for attempt in 0..ATTEMPTS {
        tokio::time::sleep(Duration::from_millis(100) * attempt * attempt).await;
        let connected = match client.take() {
            Some(connected) => connected,
            None => match Client::connect(address).await {
                Ok(connection) => EventsClient::new(connection),
                Err(error) => {
                    tracing::warn!(%error, topic, attempt, "cannot reach containerd");
                    continue;
                }
            },
        };
        let timeout = i64::try_from(CALL_TIMEOUT.as_nanos()).unwrap_or(i64::MAX);
        match connected.forward(ttrpc::context::with_timeout(timeout), &request).await {
            Ok(_) => {
                *client = Some(connected);
                return;
            }
            Err(error) => tracing::warn!(%error, topic, attempt, "containerd does not take an event"),
        }
    }
    tracing::error!(topic, "event given up");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_carry_containerds_names() {
        let exit = message::TaskExit { container_id: "c".into(), exit_status: 7, ..Default::default() };
        let event = Event::Exit(exit.clone());
        let any = event.to_any().unwrap();
        assert_eq!((event.topic(), any.type_url.as_str()), ("/tasks/exit", "containerd.events.TaskExit"));
        assert_eq!(message::TaskExit::parse_from_bytes(&any.value).unwrap(), exit);
    }

    #[test]
    fn an_address_may_lack_its_scheme() {
        assert_eq!(socket_address("/run/c.sock.ttrpc"), "unix:///run/c.sock.ttrpc");
        assert_eq!(socket_address("unix:///run/c.sock"), "unix:///run/c.sock");
    }
}
