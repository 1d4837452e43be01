//! A container's files from outside: `docker cp`, `docker diff` and `docker export`, whether it runs, has run, or never did.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_e2e::TestHost;

/// Containers that do nothing, one in each state.
fn one_in_each_state(host: &TestHost) -> [(&'static str, String); 3] {
    let created = host.docker(&host.words("create", &[], &["sleep", "1000"])).ok();
    let running = host.run_detached(&[], &["sleep", "1000"]);
    let stopped = host.run_detached(&[], &["true"]);
    host.wait_state(&stopped, "exited");
    [("created", created), ("running", running), ("stopped", stopped)]
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// A folder with a bit of everything.
fn sample(host: &TestHost) -> PathBuf {
    let sample = host.folder().join("sample");
    fs::create_dir_all(sample.join("sub/empty")).unwrap();
    fs::write(sample.join("sub/file"), "content\n").unwrap();
    fs::write(sample.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(sample.join("script"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("sub/file", sample.join("link")).unwrap();
    fs::write(sample.join("big"), vec![7; 3_000_001]).unwrap();
    sample
}

fn check_sample(copy: &Path) {
    assert_eq!(text(copy.join("sub/file")), "content\n");
    assert!(copy.join("sub/empty").is_dir());
    assert_eq!(copy.join("script").metadata().unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("sub/file"));
    assert_eq!(fs::read(copy.join("big")).unwrap(), vec![7; 3_000_001]);
}

behind_both_walls! {
    fn files_go_in_and_out_in_every_state(host) {
        let sample = sample(host);
        for (state, id) in one_in_each_state(host) {
            let inside = |path: &str| format!("{id}:{path}");
            let outside = |name: &str| host.folder().join(format!("{state}-{name}"));
            let copy = |from: &str, to: &str| host.docker(&["cp", from, to]);
            // A folder that is not there yet takes the name, one that is takes the folder.
            copy(sample.to_str().unwrap(), &inside("/copied")).ok();
            copy(sample.to_str().unwrap(), &inside("/tmp/")).ok();
            copy(&inside("/copied"), outside("copied").to_str().unwrap()).ok();
            check_sample(&outside("copied"));
            copy(&inside("/tmp/sample/sub/file"), outside("file").to_str().unwrap()).ok();
            assert_eq!(text(outside("file")), "content\n");
            // A link is a link, unless it is followed.
            copy(&inside("/copied/link"), outside("link").to_str().unwrap()).ok();
            assert!(outside("link").is_symlink());
            host.docker(&["cp", "-L", &inside("/copied/link"), outside("followed").to_str().unwrap()]).ok();
            assert_eq!(text(outside("followed")), "content\n");
            // Only what is in it.
            fs::create_dir(outside("flat")).unwrap();
            copy(&inside("/copied/."), outside("flat").to_str().unwrap()).ok();
            check_sample(&outside("flat"));
            // As a stream, and from one container's to another's.
            let stream = copy(&inside("/copied/sub"), "-");
            assert_eq!(stream.code, 0, "{stream}");
            assert_eq!(host.docker_input(&["cp", "-", &inside("/tmp")], &stream.out).code, 0);
            copy(&inside("/tmp/sub/file"), outside("again").to_str().unwrap()).ok();
            assert_eq!(text(outside("again")), "content\n");
            if state != "running" && state != "stopped" {
                assert_eq!(host.docker(&["start", &id]).code, 0);
            }
            if state != "stopped" {
                let seen = host.docker(&["exec", &id, "sh", "-c", "cat /copied/link; stat -c %a /copied/script"]);
                assert_eq!(seen.ok(), "content\n750");
            }
        }
    }

    fn what_cannot_be_copied_is_refused(host) {
        let sample = sample(host);
        let file = sample.join("sub/file");
        for (_, id) in one_in_each_state(host) {
            let inside = |path: &str| format!("{id}:{path}");
            host.docker(&["cp", &inside("/none/x"), "-"]).fails_saying(1, &["/none/x"]);
            host.docker(&["cp", file.to_str().unwrap(), &inside("/none/x/")]).fails_saying(1, &["no such directory"]);
            assert_ne!(host.docker(&["cp", sample.to_str().unwrap(), &inside("/bin/busybox")]).code, 0);
            // A folder is not replaced by a file.
            assert_eq!(host.docker(&["cp", sample.to_str().unwrap(), &inside("/tmp/x")]).code, 0);
            let tar = bulkhead_e2e::archive::Tar::new().file("x", 0o644, b"a file").bytes();
            assert_ne!(host.docker_input(&["cp", "-", &inside("/tmp")], &tar).code, 0);
            let good = host.docker_input(&["cp", "-", &inside("/tmp/x")], &tar);
            assert_eq!(good.code, 0, "{good}");
            assert_ne!(host.docker_input(&["cp", "-", &inside("/tmp")], b"this is no archive, ".repeat(100).as_slice()).code, 0);
        }
        let id = host.run_detached(&["--read-only"], &["sleep", "1000"]);
        host.docker(&["cp", file.to_str().unwrap(), &format!("{id}:/tmp/x")]).fails_saying(1, &["read-only"]);
    }

    /// CVE-2018-15664 and its like, without the race: a container's links lead to its own files only.
    fn links_of_a_container_lead_nowhere_else(host) {
        let outside = host.folder().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("canary"), "unchanged").unwrap();
        let file = host.folder().join("canary");
        fs::write(&file, "copied").unwrap();
        let place = outside.to_str().unwrap();
        let script = format!(
            "mkdir -p {place} && echo inside > {place}/canary && ln -s {place} /out && ln -s ../../../../../../{place} /up && \
             ln -s {place}/canary /file && ln -s /proc/1/root{place} /magic; sleep 1000"
        );
        let id = host.run_detached(&[], &["sh", "-c", &script]);
        let linked = || host.docker(&["exec", &id, "readlink", "/magic"]).code == 0;
        assert!(bulkhead_e2e::eventually(Duration::from_secs(20), linked));
        let check = |id: &str| {
            for link in ["/out/", "/up/"] {
                let read = host.docker(&["cp", &format!("{id}:{link}canary"), "-"]);
                assert!(read.code == 0 && !read.text().contains("unchanged"), "{read}");
                assert_eq!(host.docker(&["cp", file.to_str().unwrap(), &format!("{id}:{link}")]).code, 0);
            }
            assert!(!host.docker(&["cp", "-L", &format!("{id}:/file"), "-"]).text().contains("unchanged"));
            // Fails, or stays inside.
            drop(host.docker(&["cp", file.to_str().unwrap(), &format!("{id}:/magic/")]));
            drop(host.docker(&["cp", file.to_str().unwrap(), &format!("{id}:/proc/1/root{place}/")]));
            assert_eq!(text(outside.join("canary")), "unchanged");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        };
        check(&id);
        assert_eq!(host.docker(&["kill", &id]).code, 0);
        host.wait_state(&id, "exited");
        check(&id);
    }

    /// CVE-2018-15664 with the race: a container swaps a folder and a link all the time.
    fn a_container_that_swaps_its_links_gains_nothing(host) {
        let outside = host.folder().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("canary"), "unchanged").unwrap();
        let file = host.folder().join("canary");
        fs::write(&file, "copied").unwrap();
        let place = outside.to_str().unwrap();
        let script = format!(
            "mkdir /real && echo inside > /real/canary && ln -s {place} /link; echo ready; \
             while :; do mv -T /real /swap; mv -T /swap /real; mv -T /link /swap; mv -T /swap /link; mv -T /real /swap; mv -T /link /real; \
             mv -T /real /link; mv -T /swap /real; done 2>/dev/null"
        );
        let id = host.run_detached(&[], &["sh", "-c", &script]);
        host.wait_log(&id, "ready");
        for _ in 0..25 {
            drop(host.docker(&["cp", file.to_str().unwrap(), &format!("{id}:/real/")]));
            let read = host.docker(&["cp", &format!("{id}:/real/canary"), "-"]);
            assert!(!read.text().contains("unchanged"), "{read}");
            let read = host.docker(&["cp", "-L", &format!("{id}:/real"), "-"]);
            assert!(!read.text().contains("unchanged"), "{read}");
        }
        assert_eq!(text(outside.join("canary")), "unchanged");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    fn changes_are_listed(host) {
        let script = "mkdir -p /new/sub && echo 1 > /new/sub/file && rm /etc/plain && echo x >> /etc/passwd && rm -r /srv 2>/dev/null; \
                      touch /tmp/x && rm /tmp/x; echo ready; exec sleep 1000";
        let id = host.run_detached(&[], &["sh", "-c", script]);
        host.wait_log(&id, "ready");
        let expected = ["C /etc", "C /etc/passwd", "D /etc/plain", "A /new", "A /new/sub", "A /new/sub/file"];
        let check = || {
            let lines = host.docker(&["diff", &id]).lines();
            let lines: Vec<_> = lines.iter().filter(|line| !line.ends_with("/tmp") && !line.ends_with("/srv")).collect();
            assert_eq!(lines, expected);
        };
        check();
        assert_eq!(host.docker(&["kill", &id]).code, 0);
        host.wait_state(&id, "exited");
        check();
        let fresh = host.docker(&host.words("create", &[], &["true"])).ok();
        assert_eq!(host.docker(&["diff", &fresh]).ok(), "");
        let idle = host.run_detached(&[], &["sleep", "1000"]);
        assert_eq!(host.docker(&["diff", &idle]).ok(), "");
    }

    fn a_container_is_exported_whole(host) {
        for (state, id) in one_in_each_state(host) {
            let tar = bulkhead_e2e::archive::Tar::new().file("mine", 0o644, b"in it").bytes();
            assert_eq!(host.docker_input(&["cp", "-", &format!("{id}:/tmp")], &tar).code, 0);
            let file = host.folder().join(format!("{state}.tar"));
            host.docker(&["export", "-o", file.to_str().unwrap(), &id]).ok();
            let mut archive = tar::Archive::new(fs::File::open(&file).unwrap());
            let names: Vec<String> =
                archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
            for name in ["bin/busybox", "etc/passwd", "tmp/mine"] {
                assert!(names.iter().any(|found| found.trim_end_matches('/') == name), "{state}: no {name} in {names:?}");
            }
            let imported = format!("exported-{state}");
            host.docker(&["import", file.to_str().unwrap(), &imported]).ok();
            let words = host.words_for(&imported, "run", &["--rm"], &["cat", "/tmp/mine"]);
            assert_eq!(host.docker(&words).ok(), "in it");
        }
    }
}

#[test]
fn our_own_cli_copies_too() {
    let Some(host) = TestHost::start_own(bulkhead_e2e::Wall::Process) else { return };
    let (sample, copy) = (sample(&host), host.folder().join("copy"));
    let id = host.run_detached(&[], &["sleep", "1000"]);
    host.bulkhead(&["cp", "-q", sample.to_str().unwrap(), &format!("{id}:/copied")]).ok();
    host.bulkhead(&["cp", "-q", &format!("{id}:/copied"), copy.to_str().unwrap()]).ok();
    check_sample(&copy);
    host.bulkhead(&["cp", "-q", &format!("{id}:/copied/sub/file"), host.folder().join("one").to_str().unwrap()]).ok();
    assert_eq!(text(host.folder().join("one")), "content\n");
    assert!(host.bulkhead(&["cp", &format!("{id}:/copied/sub"), "-"]).text().contains("content"));
    assert!(host.bulkhead(&["diff", &id]).lines().contains(&"A /copied/sub/file".to_owned()));
    assert!(host.bulkhead(&["export", &id]).out.len() > 3_000_001);
    assert!(host.bulkhead(&["commit", "-m", "x", &id, "own:1"]).ok().starts_with("sha256:"));
    assert_eq!(host.docker(&host.words_for("own:1", "run", &["--rm"], &["cat", "/copied/link"])).ok(), "content");
}
