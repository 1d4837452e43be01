//! `GET /containers/{id}/logs`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::watch;

use crate::clock::Timestamp;
use crate::container::Container;
use crate::container::record::Phase;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::log::{Entry, Log, LogPosition, LogReader, Selection};
use crate::output::{Chunk, Source, Wanted};
use crate::query::Query;
use crate::streams::mux::Framing;
use crate::version::ApiVersion;

/// Sends what a container has written, and what it goes on to write.
///
/// # Errors
/// 404; 400 for a parameter that cannot be read; 501 when its log driver keeps nothing.
pub async fn logs(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
    Extension(version): Extension<ApiVersion>,
    query: Query,
) -> ApiResult<Response> {
    let container = engine.containers.find(&id)?;
    let selection = selection(&query)?;
    let log = log_of(&container)?;
    let framing = Framing::of_terminal(container.terminal);
    let follow = query.flag("follow") && container.record().phase.is_running();
    if !follow {
        hear_first_words(&container, &log).await;
    }
    let position = log.watch();
    let reader = open(&log, selection).await?;
    let format = Format { framing, timestamps: query.flag("timestamps"), whole: [true; 2] };
    let sender = LogSender { position, reader: Some(reader), follow, format };
    let body = Body::from_stream(stream::unfold(sender, LogSender::next));
    Ok(([(header::CONTENT_TYPE, framing.content_type(version))], body).into_response())
}

/// How long a command has to say something before its log is taken for what there is.
const FIRST_WORDS: Duration = Duration::from_millis(200);

/// Clients start a short command and ask for its log at once; dockerd's start takes so long that they find it there. So
/// somebody who asks right after a start waits, a short time, for the end.
async fn hear_first_words(container: &Container, log: &Log) {
    let Phase::Running { started_at, .. } = container.record().phase else { return };
    if let Some(left) = FIRST_WORDS.checked_sub(started_at.elapsed()) {
        // Its log's writer leaves when the container has ended.
        let _ = tokio::time::timeout(left, log.watch().wait_for(|position| position.idle)).await;
    }
}

/// The whole log as it is sent to a client that attaches.
///
/// # Errors
/// As [`logs`].
pub async fn whole(container: &Container, wanted: Wanted, framing: Framing) -> ApiResult<Bytes> {
    let log = log_of(container)?;
    let mut reader = open(&log, Selection { wanted, ..Selection::default() }).await?;
    let mut format = Format { framing, timestamps: false, whole: [true; 2] };
    let mut all = Vec::new();
    loop {
        let (back, batch) = read(reader).await.map_err(|error| ApiError::caused("cannot read the log", &error))?;
        reader = back;
        if batch.is_empty() {
            return Ok(all.into());
        }
        all.extend(format.write(&batch));
    }
}

fn log_of(container: &Container) -> ApiResult<Arc<Log>> {
    container.log.clone().ok_or_else(|| ApiError::not_implemented("configured logging driver does not support reading"))
}

fn selection(query: &Query) -> ApiResult<Selection> {
    let wanted = Wanted { stdout: query.flag("stdout"), stderr: query.flag("stderr") };
    if !wanted.stdout && !wanted.stderr {
        return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
    }
    let time = |name: &str| -> ApiResult<Option<Timestamp>> {
        let parse = |text: &str| {
            Timestamp::parse_query(text).ok_or_else(|| ApiError::invalid(format!("invalid value for {name:?}: {text}")))
        };
        query.get(name).map(parse).transpose()
    };
    // Zero means no bound to clients that always send the parameter.
    let bound = |time: Option<Timestamp>| time.filter(|time| time.0 != 0);
    let tail = query.get("tail").filter(|text| *text != "all").and_then(|text| text.parse().ok());
    Ok(Selection { wanted, since: bound(time("since")?), until: bound(time("until")?), tail })
}

async fn open(log: &Arc<Log>, selection: Selection) -> ApiResult<LogReader> {
    let log = Arc::clone(log);
    let opened = tokio::task::spawn_blocking(move || LogReader::open(log, selection)).await?;
    opened.map_err(|error| ApiError::caused("cannot read the log", &error))
}

async fn read(mut reader: LogReader) -> io::Result<(LogReader, Vec<Entry>)> {
    tokio::task::spawn_blocking(move || {
        let batch = reader.next_batch()?;
        Ok((reader, batch))
    })
    .await
    .map_err(io::Error::other)?
}

/// How entries are written to a client.
struct Format {
    framing: Framing,
    timestamps: bool,
    /// By source: the last entry ended its line.
    whole: [bool; 2],
}

impl Format {
    fn write(&mut self, entries: &[Entry]) -> Bytes {
        let mut bytes = Vec::new();
        for entry in entries {
            let whole = &mut self.whole[usize::from(entry.source == Source::Stderr)];
            let mut text = String::new();
            // A long line is several entries, and one line to the client.
            if self.timestamps && std::mem::replace(whole, entry.is_whole()) {
                text = entry.at.to_rfc3339_fixed() + " ";
            }
            text.push_str(&entry.text);
            let chunk = Chunk { source: entry.source, bytes: text.into() };
            bytes.extend_from_slice(&self.framing.encode(&chunk));
        }
        bytes.into()
    }
}

/// Sends a log batch by batch.
struct LogSender {
    position: watch::Receiver<LogPosition>,
    /// Absent when everything was sent.
    reader: Option<LogReader>,
    follow: bool,
    format: Format,
}

impl LogSender {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        loop {
            let seen = *self.position.borrow_and_update();
            let (reader, batch) = match read(self.reader.take()?).await {
                Ok(read) => read,
                Err(error) => {
                    tracing::warn!(%error, "cannot read a container's log");
                    return Some((Err(error), self));
                }
            };
            if !batch.is_empty() {
                self.reader = Some(reader);
                let bytes = self.format.write(&batch);
                return Some((Ok(bytes), self));
            }
            // What was written before the writer left has been read: it is idle since before this read.
            if !self.follow || seen.idle || reader.is_done() || self.position.changed().await.is_err() {
                return None;
            }
            self.reader = Some(reader);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str, source: Source) -> Entry {
        Entry { text: text.into(), source, at: Timestamp(1_000_000_000) }
    }

    #[test]
    fn a_line_in_pieces_has_one_timestamp() {
        let mut format = Format { framing: Framing::Raw, timestamps: true, whole: [true; 2] };
        let entries = [entry("ab", Source::Stdout), entry("x\n", Source::Stderr), entry("c\n", Source::Stdout)];
        let time = "1970-01-01T00:00:01.000000000Z";
        assert_eq!(format.write(&entries), format!("{time} ab{time} x\nc\n"));
    }

    #[test]
    fn at_least_one_stream_is_chosen() {
        assert!(selection(&Query::parse("tail=5")).is_err());
        let chosen = selection(&Query::parse("stdout=1&tail=5&since=0&until=3.5")).unwrap();
        assert_eq!((chosen.tail, chosen.since, chosen.until), (Some(5), None, Some(Timestamp(3_500_000_000))));
        assert_eq!(selection(&Query::parse("stderr=1&tail=all")).unwrap().tail, None);
    }
}
