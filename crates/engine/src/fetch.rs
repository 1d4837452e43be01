//! Fetching what a client names by URL: for ADD, for a build's context, for `docker import`.
//!
//! As dockerd does, the engine fetches it itself, from the host's network: whoever may ask for it is root by the engine's
//! socket already. A URL in a Dockerfile is another's wish, though, as its RUN is. What comes is bounded in size and time, and is
//! a stranger's. Source: moby 20.10, builder/remotecontext/remote.go; docs/threat-model.md.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use proto::ErrorKind;
use rustls::crypto::ring;
use tokio_util::sync::CancellationToken;
use ureq::Agent;
use ureq::http::{HeaderMap, StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use url::Url;

use crate::error::{ApiError, ApiResult};

/// Redirections that are followed. Source: Go's net/http, `defaultCheckRedirect`.
const MAX_REDIRECTS: u32 = 10;
const CONNECT: Duration = Duration::from_secs(30);
/// How long nothing may come.
const SILENCE: Duration = Duration::from_secs(60);
/// How long all of it may take.
const WHOLE: Duration = Duration::from_secs(3600);
/// Bytes of an answer that says no, as they are shown.
const MAX_REFUSAL: u64 = 2048;

/// An answer whose content is still to be read.
pub struct Fetched {
    /// What the file is called: the last name of the URL's path, or what the server calls it.
    pub name: Option<String>,
    /// `Content-Type`, empty if there is none.
    pub content_type: String,
    /// Seconds since the epoch; 0 if the server does not say.
    pub modified: u64,
    /// Bytes to come, if the server says.
    pub length: Option<u64>,
    /// The content.
    pub body: Content,
}

/// A content as it comes. Reading fails when whoever wanted it has given up.
pub struct Content {
    from: ureq::BodyReader<'static>,
    cancelled: CancellationToken,
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancelled.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.from.read(buffer)
    }
}

/// Whether a text is a URL that can be fetched.
#[must_use]
pub fn is_url(text: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme))
}

/// Asks for a URL. When: in a thread that may wait.
///
/// # Errors
/// The server cannot be reached, or says no: 404 for a name that is not known and for what is not there; 400, 403 as the server's;
/// otherwise 500.
pub fn fetch(address: &str, cancelled: &CancellationToken) -> ApiResult<Fetched> {
    let url = Url::parse(address).map_err(|error| ApiError::invalid(format!("parse {address:?}: {error}")))?;
    let answer = agent().get(url.as_str()).call().map_err(|error| {
        let kind = if matches!(error, ureq::Error::HostNotFound) { ErrorKind::NotFound } else { ErrorKind::Internal };
        ApiError::new(kind, format!("Get {address:?}: {error}"))
    })?;
    let (parts, body) = answer.into_parts();
    let mut body = Content { from: body.into_reader(), cancelled: cancelled.clone() };
    if parts.status.as_u16() >= 400 {
        return Err(refusal(address, parts.status, &mut body));
    }
    let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let modified = text(header::LAST_MODIFIED).and_then(|date| httpdate::parse_http_date(date).ok());
    let modified = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok(Fetched {
        name: name(&url, &parts.headers),
        content_type: text(header::CONTENT_TYPE).unwrap_or_default().to_owned(),
        modified: modified.map_or(0, |since| since.as_secs()),
        length: text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        body,
    })
}

fn refusal(address: &str, status: StatusCode, body: &mut Content) -> ApiError {
    let kind = match status {
        StatusCode::NOT_FOUND => ErrorKind::NotFound,
        StatusCode::BAD_REQUEST => ErrorKind::InvalidArgument,
        StatusCode::FORBIDDEN => ErrorKind::PermissionDenied,
        _ => ErrorKind::Internal,
    };
    let mut text = Vec::new();
    // It is only shown: a part of it is enough.
    let _ = body.take(MAX_REFUSAL).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    ApiError::new(kind, format!("failed to GET {address} with status {status}: {}", text.trim()))
}

/// Source: moby 20.10, builder/dockerfile/copy.go, `getFilenameForDownload`.
fn name(url: &Url, headers: &HeaderMap) -> Option<String> {
    let path = percent_encoding::percent_decode_str(url.path()).decode_utf8_lossy();
    let told = || {
        let value = headers.get(header::CONTENT_DISPOSITION)?.to_str().ok()?;
        last_name(&parameter(value, "filename")?)
    };
    last_name(&path).or_else(told)
}

/// The last name of a path, if it is one that a file can have.
fn last_name(path: &str) -> Option<String> {
    let name = path.rsplit('/').next().unwrap_or_default();
    (!matches!(name, "" | "." | "..") && !name.contains('\0')).then(|| name.to_owned())
}

/// A parameter of a header, with or without quotes. Source: RFC 9110 §5.6.6.
fn parameter(value: &str, wanted: &str) -> Option<String> {
    let mut rest = value.split_once(';')?.1;
    loop {
        let (name, after) = rest.split_once('=')?;
        let found = name.trim().trim_start_matches(';').trim().eq_ignore_ascii_case(wanted);
        let (text, after) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        if found {
            return Some(text);
        }
        rest = after.trim_start().trim_start_matches(';');
    }
}

/// A text up to its closing quote, and what follows.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut unquoted = String::new();
    let mut characters = text.char_indices();
    loop {
        match characters.next()?.1 {
            '\\' => unquoted.push(characters.next()?.1),
            '"' => return Some((unquoted, characters.as_str())),
            other => unquoted.push(other),
        }
    }
}

/// Connections are not kept: the next URL is somebody else's.
fn agent() -> Agent {
    let tls = TlsConfig::builder()
        .root_certs(authorities())
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(MAX_REDIRECTS)
        .max_idle_connections(0)
        .user_agent(concat!("bulkhead/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .timeout_global(Some(WHOLE))
        .build()
        .into()
}

/// The system's certificate authorities, as they were when they were first needed.
fn authorities() -> RootCerts {
    static FOUND: OnceLock<RootCerts> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "some of the system's certificates cannot be read");
        }
        RootCerts::from(found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()))
    });
    found.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_called_as_in_the_url_or_as_the_server_says() {
        let named = |url: &str, disposition: &str| {
            let headers = HeaderMap::from_iter([(header::CONTENT_DISPOSITION, disposition.parse().unwrap())]);
            name(&Url::parse(url).unwrap(), &headers)
        };
        for (url, disposition, expected) in [
            ("http://h/a/b.tar?x=/y", "", Some("b.tar")),
            ("http://h/a%20b", "attachment; filename=c", Some("a b")),
            ("http://h/a/", "attachment; filename=c", Some("c")),
            ("http://h", "attachment; size=3; FileName=\"../d \\\"e\"; x=y", Some("d \"e")),
            ("http://h/a%2fb", "", Some("b")),
            ("http://h/", "attachment; filename=\"..\"", None),
            ("http://h/", "attachment; filename=\"open", None),
            ("http://h/%00", "attachment", None),
        ] {
            assert_eq!(named(url, disposition).as_deref(), expected, "{url} {disposition}");
        }
    }
}
