//! Trying credentials.

use std::sync::Arc;

use hyper::Method;

use super::RegistryClient;
use super::auth::Credentials;
use super::error::RegistryError;
use super::session::{Ask, Session};
use super::settings::Endpoint;

/// How Docker's clients call Docker Hub.
const HUB_INDEX: &str = "index.docker.io";

impl RegistryClient {
    /// Tries credentials at a registry. Shape: `server` is `HOST[:PORT]` or a URL, empty for Docker Hub.
    ///
    /// # Errors
    /// [`RegistryError::Unauthorized`]: they are not right; others as their variants say.
    pub async fn log_in(&self, server: &str, credentials: &Credentials) -> Result<(), RegistryError> {
        let bare = server.trim().trim_start_matches("https://").trim_start_matches("http://");
        let host = bare.split('/').next().unwrap_or_default();
        let domain = if host.is_empty() || host == HUB_INDEX { "docker.io" } else { host };
        let mut tries = self.tries_at(domain, false)?;
        loop {
            let outcome = self.log_in_at(tries.next()?, credentials).await;
            if let Some(outcome) = tries.settle(outcome) {
                return outcome;
            }
        }
    }

    async fn log_in_at(&self, endpoint: Endpoint, credentials: &Credentials) -> Result<(), RegistryError> {
        let transport = Arc::clone(&self.transport);
        let given = Some(credentials.clone());
        let session = Session::open(transport, self.settings().timing, endpoint, ("", "pull"), given).await?;
        let url = session.url("")?;
        let answer = session.ask(&Ask::bare(Method::GET, &url)).await?;
        if answer.status.is_success() { Ok(()) } else { Err(session.failure(answer, "the registry").await) }
    }
}
