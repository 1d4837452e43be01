//! Slow, cut and endless answers: F39 to F41.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::fixture::{Client, Reply, Server, Shelf, answer, chain, head};
use crate::registry::document::DOCKER_MANIFEST;

/// A shelf whose layer is long enough to be cut.
fn long() -> (Shelf, super::fixture::Made, Vec<u8>) {
    let mut shelf = Shelf::default();
    let mut state = 1_u64;
    let text: String = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'a' + u8::try_from((state >> 40) % 26).unwrap())
    })
    .take(200_000)
    .collect();
    let made = shelf.add("latest", &[("a", &text)]);
    let blob = shelf.blobs[made.layers[0].as_str()].clone();
    (shelf, made, blob)
}

#[tokio::test]
async fn f39_a_cut_download_goes_on_where_it_was_and_is_verified_from_its_first_byte() {
    let (shelf, made, blob) = long();
    let layer = made.layers[0].clone();
    let server = Server::start(move |asked| {
        if !asked.path.ends_with(layer.as_str()) {
            return shelf.serve(asked);
        }
        let Some(range) = asked.header("range") else {
            let head = head("200 OK", &[], Some(blob.len()));
            return Reply::Cut([&head, &blob[..50_000]].concat());
        };
        let from: usize = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
        let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
        let head = head("206 Partial Content", &[("Content-Range", &range)], Some(blob.len() - from));
        let end = blob.len().min(from + 40_000);
        Reply::Cut([&head, &blob[from..end]].concat())
    })
    .await;
    let client = Client::new();
    assert_eq!(client.pull(&server.name("app:latest")).await.unwrap().id, made.id);
    let ranges: Vec<_> = server.asked().iter().filter_map(|asked| asked.header("range").map(str::to_owned)).collect();
    assert!(ranges.len() >= 2 && ranges[0] == "bytes=50000-", "{ranges:?}");
}

#[tokio::test]
async fn f39_a_rest_with_other_bytes_is_refused() {
    let (shelf, made, blob) = long();
    let layer = made.layers[0].clone();
    let server = Server::start(move |asked| {
        if !asked.path.ends_with(layer.as_str()) {
            return shelf.serve(asked);
        }
        if asked.header("range").is_none() {
            // The first part is what is forged: a client that looks at the rest alone would not notice.
            let mut forged = blob[..50_000].to_vec();
            forged[20_000] ^= 1;
            return Reply::Cut([head("200 OK", &[], Some(blob.len())), forged].concat());
        }
        let range = format!("bytes 50000-{}/{}", blob.len() - 1, blob.len());
        answer("206 Partial Content", &[("Content-Range", &range)], &blob[50_000..])
    })
    .await;
    Client::new().refused(&server.name("app:latest")).await;
}

#[tokio::test]
async fn f39_a_wrong_part_or_416_makes_the_whole_blob_be_fetched_again() {
    for wrong in ["bytes 0-9/10", "bytes 50000-60000/60001", "bytes */5", ""] {
        let (shelf, made, blob) = long();
        let layer = made.layers[0].clone();
        let times = AtomicUsize::new(0);
        let server = Server::start(move |asked| {
            if !asked.path.ends_with(layer.as_str()) {
                return shelf.serve(asked);
            }
            if asked.header("range").is_some() {
                let status = if wrong.contains('*') { "416 Range Not Satisfiable" } else { "206 Partial Content" };
                return answer(status, &[("Content-Range", wrong)], b"0123456789");
            }
            match times.fetch_add(1, Ordering::SeqCst) {
                0 => Reply::Cut([&head("200 OK", &[], Some(blob.len())), &blob[..50_000]].concat()),
                _ => answer("200 OK", &[], &blob),
            }
        })
        .await;
        assert_eq!(Client::new().pull(&server.name("app:latest")).await.unwrap().id, made.id, "{wrong:?}");
    }
}

