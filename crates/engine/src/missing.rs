//! Endpoints that Docker knows and this engine does not serve yet, so that a client is told which.

use axum::Json;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::error::{ApiError, ApiResult};

/// What is answered to a known endpoint that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// 501: comes with a later version; the text names what.
    NotYet(&'static str),
    /// 404: nothing of this kind exists, so the named one does not either.
    NoSuch(&'static str),
    /// 503, as of an engine that is no swarm manager.
    Swarm,
    /// 503, as of an engine that is in no swarm.
    NoSwarm,
    /// 200: there are none of this kind.
    Nothing,
}

use Missing::{NoSuch, NoSwarm, NotYet, Nothing, Swarm};

/// Of BuildKit nothing is there but the advice.
const BUILDKIT: &str = "building images with BuildKit (set DOCKER_BUILDKIT=0 for the classic builder)";

/// Method (`*` is any), path (`{}` is one part, `{*}` one or more) and answer; the first that fits counts.
const ENDPOINTS: &[(&str, &str, Missing)] = &[
    ("GET", "/containers/{}/attach/ws", NotYet("attaching by websocket")),
    ("*", "/containers/{}/checkpoints", NotYet("checkpoints")),
    ("*", "/containers/{}/checkpoints/{}", NotYet("checkpoints")),
    ("POST", "/session", NotYet(BUILDKIT)),
    ("POST", "/grpc", NotYet(BUILDKIT)),
    ("PUT", "/volumes/{}", Swarm),
    ("GET", "/plugins/{*}/json", NoSuch("plugin \"{}\" not found")),
    ("GET", "/plugins", Nothing),
    ("*", "/plugins", NotYet("plugins")),
    ("*", "/plugins/{*}", NotYet("plugins")),
    ("POST", "/swarm/init", NotYet("swarm mode")),
    ("POST", "/swarm/join", NotYet("swarm mode")),
    ("POST", "/swarm/leave", NoSwarm),
    ("*", "/swarm", Swarm),
    ("*", "/swarm/{*}", Swarm),
    ("*", "/nodes", Swarm),
    ("*", "/nodes/{*}", Swarm),
    ("*", "/services", Swarm),
    ("*", "/services/{*}", Swarm),
    ("*", "/tasks", Swarm),
    ("*", "/tasks/{*}", Swarm),
    ("*", "/secrets", Swarm),
    ("*", "/secrets/{*}", Swarm),
    ("*", "/configs", Swarm),
    ("*", "/configs/{*}", Swarm),
];

/// Answers whatever no handler took.
pub async fn answer(method: Method, uri: Uri) -> ApiResult<Response> {
    let path = uri.path();
    let found = ENDPOINTS.iter().find_map(|(wanted, template, missing)| {
        let any = *wanted == "*" || method.as_str() == *wanted;
        any.then(|| captured(template, path)).flatten().map(|name| (missing, name))
    });
    let unavailable = |text: &str| ApiError::new(proto::ErrorKind::Unavailable, text);
    Err(match found {
        Some((NotYet(what), _)) => {
            ApiError::not_implemented(format!("{what}: not supported by this version of Bulkhead ({method} {path})"))
        }
        Some((NoSuch(text), name)) => ApiError::not_found(text.replace("{}", name)),
        Some((Swarm, _)) => unavailable(
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
        ),
        Some((NoSwarm, _)) => unavailable("This node is not part of a swarm"),
        Some((Nothing, _)) => return Ok(Json(json!([])).into_response()),
        None => ApiError::not_found("page not found"),
    })
}

/// If the path has the template's form, the part that stands for its first placeholder (or nothing).
fn captured<'a>(template: &str, path: &'a str) -> Option<&'a str> {
    if let Some((before, after)) = template.split_once("{*}") {
        let name = path.strip_prefix(before)?.strip_suffix(after)?;
        return (!name.is_empty()).then_some(name);
    }
    let (mut wanted, mut given) = (template.split('/'), path.split('/'));
    let mut name = "";
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(name),
            (Some("{}"), Some(part)) if !part.is_empty() => name = if name.is_empty() { part } else { name },
            (Some(wanted), Some(given)) if wanted == given => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(method: Method, path: &'static str) -> (u16, String) {
        let error = answer(method, Uri::from_static(path)).await.unwrap_err();
        (error.http_status().as_u16(), error.message)
    }

    #[tokio::test]
    async fn clients_are_told_what_is_not_there() {
        let (status, message) = ask(Method::GET, "/containers/abc/checkpoints").await;
        assert_eq!(status, 501);
        assert!(message.contains("checkpoints") && message.contains("GET /containers/abc/checkpoints"), "{message}");
        assert_eq!(ask(Method::GET, "/plugins/a/b/json").await, (404, "plugin \"a/b\" not found".into()));
        assert_eq!(ask(Method::GET, "/services").await.0, 503);
        assert_eq!(ask(Method::POST, "/swarm/leave").await, (503, "This node is not part of a swarm".into()));
        assert_eq!(ask(Method::POST, "/swarm/init").await.0, 501);
        assert_eq!(answer(Method::GET, Uri::from_static("/plugins")).await.unwrap().status(), 200);
        for path in ["/", "/nope", "/containers//checkpoints", "/containers/a/b/checkpoints"] {
            assert_eq!(ask(Method::GET, path).await, (404, "page not found".into()), "{path}");
        }
    }
}
