//! `docker cp` and what is mounted in a container: volumes, binds, and the files that tell it names.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_e2e::archive::Tar;
use bulkhead_e2e::{TestHost, Wall, api};

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

/// Reads what is left of an answer in chunks. Whether it has its last one.
fn ends_in_order(connection: &mut UnixStream) -> bool {
    let (mut rest, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    while !rest.ends_with(b"\r\n0\r\n\r\n") {
        match connection.read(&mut piece).unwrap() {
            0 => return false,
            count => rest.extend_from_slice(&piece[..count]),
        }
    }
    true
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
        assert_eq!(host.docker(&["kill", &id]).code, 0);
        host.wait_state(&id, "exited");
        if host.wall() == Wall::Hyperv {
            // The host has the volumes and nothing of the container's own disk, so a link leads to nothing.
            for (path, content) in [("/vol/file", "content"), ("/bound", "on the host"), ("/part/file", "part")] {
                assert!(host.docker(&["cp", &format!("{id}:{path}"), "-"]).text().contains(content), "{path}");
            }
            let write = |to: &str| host.docker(&["cp", file.to_str().unwrap(), &format!("{id}:{to}")]);
            write("/vol/stopped").ok();
            assert_eq!(in_volume(host, "stopped"), "copied");
            assert_ne!(write("/vol/out/x").code, 0);
            write("/ro/x").fails_saying(1, &["mounted volume is marked read-only"]);
        } else {
            check_mounts(host, &id, "stopped", &file, &bound);
        }
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

    fn files_that_tell_names_are_read_and_not_replaced(host) {
        let file = new_file(host);
        let options = ["-h", "named", "--add-host", "friend:192.0.2.7"];
        let id = host.run_detached(&options, &["sleep", "1000"]);
        let inside = |path: &str| format!("{id}:{path}");
        let check = || {
            for (path, content) in [("hostname", "named"), ("hosts", "192.0.2.7\tfriend"), ("resolv.conf", "nameserver")] {
                let said = host.docker(&["cp", &inside(&format!("/etc/{path}")), "-"]);
                assert!(said.code == 0 && said.text().contains(content), "{path}: {said}");
                let said = host.docker(&["cp", file.to_str().unwrap(), &inside(&format!("/etc/{path}"))]);
                said.fails_saying(1, &["device or resource busy"]);
            }
            host.docker(&["cp", file.to_str().unwrap(), &inside("/etc/beside")]).ok();
            assert!(host.docker(&["cp", &inside("/etc"), "-"]).text().contains("192.0.2.7\tfriend"));
            assert!(!host.docker(&["export", &id]).text().contains("192.0.2.7\tfriend"));
        };
        check();
        assert_eq!(host.docker(&["exec", &id, "cat", "/etc/hostname"]).ok(), "named");
        assert_eq!(host.docker(&["kill", &id]).code, 0);
        host.wait_state(&id, "exited");
        check();
        // Before it has ever run, a container has its image's, as with dockerd.
        let fresh = host.docker(&host.words("create", &options, &["sleep", "1000"])).ok();
        host.docker(&["cp", file.to_str().unwrap(), &format!("{fresh}:/etc/hosts")]).ok();
        assert!(host.docker(&["cp", &format!("{fresh}:/etc/hosts"), "-"]).text().contains("copied"));
    }

    /// A client that takes nothing of what it asked for holds up no end, and one that is slow gets all of it.
    fn an_end_waits_for_slow_readers_and_not_for_deaf_ones(host) {
        let id = host.run_detached(&[], &["sh", "-c", "head -c 3000000 /dev/urandom > /big; echo ready; exec sleep 1000"]);
        host.wait_log(&id, "ready");
        let ask = || {
            let mut connection = UnixStream::connect(host.socket()).unwrap();
            connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let path = format!("/v1.44/containers/{id}/archive?path=/big");
            connection.write_all(&api::head("GET", &path, "", None)).unwrap();
            connection.read_exact(&mut [0; 512]).unwrap();
            connection
        };
        let mut slow = ask();
        let mut deaf = ask();
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut told = vec![0; 3_000_000];
                for part in told.chunks_mut(150_000) {
                    slow.read_exact(part).unwrap();
                    std::thread::sleep(Duration::from_millis(80));
                }
                ends_in_order(&mut slow)
            });
            assert_eq!(host.docker(&["kill", &id]).code, 0);
            host.wait_state(&id, "exited");
            assert!(reading.join().unwrap(), "the slow reader was cut off");
        });
        assert_eq!(host.logged("that has ended is broken off"), Vec::<String>::new());
        // What a utility VM had is gone with it, and the client is told; a process container's is still there.
        assert_eq!(ends_in_order(&mut deaf), host.wall() == Wall::Process);
        assert_eq!(host.docker(&["rm", &id]).code, 0);
    }

    /// Whoever looks at a container's files while it ends sees them, either way.
    fn files_are_there_while_a_container_ends(host) {
        let rounds = if host.wall() == Wall::Hyperv { 2 } else { 12 };
        for round in 0..rounds {
            let id = host.run_detached(&[], &["sh", "-c", "echo content > /mark; echo ready; exec sleep 1000"]);
            host.wait_log(&id, "ready");
            let looks = || {
                let read = host.docker(&["cp", &format!("{id}:/mark"), "-"]);
                assert!(read.code == 0 && read.text().contains("content"), "round {round}: {read}");
                assert!(host.docker(&["diff", &id]).ok().contains("A /mark"), "round {round}");
                let tar = Tar::new().file("new", 0o644, b"copied").bytes();
                let write = host.docker_input(&["cp", "-", &format!("{id}:/tmp")], &tar);
                assert_eq!(write.code, 0, "round {round}: {write}");
                let tree = host.docker(&["export", &id]);
                assert!(tree.code == 0 && tree.text().contains("content"), "round {round}");
            };
            std::thread::scope(|scope| {
                let looking = scope.spawn(looks);
                std::thread::sleep(std::time::Duration::from_millis(15 * round));
                assert_eq!(host.docker(&["kill", &id]).code, 0);
                looking.join().unwrap();
            });
            host.wait_state(&id, "exited");
            assert_eq!(host.docker(&["rm", &id]).code, 0);
        }
    }
}
