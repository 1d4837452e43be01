//! Docker's verbs for images, through the docker CLI: list with filters, save, prune, disk use.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bulkhead_e2e::archive::{Tar, busybox_rootfs, saved_image};
use bulkhead_e2e::{TestHost, Wall, skip};

fn own_layer(text: &str) -> Vec<u8> {
    Tar::new().file("own", 0o644, text.as_bytes()).bytes()
}

fn load(host: &TestHost, name: &str) {
    assert_eq!(host.docker_input(&["load", "-q"], &saved_image(name, &[busybox_rootfs(), own_layer(name)])).code, 0);
}

/// What `docker images` lists with these flags, in order.
fn listed(host: &TestHost, flags: &[&str]) -> Vec<String> {
    let words = [&["images", "--format", "{{.Repository}}:{{.Tag}}"], flags].concat();
    let mut names = host.docker(&words).lines();
    names.retain(|name| !name.is_empty());
    names.sort();
    names
}

#[test]
fn images_are_filtered() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    // The image `box` was imported just now; the loaded ones say that they were made on the first of January 2024.
    for name in ["reg.example.com/team/app:1", "reg.example.com/team/app:2", "app:1"] {
        load(&host, name);
    }
    let labelled = ["import", "-c", "LABEL stage=test", "-c", "LABEL keep=yes", "-", "labelled:1"];
    assert_eq!(host.docker_input(&labelled, &own_layer("labelled")).code, 0);
    assert_eq!(host.docker_input(&["import", "-"], &own_layer("nameless")).code, 0);
    let team = ["reg.example.com/team/app:1", "reg.example.com/team/app:2"];
    for (filter, expected) in [
        ("dangling=true", vec!["<none>:<none>"]),
        ("label=stage=test", vec!["labelled:1"]),
        ("label=keep", vec!["labelled:1"]),
        ("label=stage=other", vec![]),
        ("reference=app", vec!["app:1"]),
        ("reference=*/*/app:1", vec![team[0]]),
        ("reference=reg.example.com/team/*", team.to_vec()),
        ("before=box", vec!["app:1", team[0], team[1]]),
        ("since=box", vec!["<none>:<none>", "labelled:1"]),
        ("until=24h", vec!["app:1", team[0], team[1]]),
        ("until=2023-12-31T00:00:00Z", vec![]),
    ] {
        assert_eq!(listed(&host, &["--filter", filter]), expected, "{filter}");
    }
    assert_eq!(listed(&host, &["--filter", "label=stage=test", "--filter", "label=keep"]), ["labelled:1"]);
    assert_eq!(listed(&host, &["app"]), ["app:1"]);
    assert_eq!(host.docker(&["images", "--filter", "nonsense=1"]).code, 1);
    assert_eq!(host.docker(&["images", "--filter", "before=missing"]).code, 1);
    assert_eq!(host.docker(&["images", "-q", "--no-trunc"]).lines().len(), 6);
    let digests = host.docker(&["images", "--digests", "app"]).ok();
    assert!(digests.contains("DIGEST") && digests.contains("<none>"), "{digests}");
    let tree = host.docker(&["images", "--tree"]);
    assert!(tree.code == 0 && tree.text().contains("app:1"), "{tree}");
    let own = host.bulkhead(&["image", "ls", "--tree"]).ok();
    assert!(own.contains("UNIQUE") && own.contains("reg.example.com/team/app:2"), "{own}");
    let json = host.docker(&["images", "--format", "json", "app"]).ok();
    assert!(json.contains("\"Repository\":\"app\""), "{json}");
}

#[test]
fn history_and_inspect_tell_how_an_image_was_made() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    load(&host, "app:1");
    assert_eq!(host.docker(&["history", "-q", "app:1"]).lines().len(), 2);
    let said = host.docker(&["history", "--no-trunc", "--format", "{{.CreatedBy}} {{.Size}}", "app:1"]).lines();
    assert_eq!(said[0], "test 5B");
    let inspect = |format: &str| host.docker(&["image", "inspect", "--format", format, "app:1"]).ok();
    assert_eq!(inspect("{{.Os}}/{{.Architecture}} {{len .RootFS.Layers}} {{.RepoTags}}"), "linux/amd64 2 [app:1]");
    assert_eq!(inspect("{{json .Config.Cmd}}"), "[\"/bin/sh\"]");
    if !host.is_reference() {
        // From version 1.50 on an image's configuration has no fields of a container's.
        let of = |version: &str| host.get_json(&format!("/{version}/images/app:1/json"))["Config"].clone();
        assert!(of("v1.51").get("Hostname").is_none() && of("v1.49").get("Hostname").is_some());
    }
    // Compose 1 reads this of an image whose service it makes anew, by the newest version that there is.
    assert!(host.get_json("/images/box/json")["ContainerConfig"].is_object());
}

