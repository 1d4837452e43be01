//! Talking to one repository of one registry: authentication, redirections, further tries.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use tokio::sync::Mutex;
use url::Url;

use super::auth::{Challenge, Credentials, challenge, check_realm, secret};
use super::error::RegistryError;
use super::settings::{Endpoint, Security, Timing, authority, is_loopback};
use super::transport::{Answer, Led, OutBody, Outgoing, Transport, TransportError, empty, full};

/// Bytes of a token service's answer.
const MAX_TOKEN_BYTES: u64 = 64 << 10;
/// Bytes of an error's body that are read.
const MAX_ERROR_BYTES: u64 = 64 << 10;
const MAX_REDIRECTIONS: usize = 5;
/// What a token lives if its service does not say. Source: distribution, "Token Authentication Specification".
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(60);
/// A token is renewed this long before its end.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);
const LONGEST_TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// A repository, as one client may see it.
pub(super) struct Session {
    transport: Arc<Transport>,
    timing: Timing,
    pub endpoint: Endpoint,
    /// Path of the repository; empty where only the registry itself is meant.
    pub repository: String,
    /// `pull` or `pull,push`.
    actions: &'static str,
    credentials: Option<Credentials>,
    authorization: Mutex<Option<Authorization>>,
}

struct Authorization {
    value: HeaderValue,
    until: Option<Instant>,
}

/// A request to the registry, which may have to be sent several times.
pub(super) struct Ask<'a> {
    pub method: Method,
    pub url: &'a Url,
    pub headers: &'a [(HeaderName, HeaderValue)],
    /// Makes the body of each try.
    pub body: &'a (dyn Fn() -> OutBody + Send + Sync),
    /// Bytes of the body that were sent.
    pub sent: Option<Arc<AtomicU64>>,
}

impl<'a> Ask<'a> {
    pub fn bare(method: Method, url: &'a Url) -> Self {
        Self { method, url, headers: &[], body: &empty, sent: None }
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    expires_in: Option<u64>,
}

impl Session {
    /// A session with an endpoint that answers; it is asked first, as Docker's clients do.
    pub async fn open(
        transport: Arc<Transport>,
        timing: Timing,
        endpoint: Endpoint,
        (repository, actions): (&str, &'static str),
        credentials: Option<Credentials>,
    ) -> Result<Self, RegistryError> {
        let session = Self {
            transport,
            timing,
            // A mirror is another's: what is for the registry is not for it.
            credentials: if endpoint.mirror { None } else { credentials },
            endpoint,
            repository: repository.to_owned(),
            actions,
            authorization: Mutex::new(None),
        };
        let url = session.url("")?;
        let answer = session.try_often(&Ask::bare(Method::GET, &url)).await?;
        match answer.status {
            StatusCode::UNAUTHORIZED => session.authorize(&answer).await?,
            status if status.is_success() => {}
            // Some serve nothing here and repositories all the same.
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => {}
            _ => return Err(session.failure(answer, "the registry").await),
        }
        Ok(session)
    }

    /// An address below `/v2/`, such as `<repository>/manifests/latest`.
    pub fn url(&self, path: &str) -> Result<Url, RegistryError> {
        let joined = self.endpoint.base.join(&format!("v2/{path}"));
        joined.map_err(|_| RegistryError::refused("an address of the registry", "it is malformed"))
    }

    pub fn host(&self) -> String {
        authority(&self.endpoint.base)
    }

    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Sends a request until it is answered with something that is no passing trouble; authenticates if asked to, and
    /// follows redirections of GET and HEAD.
    pub async fn ask(&self, ask: &Ask<'_>) -> Result<Answer, RegistryError> {
        let mut answer = self.try_often(ask).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            self.authorize(&answer).await?;
            answer = self.try_often(ask).await?;
        }
        match ask.method {
            Method::GET | Method::HEAD => self.follow(ask, answer).await,
            _ => Ok(answer),
        }
    }

    /// Sends a request once, with what was granted before.
    pub async fn ask_once(&self, ask: &Ask<'_>) -> Result<Answer, RegistryError> {
        self.send(ask).await.map_err(|source| self.transport_error(source))
    }

    /// The error for an answer that is no success.
    pub async fn failure(&self, mut answer: Answer, what: &str) -> RegistryError {
        let body = answer.bytes(MAX_ERROR_BYTES).await.unwrap_or_default();
        let message = error_text(&body).unwrap_or_else(|| answer.status.to_string());
        match answer.status {
            StatusCode::UNAUTHORIZED => RegistryError::Unauthorized { host: self.host(), message },
            StatusCode::FORBIDDEN => RegistryError::Denied { repository: self.repository.clone(), message },
            StatusCode::NOT_FOUND => RegistryError::NotFound { what: what.to_owned(), message },
            status => RegistryError::Status { host: self.host(), status: status.as_u16(), message },
        }
    }

