//! A file or standard input as the body of a request, counted on the way.

use std::io;
use std::path::Path;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use indicatif::ProgressBar;
use tokio::fs::File;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use crate::client::body::RequestBody;
use crate::error::{CliError, CliResult};
use crate::output::progress;
use crate::terminal;

/// Bytes read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// The body, and a bar that counts it.
pub(super) struct Upload {
    /// What is sent.
    pub(super) body: RequestBody,
    /// How much of it was sent; hidden until it is shown.
    pub(super) bar: ProgressBar,
}

/// Opens a file, or standard input where no file is named.
///
/// # Errors
/// When the file cannot be opened, or standard input is the user's terminal.
pub(super) async fn open(file: Option<&Path>) -> CliResult<Upload> {
    let Some(path) = file else {
        if terminal::on_stdin() {
            let text = "nothing to read: give a file, or send the archive to standard input";
            return Err(CliError::Usage(text.into()).with_code(1));
        }
        return Ok(counted(tokio::io::stdin(), None));
    };
    let opened = File::open(path).await.map_err(CliError::file(path))?;
    let metadata = opened.metadata().await.map_err(CliError::file(path))?;
    if metadata.is_dir() {
        return Err(CliError::file(path)(io::ErrorKind::IsADirectory.into()));
    }
    Ok(counted(opened, metadata.is_file().then_some(metadata.len())))
}

fn counted(reader: impl AsyncRead + Send + 'static, total: Option<u64>) -> Upload {
    let bar = progress::bytes_bar(total);
    let stream = count(ReaderStream::with_capacity(reader, CHUNK_BYTES), bar.clone());
    Upload { body: RequestBody::stream(stream), bar }
}

fn count(
    stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    bar: ProgressBar,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream.inspect_ok(move |piece| bar.inc(piece.len() as u64))
}

/// Waits; shows the bar once it takes longer than half a second.
pub(super) async fn with_bar<T>(bar: &ProgressBar, message: &'static str, work: impl Future<Output = T>) -> T {
    bar.set_message(message);
    let showing = async {
        tokio::time::sleep(progress::PATIENCE).await;
        progress::show(bar);
        std::future::pending::<T>().await
    };
    let done = tokio::select! {
        biased;
        done = work => done,
        never = showing => never,
    };
    bar.finish_and_clear();
    done
}
