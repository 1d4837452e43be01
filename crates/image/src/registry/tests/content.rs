//! What is sent is not what was promised: F32 to F36, F44.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::fixture::{Client, Reply, Server, Shelf, answer, chain, descriptor, head};
use crate::registry::document::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::registry::{LayerStep, PullEvent, RegistryError};
use crate::testing::{GZIP_LAYER, PLAIN_LAYER, gzip, layer, zstd};

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_by_digest() {
    let (shelf, made) = Shelf::with_image();
    let server = Server::start(move |asked| shelf.serve(asked)).await;
    let client = Client::new();
    let name = server.name("app:latest");
    let (pulled, told) = client.pull_told(&name).await;
    let pulled = pulled.unwrap();
    assert_eq!((&pulled.id, &pulled.digest, pulled.newer), (&made.id, &made.manifest, true));
    let image = client.store.resolve(&name.to_string()).unwrap();
    assert_eq!(client.store.find_digests(&image.id), [format!("{}/app@{}", server.address, made.manifest)]);
    let steps: Vec<_> = told
        .iter()
        .filter_map(|event| match event {
            PullEvent::Layer { step, .. } => Some(std::mem::discriminant(step)),
            _ => None,
        })
        .collect();
    for (first, second) in [
        (LayerStep::Planned, LayerStep::Verifying),
        (LayerStep::Verifying, LayerStep::Downloaded),
        (LayerStep::Downloaded, LayerStep::Complete),
    ] {
        let at = |step| steps.iter().position(|one| *one == std::mem::discriminant(&step)).unwrap();
        assert!(at(first) < at(second), "{told:?}");
    }
    let again = client.pull(&name).await.unwrap();
    assert!(!again.newer);
    let pinned = server.name(&format!("app@{}", made.manifest));
    assert_eq!(client.pull(&pinned).await.unwrap().id, made.id);
    assert_eq!(server.count("GET", made.layers[0].as_str()), 1, "what is there is not fetched again");
}

#[tokio::test]
async fn every_compression_is_taken_and_the_platform_chosen() {
    let tars = [layer("a", "1"), layer("b", "2"), layer("c", "3")];
    let blobs = vec![
        (PLAIN_LAYER, tars[0].clone()),
        (GZIP_LAYER, gzip(&tars[1])),
        ("application/vnd.oci.image.layer.v1.tar+zstd", zstd(&tars[2])),
    ];
    let mut shelf = Shelf::default();
    let made = shelf.add_blobs("plain", &tars, blobs);
    let bytes = shelf.manifests["plain"].1.clone();
    let mut ours = descriptor(OCI_MANIFEST, &bytes);
    ours["platform"] = json!({"os": "linux", "architecture": crate::config::host_architecture()});
    let mut other = descriptor(OCI_MANIFEST, b"not there");
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [other, ours]});
    let digest = shelf.add_manifest("latest", OCI_INDEX, &index);
    let server = Server::start(move |asked| shelf.serve(asked)).await;
    let client = Client::new();
    let pulled = client.pull(&server.name("app:latest")).await.unwrap();
    assert_eq!((pulled.id, pulled.digest), (made.id, digest));
}

#[tokio::test]
async fn f17_a_compression_that_is_not_the_declared_one_is_refused() {
    let tar = layer("a", "1");
    let mut shelf = Shelf::default();
    shelf.add_blobs("latest", std::slice::from_ref(&tar), vec![(PLAIN_LAYER, gzip(&tar))]);
    let server = Server::start(move |asked| shelf.serve(asked)).await;
    let error = Client::new().refused(&server.name("app:latest")).await;
    assert!(chain(&error).contains("compression"), "{}", chain(&error));
}

#[tokio::test]
async fn f18_a_layer_with_another_diff_id_is_refused() {
    let mut shelf = Shelf::default();
    shelf.add_blobs("latest", &[layer("a", "1")], vec![(GZIP_LAYER, gzip(&layer("a", "2")))]);
    let server = Server::start(move |asked| shelf.serve(asked)).await;
    let error = Client::new().refused(&server.name("app:latest")).await;
    assert!(chain(&error).contains("uncompressed layer"), "{}", chain(&error));
}

#[tokio::test]
async fn f32_a_blob_that_is_not_its_digest_or_a_byte_short_or_long_is_refused() {
    type Change = fn(&mut Vec<u8>);
    let flip: Change = |blob| *blob.last_mut().unwrap() ^= 1;
    let short: Change = |blob| blob.truncate(blob.len() - 1);
    let long: Change = |blob| blob.push(0);
    for (change, chunked) in [(flip, false), (short, false), (long, false), (flip, true), (short, true), (long, true)] {
        for what in ["layer", "configuration"] {
            let (shelf, made) = Shelf::with_image();
            let hostile = if what == "layer" { made.layers[0].clone() } else { made.id.clone() };
            let server = Server::start(move |asked| {
                if !asked.path.ends_with(hostile.as_str()) {
                    return shelf.serve(asked);
                }
                let mut blob = shelf.blobs[hostile.as_str()].clone();
                change(&mut blob);
                // A client that goes on where it was cut gets the same tricks.
                if !chunked {
                    return answer("200 OK", &[], &blob);
                }
                let size = format!("{:x}\r\n", blob.len()).into_bytes();
                let head = head("200 OK", &[("Transfer-Encoding", "chunked")], None);
                Reply::Bytes([head, size, blob, b"\r\n0\r\n\r\n".to_vec()].concat())
            })
            .await;
            let error = Client::new().refused(&server.name("app:latest")).await;
            let text = chain(&error);
            let expected = ["should have the digest", "longer than", "ends after", "instead of"];
            assert!(expected.iter().any(|words| text.contains(words)), "{what} {chunked}: {text}");
        }
    }
}

