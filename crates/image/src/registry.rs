//! The client of registries: pull, push, tags, log in. Source: OCI distribution-spec 1.1; Docker Registry HTTP API V2.
//!
//! ```text
//! pull ── session ── document (manifest, index) ─┐
//!            │                                   ├─ flight: one transfer for all ─ download ─ spool ─ convert ─ commit
//!            └ auth, redirections, tries         │
//! push ── layer_tar ─ gzip ─ upload ─────────────┘
//! ```
//!
//! This is the crate's one asynchronous edge: futures that run on a tokio runtime, and are cancelled by being dropped; what
//! waits for a disk or converts runs on the runtime's blocking threads. Registries are strangers: every answer is bounded in
//! size and time, digests and lengths are held against the descriptor before anything is committed, and credentials go to
//! the registry itself only (docs/design/0007-registry.md).
//!
//! Why not `oci-client`: it fixes neither where credentials may go nor how long an answer may be.

mod auth;
mod document;
mod download;
mod error;
mod flight;
mod known;
mod login;
mod pull;
mod push;
mod resolve;
mod session;
mod settings;
mod spool;
#[cfg(test)]
mod tests;
mod tls;
mod transport;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Semaphore;

pub use auth::{Credentials, InvalidCredentials};
pub use document::Platform;
pub use error::{LocalError, RegistryError};
pub use pull::{LayerStep, PullEvent, PullOptions, Pulled};
pub use push::{PushEvent, PushStep, Pushed};
pub use resolve::RemoteImage;
pub use settings::{RegistrySettings, Timing};
pub use transport::TransportError;

use crate::reference::Reference;
use crate::store::ImageStore;
use flight::Flights;
use known::KnownBlobs;
use pull::LayerOutcome;
use session::Session;
use settings::Endpoint;
use transport::Transport;

/// The registries, for one store. Shape: cheap to share. When: on a tokio runtime.
pub struct RegistryClient {
    store: Arc<ImageStore>,
    settings: RwLock<Arc<RegistrySettings>>,
    transport: Arc<Transport>,
    known: Arc<KnownBlobs>,
    /// Layers on their way, by what they are fetched as and should become.
    layers: Flights<Arc<LayerOutcome>>,
    configs: Flights<Arc<str>>,
    permits: Arc<Semaphore>,
    /// Held while a pull's outcome is recorded: the first of several takes the layers over, the others find them.
    committing: Arc<std::sync::Mutex<()>>,
}

impl RegistryClient {
    /// A client for a store. Shape: `cache` is a file for what is known of registries' blobs; it may be lost.
    ///
    /// # Errors
    /// [`LocalError::Setting`]: a setting that cannot be. [`LocalError::Store`]: the cache cannot be opened.
    pub fn open(store: Arc<ImageStore>, settings: RegistrySettings, cache: &Path) -> Result<Self, LocalError> {
        settings.check()?;
        let known = KnownBlobs::open(cache).map_err(|error| LocalError::Store(error.into()))?;
        Ok(Self {
            transport: Arc::new(Transport::new(&settings)),
            permits: Arc::new(Semaphore::new(settings.transfers.max(1))),
            store,
            settings: RwLock::new(Arc::new(settings)),
            known: Arc::new(known),
            layers: Flights::default(),
            configs: Flights::default(),
            committing: Arc::default(),
        })
    }

    /// How registries are reached now.
    #[must_use]
    pub fn settings(&self) -> Arc<RegistrySettings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes other mirrors and insecure registries from the next request on; what is under way goes on as it began.
    ///
    /// # Errors
    /// [`LocalError::Setting`]: one that cannot be; then nothing is changed.
    pub fn set_lists(&self, mirrors: Vec<String>, insecure: Vec<String>) -> Result<(), LocalError> {
        let changed = RegistrySettings { mirrors, insecure, ..RegistrySettings::clone(&self.settings()) };
        changed.check()?;
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(changed);
        Ok(())
    }

    /// The tags of a repository, in the registry's order.
    ///
    /// # Errors
    /// As the variants of [`RegistryError`] say.
    pub async fn tags(
        &self,
        name: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Vec<String>, RegistryError> {
        let mut tries = self.tries(name, true)?;
        loop {
            let opened = self.session(tries.next()?, name, "pull", credentials).await;
            let outcome = match opened {
                Ok(session) => resolve::tags(&session).await,
                Err(error) => Err(error),
            };
            if let Some(outcome) = tries.settle(outcome) {
                return outcome;
            }
        }
    }

    /// What a registry has under a name, without fetching its layers.
    ///
    /// # Errors
    /// As the variants of [`RegistryError`] say.
    pub async fn look_up(
        &self,
        name: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<RemoteImage, RegistryError> {
        let mut tries = self.tries(name, true)?;
        loop {
            let opened = self.session(tries.next()?, name, "pull", credentials).await;
            let outcome = match opened {
                Ok(session) => resolve::look_up(&session, name).await,
                Err(error) => Err(error),
            };
            if let Some(outcome) = tries.settle(outcome) {
                return outcome;
            }
        }
    }

    async fn session(
        &self,
        endpoint: Endpoint,
        name: &Reference,
        actions: &'static str,
        credentials: Option<&Credentials>,
    ) -> Result<Session, RegistryError> {
        let transport = Arc::clone(&self.transport);
        Session::open(transport, self.settings().timing, endpoint, (name.path(), actions), credentials.cloned()).await
    }

    /// The endpoints of a name's registry, to be tried in order: mirrors first, plain HTTP after TLS where it may be.
    fn tries(&self, name: &Reference, with_mirrors: bool) -> Result<Tries, RegistryError> {
        self.tries_at(name.domain(), with_mirrors)
    }

    fn tries_at(&self, domain: &str, with_mirrors: bool) -> Result<Tries, RegistryError> {
        let mut endpoints = self.settings().endpoints(domain)?;
        endpoints.retain(|endpoint| with_mirrors || !endpoint.mirror);
        Ok(Tries { domain: domain.to_owned(), left: endpoints.into(), mirror: false })
    }
}

/// Endpoints that are left to try.
struct Tries {
    domain: String,
    left: VecDeque<Endpoint>,
    /// The one that is tried now is a mirror.
    mirror: bool,
}

impl Tries {
    fn next(&mut self) -> Result<Endpoint, RegistryError> {
        let nowhere = || LocalError::Setting { what: format!("{:?} has no address", self.domain) };
        let endpoint = self.left.pop_front().ok_or_else(nowhere)?;
        self.mirror = endpoint.mirror;
        Ok(endpoint)
    }

    /// An endpoint's outcome, if no other is to be tried.
    fn settle<T>(&mut self, outcome: Result<T, RegistryError>) -> Option<Result<T, RegistryError>> {
        match outcome {
            Err(error) if !self.left.is_empty() && (self.mirror || is_unreachable(&error)) => {
                tracing::info!(%error, domain = self.domain, "the next endpoint is tried");
                None
            }
            outcome => Some(outcome),
        }
    }
}

/// True if the other scheme may do.
fn is_unreachable(error: &RegistryError) -> bool {
    let source = match error {
        RegistryError::Transport { source, .. } => source,
        _ => return false,
    };
    matches!(source, TransportError::NotTls | TransportError::Connect(_))
}
