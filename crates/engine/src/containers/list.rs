//! `GET /containers/json`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use proto::{Digest, Isolation};
use serde_json::{Value, json};

use super::{links, network_view, size, view};
use crate::clock::Timestamp;
use crate::container::Container;
use crate::container::mount_point::MountPoint;
use crate::container::record::{Phase, Record};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::filters::Filters;
use crate::network::endpoint::PublishedPort;
use crate::query::Query;

/// The filters that are known. Source: moby `daemon/list.go`.
const FILTERS: &[&str] = &[
    "ancestor",
    "before",
    "exited",
    "id",
    "isolation",
    "label",
    "name",
    "status",
    "health",
    "since",
    "volume",
    "network",
    "is-task",
    "publish",
    "expose",
];
const STATUSES: &[&str] = &["created", "running", "paused", "restarting", "removing", "exited", "dead"];

const HEALTH: &[&str] = &["none", "starting", "healthy", "unhealthy"];

/// Lists containers, the newest first.
///
/// # Errors
/// 400 for a filter that is not known or names what is not there.
pub async fn list(State(engine): State<Arc<Engine>>, query: Query) -> ApiResult<Json<Value>> {
    let limit = query.number::<i64>("limit")?.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0);
    let filters = query.filters()?;
    let choice = Choice::read(&engine, &filters, query.flag("all") || limit.is_some())?;
    let all = engine.containers.all();
    let chosen = all.iter().filter(|container| !container.is_abandoned() && choice.has(container));
    let chosen: Vec<_> = chosen.take(limit.unwrap_or(usize::MAX)).collect();
    let mut shown = Vec::with_capacity(chosen.len());
    for container in chosen {
        let mut line = show(&engine, &all, container)?;
        if query.flag("size") {
            let writable = size::writable_bytes(container).await;
            line["SizeRw"] = json!(writable);
            line["SizeRootFs"] = json!(writable + size::image_bytes(&engine, container));
        }
        shown.push(line);
    }
    Ok(Json(Value::Array(shown)))
}

/// All containers with the room that they take. When: in a thread that may wait.
///
/// # Errors
/// A configuration cannot be read.
pub fn with_sizes(engine: &Engine) -> ApiResult<Vec<Value>> {
    let all = engine.containers.all();
    let describe = |container: &Arc<Container>| {
        let mut line = show(engine, &all, container)?;
        let writable = size::writable_bytes_now(container);
        line["SizeRw"] = json!(writable);
        line["SizeRootFs"] = json!(writable + size::image_bytes(engine, container));
        Ok(line)
    };
    all.iter().map(describe).collect()
}

fn show(engine: &Engine, all: &[Arc<Container>], container: &Container) -> ApiResult<Value> {
    let record = container.record().clone();
    let (config, host) = (container.config()?, container.host()?);
    let names = std::iter::once(format!("/{}", record.name)).chain(links::names_of(all, &record.id));
    let image = if names_image(engine, &record) { record.image.clone() } else { record.image_id.to_string() };
    Ok(json!({
        "Id": record.id,
        "Names": names.collect::<Vec<_>>(),
        "Image": image,
        "ImageID": record.image_id,
        "Command": command_text(&record.command()),
        "Created": record.created.seconds(),
        "Ports": network_view::ports(&config, &record.network),
        "Labels": record.config["Labels"].as_object().cloned().unwrap_or_default(),
        "State": record.phase.word(),
        "Status": view::status_text(&record),
        "HostConfig": {
            "NetworkMode": record.host_text("NetworkMode"),
            "Isolation": record.isolation,
            "Annotations": host.annotations.unwrap_or_default(),
        },
        "NetworkSettings": { "Networks": network_view::networks(&record) },
        "Mounts": record.mounts.iter().map(MountPoint::view).collect::<Vec<_>>(),
        "Isolation": record.isolation,
    }))
}

