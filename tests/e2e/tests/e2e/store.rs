//! What is stored: long chains of layers, what they take on the disk, damage and its repair, full disks.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_e2e::archive::{Tar, busybox_rootfs, saved_image};
use bulkhead_e2e::{HostOptions, TestHost, Wall, skip};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// The busybox layer and `count - 1` layers above it, each of which adds a file and replaces another.
fn chain(count: usize) -> Vec<Vec<u8>> {
    let above = (1..count).map(|at| {
        let text = format!("{at}\n");
        Tar::new()
            .file(&format!("chain/{at}"), 0o644, text.as_bytes())
            .file("chain/last", 0o644, text.as_bytes())
            .bytes()
    });
    std::iter::once(busybox_rootfs()).chain(above).collect()
}

/// Bytes that compress to nothing less.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).take(bytes / 8).flatten().collect()
}

/// Bytes on the disk below a folder.
fn disk_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let facts = entry.metadata().unwrap();
            facts.blocks() * 512 + if facts.is_dir() { disk_bytes(&entry.path()) } else { 0 }
        })
        .sum()
}

/// A small file system in memory, for a data root that fills up.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(options: &str, flags: MountFlags) -> Self {
        let folder = tempfile::Builder::new().prefix("bhdisk-").tempdir_in("/tmp").unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        mount("tmpfs", folder.path(), "tmpfs", flags, Some(options.as_c_str())).unwrap();
        Self { folder }
    }

    fn host_options(&self) -> HostOptions {
        HostOptions { data_root: Some(self.folder.path().join("data")), ..HostOptions::default() }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.folder.path(), UnmountFlags::DETACH).unwrap();
    }
}

behind_both_walls! {
    /// F20: more layers than a utility VM has disks, and than fit into one page of mount options.
    fn a_hundred_layers_and_two_hundred(host) {
        for count in [100, 200] {
            let name = format!("chain:{count}");
            assert_eq!(host.docker_input(&["load", "-q"], &saved_image(&name, &chain(count))).code, 0);
            let said = host.docker(&host.words_for(&name, "run", &["--rm"], &["sh", "-c", "cat /chain/last; ls /chain | wc -l; cat /chain/1; echo new > /chain/new"])).ok();
            assert_eq!(said, format!("{last}\n{count}\n1", last = count - 1));
        }
    }

    /// F21.
    fn a_layer_that_is_listed_twice(host) {
        let [base, own] = [busybox_rootfs(), Tar::new().file("own", 0o644, b"own").bytes()];
        assert_eq!(host.docker_input(&["load", "-q"], &saved_image("twice:1", &[base, own.clone(), own])).code, 0);
        let said = host.docker(&host.words_for("twice:1", "run", &["--rm"], &["cat", "/own"])).ok();
        assert_eq!(said, "own");
    }
}

/// F19, F20: no layers, and ten thousand.
#[test]
fn images_with_no_layers_and_too_many_are_refused() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    host.docker_input(&["load"], &saved_image("none:1", &[])).fails_saying(1, &["no layers"]);
    let one = Tar::new().file("x", 0o644, b"x").bytes();
    host.docker_input(&["load"], &saved_image("many:1", &vec![one; 10_000])).fails_saying(1, &["layers"]);
    assert_eq!(host.docker(&["images", "-q"]).lines().len(), 1);
    assert_eq!(host.run(&[], &["echo", "well"]).ok(), "well");
}

#[test]
fn ten_images_on_one_base_cost_the_base_once() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    const BASE: usize = 8 << 20;
    let base = Tar::new().file("base", 0o644, &noise(BASE, 1)).bytes();
    let stored = host.data_root().join("images/layers");
    let before = disk_bytes(&stored);
    for number in 0..10 {
        let own = Tar::new().file("own", 0o644, format!("{number}").as_bytes()).bytes();
        let layers = [busybox_rootfs(), base.clone(), own];
        assert_eq!(host.docker_input(&["load", "-q"], &saved_image(&format!("image:{number}"), &layers)).code, 0);
    }
    let grown = disk_bytes(&stored) - before;
    assert!(grown < BASE as u64 + (1 << 20), "ten images on a base of {BASE} bytes took {grown}");
    let usage = host.get_json("/system/df");
    let layers = usage["LayersSize"].as_u64().unwrap();
    let images = usage["Images"].as_array().unwrap();
    let own = |image: &serde_json::Value| image["Size"].as_u64().unwrap() - image["SharedSize"].as_u64().unwrap();
    assert_eq!(images.len(), 11);
    assert!(layers < BASE as u64 + (4 << 20), "{layers}");
    for image in images.iter().filter(|image| image["RepoTags"][0] != "box:latest") {
        assert_eq!(own(image), 1, "{image}");
    }
    let shown = host.docker(&["system", "df", "-v"]).ok();
    assert!(shown.contains("SHARED SIZE") && shown.contains("image        9"), "{shown}");
    let brief = host.bulkhead(&["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"]).lines();
    assert_eq!(brief, ["Images 11 0", "Containers 0 0", "Local Volumes 0 0"]);
    assert_eq!(
        host.bulkhead(&["system", "df", "-v"]).lines().iter().filter(|line| line.starts_with("image ")).count(),
        10
    );
}