#[test]
fn what_is_saved_is_loaded_again_and_read_by_others() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    load(&host, "app:1");
    load(&host, "other:x");
    assert_eq!(host.docker(&["tag", "app:1", "app:2"]).code, 0);
    let archive = host.folder().join("saved.tar");
    let path = archive.to_str().unwrap();
    let ids = || host.docker(&["images", "-q", "--no-trunc"]).lines();
    let before = ids();
    assert_eq!(host.docker(&["save", "-o", path, "app", "other:x"]).code, 0);
    let listing = Command::new("tar").args(["-tf", path]).output().unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    for name in ["manifest.json", "repositories", "index.json", "oci-layout", "blobs/sha256/"] {
        assert!(listing.lines().any(|line| line == name), "{name}: {listing}");
    }
    others_read(path);
    let said = host.docker_command(&["save", "app:1"]).output().unwrap();
    assert!(said.status.success() && said.stdout.len() > 1 << 20);
    assert_eq!(host.docker(&["rmi", "-f", "app:1", "app:2", "other:x"]).code, 0);
    let mut loaded = host.docker(&["load", "-i", path]).lines();
    loaded.sort();
    assert_eq!(loaded, ["Loaded image: app:1", "Loaded image: app:2", "Loaded image: other:x"]);
    assert_eq!(ids(), before);
    assert_eq!(host.docker(&host.words_for("app:2", "run", &["--rm"], &["cat", "/own"])).ok(), "app:1");
    assert_eq!(host.docker(&["save", "-o", path, "missing"]).code, 1);
    if !host.is_reference() {
        let own = host.folder().join("own.tar");
        assert_eq!(host.bulkhead(&["save", "-o", own.to_str().unwrap(), "app", "other:x"]).code, 0);
        assert_eq!(std::fs::read(&own).unwrap(), std::fs::read(&archive).unwrap(), "the same images, the same bytes");
        assert_eq!(host.bulkhead(&["save", "-o", host.folder().join("no").to_str().unwrap(), "missing"]).code, 1);
        assert!(!host.folder().join("no").exists());
        a_client_that_goes_away(&host);
    }
}

/// skopeo takes it for an archive of Docker's and for one of OCI's.
fn others_read(path: &str) {
    if Command::new("skopeo").arg("--version").output().is_err() {
        return skip("needs skopeo (package skopeo)");
    }
    for (source, what) in [(format!("docker-archive:{path}:app:1"), "docker"), (format!("oci-archive:{path}:1"), "oci")]
    {
        let folder = tempfile::tempdir().unwrap();
        let target = format!("dir:{}", folder.path().display());
        let copied = Command::new("skopeo").args(["copy", "--insecure-policy", &source, &target]).output().unwrap();
        assert!(copied.status.success(), "{what}: {}", String::from_utf8_lossy(&copied.stderr));
        assert!(folder.path().join("manifest.json").exists(), "{what}");
    }
}

/// A client that ends in the middle of an archive leaves nothing running and nothing leased.
fn a_client_that_goes_away(host: &TestHost) {
    let mut client = host.docker_command(&["save", "app:1"]);
    let mut child = client.stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut [0; 512]).unwrap();
    child.wait().unwrap();
    assert_eq!(host.docker(&["rmi", "-f", "app:1", "app:2"]).code, 0);
    let layers = || std::fs::read_dir(host.data_root().join("images/layers")).unwrap().count();
    let freed = || host.docker(&["image", "prune", "-f"]).code == 0 && layers() == 2;
    assert!(bulkhead_e2e::eventually(Duration::from_secs(10), freed), "{} layers", layers());
}

#[test]
fn images_are_removed_by_dockers_rules() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    load(&host, "app:1");
    assert_eq!(host.docker(&["tag", "app:1", "app:2"]).code, 0);
    let id = host.docker(&["images", "-q", "app:1"]).ok();
    host.docker(&["rmi", &id]).fails_saying(1, &["referenced in multiple repositories"]);
    assert_eq!(host.docker(&["rmi", "app:2"]).ok(), "Untagged: app:2");
    let used = host.docker(&host.words_for("app:1", "create", &[], &["true"])).ok();
    host.docker(&["rmi", "app:1"]).fails_saying(1, &["must force", &used[..12]]);
    assert_eq!(host.docker(&["rm", &used]).code, 0);
    let said = host.docker(&["rmi", "--no-prune", "app:1"]).ok();
    assert!(said.starts_with("Untagged: app:1\nDeleted: sha256:"), "{said}");
    host.docker(&["rmi", "app:1"]).fails_saying(1, &["no such image: app:1"]);
    // Forced, what is not there is no error.
    assert_eq!(host.docker(&["rmi", "-f", "app:1"]).code, 0);
}

#[test]
fn what_nobody_uses_is_pruned() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let nameless = ["import", "-c", "LABEL keep=1", "-"];
    assert_eq!(host.docker_input(&nameless, &own_layer("kept")).code, 0);
    assert_eq!(host.docker_input(&["import", "-"], &own_layer("gone")).code, 0);
    load(&host, "app:1");
    assert_eq!(host.docker(&["image", "prune", "-f", "--filter", "until=24h"]).ok(), "Total reclaimed space: 0B");
    let said = host.docker(&["image", "prune", "-f", "--filter", "label!=keep=1"]).ok();
    assert!(said.contains("deleted: sha256:") && said.ends_with("Total reclaimed space: 4B"), "{said}");
    assert_eq!(listed(&host, &["--filter", "dangling=true"]), ["<none>:<none>"]);
    let stopped = host.docker(&host.words("create", &["--label", "a=b"], &["true"])).ok();
    assert_eq!(host.docker(&["container", "prune", "-f", "--filter", "label=c"]).ok(), "Total reclaimed space: 0B");
    // All but what the stopped container uses.
    assert_eq!(host.docker(&["image", "prune", "-af"]).code, 0);
    assert_eq!(listed(&host, &[]), ["box:latest"]);
    let said = host.docker(&["system", "prune", "-af"]).ok();
    assert!(said.contains(&stopped) && said.contains("untagged: box:latest"), "{said}");
    assert_eq!(listed(&host, &[]), Vec::<String>::new());
    if !host.is_reference() {
        load(&host, "app:1");
        let said = host.bulkhead(&["system", "prune", "-af", "--volumes"]).ok();
        assert!(said.contains("untagged: app:1"), "{said}");
        assert_eq!(left_layers(host.data_root()), 0);
    }
}

fn left_layers(data_root: &Path) -> usize {
    std::fs::read_dir(data_root.join("images/layers")).unwrap().count()
}
