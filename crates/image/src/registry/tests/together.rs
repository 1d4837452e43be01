//! Many clients at once, clients that go away, and mirrors.

use std::sync::Arc;
use std::time::Duration;

use super::fixture::{Client, Reply, Server, Shelf, head, patient};
use crate::registry::{LayerStep, PullEvent, PullOptions, RegistrySettings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_pulls_of_one_image_fetch_each_blob_once() {
    let mut shelf = Shelf::default();
    let made = shelf.add("latest", &[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")]);
    let server = Server::start(move |asked| shelf.serve(asked)).await;
    let client = Arc::new(Client::new());
    let name = server.name("app:latest");
    let pulls: Vec<_> = (0..50)
        .map(|_| {
            let (client, name) = (Arc::clone(&client), name.clone());
            tokio::spawn(async move { client.pull(&name).await.unwrap().id })
        })
        .collect();
    for pull in pulls {
        assert_eq!(pull.await.unwrap(), made.id);
    }
    for blob in made.layers.iter().chain([&made.id]) {
        assert_eq!(server.count("GET", blob.as_str()), 1, "{blob}");
    }
    let image = client.store.resolve(&name.to_string()).unwrap();
    assert_eq!(client.store.layer_files(&image).unwrap().len(), 5);
    assert_eq!(client.files().len(), 5, "no temporary file is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_share_a_layer_fetch_it_once_and_keep_it() {
    let mut shelf = Shelf::default();
    let one = shelf.add("one", &[("base", "x"), ("a", "1")]);
    let two = shelf.add("two", &[("base", "x"), ("b", "2")]);
    let server = Server::start(move |asked| shelf.serve(asked)).await;
    let client = Client::new();
    let (name_one, name_two) = (server.name("app:one"), server.name("app:two"));
    let (first, second) = tokio::join!(client.pull(&name_one), client.pull(&name_two));
    assert_eq!((first.unwrap().id, second.unwrap().id), (one.id.clone(), two.id));
    assert_eq!(server.count("GET", one.layers[0].as_str()), 1);
    client.store.remove(one.id.as_str(), true, &|_| Vec::new()).unwrap();
    let (pulled, told) = client.pull_told(&name_one).await;
    assert_eq!(pulled.unwrap().id, one.id);
    let exists = PullEvent::Layer { blob: one.layers[0].clone(), step: LayerStep::Exists };
    assert!(told.contains(&exists), "{told:?}");
    assert_eq!(server.count("GET", one.layers[0].as_str()), 1, "the other image had kept it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_ends_its_pull_and_nobody_elses() {
    let (shelf, made) = Shelf::with_image();
    let layer = made.layers[0].clone();
    let server = Server::start(move |asked| match asked.path.ends_with(layer.as_str()) {
        true => {
            let blob = &shelf.blobs[layer.as_str()];
            Reply::Drip(head("200 OK", &[], Some(blob.len())), blob.clone(), Duration::from_millis(2))
        }
        false => shelf.serve(asked),
    })
    .await;
    let client = Client::new();
    let name = server.name("app:latest");
    let options = PullOptions::default();
    let both = async {
        let gone = tokio::time::timeout(Duration::from_millis(100), client.client.pull(&name, &options, &|_| {}));
        let stays = client.pull(&name);
        tokio::join!(gone, stays)
    };
    let (gone, stays) = both.await;
    assert!(gone.is_err(), "it was dropped while the layer came");
    assert_eq!(stays.unwrap().id, made.id);
    assert_eq!(server.count("GET", made.layers[0].as_str()), 1);
    client.store.remove(made.id.as_str(), true, &|_| Vec::new()).unwrap();
    let alone = tokio::time::timeout(Duration::from_millis(100), client.pull(&name)).await;
    assert!(alone.is_err());
    client.settled(&[]).await;
}

#[tokio::test]
async fn mirrors_serve_the_hubs_images_without_credentials() {
    let mut shelf = Shelf::default();
    let made = shelf.add("latest", &[("a", "1")]);
    let server = Server::start(move |asked| {
        let mut asked = asked.clone();
        asked.path = asked.path.replace("/v2/library/app/", "/v2/app/");
        shelf.serve(&asked)
    })
    .await;
    let mirrors = vec![format!("http://{}", server.address)];
    let client = Client::with(RegistrySettings { mirrors, timing: patient(), ..RegistrySettings::default() });
    let name = "app:latest".parse().unwrap();
    assert_eq!(client.pull_as(&name, Some(("user", "secret"))).await.unwrap().id, made.id);
    assert!(server.asked().iter().all(|asked| asked.header("authorization").is_none()));
    assert_eq!(client.store.find_tags(&made.id), ["app:latest"]);
}
