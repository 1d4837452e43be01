//! The HTTP server: opens the engine, serves every socket, stops on a signal and leaves the containers running.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::connections::{Connections, Place};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::flags::Settings;
use crate::leftover::Leftover;
use crate::listen::{self, Socket};
use crate::lock::RootLock;
use crate::peer::{self, Peer};
use crate::query::Query;
use crate::refusal::Refusal;
use crate::reload::Reloader;
use crate::version::{self, ApiVersion};
use crate::{build, containers, events, images, missing, networks, notify, recovery, sys, system, volumes};

/// How long requests that are under way may take once the engine was told to stop.
const GRACE: Duration = Duration::from_secs(2);
/// How long the utility VM that stands by may take to go; its shim goes with the engine anyway.
const STANDBY_GRACE: Duration = Duration::from_secs(8);
/// How long a client may take for the head of a request, and be idle before it. Source: moby, `ReadHeaderTimeout`.
const HEAD_PATIENCE: Duration = Duration::from_secs(300);
/// What this engine calls itself in the `Server` header.
pub const SERVER: &str = concat!("Bulkhead/", env!("CARGO_PKG_VERSION"), " (linux)");

/// Runs the engine until SIGTERM or SIGINT, or until SIGPWR, which stops the containers first.
///
/// # Errors
/// One line: a root that cannot be used or belongs to another engine, a socket that cannot be served, a store that
/// cannot be opened.
pub async fn run(mut reloader: Reloader) -> anyhow::Result<()> {
    let passed = sys::take_passed_sockets();
    let flags = reloader.current.flags.clone();
    let settings = flags.settings()?;
    let _locks = (
        RootLock::acquire(&settings.data_root, "--data-root")?,
        RootLock::acquire(&settings.exec_root, "--exec-root")?,
    );
    let connections = Connections::new(raise_descriptor_limit());
    let sockets = listen::open_all(&flags.hosts, passed, flags.group.as_deref())?;
    let _pidfile = flags.pidfile.as_deref().map(Pidfile::write).transpose()?;
    let mut signals = Signals::listen()?;
    let engine = open(settings).await?;
    recovery::recover(&engine).await.context("cannot take up the containers of the last run")?;
    let standby = containers::keep_standby(&engine);
    let refusal = Refusal::new();
    let tracker = TaskTracker::new();
    for socket in &sockets {
        let listener = UnixListener::from_std(socket.listener.try_clone()?)?;
        let server = Server {
            router: router(Arc::clone(&engine)),
            connections: Arc::clone(&connections),
            refusal: refusal.clone(),
            stopping: engine.stopping.clone(),
        };
        tracker.spawn(server.serve(listener, tracker.clone()));
    }
    tracker.close();
    announce(&sockets);
    let stop = loop {
        match signals.received().await {
            Received::Reload => reloader.reload(&engine),
            stop => break stop,
        }
    };
    notify::tell(notify::State::Stopping);
    if stop == Received::HostEnd {
        tracing::info!("the host goes down; stopping the containers");
        // A second signal ends the waiting.
        tokio::select! {
            () = containers::stop_all(&engine) => {}
            () = signals.stopped() => tracing::warn!("containers that still run are left to the host"),
        }
    } else {
        tracing::info!("stopping; running containers go on");
    }
    engine.stopping.cancel();
    drop(sockets);
    end(&engine, &tracker, standby).await;
    Ok(())
}

/// Ends what is under way. When: the engine is stopping, and no socket is served any more.
async fn end(engine: &Arc<Engine>, tracker: &TaskTracker, standby: JoinHandle<()>) {
    if tokio::time::timeout(GRACE, tracker.wait()).await.is_err() {
        tracing::debug!("some requests were cut off");
    }
    if tokio::time::timeout(STANDBY_GRACE, standby).await.is_err() {
        tracing::warn!("the utility VM that stood by is slow to go");
    }
    if tokio::task::spawn_blocking({
        let engine = Arc::clone(engine);
        move || engine.networks.retire()
    })
    .await
    .is_err()
    {
        tracing::warn!("the networks were not taken down");
    }
    engine.copying.close();
    if tokio::time::timeout(GRACE, engine.copying.wait()).await.is_err() {
        tracing::warn!("some container's log is not complete");
    }
}