#[tokio::test]
async fn f33_a_manifest_that_is_not_the_one_asked_for_is_refused() {
    let (mut shelf, made) = Shelf::with_image();
    let other = shelf.add("other", &[("b", "x")]);
    let (media_type, bytes) = shelf.manifests[other.manifest.as_str()].clone();
    shelf.manifests.insert(made.manifest.to_string(), (media_type, bytes));
    let server = Server::start(move |asked| shelf.serve(asked)).await;
    let error = Client::new().refused(&server.name(&format!("app@{}", made.manifest))).await;
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{}", chain(&error));
}

#[tokio::test]
async fn f33_a_digest_header_that_lies_is_refused() {
    let zeros = format!("sha256:{}", "0".repeat(64));
    for told in [zeros.as_str(), "sha256:../..", "md5:x", ""] {
        let (shelf, _) = Shelf::with_image();
        let told = told.to_owned();
        let server = Server::start(move |asked| match asked.path.ends_with("/manifests/latest") {
            true => {
                let headers = [("Content-Type", DOCKER_MANIFEST), ("Docker-Content-Digest", told.as_str())];
                answer("200 OK", &headers, &shelf.manifests["latest"].1)
            }
            false => shelf.serve(asked),
        })
        .await;
        Client::new().refused(&server.name("app:latest")).await;
    }
}

#[tokio::test]
async fn f34_one_document_under_two_types_is_refused_the_second_time() {
    let (shelf, made) = Shelf::with_image();
    let times = AtomicUsize::new(0);
    let server = Server::start(move |asked| match asked.path.contains("/manifests/") {
        true => {
            let media_type = if times.fetch_add(1, Ordering::SeqCst) == 0 { DOCKER_MANIFEST } else { OCI_INDEX };
            answer("200 OK", &[("Content-Type", media_type)], &shelf.manifests["latest"].1)
        }
        false => shelf.serve(asked),
    })
    .await;
    let client = Client::new();
    let name = server.name("app:latest");
    client.pull(&name).await.unwrap();
    assert!(client.pull(&name).await.is_err());
    assert_eq!(client.store.resolve(&name.to_string()).unwrap().id, made.id, "the image stays");
}

#[tokio::test]
async fn f36_an_index_inside_an_index_is_refused() {
    let (mut shelf, _) = Shelf::with_image();
    for inner in [
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}),
        json!({"schemaVersion": 2, "manifests": []}),
    ] {
        let bytes = inner.to_string().into_bytes();
        shelf.add_manifest("inner", OCI_INDEX, &inner);
        let outer = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_INDEX, &bytes)]});
        shelf.add_manifest("outer", OCI_INDEX, &outer);
        let shelf = shelf.clone();
        let server = Server::start(move |asked| shelf.serve(asked)).await;
        let error = Client::new().refused(&server.name("app:outer")).await;
        assert!(chain(&error).contains("an index lists an index"), "{}", chain(&error));
        assert!(server.asked().len() < 5, "it is not followed");
    }
}

#[tokio::test]
async fn f44_a_blob_that_is_gone_leaves_the_old_image_and_no_half_of_the_new_one() {
    let (mut shelf, old) = Shelf::with_image();
    let before = shelf.clone();
    let new = shelf.add("latest", &[("a", "some text"), ("b", "more"), ("c", "gone")]);
    shelf.blobs.remove(new.layers[2].as_str());
    let moved = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let switch = std::sync::Arc::clone(&moved);
    let server = Server::start(
        move |asked| {
            if switch.load(Ordering::SeqCst) { shelf.serve(asked) } else { before.serve(asked) }
        },
    )
    .await;
    let client = Client::new();
    let name = server.name("app:latest");
    client.pull(&name).await.unwrap();
    let files = client.files();
    moved.store(true, Ordering::SeqCst);
    let error = client.pull(&name).await.unwrap_err();
    assert!(matches!(error, RegistryError::Shared(_)) && chain(&error).contains("not found"), "{}", chain(&error));
    let image = client.store.resolve(&name.to_string()).unwrap();
    assert_eq!(image.id, old.id);
    client.store.layer_files(&image).unwrap();
    client.settled(&files).await;
    assert!(client.store.image(&new.id).is_none());
}
