//! What a build fetches: its context, if the client gives a URL instead of one, and the URLs of ADD.
//!
//! Source: moby 20.10, builder/remotecontext, builder/dockerfile/copy.go.

use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use image::limits::{MAX_ARCHIVE_BYTES, MAX_LAYER_BYTES};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::builder::{Builder, MAX_DOCKERFILE, find_dockerfile, spooled};
use super::context::Context;
use super::copy::spool_failed;
use super::git::{self, GitUrl};
use super::output::Output;
use crate::error::{ApiError, ApiResult};
use crate::fetch::{self, Fetched};

/// At least this much time lies between two lines about one download.
const INTERVAL: Duration = Duration::from_millis(100);
/// Bytes by which a content is told that has no type. Source: moby, `maxPreambleLength`.
const PREAMBLE: u64 = 100;
/// What a file from a URL without a name is called until it is placed. Source: moby, `unnamedFilename`.
const UNNAMED: &str = "__unnamed__";

/// Where a context comes from that the client does not send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// A repository.
    Git(GitUrl),
    /// An archive, or a Dockerfile alone.
    Url(String),
}

impl Remote {
    /// Reads the parameter `remote`.
    ///
    /// # Errors
    /// dockerd's 500 for what is neither; 400 for a reference that is none.
    pub fn read(text: &str) -> ApiResult<Self> {
        if GitUrl::is_meant(text) {
            return GitUrl::parse(text).map(Self::Git);
        }
        if fetch::is_url(text) {
            return Ok(Self::Url(text.to_owned()));
        }
        Err(ApiError::internal(format!("remoteURL ({text}) could not be recognized as URL")))
    }

    /// Fetches it; gives the context and the Dockerfile's text. Shape: `named` is the Dockerfile's path, empty for the usual one.
    /// When: in a thread that may wait.
    ///
    /// # Errors
    /// It cannot be fetched, is no context, or has no such Dockerfile.
    pub fn context(
        &self,
        folder: &Path,
        named: &str,
        output: &Output,
        cancelled: &CancellationToken,
    ) -> ApiResult<(Context, String)> {
        let url = match self {
            Self::Git(url) => return find_dockerfile(git::context(folder, url, cancelled)?, named),
            Self::Url(url) => url,
        };
        let mut fetched = fetch::fetch(url, cancelled)?;
        let failed = |error: io::Error| ApiError::caused(format!("failed to GET {url}"), &error);
        let mut head = Vec::new();
        fetched.body.by_ref().take(PREAMBLE).read_to_end(&mut head).map_err(failed)?;
        if head.is_empty() {
            return Err(ApiError::internal("empty response"));
        }
        let is_text = is_dockerfile(&fetched.content_type, &head)?;
        let told = Told::new(output, json!({ "status": url, "id": "Downloading context" }), fetched.length);
        let mut whole = told.over(io::Cursor::new(head).chain(fetched.body));
        if !is_text {
            return find_dockerfile(spooled(folder, whole, MAX_ARCHIVE_BYTES)?, named);
        }
        let mut text = Vec::new();
        whole.by_ref().take(MAX_DOCKERFILE).read_to_end(&mut text).map_err(failed)?;
        let empty = Context::empty(folder).map_err(|error| spool_failed(&error))?;
        Ok((empty, String::from_utf8_lossy(&text).into_owned()))
    }
}

/// Whether an answer is a Dockerfile, and no archive.
fn is_dockerfile(content_type: &str, head: &[u8]) -> ApiResult<bool> {
    const ARCHIVES: [&str; 11] =
        ["tar", "x-tar", "octet-stream", "gzip", "x-gzip", "bzip", "bzip2", "x-bzip", "x-bzip2", "xz", "x-xz"];
    let plain = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if matches!(plain.as_str(), "" | "application/octet-stream") {
        // Source: WHATWG MIME sniffing, binary data bytes.
        return Ok(!head.iter().any(|byte| matches!(byte, 0..=8 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f)));
    }
    match plain.strip_prefix("application/") {
        _ if plain == "text/plain" => Ok(true),
        Some(kind) if ARCHIVES.contains(&kind) => Ok(false),
        _ => Err(ApiError::internal(format!("unsupported Content-Type {content_type:?}"))),
    }
}

impl Builder {
    /// Fetches what ADD names by URL. Shape: the context has the one file.
    pub(super) async fn download(&self, url: &str, destination: &str) -> ApiResult<Context> {
        let folder = super::folder(&self.engine)?;
        let (cancelled, output) = (self.cancelled.clone(), self.output.clone());
        let (url, into_folder) = (url.to_owned(), destination.ends_with('/'));
        let fetching = tokio::task::spawn_blocking(move || {
            let Fetched { name, modified, length, body, .. } = fetch::fetch(&url, &cancelled)?;
            let name = match name {
                Some(name) => name,
                None if into_folder => {
                    return Err(ApiError::invalid(format!("cannot determine filename for source {url}")));
                }
                None => UNNAMED.to_owned(),
            };
            let body = Told::new(&output, json!({ "status": "Downloading" }), length).over(body);
            Context::of_file(&folder, &name, modified, body, MAX_LAYER_BYTES).map_err(|error| spool_failed(&error))
        });
        let context = fetching.await??;
        self.output.say("\n").await;
        Ok(context)
    }
}

/// A download that the client is told of.
struct Told<'a> {
    output: &'a Output,
    line: Value,
    total: Option<u64>,
    so_far: u64,
    last: Instant,
}

impl<'a> Told<'a> {
    fn new(output: &'a Output, line: Value, total: Option<u64>) -> Self {
        Self { output, line, total, so_far: 0, last: Instant::now() }
    }

    fn over<R: Read>(self, body: R) -> Following<'a, R> {
        Following { told: self, body }
    }
}

/// Its content.
struct Following<'a, R> {
    told: Told<'a>,
    body: R,
}

impl<R: Read> Read for Following<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(buffer)?;
        let told = &mut self.told;
        told.so_far += count as u64;
        let is_end = count == 0 && !buffer.is_empty();
        if is_end || told.last.elapsed() >= INTERVAL {
            told.last = Instant::now();
            told.line["progressDetail"] = json!({ "current": told.so_far, "total": told.total });
            told.line["progress"] = crate::images::progress_bar(told.so_far, told.total.unwrap_or(0)).into();
            told.output.offer(&told.line);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_told_apart() {
        assert!(matches!(Remote::read("https://h/a.git#x"), Ok(Remote::Git(_))));
        assert_eq!(Remote::read("https://h/a.tar"), Ok(Remote::Url("https://h/a.tar".into())));
        for text in ["ftp://h/a", "/etc", "file:///etc/passwd", ""] {
            assert_eq!(Remote::read(text).unwrap_err().http_status(), 500, "{text}");
        }
    }

    #[test]
    fn an_answer_is_a_dockerfile_or_an_archive() {
        for (content_type, head, expected) in [
            ("text/plain; charset=utf-8", &b"FROM x"[..], Some(true)),
            ("", b"FROM x\n\tRUN", Some(true)),
            ("application/octet-stream", b"FROM x", Some(true)),
            ("application/octet-stream", b"a\0\0\0", Some(false)),
            ("application/x-gzip", b"FROM x", Some(false)),
            ("text/html", b"<html>", None),
            ("application/json", b"{}", None),
        ] {
            assert_eq!(is_dockerfile(content_type, head).ok(), expected, "{content_type}");
        }
    }
}
