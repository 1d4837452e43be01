//! Credentials and tokens: how they are to be used, and F38.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::fixture::{Client, Server, Shelf, answer, chain};
use crate::registry::{Credentials, PullOptions, RegistryError};

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[tokio::test]
async fn a_name_and_a_password_are_given_when_asked_for() {
    let (shelf, made) = Shelf::with_image();
    let server = Server::start(move |asked| match asked.header("authorization") {
        Some(value) if value == basic("user", "secret") => shelf.serve(asked),
        _ => answer("401 Unauthorized", &[("WWW-Authenticate", "Basic realm=\"x\"")], b""),
    })
    .await;
    let (client, name) = (Client::new(), server.name("app:latest"));
    assert_eq!(client.pull_as(&name, Some(("user", "secret"))).await.unwrap().id, made.id);
    assert_eq!(server.asked()[0].header("authorization"), None, "not before it is asked for");
    let error = Client::new().pull(&name).await.unwrap_err();
    assert!(error.is_unauthorized() && chain(&error).contains("no basic auth credentials"), "{}", chain(&error));
    let wrong = Credentials { username: "user".into(), password: "wrong".into(), ..Credentials::default() };
    assert!(client.client.log_in(&server.address.to_string(), &wrong).await.unwrap_err().is_unauthorized());
    let right = Credentials { password: "secret".into(), ..wrong };
    client.client.log_in(&format!("http://{}/v1/", server.address), &right).await.unwrap();
}

/// A registry that wants a token, and the service that gives it.
async fn with_tokens(life: u64) -> (Server, Server, super::fixture::Made) {
    let tokens = Server::start(move |asked| {
        let right = asked.header("authorization") == Some(&basic("user", "secret"))
            || String::from_utf8_lossy(&asked.body).contains("refresh_token=identity");
        match right {
            true => answer("200 OK", &[], format!(r#"{{"access_token":"t0ken","expires_in":{life}}}"#).as_bytes()),
            false => answer("401 Unauthorized", &[], br#"{"details":"incorrect username or password"}"#),
        }
    })
    .await;
    let (shelf, made) = Shelf::with_image();
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"reg\"", tokens.address);
    let server = Server::start(move |asked| match asked.header("authorization") {
        Some("Bearer t0ken") => shelf.serve(asked),
        _ => answer("401 Unauthorized", &[("WWW-Authenticate", &challenge)], b""),
    })
    .await;
    (server, tokens, made)
}

#[tokio::test]
async fn tokens_are_fetched_with_a_password_or_an_identity_token() {
    let (server, tokens, made) = with_tokens(3600).await;
    let name = server.name("app:latest");
    assert_eq!(Client::new().pull_as(&name, Some(("user", "secret"))).await.unwrap().id, made.id);
    let asked = tokens.asked();
    assert_eq!(asked.len(), 1, "one token for all");
    assert!(asked[0].path.contains("service=reg") && asked[0].path.contains("scope=repository%3Aapp%3Apull"));
    let credentials = Some(Credentials { identitytoken: "identity".into(), ..Credentials::default() });
    let options = PullOptions { credentials, ..PullOptions::default() };
    assert_eq!(Client::new().client.pull(&name, &options, &|_| {}).await.unwrap().id, made.id);
    assert_eq!(tokens.asked()[1].method, "POST");
    let credentials = Some(Credentials { registrytoken: "t0ken".into(), ..Credentials::default() });
    let options = PullOptions { credentials, ..PullOptions::default() };
    assert_eq!(Client::new().client.pull(&name, &options, &|_| {}).await.unwrap().id, made.id);
    assert_eq!(tokens.asked().len(), 2, "a registry token is used as it is");
    let error = Client::new().pull_as(&name, Some(("user", "wrong"))).await.unwrap_err();
    assert!(error.is_unauthorized() && chain(&error).contains("incorrect username"), "{}", chain(&error));
}

#[tokio::test]
async fn f38_a_realm_on_another_host_gets_no_credentials() {
    let thief = Server::start_on("127.0.0.2", None, |_| answer("200 OK", &[], br#"{"token":"t"}"#)).await;
    for scheme in ["Bearer", "bearer"] {
        let challenge = format!("{scheme} realm=\"http://{}/token\",service=\"reg\"", thief.address);
        let server = Server::start(move |_| answer("401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"")).await;
        let error = Client::new().pull_as(&server.name("app:latest"), Some(("user", "secret"))).await.unwrap_err();
        assert!(chain(&error).contains("no credentials are sent there"), "{}", chain(&error));
    }
    assert_eq!(thief.asked().len(), 0);
}

#[tokio::test]
async fn f38_a_token_of_ten_megabytes_or_with_line_feeds_is_refused() {
    let long = "t".repeat(10 << 20);
    for token in [long.as_str(), "a\\r\\nX-Injected: 1", ""] {
        let body = format!(r#"{{"token":"{token}"}}"#);
        let tokens = Server::start(move |_| answer("200 OK", &[], body.as_bytes())).await;
        let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.address);
        let server = Server::start(move |_| answer("401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"")).await;
        let error = Client::new().refused(&server.name("app:latest")).await;
        assert!(!matches!(error, RegistryError::Unauthorized { .. }), "{}", chain(&error));
        assert_eq!(tokens.asked().len(), 1);
    }
}

#[tokio::test]
async fn f38_a_token_that_runs_out_is_fetched_again() {
    let (server, tokens, made) = with_tokens(0).await;
    let client = Client::new();
    assert_eq!(client.pull_as(&server.name("app:latest"), Some(("user", "secret"))).await.unwrap().id, made.id);
    assert!(!tokens.asked().is_empty());
}
