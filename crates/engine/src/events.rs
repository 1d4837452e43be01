//! What happened and happens in this engine: kept for `since`, sent to whoever listens.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::clock::Timestamp;
use crate::error::{ApiError, ApiResult};
use crate::filters::Filters;
use crate::query::Query;

/// How many past events are kept, as in dockerd.
const KEPT: usize = 256;
/// How far a listener may fall behind before it loses events.
const PENDING: usize = 1024;

/// Something that happened to something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `container`, `image`, `daemon`, ...
    pub kind: &'static str,
    /// `create`, `start`, `die`, `exec_create: sh`, ...
    pub action: String,
    /// Id of what it happened to.
    pub actor: String,
    /// Name, image, labels, and what belongs to the action, such as `exitCode`.
    pub attributes: BTreeMap<String, String>,
    /// When.
    pub at: Timestamp,
}

impl Event {
    /// The JSON line on the wire, with the older keys for containers and images.
    fn to_line(&self) -> Bytes {
        let mut line = json!({
            "Type": self.kind,
            "Action": self.action,
            "Actor": { "ID": self.actor, "Attributes": self.attributes },
            "scope": "local",
            "time": self.at.seconds(),
            "timeNano": self.at.0,
        });
        if matches!(self.kind, "container" | "image") {
            line["status"] = json!(self.action);
            line["id"] = json!(self.actor);
            if let Some(image) = self.attributes.get("image").filter(|_| self.kind == "container") {
                line["from"] = json!(image);
            }
        }
        Bytes::from(line.to_string() + "\n")
    }

    /// Source: moby `daemon/events/filter.go`.
    fn fits(&self, filters: &Filters) -> bool {
        let attribute = |name: &str| self.attributes.get(name).map(String::as_str);
        let is = |kind: &str, wanted: &str| {
            self.kind == kind
                && (self.actor == wanted || attribute("name") == Some(wanted) || is_id_prefix(&self.actor, wanted))
        };
        let image = |wanted: &str| {
            let name = if self.kind == "image" { attribute("name") } else { attribute("image") };
            self.actor == wanted || name.is_some_and(|name| name == wanted || without_tag(name) == wanted)
        };
        filters.fits("event", |wanted| self.action == wanted || self.action.split(':').next() == Some(wanted))
            && filters.fits("type", |wanted| self.kind == wanted)
            && filters.fits("scope", |wanted| wanted == "local")
            && filters.fits("container", |wanted| is("container", wanted))
            && filters.fits("network", |wanted| is("network", wanted))
            && filters.fits("volume", |wanted| is("volume", wanted))
            && filters.fits("daemon", |wanted| is("daemon", wanted))
            && filters.fits("image", image)
            && filters.fits_labels("label", attribute)
    }
}

fn is_id_prefix(id: &str, prefix: &str) -> bool {
    prefix.len() >= 3 && prefix.bytes().all(|b| b.is_ascii_hexdigit()) && id.starts_with(prefix)
}

fn without_tag(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

/// Takes events and hands them on. Shape: every listener gets every event in the order of [`EventBus::publish`]; one
/// that falls [`PENDING`] behind loses the oldest.
pub struct EventBus {
    kept: Mutex<VecDeque<Arc<Event>>>,
    live: broadcast::Sender<Arc<Event>>,
}

impl Default for EventBus {
    fn default() -> Self {
        Self { kept: Mutex::default(), live: broadcast::channel(PENDING).0 }
    }
}

impl EventBus {
    /// Tells everybody, with the present time.
    pub fn publish(
        &self,
        kind: &'static str,
        action: impl Into<String>,
        actor: &str,
        attributes: BTreeMap<String, String>,
    ) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let event = Event { kind, action: action.into(), actor: actor.to_owned(), attributes, at: Timestamp::now() };
        tracing::debug!(kind, action = %event.action, actor, "event");
        let event = Arc::new(event);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&event));
        // No listener is no error.
        let _ = self.live.send(event);
    }

    /// Past events and those to come, without a gap and without an overlap.
    fn subscribe(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.live.subscribe())
    }
}

