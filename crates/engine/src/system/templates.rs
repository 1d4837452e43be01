//! `/bulkhead/templates`: the frozen utility VMs from which hyperv containers are forked.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use proto::control::TemplateSummary;
use serde_json::{Value, json};

use super::shim;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};

/// `GET /bulkhead/templates`.
pub(super) async fn list(State(engine): State<Arc<Engine>>) -> ApiResult<Json<Vec<TemplateSummary>>> {
    Ok(Json(all(&engine).await?))
}

/// `POST /bulkhead/templates`: boots and freezes the template that containers will be forked from, unless it is there.
pub(super) async fn create(State(engine): State<Arc<Engine>>) -> ApiResult<(StatusCode, Json<TemplateSummary>)> {
    Ok((StatusCode::CREATED, Json(shim::template(&engine, &["create"]).await?)))
}

/// `DELETE /bulkhead/templates/{id}`; the beginning of an id is enough.
pub(super) async fn remove(State(engine): State<Arc<Engine>>, Path(id): Path<String>) -> ApiResult<StatusCode> {
    let template = find(all(&engine).await?, &id)?;
    shim::template_unit(&engine, &["rm", template.id.as_str()]).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /bulkhead/templates/prune`: removes those that today's configuration would not use.
pub(super) async fn prune(State(engine): State<Arc<Engine>>) -> ApiResult<Json<Value>> {
    let before = all(&engine).await?;
    shim::template_unit(&engine, &["prune"]).await?;
    let after = all(&engine).await?;
    let gone: Vec<&TemplateSummary> =
        before.iter().filter(|template| after.iter().all(|kept| kept.id != template.id)).collect();
    Ok(Json(json!({
        "TemplatesDeleted": gone.iter().map(|template| template.id.as_str()).collect::<Vec<_>>(),
        "SpaceReclaimed": gone.iter().map(|template| template.disk_bytes).sum::<u64>(),
    })))
}

async fn all(engine: &Engine) -> ApiResult<Vec<TemplateSummary>> {
    shim::template(engine, &["ls"]).await
}

fn find(templates: Vec<TemplateSummary>, id: &str) -> ApiResult<TemplateSummary> {
    let fits = |template: &TemplateSummary| !id.is_empty() && template.id.as_str().starts_with(id);
    let mut found = templates.into_iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(template), None) => Ok(template),
        (None, _) => Err(ApiError::not_found(format!("No such template: {id}"))),
        (Some(_), Some(_)) => Err(ApiError::invalid(format!("multiple templates begin with {id}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::control::Accelerator;

    #[test]
    fn a_template_is_found_by_the_beginning_of_its_id() {
        let template = |digit: &str| TemplateSummary {
            id: digit.repeat(64).parse().unwrap(),
            created_at_ns: 0,
            accelerator: Accelerator::Tcg,
            kernel: "6.1".into(),
            memory_bytes: 1 << 30,
            vcpus: 1,
            disk_bytes: 1,
            boot_ms: 4000,
            current: true,
        };
        let templates = || vec![template("a"), template("b")];
        assert_eq!(find(templates(), "aaa").unwrap().id, template("a").id);
        assert_eq!(find(templates(), "c").unwrap_err().http_status(), 404);
        assert_eq!(find(templates(), "").unwrap_err().http_status(), 404);
        assert_eq!(find(vec![template("a"), template("a")], "a").unwrap_err().http_status(), 400);
    }
}
