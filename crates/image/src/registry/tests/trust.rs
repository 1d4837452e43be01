//! Certificates: F42, and redirections from https.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use super::fixture::{Client, Server, Shelf, answer, chain, patient};
use crate::registry::RegistrySettings;

struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { params, key, pem }
}

/// A server's certificate for a name, signed by an authority or by itself.
fn acceptor(host: &str, expired: bool, by: Option<&Authority>) -> TlsAcceptor {
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    if expired {
        params.not_after = date_time_ymd(2020, 1, 1);
    }
    let key = KeyPair::generate().unwrap();
    let certificate = match by {
        Some(authority) => {
            let issuer = Issuer::from_params(&authority.params, &authority.key);
            params.signed_by(&key, &issuer).unwrap()
        }
        None => params.self_signed(&key).unwrap(),
    };
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// A client whose `certs.d` has an authority for a registry.
fn trusting(server: &Server, authority: &Authority, insecure: bool) -> (Client, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join(server.address.to_string());
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("ca.crt"), &authority.pem).unwrap();
    let settings = RegistrySettings {
        certificates: Some(folder.path().to_owned()),
        insecure: if insecure { vec![server.address.to_string()] } else { Vec::new() },
        timing: patient(),
        ..RegistrySettings::default()
    };
    (Client::with(settings), folder)
}

#[tokio::test]
async fn a_registry_with_a_certificate_of_certs_d_is_trusted() {
    let authority = authority();
    let (shelf, made) = Shelf::with_image();
    let tls = acceptor("127.0.0.1", false, Some(&authority));
    let server = Server::start_on("127.0.0.1", Some(tls), move |asked| shelf.serve(asked)).await;
    let (client, _certificates) = trusting(&server, &authority, false);
    assert_eq!(client.pull(&server.name("app:latest")).await.unwrap().id, made.id);
}

#[tokio::test]
async fn f42_expired_foreign_and_self_signed_certificates_are_refused() {
    let ours = authority();
    let (other, host) = (authority(), "127.0.0.1");
    // All authorities have one name here, so that a signature that is not theirs is found out by itself.
    for (what, tls, words) in [
        ("expired", acceptor(host, true, Some(&ours)), "expired"),
        ("another host's", acceptor("registry.example.com", false, Some(&ours)), "not valid for"),
        ("self-signed", acceptor(host, false, None), "BadSignature"),
        ("of another authority", acceptor(host, false, Some(&other)), "BadSignature"),
    ] {
        let (shelf, made) = Shelf::with_image();
        let server = Server::start_on(host, Some(tls), move |asked| shelf.serve(asked)).await;
        let (client, _certificates) = trusting(&server, &ours, false);
        let error = client.refused(&server.name("app:latest")).await;
        let text = chain(&error);
        assert!(text.contains("no trusted connection") && text.contains(words), "{what}: {text}");
        assert_eq!(server.asked().len(), 0, "{what}: nothing was said to it, and plain HTTP not tried");
        let (client, _certificates) = trusting(&server, &ours, true);
        assert_eq!(client.pull(&server.name("app:latest")).await.unwrap().id, made.id, "{what}, named insecure");
    }
}

#[tokio::test]
async fn f37_a_redirect_from_https_to_http_is_refused() {
    let authority = authority();
    let plain = Server::start(|_| answer("200 OK", &[], b"")).await;
    let (shelf, made) = Shelf::with_image();
    let (layer, to) = (made.layers[0].clone(), format!("http://{}/x", plain.address));
    let tls = acceptor("127.0.0.1", false, Some(&authority));
    let server = Server::start_on("127.0.0.1", Some(tls), move |asked| match asked.path.ends_with(layer.as_str()) {
        true => answer("307 Temporary Redirect", &[("Location", &to)], b""),
        false => shelf.serve(asked),
    })
    .await;
    let (client, _certificates) = trusting(&server, &authority, false);
    let error = client.refused(&server.name("app:latest")).await;
    assert!(chain(&error).contains("from https to http"), "{}", chain(&error));
    assert_eq!(plain.asked().len(), 0);
}