    /// Sends a request to the registry itself, again after passing trouble.
    async fn try_often(&self, ask: &Ask<'_>) -> Result<Answer, RegistryError> {
        let mut attempt = 1;
        loop {
            let outcome = self.send(ask).await;
            let wait = match &outcome {
                Ok(answer) if is_passing(answer.status) => retry_after(answer),
                Err(error) if error.is_transient() => None,
                _ => return outcome.map_err(|source| self.transport_error(source)),
            };
            if attempt >= self.timing.attempts {
                return outcome.map_err(|source| self.transport_error(source));
            }
            tokio::time::sleep(self.pause(attempt, wait)).await;
            attempt += 1;
        }
    }

    /// How long to wait before another try: what the registry asks for, if that is not too long.
    pub fn pause(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.timing.backoff.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        asked.unwrap_or(doubled).min(self.timing.longest_backoff)
    }

    async fn send(&self, ask: &Ask<'_>) -> Result<Answer, TransportError> {
        let mut headers = ask.headers.to_vec();
        if let Some(value) = self.authorization_for(ask.url).await {
            headers.push((AUTHORIZATION, value));
        }
        let outgoing = Outgoing {
            method: ask.method.clone(),
            url: ask.url,
            headers: &headers,
            body: (ask.body)(),
            security: self.endpoint.security,
            led: Led::ByUser,
            sent: ask.sent.clone(),
        };
        self.transport.send(outgoing).await
    }

    /// What may be sent along: to the registry itself only, by scheme, host and port.
    async fn authorization_for(&self, url: &Url) -> Option<HeaderValue> {
        if !self.is_own(url) {
            return None;
        }
        let mut kept = self.authorization.lock().await;
        if kept.as_ref().is_some_and(|kept| kept.until.is_some_and(|until| Instant::now() >= until)) {
            *kept = None;
        }
        kept.as_ref().map(|kept| kept.value.clone())
    }

    /// True for addresses of the registry itself.
    pub fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.base.origin()
    }

    async fn follow(&self, ask: &Ask<'_>, mut answer: Answer) -> Result<Answer, RegistryError> {
        let mut from = ask.url.clone();
        for _ in 0..MAX_REDIRECTIONS {
            if !is_redirection(answer.status) {
                return Ok(answer);
            }
            let refused = |reason: &str| RegistryError::refused(format!("a redirection of {}", self.host()), reason);
            let location = answer.header(LOCATION).ok_or_else(|| refused("it leads nowhere"))?;
            let to = from.join(location).map_err(|_| refused("its address is malformed"))?;
            match (from.scheme(), to.scheme()) {
                (_, "https") | ("http", "http") => {}
                ("https", "http") => return Err(refused("it leads from https to http")),
                _ => return Err(refused("it leads to something other than http and https")),
            }
            if !to.username().is_empty() || to.password().is_some() {
                return Err(refused("its address holds credentials"));
            }
            let own = self.is_own(&to);
            let redirected =
                Ask { method: ask.method.clone(), url: &to, headers: ask.headers, body: ask.body, sent: None };
            answer = if own { self.try_often(&redirected).await? } else { self.send_elsewhere(&redirected).await? };
            from = to;
        }
        Err(RegistryError::refused(format!("a redirection of {}", self.host()), "there is no end of them"))
    }

    /// A request to whom the registry led us: without credentials, over a connection of its own.
    async fn send_elsewhere(&self, ask: &Ask<'_>) -> Result<Answer, RegistryError> {
        let same_host = ask.url.host() == self.endpoint.base.host();
        let outgoing = Outgoing {
            method: ask.method.clone(),
            url: ask.url,
            headers: ask.headers,
            body: (ask.body)(),
            security: if same_host { self.endpoint.security } else { Security::Verified },
            led: Led::ByRegistry { local: is_loopback(&self.endpoint.base) },
            sent: None,
        };
        self.transport.send(outgoing).await.map_err(|source| self.transport_error(source))
    }

    pub fn transport_error(&self, source: TransportError) -> RegistryError {
        RegistryError::Transport { host: self.host(), source }
    }

    /// Does what an answer of status 401 asks for.
    async fn authorize(&self, answer: &Answer) -> Result<(), RegistryError> {
        let unauthorized =
            |message: &str| RegistryError::Unauthorized { host: self.host(), message: message.to_owned() };
        let authorization = match challenge(&answer.headers) {
            None => return Err(unauthorized("it asks for credentials in a way that is not known")),
            Some(Challenge::Basic) => {
                let value = self.credentials.as_ref().and_then(Credentials::basic);
                Authorization { value: value.ok_or_else(|| unauthorized("no basic auth credentials"))?, until: None }
            }
            Some(Challenge::Bearer { realm, service, scope }) => {
                let given = self.credentials.as_ref().filter(|credentials| !credentials.registrytoken.is_empty());
                match given {
                    Some(credentials) => {
                        let value = secret(&format!("Bearer {}", credentials.registrytoken));
                        Authorization {
                            value: value.ok_or_else(|| unauthorized("the token cannot be sent"))?,
                            until: None,
                        }
                    }
                    None => self.token(realm, service.as_deref(), scope.as_deref()).await?,
                }
            }
        };
        *self.authorization.lock().await = Some(authorization);
        Ok(())
    }