/// Answers `GET /events`. The headers are sent at once.
///
/// # Errors
/// 400 when a parameter cannot be read.
pub fn stream(bus: &EventBus, query: &Query) -> ApiResult<Response> {
    let time = |name: &str| -> ApiResult<Option<Timestamp>> {
        let parse = |text: &str| {
            Timestamp::parse_query(text).ok_or_else(|| ApiError::invalid(format!("invalid time {text:?} for {name}")))
        };
        query.get(name).map(parse).transpose()
    };
    let (since, until) = (time("since")?, time("until")?);
    if since.zip(until).is_some_and(|(since, until)| since > until) {
        return Err(ApiError::invalid("`since` time cannot be after `until` time"));
    }
    let listener = Listener { filters: query.filters()?, until };
    let lines = listener.lines(bus, since);
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response())
}

struct Listener {
    filters: Filters,
    until: Option<Timestamp>,
}

type Line = Result<Bytes, std::convert::Infallible>;

impl Listener {
    fn lines(self, bus: &EventBus, since: Option<Timestamp>) -> impl futures_util::Stream<Item = Line> + use<> {
        let (past, live) = bus.subscribe();
        // Whoever asks for a time, be it its end alone, gets the past first.
        let begin = since.or(self.until.map(|_| Timestamp(0)));
        let past: VecDeque<_> = past
            .into_iter()
            .filter(|event| begin.is_some_and(|begin| event.at >= begin) && self.wants(event))
            .collect();
        futures_util::stream::unfold((self, past, live), |(listener, mut past, mut live)| async move {
            if let Some(event) = past.pop_front() {
                return Some((Ok(event.to_line()), (listener, past, live)));
            }
            let event = listener.next(&mut live).await?;
            Some((Ok(event.to_line()), (listener, past, live)))
        })
    }

    fn wants(&self, event: &Event) -> bool {
        self.until.is_none_or(|until| event.at <= until) && event.fits(&self.filters)
    }

    async fn next(&self, live: &mut broadcast::Receiver<Arc<Event>>) -> Option<Arc<Event>> {
        let end = self.until.map(|until| until.0.saturating_sub(Timestamp::now().0).max(0));
        let deadline = end.map(|ns| tokio::time::Instant::now() + std::time::Duration::from_nanos(ns.unsigned_abs()));
        loop {
            let received = match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, live.recv()).await.ok()?,
                None => live.recv().await,
            };
            match received {
                Ok(event) if self.wants(&event) => return Some(event),
                Ok(_) => {}
                Err(RecvError::Lagged(lost)) => tracing::warn!(lost, "a listener of /events is too slow"),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(action: &str) -> Event {
        let attributes = [("name", "web"), ("image", "busybox:latest"), ("app", "shop")];
        Event {
            kind: "container",
            action: action.into(),
            actor: "abcdef".repeat(10) + "abcd",
            attributes: attributes.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            at: Timestamp(1_500_000_000),
        }
    }

    #[test]
    fn filters_of_docker_events_fit() {
        let cases = [
            (r#"{"event":["start"]}"#, true),
            (r#"{"event":["die"]}"#, false),
            (r#"{"type":["image"]}"#, false),
            (r#"{"container":["web"]}"#, true),
            (r#"{"container":["abcdef"]}"#, true),
            (r#"{"container":["ab"]}"#, false),
            (r#"{"image":["busybox"]}"#, true),
            (r#"{"label":["app=shop"]}"#, true),
            (r#"{"label":["app=other"]}"#, false),
        ];
        for (filters, fits) in cases {
            assert_eq!(event("start").fits(&Filters::parse(filters).unwrap()), fits, "{filters}");
        }
        assert!(event("exec_create: sh -c x").fits(&Filters::parse(r#"{"event":["exec_create"]}"#).unwrap()));
    }

    #[test]
    fn a_line_has_old_and_new_keys() {
        let line: serde_json::Value = serde_json::from_slice(&event("die").to_line()).unwrap();
        assert_eq!((&line["status"], &line["Action"]), (&json!("die"), &json!("die")));
        assert_eq!(
            (&line["from"], &line["time"], &line["timeNano"]),
            (&json!("busybox:latest"), &json!(1), &json!(1_500_000_000))
        );
    }

    #[tokio::test]
    async fn a_listener_sees_the_past_and_then_the_present() {
        let bus = EventBus::default();
        for n in 0..KEPT + 5 {
            bus.publish("container", format!("a{n}"), "id", BTreeMap::new());
        }
        let (past, mut live) = bus.subscribe();
        assert_eq!((past.len(), past[0].action.as_str()), (KEPT, "a5"));
        bus.publish("container", "now", "id", BTreeMap::new());
        assert_eq!(live.recv().await.unwrap().action, "now");
    }
}
