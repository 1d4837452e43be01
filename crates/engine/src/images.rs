//! The image endpoints. Names of images contain slashes, so the part of the path behind `/images/` is split by hand.

mod auth;
mod distribution;
mod import;
mod inspect;
mod list;
mod load;
mod pattern;
mod progress;
mod pull;
mod push;
mod remove;
mod save;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use image::{Image, ImageStore, Reference, ResolveError};

use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::missing;
use crate::query::Query;
use crate::version::ApiVersion;

pub(crate) use auth::{Logins, login_for, logins};
pub(crate) use list::entries;
pub(crate) use progress::bar as progress_bar;
pub(crate) use pull::pull_for_build;

/// The routes below `/images`.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/images/{*rest}", any(dispatch))
        .route("/auth", post(auth::log_in))
        .route("/distribution/{*rest}", get(distribution::inspect))
}

/// What a path below `/images` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Endpoint<'a> {
    List,
    Load,
    /// `POST /images/create`: import or pull.
    Create,
    Prune,
    Search,
    Push(&'a str),
    /// `GET /images/get`: several images as one archive.
    SaveAll,
    Save(&'a str),
    Inspect(&'a str),
    History(&'a str),
    Tag(&'a str),
    Remove(&'a str),
    /// Known to Docker, or to nobody.
    Missing,
}

impl<'a> Endpoint<'a> {
    fn of(method: &Method, rest: &'a str) -> Self {
        let name = |suffix: &str| rest.strip_suffix(suffix).filter(|name| !name.is_empty());
        match (method.as_str(), rest) {
            ("GET" | "HEAD", "json") => Self::List,
            ("POST", "load") => Self::Load,
            ("POST", "create") => Self::Create,
            ("POST", "prune") => Self::Prune,
            ("GET", "search") => Self::Search,
            ("DELETE", name) => Self::Remove(name),
            ("GET", "get") => Self::SaveAll,
            ("GET", _) if name("/get").is_some() => name("/get").map_or(Self::Missing, Self::Save),
            ("GET" | "HEAD", _) => match (name("/json"), name("/history")) {
                (Some(name), _) => Self::Inspect(name),
                (_, Some(name)) => Self::History(name),
                _ => Self::Missing,
            },
            ("POST", _) => match (name("/tag"), name("/push")) {
                (Some(name), _) => Self::Tag(name),
                (_, Some(name)) => Self::Push(name),
                _ => Self::Missing,
            },
            _ => Self::Missing,
        }
    }
}

async fn dispatch(
    State(engine): State<Arc<Engine>>,
    Path(rest): Path<String>,
    query: Query,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let version = parts.extensions.get::<ApiVersion>().copied().unwrap_or(crate::version::MAX);
    let endpoint = Endpoint::of(&parts.method, &rest);
    if matches!(
        endpoint,
        Endpoint::Load | Endpoint::SaveAll | Endpoint::Save(_) | Endpoint::Inspect(_) | Endpoint::History(_)
    ) && let Err(error) = only_own_platform(&query)
    {
        return error.into_response();
    }
    let answer = match endpoint {
        Endpoint::List => list::list(engine, &query, version).await,
        Endpoint::Load => load::load(engine, &query, body).await,
        Endpoint::Create if query.get("fromImage").is_some() => pull::pull(engine, &query, &parts.headers).await,
        Endpoint::Create => import::create(engine, &query, body).await,
        Endpoint::Prune => remove::prune(engine, &query).await,
        Endpoint::Search => Err(ApiError::not_implemented(
            "searching is a service of Docker Hub that no registry offers: look for images on its web site, and pull them by name",
        )),
        Endpoint::Push(name) => push::push(engine, name, &query, &parts.headers).await,
        Endpoint::SaveAll => save::save_all(engine, &query).await,
        Endpoint::Save(name) => save::save(engine, vec![name.to_owned()]).await,
        Endpoint::Inspect(name) => inspect::inspect(engine, name, version).await,
        Endpoint::History(name) => inspect::history(engine, name).await,
        Endpoint::Tag(name) => remove::tag(engine, name, &query).await,
        Endpoint::Remove(name) => remove::remove(engine, name, &query).await,
        Endpoint::Missing => Ok(missing::answer(parts.method, parts.uri).await.into_response()),
    };
    answer.unwrap_or_else(IntoResponse::into_response)
}

/// Runs something on the store in a thread that may wait.
async fn blocking<T: Send + 'static>(
    engine: &Arc<Engine>,
    work: impl FnOnce(&ImageStore) -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    let store = Arc::clone(&engine.images);
    tokio::task::spawn_blocking(move || work(&store)).await?
}

fn resolve(store: &ImageStore, name: &str) -> ApiResult<Image> {
    store.resolve(name).map_err(|error| not_resolved(&error))
}

/// The error for a name that leads nowhere, in dockerd's words.
fn not_resolved(error: &ResolveError) -> ApiError {
    let text = match error {
        ResolveError::NotFound { name } => {
            format!(
                "No such image: {}",
                name.parse::<Reference>().map_or_else(|_| name.clone(), |name| name.familiar())
            )
        }
        ResolveError::Ambiguous { .. } => chain(error),
    };
    ApiError::new(error.kind(), text)
}

/// The name made of the parameters `repo` and `tag`.
fn reference(query: &Query) -> ApiResult<Option<Reference>> {
    let Some(repository) = query.get("repo") else { return Ok(None) };
    let parse = |text: &str| text.parse::<Reference>().map_err(|error| ApiError::new(error.kind(), chain(&error)));
    let reference = parse(repository)?;
    let tagged = match query.get("tag") {
        Some(tag) => reference.with_tag(tag).map_err(|error| ApiError::new(error.kind(), chain(&error)))?,
        None => reference,
    };
    Ok(Some(tagged))
}

/// Refuses a platform that is not the host's: images are kept for one platform. Shape: JSON, as clients send it since 1.48.
fn only_own_platform(query: &Query) -> ApiResult<()> {
    let Some(text) = query.get("platform") else { return Ok(()) };
    let platform: serde_json::Value =
        serde_json::from_str(text).map_err(|error| ApiError::invalid(format!("invalid platform {text:?}: {error}")))?;
    let part = |name: &str| platform[name].as_str().unwrap_or_default();
    let (system, architecture) = (part("os"), part("architecture"));
    if system == "linux" && architecture == image::host_architecture() {
        return Ok(());
    }
    Err(ApiError::not_found(format!("no image is kept for platform {system}/{architecture}, only for this host's")))
}

/// Tells the listeners that something happened to an image.
fn publish(engine: &Engine, action: &str, id: &str, name: &str) {
    let attributes = [("name".to_owned(), name.to_owned())].into();
    engine.events.publish("image", action, id, attributes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_slashes_are_told_from_endpoints() {
        let of = |method, rest| Endpoint::of(&method, rest);
        assert_eq!(of(Method::GET, "json"), Endpoint::List);
        assert_eq!(of(Method::GET, "localhost:5000/a/b:v1/json"), Endpoint::Inspect("localhost:5000/a/b:v1"));
        assert_eq!(of(Method::GET, "a/history"), Endpoint::History("a"));
        assert_eq!(of(Method::GET, "get"), Endpoint::SaveAll);
        assert_eq!(of(Method::GET, "a/b:1/get"), Endpoint::Save("a/b:1"));
        assert_eq!(of(Method::GET, "json/json"), Endpoint::Inspect("json"));
        assert_eq!(of(Method::POST, "a/b/tag"), Endpoint::Tag("a/b"));
        assert_eq!(of(Method::DELETE, "a/json"), Endpoint::Remove("a/json"));
        assert_eq!(of(Method::POST, "localhost:5000/a/push"), Endpoint::Push("localhost:5000/a"));
        assert_eq!(of(Method::GET, "search"), Endpoint::Search);
        assert_eq!(of(Method::POST, "load"), Endpoint::Load);
        assert_eq!(of(Method::PUT, "load"), Endpoint::Missing);
    }

    #[test]
    fn repository_and_tag_make_a_name() {
        let named = |query: &str| reference(&Query::parse(query));
        assert_eq!(named("repo=busybox&tag=1").unwrap().unwrap().familiar(), "busybox:1");
        assert_eq!(named("repo=localhost:5000/x:v1").unwrap().unwrap().familiar(), "localhost:5000/x:v1");
        assert_eq!(named("repo=").unwrap(), None);
        assert_eq!(named("repo=UPPER").unwrap_err().http_status(), 400);
        assert_eq!(named("repo=a&tag=b/c").unwrap_err().http_status(), 400);
    }

    #[test]
    fn another_platform_is_not_kept() {
        let asked = |architecture: &str| {
            only_own_platform(&Query::parse(&format!(
                "platform={{\"os\":\"linux\",\"architecture\":\"{architecture}\"}}"
            )))
        };
        asked(image::host_architecture()).unwrap();
        assert_eq!(asked("s390x").unwrap_err().http_status(), 404);
        assert_eq!(only_own_platform(&Query::parse("platform=linux")).unwrap_err().http_status(), 400);
        only_own_platform(&Query::parse("")).unwrap();
    }

    #[test]
    fn a_missing_image_is_named_with_its_tag() {
        let error = not_resolved(&ResolveError::NotFound { name: "nosuch".into() });
        assert_eq!((error.http_status().as_u16(), error.message.as_str()), (404, "No such image: nosuch:latest"));
    }
}
