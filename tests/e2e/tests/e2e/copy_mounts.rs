//! `docker cp` and what is mounted in a container: volumes, binds, and the files that tell it names.

use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_e2e::TestHost;
use bulkhead_e2e::archive::Tar;

/// A file that is copied in.
fn new_file(host: &TestHost) -> PathBuf {
    let file = host.folder().join("new");
    fs::write(&file, "copied").unwrap();
    file
}

fn in_volume(host: &TestHost, name: &str) -> String {
    let path = format!("/v/{name}");
    host.docker(&host.words("run", &["--rm", "-v", "cp-data:/v"], &["cat", &path])).ok()
}

/// Every mount of a container is read and written through, and none is part of the container.
fn check_mounts(host: &TestHost, id: &str, state: &str, file: &Path, bound: &Path) {
    let inside = |path: &str| format!("{id}:{path}");
    let read = |path: &str| host.docker(&["cp", "-L", &inside(path), "-"]);
    for (path, content) in [
        ("/vol/file", "content"),
        ("/vol", "vol/sub/file"),
        ("/bound/seen", "on the host"),
        ("/ro/file", "content"),
        ("/part/file", "part"),
        ("/into", "content"),
        ("/vol/out", "inside"),
    ] {
        let said = read(path);
        assert!(said.code == 0 && said.text().contains(content), "{state} {path}: {said}");
    }
    // The rest of a volume is not there, nor what a link in it leads to beside the part.
    for path in ["/part/out", "/part/up"] {
        let said = read(path);
        assert!(said.code != 0 && !said.text().contains("content"), "{state} {path}: {said}");
    }
    let write = |to: &str| host.docker(&["cp", file.to_str().unwrap(), &inside(to)]);
    for folder in ["/vol", "/part", "/bound"] {
        write(&format!("{folder}/{state}")).ok();
    }
    assert_eq!(in_volume(host, state), "copied");
    assert_eq!(in_volume(host, &format!("sub/{state}")), "copied");
    assert_eq!(fs::read_to_string(bound.join(state)).unwrap(), "copied");
    for to in ["/ro/x", "/into-ro/x"] {
        write(to).fails_saying(1, &["mounted volume is marked read-only"]);
    }
    // An archive that has a file where something is mounted takes nothing away.
    let tar = Tar::new().file("vol", 0o644, b"a file").bytes();
    assert_ne!(host.docker_input(&["cp", "-", &inside("/")], &tar).code, 0);
    assert_eq!(in_volume(host, "file"), "content");
    // What the container is made of has no mounts in it.
    let said = host.docker(&["diff", id]).ok();
    assert!(said.contains("A /mark") && !said.contains("/vol/"), "{state}: {said}");
    let tree = host.docker(&["export", id]).text();
    assert!(tree.contains("mark") && !tree.contains("vol/sub"), "{state}: export has a mount's content");
}

behind_both_walls! {
    fn what_is_mounted_is_copied_and_stays_read_only(host) {
        let (bound, file) = (host.folder().join("bound"), new_file(host));
        fs::create_dir(&bound).unwrap();
        fs::write(bound.join("seen"), "on the host").unwrap();
        let fill = "mkdir /v/sub; echo content > /v/file; echo part > /v/sub/file; ln -s ../file /v/sub/up; ln -s /mark /v/out";
        host.docker(&host.words("run", &["--rm", "-v", "cp-data:/v"], &["sh", "-c", fill])).ok();
        let bind = format!("{}:/bound", bound.display());
        let part = "type=volume,source=cp-data,target=/part,volume-subpath=sub";
        let options = ["-v", "cp-data:/vol", "-v", "cp-data:/ro:ro", "-v", &bind, "--mount", part];
        let script = "echo inside > /mark; ln -s /vol/file /into; ln -s /ro /into-ro; echo ready; exec sleep 1000";
        let id = host.run_detached(&options, &["sh", "-c", script]);
        host.wait_log(&id, "ready");
        check_mounts(host, &id, "running", &file, &bound);
        if host.wall() == bulkhead_e2e::Wall::Hyperv {
            return;
        }
        assert_eq!(host.docker(&["kill", &id]).code, 0);
        host.wait_state(&id, "exited");
        check_mounts(host, &id, "stopped", &file, &bound);
        let fresh = host.docker(&host.words("create", &["-v", "cp-data:/not/yet"], &["true"])).ok();
        host.docker(&["cp", file.to_str().unwrap(), &format!("{fresh}:/not/yet/fresh")]).ok();
        assert_eq!(in_volume(host, "fresh"), "copied");
    }

    fn only_mounts_of_a_read_only_container_are_written(host) {
        let file = new_file(host);
        let id = host.run_detached(&["--read-only", "-v", "cp-data:/vol"], &["sleep", "1000"]);
        host.docker(&["cp", file.to_str().unwrap(), &format!("{id}:/vol/locked")]).ok();
        assert_eq!(in_volume(host, "locked"), "copied");
        let said = host.docker(&["cp", file.to_str().unwrap(), &format!("{id}:/tmp/x")]);
        said.fails_saying(1, &["container rootfs is marked read-only"]);
    }
}
