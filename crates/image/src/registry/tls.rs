//! Whom to believe: the system's certificate authorities, and those that `certs.d` has for one registry.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::settings::Security;

/// Makes TLS configurations.
pub(super) struct Trust {
    certificates: Option<PathBuf>,
    system: OnceLock<RootCertStore>,
}

impl Trust {
    pub fn new(certificates: Option<PathBuf>) -> Self {
        Self { certificates, system: OnceLock::new() }
    }

    /// The configuration for a registry, read anew, so that a certificate that was put there is used at once.
    pub fn config(&self, authority: &str, security: Security) -> io::Result<Arc<ClientConfig>> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let own = self.own_files(authority)?;
        let builder = if security == Security::Unverified {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        } else {
            let mut roots = self.system().clone();
            for path in own.iter().filter(|path| path.extension().is_some_and(|extension| extension == "crt")) {
                for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, &error))? {
                    let certificate = certificate.map_err(|error| unreadable(path, &error))?;
                    roots.add(certificate).map_err(|error| unreadable(path, &error))?;
                }
            }
            builder.with_root_certificates(roots)
        };
        let identity = own.iter().find(|path| path.extension().is_some_and(|extension| extension == "cert"));
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let chain: Result<Vec<_>, _> =
                    CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
                let chain = chain.map_err(|error| unreadable(path, &error))?;
                let key = path.with_extension("key");
                let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| unreadable(&key, &error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| unreadable(path, &error))?
            }
        };
        Ok(Arc::new(config))
    }

    /// The files that `certs.d` has for a registry. Its name comes from an image's, which has no slash in this part.
    fn own_files(&self, authority: &str) -> io::Result<Vec<PathBuf>> {
        let Some(root) = &self.certificates else { return Ok(Vec::new()) };
        if authority.contains('/') || authority.starts_with('.') {
            return Ok(Vec::new());
        }
        match fs::read_dir(root.join(authority)) {
            Ok(entries) => {
                let mut files: Vec<PathBuf> =
                    entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
                files.sort();
                Ok(files)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn system(&self) -> &RootCertStore {
        self.system.get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(%error, "some of the system's certificates cannot be read");
            }
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(found.certs);
            roots
        })
    }
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("cannot use {}: {error}", path.display()))
}

/// Takes any certificate. When: the user named the registry insecure.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