/// A volume by its name, or a mount by its place. Source: moby `daemon/list.go`, `includeContainerInList`.
fn has_mount(record: &Record, wanted: &str) -> bool {
    record.mounts.iter().any(|point| point.title() == wanted || point.destination == std::path::Path::new(wanted))
}

/// The name that the client used still leads to the image that the container was made from.
fn names_image(engine: &Engine, record: &Record) -> bool {
    engine.images.resolve(&record.image).is_ok_and(|image| image.id == record.image_id)
}

/// The command on one line; arguments with spaces in quotes, as Docker shows them.
fn command_text(words: &[String]) -> String {
    let quoted = |word: &String| if word.contains(' ') { format!("'{word}'") } else { word.clone() };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// Which containers a client wants.
struct Choice<'a> {
    filters: &'a Filters,
    /// Not only those that run.
    all: bool,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    exit_codes: Vec<u32>,
    ancestors: Vec<Digest>,
}

impl<'a> Choice<'a> {
    fn read(engine: &Engine, filters: &'a Filters, all: bool) -> ApiResult<Self> {
        filters.only(FILTERS)?;
        if let Some(word) = filters.values("status").find(|word| !STATUSES.contains(word)) {
            return Err(ApiError::invalid(format!("invalid filter 'status={word}'")));
        }
        if let Some(word) =
            filters.values("isolation").find(|word| Isolation::choose(word, Isolation::Process).is_err())
        {
            return Err(ApiError::invalid(format!("invalid filter 'isolation={word}'")));
        }
        if let Some(word) = filters.values("health").find(|word| !HEALTH.contains(word)) {
            return Err(ApiError::invalid(format!("Unrecognised filter value for health: {word}")));
        }
        let code = |text: &str| text.parse().map_err(|_| ApiError::invalid(format!("invalid filter 'exited={text}'")));
        let created = |key: &str| -> ApiResult<Option<Timestamp>> {
            let container =
                filters.values(key).next().map(|reference| engine.containers.find(reference)).transpose()?;
            Ok(container.map(|container| container.record().created))
        };
        Ok(Self {
            filters,
            // Asking for a state or a code is asking for those that do not run, too.
            all: all || filters.has("status") || filters.has("exited"),
            before: created("before")?,
            since: created("since")?,
            exit_codes: filters.values("exited").map(code).collect::<ApiResult<_>>()?,
            ancestors: ancestors(engine, filters)?,
        })
    }

    fn has(&self, container: &Container) -> bool {
        let record = container.record();
        let filters = self.filters;
        let running = matches!(record.phase, Phase::Running { .. } | Phase::Restarting(_));
        (self.all || running)
            && self.before.is_none_or(|before| record.created < before)
            && self.since.is_none_or(|since| record.created > since)
            && (!filters.has("exited")
                || matches!(record.phase, Phase::Exited(_)) && self.exit_codes.contains(&record.phase.code()))
            && (!filters.has("ancestor") || self.ancestors.contains(&record.image_id))
            && fits(filters, &record)
    }
}

fn fits(filters: &Filters, record: &Record) -> bool {
    let isolation = |word: &str| Isolation::choose(word, record.isolation) == Ok(record.isolation);
    let name = |wanted: &str| fits_name(&record.name, wanted);
    filters.fits("id", |id| record.id.as_str().starts_with(id))
        && filters.fits("name", name)
        && filters.fits_exactly("status", record.phase.word())
        && filters.fits("isolation", isolation)
        && filters.fits_exactly("health", health_word(record))
        && filters.fits("is-task", |word| matches!(word, "0" | "false" | "False"))
        && filters.fits("network", |network| is_on(record, network))
        && filters.fits("volume", |wanted| has_mount(record, wanted))
        && filters.fits("publish", |port| publishes(record, port))
        && filters.fits("expose", |port| exposes(record, port))
        && filters.fits_labels("label", |label| record.label(label))
}

