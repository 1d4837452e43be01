//! Pushing an image: its layers as gzip blobs, its configuration, and a manifest of Docker's schema 2.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream;
use futures_util::stream::{StreamExt, TryStreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use hyper::{Method, StatusCode};
use proto::Digest;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::RegistryClient;
use super::auth::Credentials;
use super::document::{DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, Descriptor};
use super::error::{LocalError, RegistryError};
use super::known::KnownBlob;
use super::session::{Ask, Session, is_passing};
use super::transport::{OutBody, empty, full};
use crate::compression::digest_of;
use crate::config::Image;
use crate::reference::Reference;
use crate::store::ImageStore;

/// The middle of quick and small: twice as quick as gzip's default and some 3 % longer.
const GZIP_LEVEL: u32 = 4;
const UPLOAD_CHUNK: usize = 128 << 10;
/// Repositories of the same registry that are offered for a layer before it is sent.
const MAX_MOUNTS: usize = 3;

/// How far a push is, in Docker's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushEvent {
    /// The layer.
    pub diff_id: Digest,
    /// What happens to it.
    pub step: PushStep,
}

/// What happens to a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushStep {
    /// It is to be sent.
    Preparing,
    /// It waits for others.
    Waiting,
    /// The repository has it.
    Exists,
    /// Another repository of the registry has it.
    Mounted {
        /// Which.
        from: String,
    },
    /// Bytes that were sent, compressed.
    Pushing {
        /// So far.
        bytes: u64,
        /// In all.
        total_bytes: u64,
    },
    /// The registry has it now.
    Pushed,
}

/// A tag that was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The tag.
    pub tag: String,
    /// Of the manifest.
    pub digest: Digest,
    /// Of the manifest, bytes.
    pub size: u64,
}

/// Called from several tasks.
type Tell<'a> = &'a (dyn Fn(PushEvent) + Send + Sync);

/// A layer as it is sent.
struct Packed {
    file: File,
    digest: Digest,
    size: u64,
}

impl RegistryClient {
    /// Pushes the image that has this name, under it. Shape: `name` has a tag.
    ///
    /// # Errors
    /// As the variants of [`RegistryError`] say; a registry that failed half-way may keep blobs, and has no new tag.
    pub async fn push(
        &self,
        name: &Reference,
        credentials: Option<&Credentials>,
        tell: &(dyn Fn(PushEvent) + Send + Sync),
    ) -> Result<Pushed, RegistryError> {
        let resolve = |source| LocalError::Resolve { name: name.familiar(), source };
        let image = self.store.resolve(&name.to_string()).map_err(resolve)?;
        let mut tries = self.tries(name, false)?;
        loop {
            let opened = self.session(tries.next()?, name, "pull,push", credentials).await;
            let outcome = match opened {
                Ok(session) => self.push_to(&session, name, &image, tell).await,
                Err(error) => Err(error),
            };
            if let Some(outcome) = tries.settle(outcome) {
                return outcome;
            }
        }
    }

