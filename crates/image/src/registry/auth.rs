//! Credentials, and what registries ask for them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use hyper::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use url::Url;

use super::settings::{address_of, is_loopback};
use super::transport::may_lead_to;

/// What a client sends in `X-Registry-Auth`, or to `POST /auth`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Credentials {
    /// The account.
    #[serde(deserialize_with = "null_is_nothing")]
    pub username: String,
    /// Its password, or an access token in its place.
    #[serde(deserialize_with = "null_is_nothing")]
    pub password: String,
    /// Both, as `docker` keeps them: base64 of `username:password`.
    #[serde(deserialize_with = "null_is_nothing")]
    pub auth: String,
    /// A token to get tokens with, in place of a password.
    #[serde(alias = "IdentityToken", alias = "identity_token")]
    #[serde(deserialize_with = "null_is_nothing")]
    pub identitytoken: String,
    /// A token to use as it is.
    #[serde(deserialize_with = "null_is_nothing")]
    pub registrytoken: String,
    /// The registry they are for, as the client calls it.
    #[serde(deserialize_with = "null_is_nothing")]
    pub serveraddress: String,
}

/// Some clients send every field, those without a value as null.
fn null_is_nothing<'de, D: serde::Deserializer<'de>>(field: D) -> Result<String, D::Error> {
    Option::<String>::deserialize(field).map(Option::unwrap_or_default)
}

// Never show a secret, not even in a log of level debug.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Credentials that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the registry credentials cannot be read: {reason}")]
pub struct InvalidCredentials {
    reason: &'static str,
}

/// Characters of an `X-Registry-Auth` header.
const MAX_HEADER: usize = 64 << 10;

impl Credentials {
    /// Reads an `X-Registry-Auth` header: base64url of JSON, with padding or without. `None`: nobody, as `{}` says, too.
    ///
    /// # Errors
    /// [`InvalidCredentials`]: it is neither.
    ///
    /// Source: Docker Engine API, "Authentication".
    pub fn from_header(text: &str) -> Result<Option<Self>, InvalidCredentials> {
        if text.len() > MAX_HEADER {
            return Err(InvalidCredentials { reason: "too long" });
        }
        if text.is_empty() {
            return Ok(None);
        }
        let json = [&URL_SAFE, &URL_SAFE_NO_PAD, &STANDARD].iter().find_map(|engine| engine.decode(text).ok());
        let json = json.ok_or(InvalidCredentials { reason: "not base64" })?;
        let credentials: Self =
            serde_json::from_slice(&json).map_err(|_| InvalidCredentials { reason: "not the JSON of credentials" })?;
        credentials.completed()
    }

    /// Fills in what `auth` says; `None` if nothing is there.
    ///
    /// # Errors
    /// [`InvalidCredentials`]: `auth` is not of its form, or a text holds what cannot be sent.
    pub fn completed(mut self) -> Result<Option<Self>, InvalidCredentials> {
        if self.username.is_empty() && self.password.is_empty() && !self.auth.is_empty() {
            let bytes = STANDARD.decode(&self.auth).map_err(|_| InvalidCredentials { reason: "auth is not base64" })?;
            let text = String::from_utf8(bytes).map_err(|_| InvalidCredentials { reason: "auth is not text" })?;
            let (username, password) =
                text.split_once(':').ok_or(InvalidCredentials { reason: "auth has no colon" })?;
            (self.username, self.password) = (username.to_owned(), password.trim_end_matches('\0').to_owned());
        }
        let texts = [&self.username, &self.password, &self.identitytoken, &self.registrytoken];
        if texts.iter().any(|text| text.chars().any(char::is_control)) {
            return Err(InvalidCredentials { reason: "a control character" });
        }
        let nothing = texts.iter().all(|text| text.is_empty());
        Ok((!nothing).then_some(self))
    }

    /// The value of an `Authorization` header.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        if self.username.is_empty() && self.password.is_empty() {
            return None;
        }
        secret(&format!("Basic {}", STANDARD.encode(format!("{}:{}", self.username, self.password))))
    }
}

/// A header's value that no log shows.
pub(super) fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String>, scope: Option<String> },
}

/// The strongest challenge of an answer. Source: RFC 9110 §11.6.1; distribution, "Token Authentication Specification".
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let challenges = || headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let bearer = challenges().filter_map(|text| strip_scheme(text, "bearer")).find_map(|rest| {
        let parameters = parameters(rest);
        let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let realm = get("realm").and_then(|realm| Url::parse(&realm).ok())?;
        Some(Challenge::Bearer { realm, service: get("service"), scope: get("scope") })
    });
    bearer.or_else(|| challenges().find_map(|text| strip_scheme(text, "basic")).map(|_| Challenge::Basic))
}

fn strip_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let (found, rest) = text.split_once(' ').unwrap_or((text, ""));
    found.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// `a="b",c=d`
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut list = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim().to_ascii_lowercase();
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut characters = quoted.char_indices();
            let mut end = quoted.len();
            while let Some((at, character)) = characters.next() {
                match character {
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                    other => value.push(other),
                }
            }
            rest = &quoted[end..];
        } else {
            let end = after.find(',').unwrap_or(after.len());
            value.push_str(after[..end].trim());
            rest = &after[end..];
        }
        list.push((key, value));
        rest = rest.trim_start().trim_start_matches(',').trim_start();
    }
    list
}

