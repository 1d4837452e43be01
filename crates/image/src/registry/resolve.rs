//! From a name to a manifest: what a registry has under a tag or a digest.

use bytes::Bytes;
use hyper::Method;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, LINK};
use proto::Digest;
use serde::Deserialize;

use super::document::{
    DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, Manifest, OCI_INDEX, OCI_MANIFEST, Platform, choose, parse,
};
use super::download::download;
use super::error::RegistryError;
use super::session::{Ask, Session};
use super::transport::empty;
use crate::compression::digest_of;
use crate::config;
use crate::reference::Reference;

/// Bytes of a manifest or an index. Source: distribution-spec, "Pushing Manifests": registries should take 4 MiB.
const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Bytes of one page of a list of tags.
const MAX_TAGS_BYTES: u64 = 4 << 20;
const MAX_PAGES: usize = 100;
const MAX_TAGS: usize = 10_000;
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a registry has under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteImage {
    /// Of the manifest or the index.
    pub digest: Digest,
    /// Of the manifest or the index.
    pub media_type: String,
    /// Length of the manifest or the index.
    pub size: u64,
    /// What it is there for.
    pub platforms: Vec<Platform>,
}

/// A manifest or an index as it came, its digest checked.
pub(super) struct Fetched {
    pub descriptor: Descriptor,
    pub document: Document,
}

/// An image to pull.
pub(super) struct Resolved {
    /// Of what the name leads to, which may be an index.
    pub digest: Digest,
    pub manifest: Manifest,
}

/// Finds the manifest for a platform. An index inside an index is refused.
pub(super) async fn resolve(
    session: &Session,
    name: &Reference,
    platform: &Platform,
) -> Result<Resolved, RegistryError> {
    let what = format!("manifest for {}", name.familiar());
    let top = fetch_named(session, name).await?;
    let digest = top.descriptor.digest.clone();
    let manifest = match top.document {
        Document::Manifest(manifest) => manifest,
        Document::Index(manifests) => {
            let chosen = choose(&manifests, platform)?;
            match fetch(session, &what, chosen.digest.as_str(), Some(chosen)).await?.document {
                Document::Manifest(manifest) => manifest,
                Document::Index(_) => return Err(RegistryError::refused(what, "an index lists an index")),
            }
        }
    };
    Ok(Resolved { digest, manifest })
}

/// What a registry has under a name, and for which platforms.
pub(super) async fn look_up(session: &Session, name: &Reference) -> Result<RemoteImage, RegistryError> {
    let Fetched { descriptor, document } = fetch_named(session, name).await?;
    let platforms = match document {
        Document::Index(manifests) => manifests.into_iter().filter_map(|one| one.platform).collect(),
        Document::Manifest(manifest) => {
            let mut json = Vec::new();
            download(session, &manifest.config, &mut json).await?;
            let config = config::parse(&json)?.config;
            let variant = config.variant().clone().unwrap_or_default();
            vec![Platform { architecture: config.architecture().to_string(), os: config.os().to_string(), variant }]
        }
    };
    Ok(RemoteImage { digest: descriptor.digest, media_type: descriptor.media_type, size: descriptor.size, platforms })
}

async fn fetch_named(session: &Session, name: &Reference) -> Result<Fetched, RegistryError> {
    let what = format!("manifest for {}", name.familiar());
    let wanted = match (name.digest(), name.tag()) {
        (Some(digest), _) => digest.as_str(),
        (None, tag) => tag.unwrap_or("latest"),
    };
    fetch(session, &what, wanted, None).await
}

/// Fetches a document by tag or digest; `listed` is how an index describes it.
async fn fetch(
    session: &Session,
    what: &str,
    wanted: &str,
    listed: Option<&Descriptor>,
) -> Result<Fetched, RegistryError> {
    let url = session.url(&format!("{}/manifests/{wanted}", session.repository))?;
    let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];
    let accept = accept.map(|media_type| (ACCEPT, HeaderValue::from_static(media_type)));
    let ask = Ask { method: Method::GET, url: &url, headers: &accept, body: &empty, sent: None };
    let mut answer = session.ask(&ask).await?;
    if !answer.status.is_success() {
        return Err(session.failure(answer, what).await);
    }
    let bytes: Bytes = answer.bytes(MAX_MANIFEST_BYTES).await.map_err(|source| session.transport_error(source))?;
    let media_type =
        answer.header(CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
    let actual = digest_of(&bytes);
    let mismatch = |expected: &Digest| RegistryError::DigestMismatch {
        what: what.to_owned(),
        expected: expected.clone(),
        actual: actual.clone(),
    };
    // Nothing of a document is believed before its digest is.
    if let Ok(expected) = wanted.parse::<Digest>()
        && expected != actual
    {
        return Err(mismatch(&expected));
    }
    if let Some(told) = answer.header(CONTENT_DIGEST) {
        match told.parse::<Digest>() {
            Ok(told) if told == actual => {}
            Ok(told) => return Err(mismatch(&told)),
            Err(_) => return Err(RegistryError::refused(what, "its Docker-Content-Digest is no sha256 digest")),
        }
    }
    if let Some(listed) = listed {
        if listed.size != bytes.len() as u64 {
            return Err(RegistryError::refused(what, "its length is not what the index says"));
        }
        if listed.media_type != media_type {
            return Err(RegistryError::refused(what, "its type is not what the index says"));
        }
    }
    let document = parse(what, &media_type, &bytes)?;
    Ok(Fetched { descriptor: Descriptor::new(&media_type, actual, bytes.len() as u64), document })
}

/// All tags of a repository, page by page. Source: distribution-spec, "Listing Tags".
pub(super) async fn tags(session: &Session) -> Result<Vec<String>, RegistryError> {
    #[derive(Deserialize)]
    struct Page {
        tags: Option<Vec<String>>,
    }
    let what = format!("the list of tags of {}", session.repository);
    let mut url = session.url(&format!("{}/tags/list", session.repository))?;
    let mut tags = Vec::new();
    for _ in 0..MAX_PAGES {
        let mut answer = session.ask(&Ask::bare(Method::GET, &url)).await?;
        if !answer.status.is_success() {
            return Err(session.failure(answer, &what).await);
        }
        let bytes = answer.bytes(MAX_TAGS_BYTES).await.map_err(|source| session.transport_error(source))?;
        let page: Page =
            serde_json::from_slice(&bytes).map_err(|_| RegistryError::refused(&what, "it is malformed"))?;
        tags.extend(page.tags.unwrap_or_default());
        if tags.len() > MAX_TAGS {
            return Err(RegistryError::refused(what, "it is too long"));
        }
        let next =
            answer.header(LINK).and_then(|link| link.strip_prefix('<')?.split_once('>').map(|(to, _)| to.to_owned()));
        let Some(next) = next else { return Ok(tags) };
        url = url.join(&next).map_err(|_| RegistryError::refused(&what, "its next page has no address"))?;
        if !session.is_own(&url) {
            return Err(RegistryError::refused(what, "its next page is elsewhere"));
        }
    }
    Err(RegistryError::refused(what, "it has too many pages"))
}
