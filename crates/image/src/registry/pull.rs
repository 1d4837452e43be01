//! Pulling an image.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::try_join_all;
use proto::Digest;
use tokio::sync::Semaphore;

use super::RegistryClient;
use super::auth::Credentials;
use super::document::{Descriptor, Platform, compression};
use super::download::{Sink, download};
use super::error::{LocalError, RegistryError};
use super::flight::{Flight, Phase, Teller};
use super::known::KnownBlob;
use super::resolve::{Resolved, resolve};
use super::session::Session;
use super::spool::{SpoolWriter, spool};
use crate::compression::{Compression, digest_of};
use crate::config::{self, ParsedConfig};
use crate::failpoint;
use crate::limits::MAX_JSON_BYTES;
use crate::reference::Reference;
use crate::store::{AddLayerError, Batch, ImageStore, LayerPin, StagedLayer};

/// How to pull.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// For which platform; this host's if none is given.
    pub platform: Option<Platform>,
    /// Who asks.
    pub credentials: Option<Credentials>,
}

/// How far a pull is, in Docker's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullEvent {
    /// The manifest is found; layers follow.
    Pulling {
        /// The repository below its registry.
        path: String,
        /// Tag or digest.
        version: String,
    },
    /// About one layer.
    Layer {
        /// Digest of the blob.
        blob: Digest,
        /// What happens to it.
        step: LayerStep,
    },
    /// All is there. The digest is that of the manifest or index.
    Digest(Digest),
}

/// What happens to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerStep {
    /// The store has it.
    Exists,
    /// It is to be fetched.
    Planned,
    /// It waits for others.
    Waiting,
    /// Bytes that came.
    Downloading {
        /// So far.
        bytes: u64,
        /// In all.
        total_bytes: u64,
    },
    /// All came.
    Verifying,
    /// Its digest is right.
    Downloaded,
    /// Bytes of the blob that were converted.
    Extracting {
        /// So far.
        bytes: u64,
        /// In all.
        total_bytes: u64,
    },
    /// It is converted.
    Complete,
}

/// An image that was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Digest of its configuration.
    pub id: Digest,
    /// Of the manifest or index that the name led to.
    pub digest: Digest,
    /// True if the name led to another image before, or to none.
    pub newer: bool,
}

/// Where a pull tells how far it is. Called from several threads.
pub(super) type Tell<'a> = &'a (dyn Fn(PullEvent) + Send + Sync);

/// The transfer of a configuration, which is shared as long as somebody holds it.
type ConfigFlight = Arc<Flight<Arc<str>>>;

