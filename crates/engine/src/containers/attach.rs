//! `POST /containers/{id}/attach`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Extension, Path, Request, State};
use axum::response::Response;
use futures_util::{StreamExt, stream};

use super::logs;
use crate::container::Container;
use crate::engine::Engine;
use crate::error::ApiResult;
use crate::output::Wanted;
use crate::query::Query;
use crate::streams::Attachment;
use crate::streams::hijack::{Connection, Hijack, Input, SessionEnd};
use crate::streams::input::{DEFAULT_DETACH_KEYS, parse_detach_keys};
use crate::streams::mux::Framing;
use crate::streams::plain;
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
    let asked = Asked::read(&container, &query, false)?;
    let framing = Framing::of_terminal(container.terminal);
    let (client, attachment, input) = Client::attach(engine, container, asked, framing).await?;
    let content_type = framing.content_type(version);
    match Hijack::of(&mut request) {
        Some(hijack) => Ok(hijack.answer(content_type, move |connection| client.carry(connection, attachment, input))),
        None => {
            let past = stream::iter(Some(client.past).filter(|past| !past.is_empty()).map(Ok));
            let present =
                stream::iter(attachment).flat_map(move |attachment| plain::chunks(attachment, framing).boxed());
            Ok(plain::answer(content_type, past.chain(present)))
        }
    }
}

/// What a client wants of a container's streams.
pub struct Asked {
    wanted: Wanted,
    /// What comes from now on.
    stream: bool,
    /// What is there already.
    logs: bool,
    input: Option<Input>,
}

impl Asked {
    /// Reads the parameters. `all`: every stream is wanted, whether the client names it or not.
    ///
    /// # Errors
    /// 400 for detach keys that are none.
    pub fn read(container: &Container, query: &Query, all: bool) -> ApiResult<Self> {
        let stream = query.flag("stream");
        let named = |name: &str| all || query.flag(name);
        let input = if named("stdin") && stream { input(container, query)? } else { None };
        let wanted = Wanted { stdout: named("stdout"), stderr: named("stderr") };
        Ok(Self { wanted, stream, logs: query.flag("logs"), input })
    }
}

/// What the client's input does: only an interactive container with a terminal knows detach keys.
fn input(container: &Container, query: &Query) -> ApiResult<Option<Input>> {
    let (open, once) = {
        let record = container.record();
        (record.config_flag("OpenStdin"), record.config_flag("StdinOnce"))
    };
    if !open {
        return Ok(None);
    }
    let keys = parse_detach_keys(query.get("detachKeys").unwrap_or(DEFAULT_DETACH_KEYS))?;
    let detach_keys = if container.terminal { keys } else { Vec::new() };
    Ok(Some(Input { ends_stdin: once && !container.terminal, detach_keys }))
}

/// A client that is attached.
pub struct Client {
    engine: Arc<Engine>,
    container: Arc<Container>,
    framing: Framing,
    past: Bytes,
}

impl Client {
    /// Attaches: from now on the client misses nothing.
    ///
    /// # Errors
    /// As [`logs::whole`], when the client wants the log.
    pub async fn attach(
        engine: Arc<Engine>,
        container: Arc<Container>,
        asked: Asked,
        framing: Framing,
    ) -> ApiResult<(Self, Option<Attachment>, Option<Input>)> {
        // Attached first, so that nothing is lost between the log's end and the stream's begin.
        let attachment = asked.stream.then(|| container.streams.attach(asked.wanted));
        let past = if asked.logs { logs::whole(&container, asked.wanted, framing).await? } else { Bytes::new() };
        container.emit(&engine.events, "attach", &[]);
        Ok((Self { engine, container, framing, past }, attachment, asked.input))
    }

    /// What the client is sent of the log.
    pub fn past(&self) -> Bytes {
        self.past.clone()
    }

    /// Tells everybody that it has detached.
    pub fn tell_detached(&self) {
        self.container.emit(&self.engine.events, "detach", &[]);
    }

    async fn carry(self, mut connection: Connection, attachment: Option<Attachment>, input: Option<Input>) {
        if connection.write_all(&self.past).await.is_err() {
            return;
        }
        let Some(attachment) = attachment else { return };
        if connection.carry(attachment, self.framing, input).await == SessionEnd::Detached {
            self.tell_detached();
        }
    }
}
