//! Images: load, import, list, inspect, tag, remove.

use bulkhead_e2e::archive::{Tar, busybox_rootfs, saved_image};

/// The busybox layer and `count - 1` layers above it that each add, replace and delete something.
fn layered(count: usize) -> Vec<Vec<u8>> {
    let mut layers = vec![busybox_rootfs()];
    for at in 1..count {
        layers.push(
            Tar::new()
                .folder("layers/")
                .file(&format!("layers/{at}"), 0o644, format!("{at}\n").as_bytes())
                .file("layers/last", 0o644, format!("{at}\n").as_bytes())
                .file(&format!("layers/.wh.{}", at - 1), 0o644, b"")
                .bytes(),
        );
    }
    layers
}

behind_both_walls! {
    fn layers_lie_over_each_other(host) {
        // More than a utility VM has slots for.
        for count in [2, 3, 4, 9] {
            let name = format!("layered:{count}");
            assert_eq!(host.docker_input(&["load"], &saved_image(&name, &layered(count))).ok(), format!("Loaded image: {name}"));
            let said = host.docker(&host.words_for(&name, "run", &["--rm"], &["sh", "-c", "cat /layers/last; ls /layers | tr '\\n' ' '"])).ok();
            assert_eq!(said.trim(), format!("{last}\n{last} last", last = count - 1));
        }
    }

    fn an_opaque_folder_hides_what_is_below(host) {
        let layers = [
            busybox_rootfs(),
            Tar::new().folder("d/").file("d/below", 0o644, b"below").file("f/x", 0o644, b"x").bytes(),
            Tar::new().folder("d/").file("d/.wh..wh..opq", 0o644, b"").file("d/above", 0o644, b"above").file(".wh.f", 0o644, b"").bytes(),
        ];
        assert_eq!(host.docker_input(&["load", "-q"], &saved_image("opaque:1", &layers)).code, 0);
        let said = host.docker(&host.words_for("opaque:1", "run", &["--rm"], &["sh", "-c", "ls /d; test -e /f || echo gone"])).ok();
        assert_eq!(said, "above\ngone");
    }

    fn owners_modes_links_and_times_are_kept(host) {
        let said = host.sh("stat -c '%a %u %g %Y' /etc/passwd; stat -c '%a' /tmp; test -L /bin/cat || test $(stat -c %h /bin/cat) -gt 1 && echo linked; readlink /bin/env").ok();
        assert_eq!(said, "644 0 0 1700000000\n1777\nlinked\nbusybox");
    }
}

#[test]
fn list_inspect_tag_and_remove() {
    let Some(host) = bulkhead_e2e::TestHost::start(bulkhead_e2e::Wall::Process) else { return };
    let names = || {
        let mut lines = host.docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).lines();
        lines.sort();
        lines
    };
    assert_eq!(names(), ["box:latest"]);
    assert_eq!(host.docker(&["tag", "box", "other/name:1.2"]).code, 0);
    assert_eq!(names(), ["box:latest", "other/name:1.2"]);
    let id = host.docker(&["images", "-q", "--no-trunc", "box"]).ok();
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    assert_eq!(
        host.docker(&[
            "inspect",
            "--type",
            "image",
            "--format",
            "{{.Id}} {{.Os}} {{.Architecture}} {{len .RootFS.Layers}}",
            "box"
        ])
        .ok(),
        format!("{id} linux amd64 1")
    );
    assert_eq!(host.run(&[], &["true"]).code, 0);
    assert_eq!(host.docker(&["rmi", "other/name:1.2"]).ok(), "Untagged: other/name:1.2");
    let holder = host.run_detached(&[], &["sleep", "1000"]);
    host.docker(&["rmi", "box"]).fails_saying(1, &["conflict", "container"]);
    assert_eq!(host.docker(&["rm", "-f", &holder]).code, 0);
    let said = host.docker(&["rmi", "box"]).ok();
    assert!(said.starts_with("Untagged: box:latest\nDeleted: sha256:"), "{said}");
    assert_eq!(names(), Vec::<String>::new());
}

#[test]
fn the_images_configuration_is_used() {
    let Some(host) = bulkhead_e2e::TestHost::start(bulkhead_e2e::Wall::Process) else { return };
    let changes = [
        "import",
        "-c",
        "CMD [\"sh\", \"-c\", \"echo $GREETING; pwd; id -u\"]",
        "-c",
        "ENV GREETING=hello",
        "-c",
        "WORKDIR /home/app",
        "-c",
        "USER app",
        "-c",
        "LABEL a=b",
        "-",
        "configured",
    ];
    assert_eq!(host.docker_input(&changes, &busybox_rootfs()).code, 0);
    let said = host.docker(&host.words_for("configured", "run", &["--rm"], &[])).ok();
    assert_eq!(said, "hello\n/home/app\n1000");
    assert_eq!(host.docker(&["inspect", "--format", "{{.Config.Labels.a}}", "configured"]).ok(), "b");
    let by_id = host.docker(&["images", "-q", "configured"]).ok();
    assert_eq!(host.docker(&host.words_for(&by_id, "run", &["--rm"], &["echo", "by-id"])).ok(), "by-id");
}

#[test]
fn loading_twice_changes_nothing_and_compressed_archives_load() {
    let Some(host) = bulkhead_e2e::TestHost::start(bulkhead_e2e::Wall::Process) else { return };
    let archive = saved_image("twice:1", &layered(3));
    assert_eq!(host.docker_input(&["load"], &archive).code, 0);
    let id = host.docker(&["images", "-q", "--no-trunc", "twice:1"]).ok();
    assert_eq!(host.docker_input(&["load"], &archive).code, 0);
    assert_eq!(host.docker(&["images", "-q", "--no-trunc", "twice:1"]).ok(), id);
    let file = host.folder().join("archive.tar");
    std::fs::write(&file, saved_image("zipped:1", &layered(2))).unwrap();
    assert!(std::process::Command::new("gzip").arg(&file).status().unwrap().success());
    let zipped = file.with_extension("tar.gz");
    assert_eq!(host.docker(&["load", "-i", zipped.to_str().unwrap()]).ok(), "Loaded image: zipped:1");
}