/// Every container takes some descriptors, every client takes two; the usual soft limit is soon too few. How many there are
/// now; none is without limit.
fn raise_descriptor_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    getrlimit(Resource::Nofile).current
}

async fn open(settings: Settings) -> anyhow::Result<Arc<Engine>> {
    tokio::task::spawn_blocking(move || Engine::open(settings)).await?.map(Arc::new)
}

/// The signals that the engine heeds.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    power: tokio::signal::unix::Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Received {
    Reload,
    /// The engine is to end.
    Stop,
    /// The host goes down: the containers are to end, and then the engine.
    HostEnd,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            power: listen(SignalKind::from_raw(rustix::process::Signal::POWER.as_raw()))?,
        })
    }

    async fn received(&mut self) -> Received {
        tokio::select! {
            _ = self.terminate.recv() => Received::Stop,
            _ = self.interrupt.recv() => Received::Stop,
            _ = self.hangup.recv() => Received::Reload,
            _ = self.power.recv() => Received::HostEnd,
        }
    }

    async fn stopped(&mut self) {
        while self.received().await != Received::Stop {}
    }
}

fn router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/_ping", get(ping))
        .route("/events", get(listen_to_events))
        .merge(containers::router())
        .merge(images::router())
        .merge(volumes::router())
        .merge(build::router())
        .merge(networks::router())
        .merge(system::router())
        .fallback(missing::answer)
        .method_not_allowed_fallback(missing::answer)
        .with_state(engine)
}

/// `GET /events`.
async fn listen_to_events(State(engine): State<Arc<Engine>>, query: Query) -> ApiResult<Response> {
    events::stream(&engine.events, &query)
}

/// `GET` and `HEAD /_ping`.
async fn ping() -> Response {
    let headers = [
        (header::CACHE_CONTROL.as_str(), "no-cache, no-store, must-revalidate"),
        (header::PRAGMA.as_str(), "no-cache"),
        ("builder-version", "1"),
        ("swarm", "inactive"),
        (header::CONTENT_TYPE.as_str(), "text/plain; charset=utf-8"),
    ];
    (headers, "OK").into_response()
}

/// What serves the clients of one socket.
#[derive(Clone)]
struct Server {
    router: Router,
    connections: Arc<Connections>,
    refusal: Refusal,
    stopping: CancellationToken,
}

