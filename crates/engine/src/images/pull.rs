//! `POST /images/create?fromImage=`: an image from a registry.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use axum::response::Response;
use image::Reference;
use image::registry::{Credentials, LayerStep, Platform, PullEvent, PullOptions};
use proto::Digest;
use serde_json::{Value, json};

use super::progress::{self, Lines};
use super::{auth, publish};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::query::Query;

/// At least this much time lies between two lines about how far one layer is.
const INTERVAL: Duration = Duration::from_millis(100);

pub(super) async fn pull(engine: Arc<Engine>, query: &Query, headers: &HeaderMap) -> ApiResult<Response> {
    let wanted = Wanted::of(query.get("fromImage").unwrap_or_default(), query.get("tag"))?;
    let platform = query.get("platform").map(platform).transpose()?;
    let options = PullOptions { platform, credentials: auth::credentials(headers)? };
    progress::answer_until_gone(move |lines| run(engine, wanted, options, lines)).await
}

/// What a client wants to have.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    One(Reference),
    AllTags(Reference),
}

impl Wanted {
    /// Without a tag anywhere, all tags are meant. Source: Docker Engine API, "Create an image".
    fn of(name: &str, tag: Option<&str>) -> ApiResult<Self> {
        let parse = |text: &str| text.parse::<Reference>().map_err(|error| ApiError::new(error.kind(), chain(&error)));
        match tag {
            Some(digest) if digest.starts_with("sha256:") => parse(&format!("{name}@{digest}")).map(Self::One),
            Some(tag) => {
                let tagged = parse(name)?.with_tag(tag);
                tagged.map(Self::One).map_err(|error| ApiError::new(error.kind(), chain(&error)))
            }
            None if name.rsplit('/').next().is_some_and(|last| last.contains([':', '@'])) => parse(name).map(Self::One),
            None => parse(name).map(Self::AllTags),
        }
    }
}

fn platform(text: &str) -> ApiResult<Platform> {
    Platform::parse(text).ok_or_else(|| ApiError::invalid(format!("{text:?} is no platform such as linux/amd64")))
}

async fn run(engine: Arc<Engine>, wanted: Wanted, options: PullOptions, lines: Lines) -> ApiResult<()> {
    let names = match wanted {
        Wanted::One(name) => vec![name],
        Wanted::AllTags(name) => tagged(&engine, &name, options.credentials.as_ref()).await?,
    };
    for name in names {
        one(&engine, &name, &options, &lines).await?;
    }
    Ok(())
}

async fn tagged(engine: &Engine, name: &Reference, credentials: Option<&Credentials>) -> ApiResult<Vec<Reference>> {
    let tags = engine.registries.tags(name, credentials).await.map_err(|error| auth::failed(&error))?;
    let named = tags.iter().map(|tag| name.with_tag(tag));
    named.collect::<Result<_, _>>().map_err(|error| ApiError::new(error.kind(), chain(&error)))
}

async fn one(engine: &Engine, name: &Reference, options: &PullOptions, lines: &Lines) -> ApiResult<()> {
    let teller = Teller { lines, last: Mutex::default() };
    let tell = |event: PullEvent| teller.tell(&event);
    let pulled = engine.registries.pull(name, options, &tell).await.map_err(|error| auth::failed(&error))?;
    let familiar = name.familiar();
    let outcome = if pulled.newer { "Downloaded newer image" } else { "Image is up to date" };
    lines.put(json!({"status": format!("Status: {outcome} for {familiar}")}));
    publish(engine, "pull", &familiar, &name.familiar_repository());
    Ok(())
}