/// Whether a registry may send us for a token to `realm`, and with credentials.
///
/// Docker's clients send them wherever the registry says. Here they go to the registry's own host, or to one that shares
/// its parent domain (`registry-1.docker.io` and `auth.docker.io`), never in clear where the registry has TLS, and never to
/// an address of this host or its link unless the registry is there, too (case F38).
pub(super) fn check_realm(base: &Url, realm: &Url, with_credentials: bool) -> Result<(), &'static str> {
    match (base.scheme(), realm.scheme()) {
        (_, "https") | ("http", "http") => {}
        _ => return Err("the token service is not reached by https"),
    }
    if !realm.username().is_empty() || realm.password().is_some() {
        return Err("the token service's address holds credentials");
    }
    let (Some(own), Some(other)) = (base.host_str(), realm.host_str()) else {
        return Err("the token service's address has no host");
    };
    if own == other {
        return Ok(());
    }
    if address_of(realm).is_some_and(|address| !may_lead_to(address, is_loopback(base))) {
        return Err("the token service is said to be on this host");
    }
    if !with_credentials {
        return Ok(());
    }
    let related = address_of(base).is_none() && address_of(realm).is_none() && share_parent(own, other);
    if related {
        Ok(())
    } else {
        Err("the token service is on a host that is not the registry's: no credentials are sent there")
    }
}

/// True if the first host's parent domain, of two parts at least, is the other's or above it; or the other is the parent.
fn share_parent(own: &str, other: &str) -> bool {
    let parent = match own.split_once('.') {
        Some((_, parent)) if parent.contains('.') => parent,
        _ => own,
    };
    // `example.co.uk` has the parent `co.uk`, below which anybody may be: short labels such as `co` belong to registries.
    let public = parent.split('.').count() == 2 && parent.split('.').next().is_some_and(|label| label.len() <= 3);
    let parent = if public { own } else { parent };
    other == parent || other.strip_suffix(parent).is_some_and(|above| above.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge_of(text: &str) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_str(text).unwrap());
        challenge(&headers)
    }

    #[test]
    fn challenges_are_read() {
        let text = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let Some(Challenge::Bearer { realm, service, scope }) = challenge_of(text) else { panic!() };
        assert_eq!(realm.as_str(), "https://auth.docker.io/token");
        assert_eq!(service.as_deref(), Some("registry.docker.io"));
        assert_eq!(scope.as_deref(), Some("repository:a/b:pull,push"));
        assert_eq!(challenge_of("basic realm=\"x\""), Some(Challenge::Basic));
        for none in ["Bearer", "Bearer realm=", "Bearer realm=\"not a url\"", "Negotiate", "Bearer realm=\"https://x"] {
            assert!(!matches!(challenge_of(none), Some(Challenge::Basic)), "{none}");
        }
    }

    #[test]
    fn credentials_are_read_as_docker_sends_them() {
        let header = URL_SAFE.encode(r#"{"username":"u","password":"p?>","serveraddress":"x"}"#);
        let read = Credentials::from_header(&header).unwrap().unwrap();
        assert_eq!((read.username.as_str(), read.password.as_str()), ("u", "p?>"));
        assert_eq!(Credentials::from_header("e30=").unwrap(), None);
        assert_eq!(Credentials::from_header("e30").unwrap(), None);
        assert_eq!(Credentials::from_header("").unwrap(), None);
        let nulls =
            STANDARD.encode(r#"{"username":"u","password":null,"auth":null,"email":null,"identitytoken":null}"#);
        assert_eq!(Credentials::from_header(&nulls).unwrap().unwrap().username, "u");
        let both = URL_SAFE.encode(format!(r#"{{"auth":"{}"}}"#, STANDARD.encode("a:b:c")));
        let read = Credentials::from_header(&both).unwrap().unwrap();
        assert_eq!((read.username.as_str(), read.password.as_str()), ("a", "b:c"));
        let token = URL_SAFE.encode(r#"{"identitytoken":"t"}"#);
        assert_eq!(Credentials::from_header(&token).unwrap().unwrap().identitytoken, "t");
        for bad in ["%%%", "bm90IGpzb24=", &"a".repeat(70_000), &URL_SAFE.encode("{\"username\":\"a\\nb\"}")] {
            assert!(Credentials::from_header(bad).is_err());
        }
        assert!(!format!("{read:?}").contains("b:c"), "secrets are not shown");
    }

    #[test]
    fn f38_credentials_go_to_the_registrys_own_realm_only() {
        let url = |text: &str| Url::parse(text).unwrap();
        for (registry, realm, allowed) in [
            ("https://registry-1.docker.io", "https://auth.docker.io/token", true),
            ("https://ghcr.io", "https://ghcr.io/token", true),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth", true),
            ("https://reg.example.com", "https://evil.com/token", false),
            ("https://reg.example.com", "https://evilexample.com/token", false),
            ("https://example.co.uk", "https://evil.co.uk/token", false),
            ("https://ghcr.io", "https://evil.io/token", false),
            ("https://reg.example.com", "http://auth.example.com/token", false),
            ("https://reg.example.com", "http://reg.example.com/token", false),
            ("https://reg.example.com", "https://127.0.0.1/token", false),
            ("https://reg.example.com", "https://localhost/token", false),
            ("https://reg.example.com", "https://169.254.169.254/token", false),
            ("https://reg.example.com", "https://u:p@reg.example.com/token", false),
            ("https://10.0.0.1", "https://10.0.0.2/token", false),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token", true),
            ("http://127.0.0.1:5000", "http://127.0.0.2:5001/token", false),
            ("https://reg.example.com", "file:///etc/passwd", false),
        ] {
            assert_eq!(check_realm(&url(registry), &url(realm), true).is_ok(), allowed, "{registry} {realm}");
        }
        assert!(check_realm(&url("https://reg.example.com"), &url("https://other.com/t"), false).is_ok());
        assert!(check_realm(&url("https://reg.example.com"), &url("https://[::1]/t"), false).is_err());
    }
}
