//! `POST /commit`: an image from a container and what it has changed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use image::{CommitOptions, Reference};
use proto::files::FilesRequest;
use proto::{Digest, ErrorKind, Isolation};
use serde_json::{Value, json};

use super::files::{Operation, own_paths};
use crate::body;
use crate::container::{Container, Running};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::query::Query;

/// Makes the image. The container's processes stand still meanwhile, unless the client does not want that.
///
/// # Errors
/// 404 for an unknown container, 400 for a wrong name or change; what reading its files says.
pub async fn commit(
    State(engine): State<Arc<Engine>>,
    query: Query,
    request: Request,
) -> ApiResult<(StatusCode, Json<Value>)> {
    let id = query.get("container").ok_or_else(|| ApiError::invalid("bad parameter: 'container' cannot be empty"))?;
    let container = engine.containers.find(id)?;
    let given: Option<Value> = body::optional_json(request).await?;
    let options = CommitOptions {
        reference: reference(&query)?,
        config: config(&container, &given.unwrap_or_default()),
        changes: query.all("changes").filter(|change| !change.is_empty()).map(str::to_owned).collect(),
        author: query.get("author").unwrap_or_default().to_owned(),
        comment: query.get("comment").unwrap_or_default().to_owned(),
        created_by: created_by(&container),
        created: SystemTime::now(),
        container: (container.id.to_string(), container.record().config.clone()),
    };
    let pause = query.flag_or("pause", true);
    let (taken, live) = take(&engine, &container, pause, &options).await;
    let image = match taken {
        // It ended while it was being read, and has its files elsewhere now.
        Err(_) if live && has_ended(&container).await => take(&engine, &container, pause, &options).await.0?,
        taken => taken?,
    };
    let name = options.reference.as_ref().map(Reference::familiar).unwrap_or_default();
    let attributes = [("comment", options.comment), ("imageID", image.to_string()), ("imageRef", name)];
    container.emit(&engine.events, "commit", &attributes);
    Ok((StatusCode::CREATED, Json(json!({ "Id": image }))))
}

/// How long the end of a container may take that is no end yet.
const ENDING: Duration = Duration::from_secs(2);

/// Whether a container ends just now.
async fn has_ended(container: &Container) -> bool {
    let mut progress = container.progress();
    tokio::time::timeout(ENDING, progress.wait_for(|progress| !progress.running)).await.is_ok()
}

/// Makes the image. Also tells whether the container ran when that began.
async fn take(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    pause: bool,
    options: &CommitOptions,
) -> (ApiResult<Digest>, bool) {
    let own = match own_paths(engine, container) {
        Ok(own) => own,
        Err(error) => return (Err(error), false),
    };
    let is_guest = container.isolation == Isolation::Hyperv;
    let running = container.running().ok().filter(|_| container.record().phase.is_running());
    let live = running.is_some();
    let paused = match running.filter(|_| pause && !is_guest && !container.record().phase.is_paused()) {
        Some(running) => Paused::pause(running).await,
        None => Ok(None),
    };
    let paused = match paused {
        Ok(paused) => paused,
        Err(error) => return (Err(error), live),
    };
    let wanted = FilesRequest::Layer { own, freeze: pause && is_guest };
    let image = make(engine, container, wanted, options.clone()).await;
    if let Some(paused) = paused {
        paused.resume().await;
    }
    (image, live)
}

async fn make(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    wanted: FilesRequest,
    options: CommitOptions,
) -> ApiResult<Digest> {
    let operation = Operation::begin(engine, container, wanted).await?;
    let images = Arc::clone(&engine.images);
    let base = container.record().image_id.clone();
    let made = tokio::task::spawn_blocking(move || {
        let base = images
            .image(&base)
            .ok_or_else(|| ApiError::not_found(format!("the container's image {base} was removed")))?;
        let receiver = operation.receiver()?;
        let image = images.commit(&base, receiver, &options);
        let image = image.map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
        operation.finish()?;
        Ok(image)
    });
    made.await?
}

/// A process container whose processes stand still.
struct Paused(Running);

impl Paused {
    /// None when the container has ended meanwhile: nothing of it moves then.
    async fn pause(running: Running) -> ApiResult<Option<Self>> {
        match running.task.pause().await {
            Ok(()) => Ok(Some(Self(running))),
            Err(status) if matches!(status.kind, ErrorKind::FailedPrecondition | ErrorKind::NotFound) => {
                tracing::debug!(error = %status, "a container ends while it is committed");
                Ok(None)
            }
            Err(status) => Err(ApiError::from(status).context("cannot pause the container")),
        }
    }

    async fn resume(self) {
        // It may have been killed meanwhile, or unpaused by a client.
        if let Err(error) = self.0.task.resume().await {
            tracing::debug!(%error, "cannot let a committed container go on");
        }
    }
}

/// The name made of the parameters `repo` and `tag`.
fn reference(query: &Query) -> ApiResult<Option<Reference>> {
    let Some(repository) = query.get("repo") else { return Ok(None) };
    let failed = |error: image::InvalidReference| ApiError::new(error.kind(), chain(&error));
    let reference: Reference = repository.parse().map_err(failed)?;
    query.get("tag").map_or(Ok(reference.clone()), |tag| reference.with_tag(tag)).map(Some).map_err(failed)
}

/// The container's configuration, with what the client gives instead.
fn config(container: &Container, given: &Value) -> Value {
    let mut config = container.record().config.clone();
    if let (Some(config), Some(given)) = (config.as_object_mut(), given.as_object()) {
        for (name, value) in given.iter().filter(|(_, value)| !is_empty(value)) {
            config.insert(name.clone(), value.clone());
        }
    }
    config
}

/// What Go's clients send for a field that is not set.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
    }
}

fn created_by(container: &Container) -> String {
    container.record().command().join(" ")
}
