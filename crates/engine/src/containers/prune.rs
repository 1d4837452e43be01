//! `POST /containers/prune`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::{remove, size};
use crate::clock::Timestamp;
use crate::container::Container;
use crate::container::record::Phase;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::filters::Filters;
use crate::query::Query;

/// Removes every container that does not run.
///
/// # Errors
/// 400 for a filter that is not known.
pub async fn prune(State(engine): State<Arc<Engine>>, query: Query) -> ApiResult<Json<Value>> {
    let filters = query.filters()?;
    filters.only(&["until", "label", "label!"])?;
    let until = filters.values("until").next().map(parse_until).transpose()?;
    let (mut deleted, mut reclaimed) = (Vec::new(), 0);
    for container in engine.containers.all() {
        let _lifecycle = container.lifecycle.lock().await;
        if !may_go(&container, &filters, until) {
            continue;
        }
        let bytes = size::writable_bytes(&container).await;
        match remove::discard(&engine, &container).await {
            Ok(()) => {
                deleted.push(container.id.clone());
                reclaimed += bytes;
            }
            Err(error) => tracing::warn!(id = %container.id, "cannot prune a container: {error}"),
        }
    }
    engine.events.publish("container", "prune", "", [("reclaimed".to_owned(), reclaimed.to_string())].into());
    Ok(Json(json!({ "ContainersDeleted": deleted, "SpaceReclaimed": reclaimed })))
}

fn may_go(container: &Container, filters: &Filters, until: Option<Timestamp>) -> bool {
    let record = container.record();
    let idle = matches!(record.phase, Phase::Created { .. } | Phase::Exited(_));
    let removed = container.progress().borrow().removed;
    let excluded = filters.has("label!") && filters.fits_labels("label!", |name| record.label(name));
    idle && !removed
        && until.is_none_or(|until| record.created <= until)
        && filters.fits_labels("label", |name| record.label(name))
        && !excluded
}

/// A time, or a duration before now such as `24h`.
fn parse_until(text: &str) -> ApiResult<Timestamp> {
    let ago = parse_duration(text).map(|ns| Timestamp(Timestamp::now().0.saturating_sub(ns)));
    ago.or_else(|| Timestamp::parse_query(text))
        .ok_or_else(|| ApiError::invalid(format!("invalid filter 'until={text}'")))
}

/// Nanoseconds of Go's duration form, such as `1h30m`.
fn parse_duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0_i64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let nanos = match &rest[..unit] {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(nanos)?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        assert_eq!(parse_duration("1h30m"), Some(5_400_000_000_000));
        assert_eq!(parse_duration("250ms"), Some(250_000_000));
        for bad in ["", "1", "h", "1d", "1h2"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        assert!(parse_until("x").is_err());
        assert_eq!(parse_until("12").unwrap(), Timestamp(12_000_000_000));
    }
}
