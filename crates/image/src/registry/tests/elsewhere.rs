//! Leading the client somewhere else: F37, F43.

use super::fixture::{Asked, Client, Reply, Server, Shelf, answer, chain, head};

const WHO: Option<(&str, &str)> = Some(("user", "secret"));

/// Asks for a name and a password first.
fn guarded(asked: &Asked) -> Option<Reply> {
    let challenge = [("WWW-Authenticate", "Basic realm=\"x\"")];
    asked.header("authorization").is_none().then(|| answer("401 Unauthorized", &challenge, b""))
}

#[tokio::test]
async fn f37_credentials_do_not_follow_a_redirect_to_another_host() {
    let (shelf, made) = Shelf::with_image();
    let layer = made.layers[0].clone();
    let bytes = shelf.blobs[layer.as_str()].clone();
    let elsewhere = Server::start_on("127.0.0.2", None, move |_| answer("200 OK", &[], &bytes)).await;
    let other_port = Server::start({
        let bytes = shelf.blobs[made.id.as_str()].clone();
        move |_| answer("200 OK", &[], &bytes)
    })
    .await;
    let (to_host, to_port) = (format!("http://{}/x", elsewhere.address), format!("http://{}/y", other_port.address));
    let config = made.id.clone();
    let server = Server::start(move |asked| {
        if let Some(refusal) = guarded(asked) {
            return refusal;
        }
        if asked.path.ends_with(layer.as_str()) {
            return answer("307 Temporary Redirect", &[("Location", &to_host)], b"");
        }
        if asked.path.ends_with(config.as_str()) {
            return answer("302 Found", &[("Location", &to_port)], b"");
        }
        shelf.serve(asked)
    })
    .await;
    let client = Client::new();
    assert_eq!(client.pull_as(&server.name("app:latest"), WHO).await.unwrap().id, made.id);
    for other in [&elsewhere, &other_port] {
        let asked = other.asked();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].header("authorization"), None, "{:?}", asked[0]);
        assert_eq!(asked[0].header("cookie"), None);
    }
    assert!(server.asked().iter().any(|asked| asked.header("authorization").is_some()));
}

#[tokio::test]
async fn f37_redirects_in_a_loop_or_to_what_is_no_registry_are_refused() {
    for (to, words) in [
        ("/v2/app/blobs/again", "there is no end"),
        ("file:///etc/passwd", "something other than http"),
        ("ftp://127.0.0.1/x", "something other than http"),
        ("http://169.254.169.254/latest/meta-data", "not allowed"),
        ("http://[::ffff:169.254.169.254]/", "not allowed"),
        ("http://0.0.0.0:1/", "not allowed"),
        ("http://user:pw@127.0.0.1/x", "holds credentials"),
        ("http://", "malformed"),
    ] {
        let (shelf, made) = Shelf::with_image();
        let layer = made.layers[0].clone();
        let server =
            Server::start(move |asked| match asked.path.ends_with(layer.as_str()) || asked.path.ends_with("again") {
                true => answer("307 Temporary Redirect", &[("Location", to)], b""),
                false => shelf.serve(asked),
            })
            .await;
        let error = Client::new().refused(&server.name("app:latest")).await;
        assert!(chain(&error).contains(words), "{to}: {}", chain(&error));
        assert!(server.asked().len() < 20, "{to}");
    }
}

#[tokio::test]
async fn f37_a_redirect_without_an_address_is_refused() {
    let (shelf, _) = Shelf::with_image();
    let server = Server::start(move |asked| match asked.path.contains("/manifests/") {
        true => answer("302 Found", &[], b""),
        false => shelf.serve(asked),
    })
    .await;
    let error = Client::new().refused(&server.name("app:latest")).await;
    assert!(chain(&error).contains("leads nowhere"), "{}", chain(&error));
}

#[tokio::test]
async fn f43_heads_without_bounds_are_refused() {
    let megabyte = "x".repeat(1 << 20);
    let many: String = (0..20_000).map(|n| format!("X-{n}: y\r\n")).collect();
    for reply in [
        head("200 OK", &[("X-Bomb", &megabyte)], Some(0)),
        head("307 Temporary Redirect", &[("Location", &format!("/{megabyte}"))], Some(0)),
        format!("HTTP/1.1 200 OK\r\n{many}\r\n").into_bytes(),
    ] {
        let (shelf, _) = Shelf::with_image();
        let server = Server::start(move |asked| match asked.path.contains("/manifests/") {
            true => Reply::Bytes(reply.clone()),
            false => shelf.serve(asked),
        })
        .await;
        let error = Client::new().refused(&server.name("app:latest")).await;
        assert!(chain(&error).contains("the HTTP connection failed"), "{}", chain(&error));
    }
}

#[tokio::test]
async fn f43_headers_for_ever_are_given_up() {
    let (shelf, _) = Shelf::with_image();
    let server = Server::start(move |asked| match asked.path.contains("/manifests/") {
        true => Reply::Endless(b"HTTP/1.1 200 OK\r\n".to_vec(), b"X-More: y\r\n".to_vec()),
        false => shelf.serve(asked),
    })
    .await;
    Client::new().refused(&server.name("app:latest")).await;
}