    async fn push_to(
        &self,
        session: &Session,
        name: &Reference,
        image: &Image,
        tell: Tell<'_>,
    ) -> Result<Pushed, RegistryError> {
        let mut unique: Vec<&Digest> = Vec::new();
        for diff_id in &image.diff_ids {
            if !unique.contains(&diff_id) {
                unique.push(diff_id);
                tell(PushEvent { diff_id: diff_id.clone(), step: PushStep::Preparing });
            }
        }
        for diff_id in unique.iter().skip(self.settings().transfers) {
            tell(PushEvent { diff_id: (*diff_id).clone(), step: PushStep::Waiting });
        }
        let mut pushing = Vec::new();
        for diff_id in &unique {
            pushing.push(self.push_layer(session, name, diff_id, tell));
        }
        let blobs: Vec<KnownBlob> =
            stream::iter(pushing).buffered(self.settings().transfers.max(1)).try_collect().await?;
        let config = Descriptor::new(DOCKER_CONFIG, image.id.clone(), image.config_json.len() as u64);
        if !has_blob(session, &config.digest).await? {
            let bytes = Bytes::from(image.config_json.clone());
            upload(session, &config.digest, config.size, &move || full(bytes.clone()), None).await?;
        }
        let layer = |diff_id: &Digest| {
            let at = unique.iter().position(|one| *one == diff_id).expect("every layer is among them");
            Descriptor::new(DOCKER_LAYER, blobs[at].digest.clone(), blobs[at].size)
        };
        let layers: Vec<Descriptor> = image.diff_ids.iter().map(layer).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": layers,
        });
        let pushed = put_manifest(session, name, manifest.to_string().into_bytes()).await?;
        let found: Vec<_> = unique.iter().map(|diff_id| (*diff_id).clone()).zip(blobs).collect();
        self.remember(name, image, &pushed, found).await?;
        Ok(pushed)
    }

    /// Sees to it that the repository has a layer; gives the blob.
    async fn push_layer(
        &self,
        session: &Session,
        name: &Reference,
        diff_id: &Digest,
        tell: Tell<'_>,
    ) -> Result<KnownBlob, RegistryError> {
        let say = |step| tell(PushEvent { diff_id: diff_id.clone(), step });
        let known = self.known.of(diff_id).map_err(|error| LocalError::Store(error.into()))?;
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            known.into_iter().filter(|blob| blob.domain == name.domain()).partition(|blob| blob.path == name.path());
        for blob in here {
            if has_blob(session, &blob.digest).await? {
                say(PushStep::Exists);
                return Ok(blob);
            }
        }
        for blob in elsewhere.into_iter().take(MAX_MOUNTS) {
            if mount(session, &blob).await? {
                say(PushStep::Mounted { from: blob.path.clone() });
                return Ok(KnownBlob { path: name.path().to_owned(), ..blob });
            }
        }
        let (store, layer) = (Arc::clone(&self.store), diff_id.clone());
        let packed = tokio::task::spawn_blocking(move || pack(&store, &layer)).await;
        let Packed { file, digest, size } =
            packed.map_err(|error| LocalError::GivenUp { why: error.to_string() })??;
        let blob = KnownBlob { digest, size, domain: name.domain().to_owned(), path: name.path().to_owned() };
        if has_blob(session, &blob.digest).await? {
            say(PushStep::Exists);
            return Ok(blob);
        }
        let (file, sent) = (Arc::new(file), Arc::new(AtomicU64::new(0)));
        let body = || file_body(Arc::clone(&file), Arc::clone(&sent));
        let sending = upload(session, &blob.digest, size, &body, Some(Arc::clone(&sent)));
        let reporting = async {
            loop {
                say(PushStep::Pushing { bytes: sent.load(Ordering::Relaxed).min(size), total_bytes: size });
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            outcome = sending => outcome?,
            () = reporting => unreachable!("it never ends"),
        }
        say(PushStep::Pushed);
        Ok(blob)
    }

    /// Gives the image its name with the manifest's digest, and keeps in mind what the registry has.
    async fn remember(
        &self,
        name: &Reference,
        image: &Image,
        pushed: &Pushed,
        found: Vec<(Digest, KnownBlob)>,
    ) -> Result<(), RegistryError> {
        let pinned: Reference = format!("{}@{}", name.repository(), pushed.digest).parse().map_err(LocalError::Name)?;
        let (store, known, id) = (Arc::clone(&self.store), Arc::clone(&self.known), image.id.clone());
        let work = move || {
            known.remember(&found).map_err(|error| LocalError::Store(error.into()))?;
            store.name_by_digest(&id, &pinned)?;
            Ok(())
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| LocalError::GivenUp { why: error.to_string() })?
    }
}

/// Makes a layer's gzip blob. The same layer makes the same blob.
fn pack(store: &ImageStore, diff_id: &Digest) -> Result<Packed, RegistryError> {
    let mut tar = store.layer_tar(diff_id)?;
    let file = store.content.anonymous().map_err(|error| LocalError::Store(error.into()))?;
    let output = Counting { file: &file, hash: Sha256::new(), size: 0 };
    let buffered = io::BufWriter::with_capacity(UPLOAD_CHUNK, output);
    let mut encoder = flate2::write::GzEncoder::new(buffered, flate2::Compression::new(GZIP_LEVEL));
    io::copy(&mut tar, &mut encoder).map_err(RegistryError::io("read a stored layer"))?;
    let buffered = encoder.finish().map_err(RegistryError::io("write a temporary file"))?;
    let output =
        buffered.into_inner().map_err(|error| RegistryError::io("write a temporary file")(error.into_error()))?;
    let (digest, size) = (Digest::from_sha256(&output.hash.finalize().into()), output.size);
    Ok(Packed { file, digest, size })
}

struct Counting<'a> {
    file: &'a File,
    hash: Sha256,
    size: u64,
}

impl Write for Counting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn file_body(file: Arc<File>, sent: Arc<AtomicU64>) -> OutBody {
    sent.store(0, Ordering::Relaxed);
    let pieces = stream::try_unfold(0_u64, move |position| {
        let (file, sent) = (Arc::clone(&file), Arc::clone(&sent));
        async move {
            let mut piece = vec![0; UPLOAD_CHUNK];
            // It was just written: this comes out of the page cache.
            let count = file.read_at(&mut piece, position)?;
            if count == 0 {
                return Ok(None);
            }
            piece.truncate(count);
            let position = position + count as u64;
            sent.store(position, Ordering::Relaxed);
            Ok(Some((Frame::data(Bytes::from(piece)), position)))
        }
    });
    StreamBody::new(pieces).boxed_unsync()
}

