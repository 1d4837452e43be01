//! Registries: push, pull, log in, certificates, mirrors, many clients at once.

use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use bulkhead_e2e::archive::{Tar, busybox_rootfs, saved_image};
use bulkhead_e2e::registry::{ACCOUNT, Registry, RegistryOptions};
use bulkhead_e2e::{HostOptions, IMAGE, Need, TestHost, Wall, skip};

/// A registry, or nothing where this machine has none.
pub fn registry(options: RegistryOptions) -> Option<Registry> {
    if let Some(reason) = Need::Registry.missing() {
        skip(&reason);
        return None;
    }
    Some(Registry::start(options))
}

fn empty_host(wall: Wall, flags: &[String]) -> Option<TestHost> {
    TestHost::start_with(wall, &HostOptions { no_image: true, flags: flags.to_vec(), ..HostOptions::default() })
}

/// The digest that a push told.
fn pushed_digest(told: &str) -> String {
    let at = told.find("digest: sha256:").unwrap_or_else(|| panic!("no digest in {told}"));
    told[at + "digest: ".len()..].split(' ').next().unwrap().to_owned()
}

pub fn push(host: &TestHost, image: &str, name: &str) -> String {
    host.docker(&["tag", image, name]).ok();
    pushed_digest(&host.docker(&["push", name]).ok())
}

behind_both_walls! {
    fn what_was_pushed_is_pulled_the_same_and_runs(host) {
        let Some(registry) = registry(RegistryOptions::default()) else { return };
        let name = registry.name("team/box:1");
        let digest = push(host, IMAGE, &name);
        let id = host.docker(&["inspect", "-f", "{{.Id}}", IMAGE]).ok();
        let fresh = empty_host(host.wall(), &[]).unwrap();
        let told = fresh.docker(&["pull", &name]).ok();
        for words in ["1: Pulling from team/box", "Pull complete", &format!("Digest: {digest}"), &format!("Status: Downloaded newer image for {name}")] {
            assert!(told.contains(words), "{words:?} is missing in {told}");
        }
        assert_eq!(fresh.docker(&["inspect", "-f", "{{.Id}}", &name]).ok(), id);
        let pinned = format!("{}@{digest}", registry.name("team/box"));
        assert_eq!(fresh.docker(&["inspect", "-f", "{{index .RepoDigests 0}}", &name]).ok(), pinned);
        let run = |image: &str| fresh.docker(&fresh.words_for(image, "run", &["--rm"], &["echo", "hello"])).ok();
        assert_eq!(run(&name), "hello");
        assert!(fresh.docker(&["pull", &name]).ok().contains(&format!("Status: Image is up to date for {name}")));
        let looked_up = fresh.get_json(&format!("/distribution/{name}/json"));
        assert_eq!(looked_up["Descriptor"]["digest"], digest.as_str());
        assert_eq!(looked_up["Platforms"][0]["os"], "linux");
        // With the tag goes the digest, and with that the image.
        fresh.docker(&["rmi", &name]).ok();
        assert_eq!(fresh.docker(&["images", "-q", "-a"]).ok(), "");
        // An image that is not there is pulled, by digest too.
        assert_eq!(run(&pinned), "hello");
        // Nothing is sent twice.
        assert!(host.docker(&["push", &name]).ok().contains("Layer already exists"));
        assert_eq!(push(host, IMAGE, &name), digest);
    }
}

#[test]
fn images_that_are_not_there_are_told_of() {
    let Some(registry) = registry(RegistryOptions::default()) else { return };
    let Some(host) = TestHost::start(Wall::Process) else { return };
    host.docker(&["pull", &registry.name("nosuch")]).fails_saying(1, &["nosuch", "not found", "manifest unknown"]);
    push(&host, IMAGE, &registry.name("box:1"));
    host.docker(&["pull", &registry.name("box:2")]).fails_saying(1, &["box:2 not found"]);
    host.docker(&["push", &registry.name("never")]).fails_saying(1, &["does not exist locally"]);
    host.docker(&["pull", &format!("{}@sha256:{}", registry.name("box"), "0".repeat(64))])
        .fails_saying(1, &["not found"]);
    host.docker(&["run", "--rm", &registry.name("nosuch"), "true"]).fails_saying(125, &["not found"]);
    host.docker(&["pull", "--platform", "linux/s390x", &registry.name("box:1")]).fails_saying(1, &["linux/s390x"]);
    push(&host, IMAGE, &registry.name("box:3"));
    let all = host.docker(&["pull", "-a", &registry.name("box")]).ok();
    assert!(all.contains("1: Pulling from box") && all.contains("3: Pulling from box"), "{all}");
}