/// F118: a layer's file altered, cut and deleted.
#[test]
fn damage_is_found_told_and_repaired() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let archive = saved_image("app:1", &[busybox_rootfs(), Tar::new().file("own", 0o644, &noise(200_000, 2)).bytes()]);
    let load = || assert_eq!(host.docker_input(&["load", "-q"], &archive).code, 0);
    load();
    assert!(host.bulkhead(&["system", "check"]).ok().ends_with("containers: all well"));
    let layer = host.docker(&["inspect", "--format", "{{index .RootFS.Layers 1}}", "app:1"]).ok();
    let hex = layer.strip_prefix("sha256:").unwrap();
    let file = host.data_root().join(format!("images/layers/{hex}.erofs"));
    let good = std::fs::read(&file).unwrap();
    let mut altered = good.clone();
    altered[100_000] ^= 1;
    let damages: [(&str, Option<&[u8]>); 3] =
        [("altered", Some(&altered)), ("cut", Some(&good[..good.len() - 4096])), ("deleted", None)];
    for (what, content) in damages {
        match content {
            Some(content) => std::fs::write(&file, content).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let said = host.bulkhead(&["system", "check"]);
        assert_eq!(said.code, 1, "{what}: {said}");
        assert!(said.text().contains(&hex[..12]) && said.text().contains("app:1"), "{what}: {said}");
        let said = host.bulkhead(&["system", "check", "--repair", "--format", "{{.Kind}}: {{.Remedy}}"]);
        assert_eq!(said.text().trim(), "layer: load app:1 again", "{what}");
        // What is known to be damaged is not run.
        host.docker(&host.words_for("app:1", "run", &["--rm"], &["true"]))
            .fails_saying(125, &["damaged", "load it again"]);
        load();
        assert!(host.bulkhead(&["system", "check"]).ok().ends_with("all well"), "{what}");
        assert_eq!(
            host.docker(&host.words_for("app:1", "run", &["--rm"], &["sh", "-c", "wc -c < /own"])).ok(),
            "200000"
        );
        assert_eq!(std::fs::read(&file).unwrap(), good, "{what}: conversion is deterministic");
    }
}

/// F113: the disk fills up while an image is loaded, and while a container writes (F121).
#[test]
fn a_full_disk_is_told_and_left_as_it_was() {
    let disk = SmallDisk::mount("size=24m", MountFlags::empty());
    let Some(host) = TestHost::start_own_with(Wall::Process, &disk.host_options()) else { return };
    let large = saved_image("large:1", &[busybox_rootfs(), Tar::new().file("x", 0o644, &noise(40 << 20, 3)).bytes()]);
    host.docker_input(&["load"], &large).fails_saying(1, &["no space left"]);
    assert_eq!(std::fs::read_dir(host.data_root().join("images/tmp")).unwrap().count(), 0);
    assert!(host.bulkhead(&["system", "check"]).ok().ends_with("all well"));
    let said = host.sh("dd if=/dev/zero of=/fill bs=1M 2>&1; echo ended");
    assert!(said.text().contains("No space left") && said.text().contains("ended"), "{said}");
    assert_eq!(host.run(&[], &["echo", "well"]).ok(), "well");
}

/// F120: a data root that cannot be written to.
#[test]
fn a_read_only_data_root_is_refused() {
    let disk = SmallDisk::mount("size=1m", MountFlags::RDONLY);
    let Some(host) = TestHost::prepare(Wall::Process, &disk.host_options()) else { return };
    if host.is_reference() {
        return skip("the reference daemon does not do this");
    }
    let output = host.engine_command().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("Read-only file system"), "{said}");
}

