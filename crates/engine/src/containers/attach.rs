//! `POST /containers/{id}/attach`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, Request, State};
use axum::response::Response;
use futures_util::stream;

use super::logs;
use crate::container::Container;
use crate::engine::Engine;
use crate::error::ApiResult;
use crate::output::Wanted;
use crate::query::Query;
use crate::streams::Attachment;
use crate::streams::hijack::{Connection, DEFAULT_DETACH_KEYS, Hijack, Input, SessionEnd, parse_detach_keys};
use crate::streams::mux::Framing;
use crate::version::ApiVersion;

/// Attaches a client to a container's first process. It works before the container is started: the client gets the
/// output of the run to come.
///
/// # Errors
/// 404; 400 for detach keys that are none.
pub async fn attach(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
    Extension(version): Extension<ApiVersion>,
    query: Query,
    mut request: Request,
) -> ApiResult<Response> {
    let container = engine.containers.find(&id)?;
    let stream = query.flag("stream");
    let wanted = Wanted { stdout: query.flag("stdout"), stderr: query.flag("stderr") };
    let input = input(&container, &query)?.filter(|_| stream);
    let framing = Framing::of_terminal(container.terminal);
    // Attached first, so that nothing is lost between the log's end and the stream's begin.
    let attachment = stream.then(|| container.streams.attach(wanted));
    let past = if query.flag("logs") { logs::whole(&container, wanted, framing).await? } else { Bytes::new() };
    container.emit(&engine.events, "attach", &[]);
    let client = Client { engine, container, framing, past: past.clone() };
    let hijack = Hijack::of(&mut request);
    let attachment = std::sync::Mutex::new(attachment);
    let taken = Arc::new(attachment);
    let plainly = Arc::clone(&taken);
    hijack.answer(
        framing.content_type(version),
        move |connection| {
            let attachment = crate::container::lock(&taken).take();
            client.carry(connection, attachment, input)
        },
        move || Ok(plain_body(past, crate::container::lock(&plainly).take(), framing)),
    )
}

/// What the client's input does: only an interactive container with a terminal knows detach keys.
fn input(container: &Container, query: &Query) -> ApiResult<Option<Input>> {
    let (open, once) = {
        let record = container.record();
        (record.config_flag("OpenStdin"), record.config_flag("StdinOnce"))
    };
    if !query.flag("stdin") || !open {
        return Ok(None);
    }
    let keys = parse_detach_keys(query.get("detachKeys").unwrap_or(DEFAULT_DETACH_KEYS))?;
    let detach_keys = if container.terminal { keys } else { Vec::new() };
    Ok(Some(Input { ends_stdin: once && !container.terminal, detach_keys }))
}

struct Client {
    engine: Arc<Engine>,
    container: Arc<Container>,
    framing: Framing,
    past: Bytes,
}

impl Client {
    async fn carry(self, mut connection: Connection, attachment: Option<Attachment>, input: Option<Input>) {
        if connection.write_all(&self.past).await.is_err() {
            return;
        }
        let Some(attachment) = attachment else { return };
        if connection.carry(attachment, self.framing, input).await == SessionEnd::Detached {
            self.container.emit(&self.engine.events, "detach", &[]);
        }
    }
}

/// The output as a plain response, for clients that did not ask for the connection.
fn plain_body(past: Bytes, attachment: Option<Attachment>, framing: Framing) -> Body {
    let first = (!past.is_empty()).then_some(past);
    Body::from_stream(stream::unfold((first, attachment), move |(mut first, mut attachment)| async move {
        if let Some(past) = first.take() {
            return Some((Ok::<_, Infallible>(past), (None, attachment)));
        }
        let chunk = attachment.as_mut()?.output.recv().await?;
        Some((Ok(framing.encode(&chunk)), (None, attachment)))
    }))
}