#[test]
fn a_registry_with_passwords_wants_them() {
    let Some(registry) = registry(RegistryOptions { password: true, ..RegistryOptions::default() }) else { return };
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let (name, address) = (registry.name("box:1"), registry.address());
    host.docker(&["tag", IMAGE, &name]).ok();
    host.docker(&["push", &name]).fails_saying(1, &["no basic auth credentials"]);
    host.docker_input(&["login", "-u", ACCOUNT.0, "--password-stdin", &address], b"wrong")
        .fails_saying(1, &["unauthorized"]);
    host.docker_input(&["login", "-u", ACCOUNT.0, "--password-stdin", &address], ACCOUNT.1.as_bytes()).ok();
    host.docker(&["push", &name]).ok();
    host.docker(&["logout", &address]).ok();
    host.docker(&["pull", &name]).fails_saying(1, &["no basic auth credentials"]);
}

#[test]
fn the_own_cli_logs_in_pushes_pulls_and_runs() {
    let Some(registry) = registry(RegistryOptions { password: true, ..RegistryOptions::default() }) else { return };
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let (name, address) = (registry.name("box:1"), registry.address());
    let wrong = host.bulkhead(&["login", "-u", ACCOUNT.0, "-p", "wrong", &address]);
    assert!(wrong.code == 1 && wrong.err.contains("unauthorized"), "{wrong}");
    let said = host.bulkhead(&["login", "-u", ACCOUNT.0, "-p", ACCOUNT.1, &address]);
    assert_eq!(said.ok(), "Login Succeeded");
    host.docker(&["tag", IMAGE, &name]).ok();
    let told = host.bulkhead(&["push", &name]).ok();
    assert!(told.contains("Pushed") && told.contains("1: digest: sha256:"), "{told}");
    host.docker(&["rmi", &name]).ok();
    let told = host.bulkhead(&["pull", &name]).ok();
    assert!(
        told.contains("Already exists") || told.contains("up to date") || told.contains("Downloaded newer"),
        "{told}"
    );
    assert!(told.ends_with(&name), "{told}");
    host.docker(&["rmi", "-f", &name, IMAGE]).ok();
    let never = host.bulkhead(&["run", "--rm", "--pull", "never", "--network", "none", &name, "true"]);
    assert!(never.code == 125 && never.err.contains("No such image"), "{never}");
    let run = host.bulkhead(&["run", "--rm", "--network", "none", &name, "echo", "hello"]);
    assert_eq!(run.ok(), "hello");
    assert!(run.err.contains("Unable to find image"), "{run}");
    // What docker keeps is read as well.
    host.bulkhead(&["logout", &address]).ok();
    let out = host.bulkhead(&["pull", &name]);
    assert!(out.code == 1 && out.err.contains("no basic auth credentials"), "{out}");
    host.docker_input(&["login", "-u", ACCOUNT.0, "--password-stdin", &address], ACCOUNT.1.as_bytes()).ok();
    assert_eq!(host.bulkhead(&["pull", "-q", &name]).ok(), name);
    let search = host.bulkhead(&["search", "x"]);
    assert!(search.code == 1 && search.err.contains("Docker Hub"), "{search}");
}

#[test]
fn a_certificate_of_certs_d_is_trusted_and_no_other() {
    let Some(registry) = registry(RegistryOptions { tls: true, ..RegistryOptions::default() }) else { return };
    let flag = format!("--certs-dir={}", registry.certificates().display());
    let options = HostOptions { flags: vec![flag], ..HostOptions::default() };
    let Some(host) = TestHost::start_own_with(Wall::Process, &options) else { return };
    let name = registry.name("box:1");
    push(&host, IMAGE, &name);
    let Some(stranger) = empty_host(Wall::Process, &["--certs-dir=/nonexistent".to_owned()]) else { return };
    stranger.docker(&["pull", &name]).fails_saying(1, &["no trusted connection"]);
    let insecure = ["--certs-dir=/nonexistent".to_owned(), format!("--insecure-registry={}", registry.address())];
    let Some(careless) = empty_host(Wall::Process, &insecure) else { return };
    careless.docker(&["pull", &name]).ok();
}

#[test]
fn a_mirror_serves_the_hubs_images() {
    let Some(registry) = registry(RegistryOptions::default()) else { return };
    let mirror = format!("--registry-mirror=http://{}", registry.address());
    let options = HostOptions { flags: vec![mirror], ..HostOptions::default() };
    let Some(host) = TestHost::start_with(Wall::Process, &options) else { return };
    push(&host, IMAGE, &registry.name("library/mirrored:1"));
    host.docker(&["rmi", &registry.name("library/mirrored:1")]).ok();
    let told = host.docker(&["pull", "mirrored:1"]).ok();
    assert!(
        told.contains("1: Pulling from library/mirrored") && told.ends_with("docker.io/library/mirrored:1"),
        "{told}"
    );
}