/// A layer that was obtained.
pub(super) enum LayerOutcome {
    /// The store has it, and keeps it as long as this lives.
    Present(#[allow(dead_code, reason = "held, not read")] LayerPin),
    /// Converted; the first pull that is committed takes it over.
    Staged { diff_id: Digest, layer: Mutex<Option<StagedLayer>> },
}

/// A layer that one pull holds on to.
enum Held {
    Pinned(#[allow(dead_code, reason = "held, not read")] LayerPin),
    Shared(Arc<LayerOutcome>, #[allow(dead_code, reason = "held, not read")] Arc<Flight<Arc<LayerOutcome>>>),
}

impl RegistryClient {
    /// Pulls what a name leads to, and gives it the name. Shape: by tag, or by digest where the name has one. When: dropping
    /// the future cancels it; what others fetch as well goes on for them. The store is changed at the end, at once.
    ///
    /// # Errors
    /// As the variants of [`RegistryError`] say; the store is as it was then.
    pub async fn pull(
        &self,
        name: &Reference,
        options: &PullOptions,
        tell: &(dyn Fn(PullEvent) + Send + Sync),
    ) -> Result<Pulled, RegistryError> {
        let mut tries = self.tries(name, true)?;
        loop {
            let opened = self.session(tries.next()?, name, "pull", options.credentials.as_ref()).await;
            let outcome = match opened {
                Ok(session) => self.pull_from(Arc::new(session), name, options, tell).await,
                Err(error) => Err(error),
            };
            if let Some(outcome) = tries.settle(outcome) {
                return outcome;
            }
        }
    }

    async fn pull_from(
        &self,
        session: Arc<Session>,
        name: &Reference,
        options: &PullOptions,
        tell: Tell<'_>,
    ) -> Result<Pulled, RegistryError> {
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        let Resolved { digest, manifest } = resolve(&session, name, &platform).await?;
        let version = name.digest().map_or_else(|| name.tag().unwrap_or("latest").to_owned(), Digest::to_string);
        failpoint::reach("pull.resolved");
        tell(PullEvent::Pulling { path: name.path().to_owned(), version });
        let known = self.store.image(&manifest.config.digest);
        let (config_json, _flight) = match &known {
            Some(image) => (Arc::from(String::from_utf8_lossy(&image.config_json)), None),
            None => self.config(&session, &manifest.config).await?,
        };
        let parsed = config::parse(config_json.as_bytes())?;
        check_fit(&parsed, manifest.layers.len(), options.platform.as_ref())?;
        failpoint::reach("pull.configured");
        let held = match known.as_ref().and_then(|_| self.pin_all(&parsed.diff_ids)) {
            Some(pins) => pins,
            None => self.layers(&session, &manifest.layers, &parsed.diff_ids, tell).await?,
        };
        failpoint::reach("pull.layers");
        let names = names_for(name, &digest)?;
        let before = self.store.resolve(&names[0].to_string()).ok().map(|image| image.id);
        let id = parsed.id.clone();
        let blobs = manifest.layers.iter().zip(parsed.diff_ids.clone()).filter_map(|(layer, diff_id)| {
            let gzip = compression(&layer.media_type).flatten() == Some(Compression::Gzip);
            let (domain, path) = (name.domain().to_owned(), name.path().to_owned());
            gzip.then(|| (diff_id, KnownBlob { digest: layer.digest.clone(), size: layer.size, domain, path }))
        });
        let blobs = blobs.collect();
        self.commit(held, config_json, parsed, names, blobs).await?;
        tell(PullEvent::Digest(digest.clone()));
        Ok(Pulled { newer: before.as_ref() != Some(&id), id, digest })
    }

    fn pin_all(&self, diff_ids: &[Digest]) -> Option<Vec<Held>> {
        diff_ids.iter().map(|diff_id| LayerPin::new(&self.store, diff_id).map(Held::Pinned)).collect()
    }

    /// Fetches an image's configuration, once for all who want it.
    async fn config(
        &self,
        session: &Arc<Session>,
        wanted: &Descriptor,
    ) -> Result<(Arc<str>, Option<ConfigFlight>), RegistryError> {
        let (session, blob, store) = (Arc::clone(session), wanted.clone(), Arc::clone(&self.store));
        let flight = self.configs.join(&wanted.digest, |_| async move {
            // Another pull may have ended while this one began.
            if let Some(image) = store.image(&blob.digest) {
                return Ok(Arc::from(String::from_utf8_lossy(&image.config_json)));
            }
            let mut json = Vec::new();
            debug_assert!(blob.size <= MAX_JSON_BYTES, "checked with the manifest");
            download(&session, &blob, &mut json).await?;
            let refused = |_| RegistryError::refused("the image configuration", "it is not UTF-8");
            String::from_utf8(json).map(Arc::from).map_err(refused)
        });
        Ok((flight.result(|_| {}).await?, Some(flight)))
    }

    /// Obtains all layers, several at once.
    async fn layers(
        &self,
        session: &Arc<Session>,
        layers: &[Descriptor],
        diff_ids: &[Digest],
        tell: Tell<'_>,
    ) -> Result<Vec<Held>, RegistryError> {
        let mut wanted: Vec<(&Descriptor, &Digest)> = Vec::new();
        for pair in layers.iter().zip(diff_ids) {
            if !wanted.iter().any(|(layer, diff_id)| (&layer.digest, *diff_id) == (&pair.0.digest, pair.1)) {
                wanted.push(pair);
            }
        }
        let mut held = Vec::new();
        let mut missing = Vec::new();
        for (layer, diff_id) in wanted {
            let step = match LayerPin::new(&self.store, diff_id) {
                Some(pin) => {
                    held.push(Held::Pinned(pin));
                    LayerStep::Exists
                }
                None => {
                    missing.push((layer, diff_id));
                    LayerStep::Planned
                }
            };
            tell(PullEvent::Layer { blob: layer.digest.clone(), step });
        }
        for (layer, _) in missing.iter().skip(self.settings().transfers) {
            tell(PullEvent::Layer { blob: layer.digest.clone(), step: LayerStep::Waiting });
        }
        let mut obtained = Vec::new();
        for (layer, diff_id) in missing {
            obtained.push(self.layer(session, layer, diff_id, tell));
        }
        held.extend(try_join_all(obtained).await?);
        Ok(held)
    }

    async fn layer(
        &self,
        session: &Arc<Session>,
        layer: &Descriptor,
        diff_id: &Digest,
        tell: Tell<'_>,
    ) -> Result<Held, RegistryError> {
        let key = digest_of(format!("{} {diff_id}", layer.digest).as_bytes());
        let flight = self.layers.join(&key, |teller| {
            let fetch = Fetch {
                store: Arc::clone(&self.store),
                session: Arc::clone(session),
                layer: layer.clone(),
                diff_id: diff_id.clone(),
                permits: Arc::clone(&self.permits),
                teller,
            };
            fetch.run()
        });
        let mut steps = Steps { layer, told: 0, tell };
        let outcome = flight.result(|phase| steps.see(phase)).await?;
        Ok(Held::Shared(outcome, flight))
    }

    async fn commit(
        &self,
        held: Vec<Held>,
        config_json: Arc<str>,
        parsed: ParsedConfig,
        names: Vec<Reference>,
        blobs: Vec<(Digest, KnownBlob)>,
    ) -> Result<(), RegistryError> {
        let (store, committing, known) =
            (Arc::clone(&self.store), Arc::clone(&self.committing), Arc::clone(&self.known));
        let work = move || {
            let _one_at_a_time = committing.lock().unwrap_or_else(PoisonError::into_inner);
            let mut batch = Batch::new(&store);
            for diff_id in &parsed.diff_ids {
                if batch.has_layer(diff_id) {
                    continue;
                }
                let staged = held.iter().find_map(|one| one.take(diff_id));
                let why = || format!("layer {diff_id} went with another pull that failed; pull again");
                batch.adopt(staged.ok_or_else(|| LocalError::GivenUp { why: why() })?);
            }
            batch.add_image(config_json.to_string(), &parsed, &names);
            failpoint::reach("pull.adopted");
            for moved in batch.commit()? {
                tracing::debug!(name = %moved.name, from = %moved.from, "a name moved to the image that was pulled");
            }
            failpoint::reach("pull.committed");
            if let Err(error) = known.remember(&blobs) {
                tracing::warn!(%error, "cannot remember the registry's blobs; a push will send them again");
            }
            // The layers are let go of only now that they are the store's.
            drop(held);
            Ok(())
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| given_up(&error))?
    }
}

impl Held {
    fn take(&self, wanted: &Digest) -> Option<StagedLayer> {
        match self {
            Self::Shared(outcome, _) => match outcome.as_ref() {
                LayerOutcome::Staged { diff_id, layer } if diff_id == wanted => {
                    layer.lock().unwrap_or_else(PoisonError::into_inner).take()
                }
                _ => None,
            },
            Self::Pinned(_) => None,
        }
    }
}

fn given_up(error: &tokio::task::JoinError) -> RegistryError {
    LocalError::GivenUp { why: error.to_string() }.into()
}

/// The names that the image gets: what was asked for, and the repository with the digest.
fn names_for(name: &Reference, digest: &Digest) -> Result<Vec<Reference>, RegistryError> {
    let pinned: Reference = format!("{}@{digest}", name.repository()).parse().map_err(LocalError::Name)?;
    match (name.digest(), name.tag()) {
        (None, Some(tag)) => Ok(vec![name.with_tag(tag).map_err(LocalError::Name)?, pinned]),
        _ => Ok(vec![pinned]),
    }
}

fn check_fit(parsed: &ParsedConfig, layers: usize, asked: Option<&Platform>) -> Result<(), RegistryError> {
    if parsed.diff_ids.len() != layers {
        return Err(RegistryError::refused("the manifest", "it lists another number of layers than the configuration"));
    }
    let architecture = parsed.config.architecture().to_string();
    match asked {
        Some(asked) if asked.os != "linux" || asked.architecture != architecture => {
            Err(RegistryError::NoPlatform { wanted: asked.to_string(), found: format!("linux/{architecture}") })
        }
        _ => Ok(()),
    }
}

/// Turns what is seen of a transfer into steps, with none left out.
struct Steps<'a> {
    layer: &'a Descriptor,
    told: u8,
    tell: Tell<'a>,
}

impl Steps<'_> {
    fn see(&mut self, phase: &Phase<Arc<LayerOutcome>>) {
        let total_bytes = self.layer.size;
        let (rank, step) = match phase {
            Phase::Waiting => return,
            Phase::Downloading(bytes) => (1, LayerStep::Downloading { bytes: *bytes, total_bytes }),
            Phase::Downloaded => (3, LayerStep::Downloaded),
            Phase::Extracting(bytes) => (4, LayerStep::Extracting { bytes: *bytes, total_bytes }),
            Phase::Ended(Ok(_)) => (5, LayerStep::Complete),
            Phase::Ended(Err(_)) => return,
        };
        for (missed, step) in [(2, LayerStep::Verifying), (3, LayerStep::Downloaded)] {
            if self.told < missed && rank > missed {
                self.say(step);
            }
        }
        self.told = rank;
        self.say(step);
    }

