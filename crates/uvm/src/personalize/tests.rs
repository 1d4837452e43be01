//! Personalizing guests that lie, are silent, or speak something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use proto::gcs::wire::SyncClockResponse;
use proto::gcs::wire_ttrpc::{Guest, create_guest};
use proto::gcs::{StreamHeader, StreamKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_util::compat::{FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};

use super::*;

const LIMIT: Duration = Duration::from_millis(600);

fn identity() -> Identity {
    Identity {
        hostname: "web".into(),
        domainname: String::new(),
        machine_id: "0f".repeat(16),
        rehearsal: false,
        network: Network::new(),
    }
}

/// How a fake guest changes the right answer, and how slow it is.
type Falsify = fn(&mut PersonalizeResponse);

struct FakeGuest {
    falsify: Falsify,
    delay: Duration,
    synchronized: Arc<AtomicU32>,
}

#[async_trait]
impl Guest for FakeGuest {
    async fn personalize(
        &self,
        _: &::ttrpc::r#async::TtrpcContext,
        request: PersonalizeRequest,
    ) -> ttrpc::Result<PersonalizeResponse> {
        tokio::time::sleep(self.delay).await;
        assert_eq!((request.version, request.entropy.len()), (gcs::VERSION, ENTROPY_BYTES));
        assert!(request.entropy.iter().any(|&byte| byte != 0));
        let mut response = PersonalizeResponse {
            version: gcs::VERSION,
            reseeded: true,
            wall_clock_ns: request.wall_clock_ns,
            hostname: request.hostname,
            machine_id: request.machine_id,
            boot_id: "01234567-89ab-cdef-0123-456789abcdef".into(),
            fingerprint: vec![7; 32],
            ..Default::default()
        };
        (self.falsify)(&mut response);
        Ok(response)
    }

    async fn sync_clock(
        &self,
        _: &::ttrpc::r#async::TtrpcContext,
        request: SyncClockRequest,
    ) -> ttrpc::Result<SyncClockResponse> {
        self.synchronized.fetch_add(1, Ordering::SeqCst);
        Ok(SyncClockResponse { wall_clock_ns: request.wall_clock_ns, ..Default::default() })
    }
}

/// Serves a guest on one end of a socket pair, as the real one does: yamux server, header, ttrpc.
async fn serve(port: UnixStream, guest: FakeGuest) {
    let mut connection = yamux::Connection::new(port.compat(), yamux::Config::default(), yamux::Mode::Server);
    let control = std::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await.unwrap().unwrap();
    tokio::spawn(async move { while std::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await.is_some() {} });
    let mut control = control.compat();
    let mut header = [0; StreamHeader::LEN];
    control.read_exact(&mut header).await.unwrap();
    assert_eq!(StreamHeader::decode(header).unwrap().kind, StreamKind::Control);
    let streams = futures_util::stream::once(async { Ok(control) }).chain(futures_util::stream::pending());
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(ttrpc::r#async::transport::Listener::new(streams))
        .register_service(create_guest(Arc::new(guest)));
    server.start().await.unwrap();
    std::future::pending::<()>().await;
}

async fn with_guest(delay: Duration, falsify: Falsify) -> (Result<Personalized, PersonalizeError>, u32) {
    let (host, port) = UnixStream::pair().unwrap();
    let synchronized = Arc::new(AtomicU32::new(0));
    let task = tokio::spawn(serve(port, FakeGuest { falsify, delay, synchronized: Arc::clone(&synchronized) }));
    let guest = GuestConnection::open(host).await.unwrap();
    let outcome = personalize(&guest, &identity(), LIMIT).await;
    task.abort();
    (outcome, synchronized.load(Ordering::SeqCst))
}

#[tokio::test]
async fn an_honest_guest_is_accepted() {
    let (outcome, synchronized) = with_guest(Duration::ZERO, |_| {}).await;
    let personalized = outcome.unwrap();
    assert_eq!(personalized.fingerprint, "07".repeat(32));
    assert!(personalized.clock_error_us.abs() <= 50_000, "{personalized:?}");
    assert_eq!(synchronized, 0);
}

#[tokio::test]
async fn a_slow_first_round_trip_sets_the_clock_again() {
    let (outcome, synchronized) = with_guest(Duration::from_millis(120), |_| {}).await;
    assert!(outcome.unwrap().clock_error_us.abs() <= 50_000);
    assert!(synchronized >= 1);
}

#[tokio::test]
async fn each_false_claim_is_refused() {
    let lies: [(Falsify, &str); 9] = [
        (|answer| answer.version = 1, "version 1"),
        (|answer| answer.reseeded = false, "reseed"),
        (|answer| answer.hostname = "other".into(), "host name"),
        (|answer| answer.machine_id.clear(), "machine id"),
        (|answer| answer.boot_id.clear(), "boot id"),
        (|answer| answer.boot_id = "x".repeat(36), "boot id"),
        (|answer| answer.fingerprint.clear(), "fingerprint"),
        (|answer| answer.wall_clock_ns -= 1_000_000_000, "clock"),
        (|answer| answer.wall_clock_ns += 1_000_000_000, "clock"),
    ];
    for (lie, word) in lies {
        let (outcome, _) = with_guest(Duration::ZERO, lie).await;
        let error = outcome.unwrap_err();
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

#[tokio::test]
async fn a_guest_of_another_build_is_refused_with_what_to_do() {
    let (outcome, _) = with_guest(Duration::ZERO, |answer| {
        *answer = PersonalizeResponse { version: gcs::VERSION - 1, ..Default::default() }
    })
    .await;
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(matches!(error, PersonalizeError::Version { found } if found == gcs::VERSION - 1), "{error:?}");
    assert!(error.to_string().contains("make build"), "{error}");
}

#[tokio::test]
async fn silence_ends_at_the_limit() {
    let (host, _port) = UnixStream::pair().unwrap();
    let guest = GuestConnection::open(host).await.unwrap();
    let began = std::time::Instant::now();
    let error = personalize(&guest, &identity(), LIMIT).await.unwrap_err();
    assert!(matches!(error, PersonalizeError::Silent(_)), "{error}");
    assert!(began.elapsed() < LIMIT + Duration::from_millis(400), "{:?}", began.elapsed());

    let (outcome, _) = with_guest(Duration::from_secs(5), |_| {}).await;
    assert!(matches!(outcome.unwrap_err(), PersonalizeError::Silent(_)));
}

#[tokio::test]
async fn garbage_floods_and_a_closed_port_end_the_call_within_the_limit() {
    let garbage: [&[u8]; 4] = [b"bulkhead-ready1\n", &[0xff; 4096], b"\0\0\0\0\0\0\0\x01\xff\xff\xff\xff", b""];
    for bytes in garbage {
        let (host, mut port) = UnixStream::pair().unwrap();
        let guest = GuestConnection::open(host).await.unwrap();
        port.write_all(bytes).await.unwrap();
        drop(port);
        let error = personalize(&guest, &identity(), LIMIT).await.unwrap_err();
        assert!(matches!(error, PersonalizeError::Call(GuestError::Lost(_))), "{bytes:?}: {error:?}");
    }
    // A flood of well-formed frames for nobody: yamux pings without end.
    let (host, mut port) = UnixStream::pair().unwrap();
    let guest = GuestConnection::open(host).await.unwrap();
    let flood = tokio::spawn(async move {
        let ping = [0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1].repeat(1000);
        while port.write_all(&ping).await.is_ok() {}
    });
    let began = std::time::Instant::now();
    personalize(&guest, &identity(), LIMIT).await.unwrap_err();
    assert!(began.elapsed() < LIMIT + Duration::from_secs(1), "{:?}", began.elapsed());
    flood.abort();
}

#[tokio::test]
async fn a_guest_may_open_no_substream() {
    let (host, port) = UnixStream::pair().unwrap();
    let guest = GuestConnection::open(host).await.unwrap();
    let mut connection = yamux::Connection::new(port.compat(), yamux::Config::default(), yamux::Mode::Server);
    let stream = std::future::poll_fn(|cx| connection.poll_new_outbound(cx)).await.unwrap();
    let task =
        tokio::spawn(
            async move { while std::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await.is_some() {} },
        );
    stream.compat().write_all(b"hello").await.unwrap();
    let error = personalize(&guest, &identity(), LIMIT).await.unwrap_err();
    let PersonalizeError::Call(GuestError::Lost(reason)) = error else { panic!("{error:?}") };
    assert!(reason.contains("may not"), "{reason}");
    task.abort();
}

#[test]
fn a_clock_is_judged_by_what_the_round_trip_proves() {
    let judge = |guest_ms: i64, round_trip_ms: i64| {
        let ms = 1_000_000;
        ClockReading { sent_ns: 0, guest_ns: guest_ms * ms, received_ns: round_trip_ms * ms }.judge()
    };
    assert_eq!(judge(2, 4), ClockVerdict::Right { error_ns: 0 });
    assert!(matches!(judge(0, 50), ClockVerdict::Right { .. }));
    assert_eq!(judge(0, 80), ClockVerdict::Unproven);
    assert_eq!(judge(70, 80), ClockVerdict::Unproven);
    assert_eq!(judge(-51, 4), ClockVerdict::Wrong);
    assert_eq!(judge(55, 4), ClockVerdict::Wrong);
    assert_eq!(ClockReading { sent_ns: 0, guest_ns: i64::MIN, received_ns: 1 }.judge(), ClockVerdict::Wrong);
}

#[test]
fn more_time_is_more_attempts() {
    let limit = Duration::from_secs(2);
    assert!(may_try_again(0, Duration::from_secs(9), limit), "the least number is tried however long it takes");
    assert!(may_try_again(CLOCK_ATTEMPTS, Duration::from_millis(900), limit));
    assert!(!may_try_again(CLOCK_ATTEMPTS, Duration::from_millis(1100), limit));
    assert!(may_try_again(CLOCK_ATTEMPTS, Duration::from_millis(1100), Duration::from_secs(20)));
}
