//! A registry that does what a test wants, byte for byte, and the images that it has.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::Digest;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::compression::digest_of;
use crate::reference::Reference;
use crate::registry::document::{DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST};
use crate::registry::{
    Credentials, PullEvent, PullOptions, Pulled, RegistryClient, RegistryError, RegistrySettings, Timing,
};
use crate::store::ImageStore;
use crate::testing::{gzip, layer};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What is answered.
pub enum Reply {
    /// These bytes; the connection stays.
    Bytes(Vec<u8>),
    /// These bytes, and then the connection is cut.
    Cut(Vec<u8>),
    /// These bytes at once and then the others one by one.
    Drip(Vec<u8>, Vec<u8>, Duration),
    /// These bytes, and then nothing.
    Hang(Vec<u8>),
    /// These bytes, and then the others for ever.
    Endless(Vec<u8>, Vec<u8>),
}

/// An answer with a body of known length.
pub fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    Reply::Bytes([head(status, headers, Some(body.len())), body.to_vec()].concat())
}

pub fn head(status: &str, headers: &[(&str, &str)], length: Option<usize>) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if let Some(length) = length {
        text += &format!("Content-Length: {length}\r\n");
    }
    (text + "\r\n").into_bytes()
}

type Handler = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

/// A server on a loopback address.
pub struct Server {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start(handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_on("127.0.0.1", None, handler).await
    }

    pub async fn start_on(
        host: &str,
        tls: Option<tokio_rustls::TlsAcceptor>,
        handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (log, handler): (_, Handler) = (Arc::clone(&asked), Arc::new(handler));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, handler, tls) = (Arc::clone(&log), Arc::clone(&handler), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => converse(stream, &log, &handler).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                converse(stream, &log, &handler).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, asked, task }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How often a path was asked for.
    pub fn count(&self, method: &str, end: &str) -> usize {
        self.asked().iter().filter(|asked| asked.method == method && asked.path.ends_with(end)).count()
    }