    fn say(&self, step: LayerStep) {
        (self.tell)(PullEvent::Layer { blob: self.layer.digest.clone(), step });
    }
}

/// The transfer of one layer: fetched and converted at the same time.
struct Fetch {
    store: Arc<ImageStore>,
    session: Arc<Session>,
    layer: Descriptor,
    diff_id: Digest,
    permits: Arc<Semaphore>,
    teller: Teller<Arc<LayerOutcome>>,
}

impl Fetch {
    async fn run(self) -> Result<Arc<LayerOutcome>, RegistryError> {
        let permit = self.permits.acquire().await;
        let _permit = permit.map_err(|error| LocalError::GivenUp { why: error.to_string() })?;
        // Another pull may have ended while this one began.
        if let Some(pin) = LayerPin::new(&self.store, &self.diff_id) {
            return Ok(Arc::new(LayerOutcome::Present(pin)));
        }
        let file = self.store.content.anonymous().map_err(|error| LocalError::Store(error.into()))?;
        let downloaded = Arc::new(AtomicBool::new(false));
        let (told, teller) = (Arc::clone(&downloaded), self.teller.clone());
        let (writer, reader) = spool(file, move |bytes| {
            if told.load(Ordering::Relaxed) {
                teller.tell(Phase::Extracting(bytes));
            }
        });
        let (store, layer) = (Arc::clone(&self.store), self.layer.clone());
        let mut converting = tokio::task::spawn_blocking(move || convert(&store, &layer, reader));
        let received = Arc::new(AtomicU64::new(0));
        let mut sink = Spooling { writer, teller: self.teller.clone(), received: Arc::clone(&received) };
        let fetching = async {
            download(&self.session, &self.layer, &mut sink).await?;
            sink.writer.finish();
            Ok::<_, RegistryError>(())
        };
        tokio::pin!(fetching);
        let converted = tokio::select! {
            biased;
            fetched = &mut fetching => {
                fetched?;
                self.teller.tell(Phase::Downloaded);
                downloaded.store(true, Ordering::Relaxed);
                None
            }
            // It reads to the end of the blob, so before the end of the download it can only fail.
            failed = &mut converting => {
                // What is no layer because it is another blob is told as that, once all of it is there.
                if received.load(Ordering::Relaxed) >= self.layer.size {
                    fetching.await?;
                }
                Some(failed)
            }
        };
        let converted = match converted {
            Some(converted) => converted,
            None => converting.await,
        };
        let layer = converted.map_err(|error| given_up(&error))??;
        let actual = layer.converted.diff_id.clone();
        if actual != self.diff_id {
            let what = format!("the uncompressed layer {}", self.layer.digest);
            return Err(RegistryError::DigestMismatch { what, expected: self.diff_id, actual });
        }
        Ok(Arc::new(LayerOutcome::Staged { diff_id: actual, layer: Mutex::new(Some(layer)) }))
    }
}

struct Spooling {
    writer: SpoolWriter,
    teller: Teller<Arc<LayerOutcome>>,
    /// Bytes so far.
    received: Arc<AtomicU64>,
}

impl Sink for Spooling {
    fn take(&mut self, bytes: &[u8], so_far: u64) -> io::Result<()> {
        self.writer.append(bytes)?;
        self.received.store(so_far, Ordering::Relaxed);
        self.teller.tell(Phase::Downloading(so_far));
        Ok(())
    }
}

/// Converts a layer, after a look at whether it is compressed as its type says. Reads the blob to its end.
fn convert(store: &ImageStore, layer: &Descriptor, mut blob: impl Read) -> Result<StagedLayer, RegistryError> {
    let read_fault = RegistryError::io("read the layer");
    let mut head = Vec::new();
    blob.by_ref().take(8).read_to_end(&mut head).map_err(read_fault)?;
    let declared = compression(&layer.media_type).flatten();
    if let (Some(declared), Ok(found)) = (declared, Compression::of(&head))
        && declared != found
    {
        let reason = "its compression is not what the manifest says";
        return Err(RegistryError::refused(format!("layer {}", layer.digest), reason));
    }
    let mut stream = io::Cursor::new(head).chain(blob);
    let staged = store.stage_layer(&mut stream).map_err(|error| match error {
        AddLayerError::Layer(source) => RegistryError::Layer { digest: layer.digest.clone(), source },
        AddLayerError::Store(error) => error.into(),
    })?;
    io::copy(&mut stream, &mut io::sink()).map_err(RegistryError::io("read the layer"))?;
    Ok(staged)
}