/// An image of five layers in the registry: its name there.
fn pushed_five(registry: &Registry) -> Option<String> {
    let host = TestHost::start_own(Wall::Process)?;
    let noise: Vec<u8> = (0..2_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut layers = vec![busybox_rootfs()];
    layers.extend((1..5).map(|n| Tar::new().file(&format!("noise{n}"), 0o644, &noise[n..]).bytes()));
    host.docker_input(&["load"], &saved_image("five:1", &layers)).ok();
    let name = registry.name("five:1");
    push(&host, "five:1", &name);
    assert_eq!(registry.fetched_blobs(), [], "a push fetches nothing");
    Some(name)
}

/// Fifty clients that pull it at once.
fn pull_by_fifty(host: &TestHost, name: &str) {
    let pulls: Vec<Child> = (0..50)
        .map(|_| {
            let mut command = host.docker_command(&["pull", "-q", name]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for pull in pulls {
        let output = pull.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn fifty_clients_fetch_each_blob_once() {
    let Some(registry) = registry(RegistryOptions::default()) else { return };
    let Some(name) = pushed_five(&registry) else { return };
    let Some(fresh) = empty_host(Wall::Process, &[]) else { return };
    pull_by_fifty(&fresh, &name);
    let fetched = registry.fetched_blobs();
    assert_eq!(fetched.len(), 6, "five layers and the configuration: {fetched:?}");
    assert!(fetched.iter().all(|(_, count)| *count == 1), "{fetched:?}");
    let run = fresh.docker(&fresh.words_for(&name, "run", &["--rm"], &["ls", "/noise4"])).ok();
    assert_eq!(run, "/noise4");
}

#[test]
fn fifty_clients_lose_nothing_to_removals_and_prunings() {
    let Some(registry) = registry(RegistryOptions::default()) else { return };
    let Some(name) = pushed_five(&registry) else { return };
    let Some(fresh) = empty_host(Wall::Process, &[]) else { return };
    // Shares its base with what is pulled, and is removed again and again.
    let other = saved_image("other:1", &[busybox_rootfs(), Tar::new().file("own", 0o644, b"other").bytes()]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let removals = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                fresh.docker_input(&["load", "-q"], &other).ok();
                fresh.docker(&["rmi", "-f", "other:1"]).ok();
                fresh.docker(&["image", "prune", "-f"]).ok();
                rounds += 1;
            }
            rounds
        });
        pull_by_fifty(&fresh, &name);
        over.store(true, Ordering::Relaxed);
        assert!(removals.join().unwrap() > 0);
    });
    // The base may have been there when it was wanted.
    let fetched = registry.fetched_blobs();
    assert!((5..=6).contains(&fetched.len()) && fetched.iter().all(|(_, count)| *count == 1), "{fetched:?}");
    let look = "ls /noise1 /noise2 /noise3 /noise4; cat /noise* | sha256sum";
    let run = fresh.docker(&fresh.words_for(&name, "run", &["--rm"], &["sh", "-c", look])).ok();
    assert_eq!(run.lines().count(), 5, "{run}");
    assert!(fresh.bulkhead(&["system", "check"]).code == 0);
}

#[test]
fn a_damaged_layer_is_fetched_again() {
    let Some(registry) = registry(RegistryOptions::default()) else { return };
    let Some(name) = pushed_five(&registry) else { return };
    let Some(fresh) = empty_host(Wall::Process, &[]) else { return };
    assert_eq!(fresh.docker(&["pull", "-q", &name]).code, 0);
    let before = registry.fetched_blobs();
    let top = fresh.docker(&["image", "inspect", "--format", "{{index .RootFS.Layers 4}}", &name]).ok();
    let file = fresh.data_root().join(format!("images/layers/{}.erofs", top.strip_prefix("sha256:").unwrap()));
    std::fs::write(&file, "damaged").unwrap();
    let found = fresh.bulkhead(&["system", "check"]);
    assert!(found.code == 1 && found.text().contains("fetches it again"), "{found}");
    let repaired = fresh.bulkhead(&["system", "check", "--repair"]);
    assert!(repaired.text().contains("fetched again from"), "{repaired}");
    assert_eq!(fresh.bulkhead(&["system", "check"]).code, 0);
    let run = fresh.docker(&fresh.words_for(&name, "run", &["--rm"], &["ls", "/noise4"])).ok();
    assert_eq!(run, "/noise4");
    let count = |blobs: &[(String, usize)]| blobs.iter().map(|(_, count)| count).sum::<usize>();
    assert_eq!(count(&registry.fetched_blobs()), count(&before) + 1, "only what is damaged");
}