/// Pulls an image that a build needs; `tell` takes its lines, and may leave some out.
///
/// # Errors
/// The registry's.
pub(crate) async fn pull_for_build(
    engine: &Engine,
    name: &Reference,
    credentials: Option<Credentials>,
    tell: impl Fn(Value) + Send + Sync,
) -> ApiResult<()> {
    let options = PullOptions { platform: None, credentials };
    let told = |event: PullEvent| tell(line(&event));
    let pulled = engine.registries.pull(name, &options, &told).await.map_err(|error| auth::failed(&error))?;
    let familiar = name.familiar();
    let outcome = if pulled.newer { "Downloaded newer image" } else { "Image is up to date" };
    tell(json!({"status": format!("Status: {outcome} for {familiar}")}));
    publish(engine, "pull", &familiar, &name.familiar_repository());
    Ok(())
}

/// Turns events into lines, not too many of them.
struct Teller<'a> {
    lines: &'a Lines,
    last: Mutex<HashMap<Digest, Instant>>,
}

impl Teller<'_> {
    fn tell(&self, event: &PullEvent) {
        if let PullEvent::Layer {
            blob,
            step: LayerStep::Downloading { bytes, total_bytes } | LayerStep::Extracting { bytes, total_bytes },
        } = event
        {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let recent = last.get(blob).is_some_and(|told| now.duration_since(*told) < INTERVAL);
            if recent && bytes < total_bytes {
                return;
            }
            last.insert(blob.clone(), now);
            self.lines.put_if_room(line(event));
        } else {
            self.lines.put(line(event));
        }
    }
}

/// The line in Docker's form.
fn line(event: &PullEvent) -> Value {
    match event {
        PullEvent::Pulling { path, version } => json!({"status": format!("Pulling from {path}"), "id": version}),
        PullEvent::Digest(digest) => json!({"status": format!("Digest: {digest}")}),
        PullEvent::Layer { blob, step } => {
            let (status, of) = match step {
                LayerStep::Exists => ("Already exists", None),
                LayerStep::Planned => ("Pulling fs layer", None),
                LayerStep::Waiting => ("Waiting", None),
                LayerStep::Downloading { bytes, total_bytes } => ("Downloading", Some((*bytes, *total_bytes))),
                LayerStep::Verifying => ("Verifying Checksum", None),
                LayerStep::Downloaded => ("Download complete", None),
                LayerStep::Extracting { bytes, total_bytes } => ("Extracting", Some((*bytes, *total_bytes))),
                LayerStep::Complete => ("Pull complete", None),
            };
            progress::step(status, blob, of)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_and_digest_are_found_wherever_they_stand() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let one = |name: &str, tag: Option<&str>| match Wanted::of(name, tag).unwrap() {
            Wanted::One(name) => name.familiar(),
            Wanted::AllTags(name) => format!("all of {}", name.familiar_repository()),
        };
        assert_eq!(one("busybox", Some("1")), "busybox:1");
        assert_eq!(one("127.0.0.1:5000/x", Some(&digest)), format!("127.0.0.1:5000/x@{digest}"));
        assert_eq!(one(&format!("x@{digest}"), None), format!("x@{digest}"));
        assert_eq!(one("127.0.0.1:5000/x:y", None), "127.0.0.1:5000/x:y");
        assert_eq!(one("127.0.0.1:5000/x", None), "all of 127.0.0.1:5000/x");
        assert_eq!(Wanted::of("Bad Name", Some("x")).unwrap_err().http_status(), 400);
        assert_eq!(Wanted::of("x", Some("a/b")).unwrap_err().http_status(), 400);
        assert!(platform("linux/arm64/v8").is_ok() && platform("linux/../x").is_err());
    }

    #[test]
    fn lines_are_dockers() {
        let blob: Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        let layer = |step| line(&PullEvent::Layer { blob: blob.clone(), step });
        assert_eq!(
            layer(LayerStep::Planned),
            json!({"status": "Pulling fs layer", "progressDetail": {}, "id": "abababababab"})
        );
        let downloading = layer(LayerStep::Downloading { bytes: 5_000_000, total_bytes: 10_000_000 });
        assert_eq!(downloading["progressDetail"], json!({"current": 5_000_000, "total": 10_000_000}));
        let bar = format!("[{}>{}]      5MB/10MB", "=".repeat(25), " ".repeat(25));
        assert_eq!(downloading["progress"], bar);
    }
}