/// What loads, removals and prunings at once leave is whole (F119, without a registry).
#[test]
fn loads_removals_and_prunings_at_once() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let archive = saved_image("busy:1", &chain(5));
    std::thread::scope(|scope| {
        let loaders: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..5 {
                        assert_eq!(host.docker_input(&["load", "-q"], &archive).code, 0);
                        let ran = host.docker(&host.words_for("busy:1", "run", &["--rm"], &["cat", "/chain/last"]));
                        // Somebody may have removed it meanwhile; what runs is whole.
                        let gone = ran.err.contains("No such image") || ran.err.contains("cannot reach the registry");
                        assert!(ran.code == 0 && ran.text() == "4\n" || gone, "{ran}");
                    }
                })
            })
            .collect();
        while loaders.iter().any(|loader| !loader.is_finished()) {
            drop(host.docker(&["rmi", "-f", "busy:1"]));
            drop(host.docker(&["image", "prune", "-f"]));
        }
    });
    assert!(host.bulkhead(&["system", "check"]).ok().ends_with("all well"));
}

/// An engine whose system calls fail as told while an image is loaded: nothing of it is there, and the next load is well.
fn fail_while_loading(inject: &str, words: &[&str]) {
    let Some(mut host) = TestHost::start_own(Wall::Process) else { return };
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("needs strace (package strace)");
    }
    let archive = saved_image("failing:1", &chain(3));
    let pid = host.engine().pid().to_string();
    let log = host.folder().join("strace");
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-o", log.to_str().unwrap(), "-e", &format!("inject={inject}"), "-p", &pid])
        .spawn()
        .unwrap();
    assert!(bulkhead_e2e::eventually(std::time::Duration::from_secs(10), || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    }));
    let said = host.docker_input(&["load", "-q"], &archive);
    rustix::process::kill_process(rustix::process::Pid::from_child(&strace), rustix::process::Signal::INT).unwrap();
    strace.wait().unwrap();
    said.fails_saying(1, words);
    assert_eq!(host.docker(&["images", "-q"]).lines().len(), 1, "{inject}");
    assert_eq!(std::fs::read_dir(host.data_root().join("images/tmp")).unwrap().count(), 0, "{inject}");
    // A database that has met a fault of its disk takes no further change until it is opened anew.
    host.stop_engine();
    host.start_engine();
    assert!(host.bulkhead(&["system", "check"]).ok().ends_with("all well"));
    assert_eq!(host.docker_input(&["load", "-q"], &archive).code, 0, "{inject}");
    assert_eq!(host.docker(&host.words_for("failing:1", "run", &["--rm"], &["cat", "/chain/last"])).ok(), "2");
}

/// F114: a layer that the disk did not take is dropped, and never taken for good by a second fsync.
#[test]
fn an_fsync_that_fails_drops_what_was_written() {
    for when in ["1", "2", "3"] {
        fail_while_loading(&format!("fsync:error=EIO:when={when}"), &["input/output error"]);
    }
}

/// F113: no room for a name. (Writes of content are the conversion worker's, whose seccomp filter takes an injected fault for
/// a forbidden call; the full disk above is theirs.)
#[test]
fn a_rename_that_fails_drops_what_was_written() {
    for when in ["1", "2"] {
        fail_while_loading(&format!("rename,renameat,renameat2:error=ENOSPC:when={when}"), &["no space left"]);
    }
}

/// A tree outside of the data root is the same before and after all that images do.
#[test]
fn nothing_outside_the_data_root_changes() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let canary = host.folder().join("canary");
    std::fs::create_dir(&canary).unwrap();
    for number in 0..100 {
        std::fs::write(canary.join(number.to_string()), noise(64, number + 1)).unwrap();
    }
    let facts = |folder: &Path| -> Vec<(PathBuf, u64, i64, i64, Vec<u8>)> {
        let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        all.sort();
        let fact = |path: PathBuf| {
            let facts = path.metadata().unwrap();
            let content = std::fs::read(&path).unwrap();
            (path, facts.ino(), facts.mtime(), facts.ctime_nsec(), content)
        };
        all.into_iter().map(fact).collect()
    };
    let before = facts(&canary);
    let target = canary.join("0").display().to_string();
    let hostile = [
        Tar::new().symlink("out", &target).file("out", 0o644, b"x").bytes(),
        Tar::new().symlink("dir", &canary.display().to_string()).file("dir/1", 0o644, b"x").bytes(),
        Tar::new().hard_link("hard", &target).bytes(),
    ];
    for (number, layer) in hostile.iter().enumerate() {
        let name = format!("hostile:{number}");
        let loaded = host.docker_input(&["load", "-q"], &saved_image(&name, &[busybox_rootfs(), layer.clone()]));
        if loaded.code == 0 {
            drop(host.docker(&host.words_for(
                &name,
                "run",
                &["--rm"],
                &["sh", "-c", "echo x > /out; echo x > /dir/1; ls /"],
            )));
            assert_eq!(host.docker(&["rmi", "-f", &name]).code, 0);
        }
    }
    assert_eq!(host.docker(&["image", "prune", "-af"]).code, 0);
    assert_eq!(facts(&canary), before);
}