#[tokio::test]
async fn f39_drops_and_stalls_are_given_up_in_bounded_time() {
    for stalls in [false, true] {
        for what in ["manifest", "layer"] {
            let (shelf, made, blob) = long();
            let layer = made.layers[0].clone();
            let manifest = shelf.manifests["latest"].1.clone();
            let server = Server::start(move |asked| {
                let (head, body) = if what == "layer" && asked.path.ends_with(layer.as_str()) {
                    (head("200 OK", &[], Some(blob.len())), blob.clone())
                } else if what == "manifest" && asked.path.contains("/manifests/") {
                    (head("200 OK", &[("Content-Type", DOCKER_MANIFEST)], Some(manifest.len())), manifest.clone())
                } else {
                    return shelf.serve(asked);
                };
                if stalls { Reply::Hang(head) } else { Reply::Drip(head, body, Duration::from_millis(50)) }
            })
            .await;
            let began = Instant::now();
            let error = Client::impatient().refused(&server.name("app:latest")).await;
            assert!(chain(&error).contains("no answer for"), "{what} {stalls}: {}", chain(&error));
            assert!(began.elapsed() < Duration::from_secs(30), "{what} {stalls}");
        }
    }
}

#[tokio::test]
async fn f40_endless_and_compressed_answers_are_refused() {
    let endless = || {
        let head = head("200 OK", &[("Content-Type", DOCKER_MANIFEST), ("Transfer-Encoding", "chunked")], None);
        let piece = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
        Reply::Endless(head, piece)
    };
    let encoded = |body: &[u8]| {
        answer(
            "200 OK",
            &[("Content-Type", DOCKER_MANIFEST), ("Content-Encoding", "gzip")],
            &crate::testing::gzip(body),
        )
    };
    for (what, bomb) in [("longer than", false), ("Content-Encoding", true)] {
        let (shelf, _) = Shelf::with_image();
        let server = Server::start(move |asked| match asked.path.contains("/manifests/") {
            true if bomb => encoded(&shelf.manifests["latest"].1),
            true => endless(),
            false => shelf.serve(asked),
        })
        .await;
        let error = Client::new().refused(&server.name("app:latest")).await;
        assert!(chain(&error).contains(what), "{}", chain(&error));
    }
}

#[tokio::test]
async fn f40_an_endless_or_compressed_blob_is_refused() {
    for bomb in [false, true] {
        let (shelf, made) = Shelf::with_image();
        let layer = made.layers[0].clone();
        let server = Server::start(move |asked| match asked.path.ends_with(layer.as_str()) {
            true if bomb => answer("200 OK", &[("Content-Encoding", "zstd")], &shelf.blobs[layer.as_str()]),
            true => {
                let head = head("200 OK", &[("Transfer-Encoding", "chunked")], None);
                Reply::Endless(head, [b"10000\r\n".to_vec(), vec![0; 0x10000], b"\r\n".to_vec()].concat())
            }
            false => shelf.serve(asked),
        })
        .await;
        Client::new().refused(&server.name("app:latest")).await;
    }
}

#[tokio::test]
async fn f41_a_wait_of_thirty_years_is_not_waited() {
    for status in ["429 Too Many Requests", "503 Service Unavailable"] {
        for recovers in [true, false] {
            let (shelf, made) = Shelf::with_image();
            let times = AtomicUsize::new(0);
            let server = Server::start(move |asked| {
                let busy =
                    asked.path.contains("/manifests/") && (!recovers || times.fetch_add(1, Ordering::SeqCst) == 0);
                if busy { answer(status, &[("Retry-After", "1000000000")], b"") } else { shelf.serve(asked) }
            })
            .await;
            let began = Instant::now();
            let client = Client::new();
            match recovers {
                true => assert_eq!(client.pull(&server.name("app:latest")).await.unwrap().id, made.id),
                false => drop(client.refused(&server.name("app:latest")).await),
            }
            assert!(began.elapsed() < Duration::from_secs(30));
            assert!(server.count("GET", "/manifests/latest") <= 3, "tries are bounded");
        }
    }
}