/// Docker's word: of a container without a check `none`.
fn health_word(record: &Record) -> &'static str {
    record.health.as_ref().map_or("none", |health| health.status.word())
}

fn is_on(record: &Record, wanted: &str) -> bool {
    let by_id = |id: &str| !id.is_empty() && !wanted.is_empty() && id.starts_with(wanted);
    record.network.all.iter().any(|(name, endpoint)| name == wanted || by_id(&endpoint.network_id))
}

/// `80`, `80/udp`, `8000-8010/tcp`: a port of the host or of the container.
fn publishes(record: &Record, wanted: &str) -> bool {
    let (ports, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else { return false };
    let within = |port: u16| (first..=last).contains(&port);
    let fits = |port: &PublishedPort| within(port.host.port()) || within(port.container_port);
    record.network.ports.iter().any(|port| port.protocol.as_str() == protocol && fits(port))
}

fn exposes(record: &Record, wanted: &str) -> bool {
    let wanted = if wanted.contains('/') { wanted.to_owned() } else { format!("{wanted}/tcp") };
    record.config["ExposedPorts"].get(&wanted).is_some()
}

/// A part of the name; `^` and `$` hold it to the name's begin and end, where Docker also sees a slash.
fn fits_name(name: &str, wanted: &str) -> bool {
    let (wanted, at_begin) = wanted.strip_prefix('^').map_or((wanted, false), |rest| (rest, true));
    let (wanted, at_end) = wanted.strip_suffix('$').map_or((wanted, false), |rest| (rest, true));
    let wanted = wanted.strip_prefix('/').unwrap_or(wanted);
    match (at_begin, at_end) {
        (true, true) => name == wanted,
        (true, false) => name.starts_with(wanted),
        (false, true) => name.ends_with(wanted),
        (false, false) => name.contains(wanted),
    }
}

/// The images that are meant, and every image that has one of them below it.
fn ancestors(engine: &Engine, filters: &Filters) -> ApiResult<Vec<Digest>> {
    let mut ids = Vec::new();
    for name in filters.values("ancestor") {
        let image = match engine.images.resolve(name) {
            Ok(image) => image,
            Err(error) if error.kind() == proto::ErrorKind::NotFound => continue,
            Err(error) => return Err(ApiError::new(error.kind(), chain(&error))),
        };
        let is_below = |other: &image::Image| other.diff_ids.starts_with(&image.diff_ids);
        let all = engine.images.list().into_iter().filter_map(|summary| engine.images.image(&summary.id));
        ids.extend(all.filter(is_below).map(|image| image.id));
        ids.push(image.id.clone());
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::record::tests::record;

    #[test]
    fn names_fit_by_part_and_by_anchor() {
        for (wanted, expected) in [
            ("eb", true),
            ("^we", true),
            ("^/web$", true),
            ("^eb", false),
            ("we$", false),
            ("/web", true),
            ("x", false),
        ] {
            assert_eq!(fits_name("web", wanted), expected, "{wanted}");
        }
    }

    #[test]
    fn filters_choose_by_what_the_record_says() {
        let record = record("abc1", "web");
        for (filters, expected) in [
            (r#"{"isolation":["process"]}"#, true),
            (r#"{"isolation":["hyperv"]}"#, false),
            (r#"{"status":["created"]}"#, true),
            (r#"{"id":["abc"]}"#, true),
            (r#"{"label":["a=b"]}"#, true),
            (r#"{"label":["a=c"]}"#, false),
            (r#"{"volume":["v"]}"#, false),
            (r#"{"network":["none"]}"#, false),
            (r#"{"publish":["80"]}"#, false),
        ] {
            assert_eq!(fits(&Filters::parse(filters).unwrap(), &record), expected, "{filters}");
        }
    }

    #[test]
    fn commands_are_quoted_where_needed() {
        assert_eq!(command_text(&["sh".into(), "-c".into(), "echo a".into()]), "sh -c 'echo a'");
    }
}