async fn has_blob(session: &Session, digest: &Digest) -> Result<bool, RegistryError> {
    let url = session.url(&format!("{}/blobs/{digest}", session.repository))?;
    let answer = session.ask(&Ask::bare(Method::HEAD, &url)).await?;
    match answer.status {
        StatusCode::OK => Ok(true),
        StatusCode::NOT_FOUND => Ok(false),
        _ => Err(session.failure(answer, "the blob").await),
    }
}

/// Asks the registry to take a blob over from another repository. Source: distribution-spec, "Mounting a blob".
async fn mount(session: &Session, blob: &KnownBlob) -> Result<bool, RegistryError> {
    let mut url = session.url(&format!("{}/blobs/uploads/", session.repository))?;
    url.query_pairs_mut().append_pair("mount", blob.digest.as_str()).append_pair("from", &blob.path);
    let answer = session.ask(&post(&url)).await?;
    match answer.status {
        StatusCode::CREATED => Ok(true),
        // It began an upload in its place, which it ends itself when nothing comes.
        StatusCode::ACCEPTED | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Ok(false),
        _ => Err(session.failure(answer, "the repository").await),
    }
}

static NO_LENGTH: [(HeaderName, HeaderValue); 1] = [(CONTENT_LENGTH, HeaderValue::from_static("0"))];

fn post(url: &Url) -> Ask<'_> {
    Ask { method: Method::POST, url, headers: &NO_LENGTH, body: &empty, sent: None }
}

/// Sends a blob, as often as it takes. Source: distribution-spec, "Pushing a blob monolithically".
async fn upload(
    session: &Session,
    digest: &Digest,
    size: u64,
    body: &(dyn Fn() -> OutBody + Send + Sync),
    sent: Option<Arc<AtomicU64>>,
) -> Result<(), RegistryError> {
    let mut attempt = 1;
    loop {
        let start = session.url(&format!("{}/blobs/uploads/", session.repository))?;
        let answer = session.ask(&post(&start)).await?;
        if answer.status != StatusCode::ACCEPTED {
            return Err(session.failure(answer, "the repository").await);
        }
        let refused =
            |reason: &str| RegistryError::refused(format!("the address of an upload to {}", session.host()), reason);
        let location = answer.header(LOCATION).ok_or_else(|| refused("there is none"))?;
        let mut url = start.join(location).map_err(|_| refused("it is malformed"))?;
        // What is sent is the user's, and so are the credentials.
        if !session.is_own(&url) {
            return Err(refused("it is on another host"));
        }
        url.query_pairs_mut().append_pair("digest", digest.as_str());
        let headers = [
            (CONTENT_LENGTH, HeaderValue::from(size)),
            (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        ];
        let ask = Ask { method: Method::PUT, url: &url, headers: &headers, body, sent: sent.clone() };
        let error = match session.ask_once(&ask).await {
            Ok(answer) if answer.status == StatusCode::CREATED => return Ok(()),
            Ok(answer) if is_passing(answer.status) => session.failure(answer, "the upload").await,
            Ok(answer) => return Err(session.failure(answer, "the upload").await),
            Err(error) => error,
        };
        if attempt >= session.timing().attempts {
            return Err(error);
        }
        tracing::debug!(%error, %digest, "sending is tried again");
        tokio::time::sleep(session.pause(attempt, None)).await;
        attempt += 1;
    }
}

async fn put_manifest(session: &Session, name: &Reference, manifest: Vec<u8>) -> Result<Pushed, RegistryError> {
    let tag = name.tag().unwrap_or("latest").to_owned();
    let (digest, size) = (digest_of(&manifest), manifest.len() as u64);
    let url = session.url(&format!("{}/manifests/{tag}", session.repository))?;
    let headers =
        [(CONTENT_TYPE, HeaderValue::from_static(DOCKER_MANIFEST)), (CONTENT_LENGTH, HeaderValue::from(size))];
    let bytes = Bytes::from(manifest);
    let body = move || full(bytes.clone());
    let answer =
        session.ask(&Ask { method: Method::PUT, url: &url, headers: &headers, body: &body, sent: None }).await?;
    if answer.status != StatusCode::CREATED {
        return Err(session.failure(answer, "the manifest").await);
    }
    match answer.header(HeaderName::from_static("docker-content-digest")) {
        Some(told) if told != digest.as_str() => {
            Err(RegistryError::refused("the manifest", format!("the registry keeps another than was sent: {told:.80}")))
        }
        _ => Ok(Pushed { tag, digest, size }),
    }
}
