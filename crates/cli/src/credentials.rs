//! Credentials for registries where docker keeps them: `config.json`, and the helper programs that it names.
//!
//! Source: docs.docker.com, "docker login"; docker-credential-helpers, README.

mod file;
mod helper;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Value, json};

pub use file::ConfigFile;

use crate::error::CliResult;

/// How docker calls Docker Hub here.
pub const HUB: &str = "https://index.docker.io/v1/";
/// What a helper gives as the user's name where the secret is a token to get tokens with.
const TOKEN_USER: &str = "<token>";

/// An account at a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name; empty with an identity token.
    pub username: String,
    /// Its password; empty with an identity token.
    pub password: String,
    /// A token to get tokens with.
    pub identity_token: String,
}

impl Account {
    /// An account with a password.
    #[must_use]
    pub fn with_password(username: &str, password: &str) -> Self {
        Self { username: username.to_owned(), password: password.to_owned(), identity_token: String::new() }
    }

    /// As the Engine API takes it.
    #[must_use]
    pub fn to_json(&self, server: &str) -> Value {
        match self.identity_token.as_str() {
            "" => json!({"username": self.username, "password": self.password, "serveraddress": server}),
            token => json!({"username": self.username, "identitytoken": token, "serveraddress": server}),
        }
    }

    fn from_entry(entry: &Value) -> Option<Self> {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let identity_token = text("identitytoken");
        let decoded = STANDARD.decode(text("auth")).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let (username, password) = match decoded.as_deref().and_then(|text| text.split_once(':')) {
            Some((username, password)) => (username.to_owned(), password.trim_end_matches('\0').to_owned()),
            None => (text("username"), text("password")),
        };
        let any = !username.is_empty() || !identity_token.is_empty();
        any.then_some(Self { username, password, identity_token })
    }

    fn to_entry(&self) -> Value {
        let auth = STANDARD.encode(format!("{}:{}", self.username, self.password));
        match self.identity_token.as_str() {
            "" => json!({"auth": auth}),
            token => json!({"auth": auth, "identitytoken": token}),
        }
    }

    fn from_helper(username: &str, secret: &str) -> Self {
        match username {
            TOKEN_USER => Self { username: String::new(), password: String::new(), identity_token: secret.to_owned() },
            _ => Self::with_password(username, secret),
        }
    }
}

/// The value of `X-Registry-Auth` for an image's registry.
///
/// # Errors
/// When the configuration or a helper's answer cannot be read.
pub fn header_for_image(image: &str) -> CliResult<String> {
    let server = server_of_image(image);
    let account = ConfigFile::open()?.account(&server)?;
    let json = account.map_or_else(|| json!({}), |account| account.to_json(&server));
    Ok(URL_SAFE.encode(json.to_string()))
}

/// The registry of an image, as docker's configuration calls it. Source: github.com/distribution/reference.
#[must_use]
pub fn server_of_image(image: &str) -> String {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => server(first),
        _ => HUB.to_owned(),
    }
}

/// A registry's key in the configuration, from how a user calls it: the host, whatever stands around it.
#[must_use]
pub fn server(text: &str) -> String {
    let bare = text.trim().trim_start_matches("https://").trim_start_matches("http://");
    match bare.split('/').next().unwrap_or_default() {
        "" | "docker.io" | "index.docker.io" | "registry-1.docker.io" => HUB.to_owned(),
        host => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_called_as_docker_calls_them() {
        for (image, expected) in [
            ("busybox", HUB),
            ("me/app:1", HUB),
            ("docker.io/library/busybox", HUB),
            ("127.0.0.1:5000/app", "127.0.0.1:5000"),
            ("localhost/app", "localhost"),
            ("ghcr.io/a/b", "ghcr.io"),
        ] {
            assert_eq!(server_of_image(image), expected, "{image}");
        }
        assert_eq!(server("https://reg.example.com:5000/v2/"), "reg.example.com:5000");
    }

    #[test]
    fn entries_are_read_and_written_as_dockers() {
        let account = Account::with_password("a", "b:c");
        assert_eq!(account.to_entry(), json!({"auth": STANDARD.encode("a:b:c")}));
        assert!(Account::from_entry(&account.to_entry()) == Some(account));
        let token = Account::from_entry(&json!({"auth": STANDARD.encode("x:"), "identitytoken": "t"})).unwrap();
        assert_eq!(token.to_json("s")["identitytoken"], "t");
        assert!(Account::from_entry(&json!({})).is_none());
        assert_eq!(Account::from_helper("<token>", "t").identity_token, "t");
    }
}