    pub fn name(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }
}

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, log: &Mutex<Vec<Asked>>, handler: &Handler) {
    while let Some(asked) = read_request(&mut stream).await {
        log.lock().unwrap().push(asked.clone());
        let done = match handler(&asked) {
            Reply::Bytes(bytes) => stream.write_all(&bytes).await.is_err(),
            Reply::Cut(bytes) => {
                let _ = stream.write_all(&bytes).await;
                true
            }
            Reply::Drip(first, rest, pause) => {
                let _ = stream.write_all(&first).await;
                for byte in rest {
                    tokio::time::sleep(pause).await;
                    if stream.write_all(&[byte]).await.is_err() {
                        break;
                    }
                }
                true
            }
            Reply::Hang(bytes) => {
                let _ = stream.write_all(&bytes).await;
                tokio::time::sleep(Duration::from_secs(60)).await;
                true
            }
            Reply::Endless(first, more) => {
                let _ = stream.write_all(&first).await;
                while stream.write_all(&more).await.is_ok() {}
                true
            }
        };
        if done {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

/// A request; nothing at the end of the connection, or if it is no HTTP (a client tries TLS first).
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Asked> {
    let mut bytes: Vec<u8> = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if bytes.first().is_some_and(|first| !first.is_ascii_uppercase()) {
            return None;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> =
        lines.filter_map(|line| line.split_once(": ")).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let mut asked = Asked { method, path, headers, body: bytes[end + 4..].to_vec() };
    let length = asked.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    while asked.body.len() < length {
        if stream.read_buf(&mut asked.body).await.ok()? == 0 {
            return None;
        }
    }
    Some(asked)
}

/// What a well-behaved registry has. Names in it are `app` with tags or digests.
#[derive(Clone, Default)]
pub struct Shelf {
    pub blobs: HashMap<String, Vec<u8>>,
    pub manifests: HashMap<String, (String, Vec<u8>)>,
}

/// An image on a shelf.
#[derive(Clone)]
pub struct Made {
    pub id: Digest,
    pub manifest: Digest,
    pub layers: Vec<Digest>,
}

impl Shelf {
    /// A shelf with one image of one layer under `app:latest`.
    pub fn with_image() -> (Self, Made) {
        let mut shelf = Self::default();
        let made = shelf.add("latest", &[("a", "some text")]);
        (shelf, made)
    }

    /// Adds an image with one layer for each file, gzip.
    pub fn add(&mut self, tag: &str, files: &[(&str, &str)]) -> Made {
        let layers: Vec<_> = files.iter().map(|(path, content)| layer(path, content)).collect();
        let blobs = layers.iter().map(|tar| (DOCKER_LAYER, gzip(tar))).collect();
        self.add_blobs(tag, &layers, blobs)
    }

    pub fn add_blobs(&mut self, tag: &str, tars: &[Vec<u8>], blobs: Vec<(&str, Vec<u8>)>) -> Made {
        let diff_ids: Vec<Digest> = tars.iter().map(|tar| digest_of(tar)).collect();
        let config = json!({
            "architecture": crate::config::host_architecture(), "os": "linux", "config": {"Cmd": ["/a"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "comment": tag,
        });
        let config = config.to_string().into_bytes();
        let described: Vec<Value> = blobs.iter().map(|(media_type, blob)| descriptor(media_type, blob)).collect();
        let oci = blobs.iter().any(|(media_type, _)| media_type.contains("oci"));
        let (own, config_type) = match oci {
            true => ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json"),
            false => (DOCKER_MANIFEST, DOCKER_CONFIG),
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": own, "config": descriptor(config_type, &config), "layers": described,
        });
        let layers = blobs.iter().map(|(_, blob)| digest_of(blob)).collect();
        let id = digest_of(&config);
        self.blobs.insert(id.to_string(), config);
        self.blobs.extend(blobs.into_iter().map(|(_, blob)| (digest_of(&blob).to_string(), blob)));
        let manifest = self.add_manifest(tag, own, &manifest);
        Made { id, manifest, layers }
    }

    pub fn add_manifest(&mut self, tag: &str, media_type: &str, manifest: &Value) -> Digest {
        let bytes = manifest.to_string().into_bytes();
        let digest = digest_of(&bytes);
        for key in [tag, digest.as_str()] {
            self.manifests.insert(key.to_owned(), (media_type.to_owned(), bytes.clone()));
        }
        digest
    }

    /// A registry's answer.
    pub fn serve(&self, asked: &Asked) -> Reply {
        if asked.path == "/v2/" {
            return answer("200 OK", &[], b"{}");
        }
        let missing = || {
            answer("404 Not Found", &[], br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
        };
        if let Some(wanted) = asked.path.strip_prefix("/v2/app/manifests/") {
            let Some((media_type, bytes)) = self.manifests.get(wanted) else { return missing() };
            return answer("200 OK", &[("Content-Type", media_type)], bytes);
        }
        match asked.path.strip_prefix("/v2/app/blobs/").and_then(|digest| self.blobs.get(digest)) {
            Some(blob) => answer("200 OK", &[], blob),
            None => missing(),
        }
    }
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "size": bytes.len(), "digest": digest_of(bytes)})
}

/// Short times, so that a stall is one soon.
pub fn impatient() -> Timing {
    Timing {
        connect: Duration::from_secs(5),
        idle: Duration::from_millis(400),
        stall: Duration::from_millis(400),
        least_bytes: 64,
        attempts: 3,
        backoff: Duration::from_millis(5),
        longest_backoff: Duration::from_millis(20),
    }
}

/// As [`impatient`], for tests in which nothing stalls but a busy machine.
pub fn patient() -> Timing {
    Timing {
        idle: Duration::from_secs(20),
        stall: Duration::from_secs(20),
        connect: Duration::from_secs(20),
        ..impatient()
    }
}

/// A client with a store of its own.
pub struct Client {
    pub folder: tempfile::TempDir,
    pub store: Arc<ImageStore>,
    pub client: Arc<RegistryClient>,
}

impl Client {
    pub fn new() -> Self {
        Self::with(RegistrySettings { timing: patient(), ..RegistrySettings::default() })
    }

    pub fn impatient() -> Self {
        Self::with(RegistrySettings { timing: impatient(), ..RegistrySettings::default() })
    }

    pub fn with(settings: RegistrySettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(ImageStore::open(&folder.path().join("images")).unwrap());
        let cache = folder.path().join("known.redb");
        let client = Arc::new(RegistryClient::open(Arc::clone(&store), settings, &cache).unwrap());
        Self { folder, store, client }
    }

    pub async fn pull(&self, name: &Reference) -> Result<Pulled, RegistryError> {
        self.pull_as(name, None).await
    }

    pub async fn pull_as(&self, name: &Reference, who: Option<(&str, &str)>) -> Result<Pulled, RegistryError> {
        let credentials = who.map(|(username, password)| Credentials {
            username: username.into(),
            password: password.into(),
            ..Credentials::default()
        });
        self.client.pull(name, &PullOptions { credentials, ..PullOptions::default() }, &|_| {}).await
    }

    /// A pull with all that is told of it.
    pub async fn pull_told(&self, name: &Reference) -> (Result<Pulled, RegistryError>, Vec<PullEvent>) {
        let told = Mutex::new(Vec::new());
        let outcome = self.client.pull(name, &PullOptions::default(), &|event| told.lock().unwrap().push(event)).await;
        (outcome, told.into_inner().unwrap())
    }

    /// A pull that must fail, and must leave nothing behind.
    pub async fn refused(&self, name: &Reference) -> RegistryError {
        let before = self.files();
        let error = self.pull(name).await.expect_err("this must not be pulled");
        assert!(self.store.resolve(&name.to_string()).is_err(), "no name is set");
        self.settled(&before).await;
        error
    }

    /// Waits until the worker threads have taken away what they had begun.
    pub async fn settled(&self, expected: &[String]) {
        for _ in 0..200 {
            if self.files() == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("left behind: {:?}, expected {expected:?}", self.files());
    }

    /// The layers and temporary files of the store.
    pub fn files(&self) -> Vec<String> {
        let list = |folder: &str| {
            let entries = std::fs::read_dir(Path::join(self.folder.path(), folder)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        let mut files = [list("images/layers"), list("images/tmp")].concat();
        files.sort();
        files
    }
}

/// The error and its sources on one line.
pub fn chain(error: &RegistryError) -> String {
    proto::Status::from_error(error.kind(), error).to_string()
}