impl Server {
    async fn serve(self, listener: UnixListener, tracker: TaskTracker) {
        let mut full = false;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stopping.cancelled() => return,
            };
            match accepted.map(|(stream, _)| (stream, self.connections.admit())) {
                Ok((stream, Some(place))) => {
                    full = false;
                    tracker.spawn(self.clone().connection(stream, place));
                }
                Ok((stream, None)) => {
                    if !std::mem::replace(&mut full, true) {
                        tracing::warn!("too many connections are in use: others are refused");
                    }
                    self.refusal.tell(stream);
                }
                // No descriptor is left, most likely; one second is what others need to close some.
                Err(error) => {
                    tracing::error!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn connection(self, stream: UnixStream, place: Arc<Place>) {
        let peer = Peer::default();
        let hang_up = peer::hang_up(&stream);
        let watching = async {
            hang_up.await;
            // What is under way notices itself.
            peer.gone.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.converse(stream, &place, &peer) => {}
            () = watching => {}
        }
    }

    /// Answers one request after another.
    async fn converse(&self, stream: UnixStream, place: &Arc<Place>, peer: &Peer) {
        let service = hyper::service::service_fn(|mut request: hyper::Request<Incoming>| {
            let (router, busy, peer) = (self.router.clone(), place.busy(), peer.clone());
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(Arc::clone(place));
            async move {
                let response = answer(router, request.map(Body::new)).await;
                Ok::<_, Infallible>(response.map(|body| peer.hold(body, busy)))
            }
        });
        // A client that has sent its last request may close its half, and still wants the answer.
        let connection = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            // Some hand-made clients look for names of headers as Go writes them.
            .title_case_headers(true)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_PATIENCE)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = place.unwanted() => {
                if !place.has_asked() {
                    tracing::debug!("a connection without a request makes room for another");
                    return;
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = self.stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

/// Splits the version off the path, lets the router answer, and puts the headers on that every response carries.
async fn answer(router: Router, request: Request) -> Response {
    tracing::debug!(method = %request.method(), uri = %request.uri(), "request");
    let waits_for_leave = request.headers().contains_key(header::EXPECT);
    let (parts, body) = request.into_parts();
    let (body, leftover) = Leftover::of(body);
    let mut request = Request::from_parts(parts, body);
    let mut response = match strip_version(&mut request) {
        Ok(()) => match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        Err(error) => {
            drop(request);
            error.into_response()
        }
    };
    // A client that waits for leave to send its body has not sent it; to read it would be to give leave.
    let failed = response.status().is_client_error() || response.status().is_server_error();
    if failed && (waits_for_leave || !leftover.drain().await) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let headers = response.headers_mut();
    let version = HeaderValue::from_str(&version::MAX.to_string()).unwrap_or(HeaderValue::from_static("1.51"));
    headers.insert("api-version", version);
    headers.insert("docker-experimental", HeaderValue::from_static("false"));
    headers.insert("ostype", HeaderValue::from_static("linux"));
    headers.insert(header::SERVER, HeaderValue::from_static(SERVER));
    response
}

/// Checks the path's form, and splits its version off.
fn strip_version(request: &mut Request) -> Result<(), ApiError> {
    if percent_encoding::percent_decode_str(request.uri().path()).decode_utf8().is_err() {
        return Err(ApiError::invalid("the path is no UTF-8"));
    }
    let (version, path) = ApiVersion::split(request.uri().path())?;
    if path.len() != request.uri().path().len() {
        let rest = match request.uri().query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        *request.uri_mut() = rest.parse::<Uri>().map_err(|error| ApiError::invalid(error.to_string()))?;
    }
    request.extensions_mut().insert(version);
    Ok(())
}

/// Says that the engine serves, in the log and to a service manager.
fn announce(sockets: &[Socket]) {
    for socket in sockets {
        tracing::info!("API listen on {}", socket.address);
    }
    notify::tell(notify::State::Ready);
}

/// The file with the engine's process id, removed on drop.
struct Pidfile<'a>(&'a Path);

impl<'a> Pidfile<'a> {
    fn write(path: &'a Path) -> anyhow::Result<Self> {
        let recorded = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u32>().ok());
        if let Some(pid) =
            recorded.filter(|pid| *pid != std::process::id() && Path::new(&format!("/proc/{pid}")).exists())
        {
            anyhow::bail!("{} names the running process {pid}; stop it or choose another --pidfile", path.display());
        }
        std::fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("cannot write the pidfile {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Pidfile<'_> {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(self.0) {
            tracing::debug!(%error, "cannot remove the pidfile");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_leaves_the_path_and_the_query_stays() {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = "/v1.40/containers/json?all=1".parse().unwrap();
        strip_version(&mut request).unwrap();
        assert_eq!(request.uri(), "/containers/json?all=1");
        assert_eq!(request.extensions().get(), Some(&ApiVersion::new(1, 40)));
        *request.uri_mut() = "/v9.1/info".parse().unwrap();
        assert_eq!(strip_version(&mut request).unwrap_err().http_status(), 400);
    }

    #[test]
    fn a_pidfile_of_a_living_process_is_respected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        std::fs::write(&path, "1\n").unwrap();
        assert!(Pidfile::write(&path).is_err());
        std::fs::write(&path, "4194303999\n").unwrap();
        drop(Pidfile::write(&path).unwrap());
        assert!(!path.exists());
    }
}