    /// Gets a token. Source: distribution, "Token Authentication Specification" and "Oauth2 Token Authentication".
    async fn token(
        &self,
        realm: Url,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<Authorization, RegistryError> {
        let refused = |reason: &str| RegistryError::refused(format!("the token service of {}", self.host()), reason);
        check_realm(&self.endpoint.base, &realm, self.credentials.is_some()).map_err(refused)?;
        let request = self.token_request(realm, service, scope);
        let led = Led::ByRegistry { local: is_loopback(&self.endpoint.base) };
        let url = &request.url;
        let security =
            if url.host() == self.endpoint.base.host() { self.endpoint.security } else { Security::Verified };
        let (method, headers, body) = (request.method, &request.headers[..], request.body);
        let outgoing = Outgoing { method, url, headers, body, security, led, sent: None };
        let mut answer = self.transport.send(outgoing).await.map_err(|source| self.transport_error(source))?;
        let body = answer.bytes(MAX_TOKEN_BYTES).await.map_err(|source| self.transport_error(source))?;
        if !answer.status.is_success() {
            let message = error_text(&body).unwrap_or_else(|| answer.status.to_string());
            return Err(match answer.status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    RegistryError::Unauthorized { host: self.host(), message }
                }
                status => RegistryError::Status { host: authority(url), status: status.as_u16(), message },
            });
        }
        let token: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| refused("its answer is not the JSON of a token"))?;
        let text = if token.token.is_empty() { token.access_token } else { token.token };
        let value = (!text.is_empty()).then(|| secret(&format!("Bearer {text}"))).flatten();
        let life = token.expires_in.map_or(DEFAULT_TOKEN_LIFE, Duration::from_secs).min(LONGEST_TOKEN_LIFE);
        let until = Instant::now() + life.saturating_sub(TOKEN_MARGIN).max(Duration::from_secs(1));
        Ok(Authorization { value: value.ok_or_else(|| refused("its answer holds no token"))?, until: Some(until) })
    }

    /// The question for a token, with a password, a token of the account, or nothing.
    fn token_request(&self, realm: Url, service: Option<&str>, scope: Option<&str>) -> TokenRequest {
        // Ours covers more than the challenge of a first question does.
        let own_scope =
            (!self.repository.is_empty()).then(|| format!("repository:{}:{}", self.repository, self.actions));
        let mut fields = url::form_urlencoded::Serializer::new(String::new());
        if let Some(service) = service {
            fields.append_pair("service", service);
        }
        if let Some(scope) = own_scope.as_deref().or(scope) {
            fields.append_pair("scope", scope);
        }
        let identity = self.credentials.as_ref().filter(|credentials| !credentials.identitytoken.is_empty());
        let mut url = realm;
        let mut headers = Vec::new();
        let (method, body) = if let Some(credentials) = identity {
            fields.append_pair("grant_type", "refresh_token").append_pair("client_id", "docker");
            fields.append_pair("refresh_token", &credentials.identitytoken);
            headers.push((CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")));
            (Method::POST, full(fields.finish()))
        } else {
            if let Some(credentials) = &self.credentials {
                fields.append_pair("account", &credentials.username).append_pair("client_id", "docker");
                headers.extend(credentials.basic().map(|value| (AUTHORIZATION, value)));
            }
            url.query_pairs_mut().extend_pairs(url::form_urlencoded::parse(fields.finish().as_bytes()));
            (Method::GET, empty())
        };
        TokenRequest { method, url, headers, body }
    }
}

struct TokenRequest {
    method: Method,
    url: Url,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: OutBody,
}

fn is_redirection(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Statuses that may be another when asked again.
pub(super) fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Seconds only; a date is not worth the trust in two clocks.
fn retry_after(answer: &Answer) -> Option<Duration> {
    answer.header(RETRY_AFTER)?.trim().parse().ok().map(Duration::from_secs)
}

/// What a registry's error says, on one line of at most 300 characters. Source: distribution-spec, "Error Codes".
fn error_text(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<OneError>,
        #[serde(default)]
        details: String,
    }
    #[derive(Deserialize)]
    struct OneError {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let first = errors.errors.first().map(|error| {
        let code = error.code.replace('_', " ").to_ascii_lowercase();
        if error.message.is_empty() { code } else { format!("{code}: {}", error.message) }
    });
    let text = first.or_else(|| (!errors.details.is_empty()).then_some(errors.details))?;
    Some(text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect())
}
