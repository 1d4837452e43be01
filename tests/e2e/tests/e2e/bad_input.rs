//! Bad input: always one clear line saying what and what to do, and nothing half-made stays.

use std::path::Path;

use bulkhead_e2e::archive::{Tar, busybox_rootfs, saved_image};
use bulkhead_e2e::{HostOptions, Running, TestHost, Wall};

behind_both_walls! {
    fn unknown_images_names_and_commands(host) {
        let said = host.docker(&host.words_for("no-such-image", "run", &["--rm", "--pull", "never"], &["true"]));
        said.fails_saying(125, &["no such image", "no-such-image"]);
        host.docker(&["start", "nosuch"]).fails_saying(1, &["no such container", "nosuch"]);
        host.docker(&["rm", "nosuch"]).fails_saying(1, &["no such container", "nosuch"]);
        host.docker(&["rmi", "nosuch"]).fails_saying(1, &["no such image", "nosuch"]);
        host.docker(&["exec", "nosuch", "true"]).fails_saying(1, &["no such container", "nosuch"]);
        assert_eq!(host.docker(&["ps", "-aq"]).ok(), "");
    }

    fn memory_below_the_minimum(host) {
        host.run(&["--memory", "1m"], &["true"]).fails_saying(125, &["minimum memory"]);
        assert_eq!(host.docker(&["ps", "-aq"]).ok(), "");
    }
}

#[test]
fn an_unknown_isolation_is_refused() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let said = host.docker(&["run", "--rm", "--network", "none", "--isolation", "bogus", "box", "true"]);
    said.fails_saying(125, &["invalid isolation", "bogus"]);
    if !host.is_reference() {
        said.fails_saying(125, &["process", "hyperv"]);
    }
    assert_eq!(host.docker(&["ps", "-aq"]).ok(), "");
}

#[test]
fn corrupt_archives_are_refused_and_leave_nothing() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let good = saved_image("good:1", &[busybox_rootfs(), Tar::new().file("unique", 0o644, b"unmistakable").bytes()]);
    let mut flipped = good.clone();
    let at = flipped.windows(12).position(|window| window == b"unmistakable").expect("the second layer's file");
    flipped[at] ^= 1;
    let missing = Tar::new()
        .file("manifest.json", 0o644, br#"[{"Config":"c.json","RepoTags":["a:b"],"Layers":["l.tar"]}]"#)
        .bytes();
    let images = host.docker(&["images", "-q", "--no-trunc"]).ok();
    for (what, archive) in [
        ("noise", vec![0x5A; 100_000]),
        ("truncated", good[..good.len() / 3].to_vec()),
        ("a layer that is not what its digest says", flipped),
        ("files that are missing", missing),
        ("json that is none", Tar::new().file("manifest.json", 0o644, b"[{]").bytes()),
        ("an empty tar", Tar::new().bytes()),
        ("gzip that breaks off", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x4b, 0x4c]),
    ] {
        let said = host.docker_input(&["load"], &archive);
        // Docker 20.10 takes an empty archive, and a gzip of nothing, for a good one.
        if !host.is_reference() {
            assert_ne!(said.code, 0, "{what}: {said}");
            assert!(said.err.trim().lines().count() == 1, "{what}: {said}");
        }
        assert_eq!(host.docker(&["images", "-q", "--no-trunc"]).ok(), images, "{what} left an image");
    }
    assert_eq!(host.docker_input(&["load"], &good).code, 0);
}

#[test]
fn archives_that_reach_out_of_their_root_change_nothing_outside() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let victim = host.folder().join("victim");
    std::fs::write(&victim, "untouched").unwrap();
    let up = format!("{}{}", "../".repeat(20), victim.strip_prefix("/").unwrap().display());
    let base = || {
        Tar::new().folder("bin/").file(
            "bin/busybox",
            0o755,
            &std::fs::read(bulkhead_e2e::archive::busybox().unwrap()).unwrap(),
        )
    };
    let folder = host.folder().display().to_string();
    for (what, layer) in [
        ("../", base().file(&up, 0o644, b"overwritten")),
        ("absolute", base().file(&victim.display().to_string(), 0o644, b"overwritten")),
        ("through a symlink", base().symlink("escape", &folder).file("escape/victim", 0o644, b"overwritten")),
        (
            "through a relative symlink",
            base().symlink("a", &format!("../../../../../../../../..{folder}")).file("a/victim", 0o644, b"overwritten"),
        ),
        (
            "hard link to outside",
            base().hard_link("linked", &victim.display().to_string()).file("linked", 0o644, b"overwritten"),
        ),
        (
            "hard link through a symlink",
            base().symlink("out", &folder).hard_link("linked", "out/victim").file("linked", 0o644, b"overwritten"),
        ),
        (
            "whiteout of the parent",
            base().file("../.wh.victim", 0o644, b"").file(".wh...", 0o644, b"").file(".wh..", 0o644, b""),
        ),
        ("device node of the host's disk", base().folder("dev/").symlink("dev/vda", "/dev/vda")),
    ] {
        let said = host.docker_input(&["import", "-", "hostile"], &layer.bytes());
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched", "{what}: {said}");
        if said.code == 0 {
            let said = host.docker(&host.words_for(
                "hostile",
                "run",
                &["--rm"],
                &["/bin/busybox", "sh", "-c", "echo in; /bin/busybox cat /linked /escape/victim /a/victim 2>/dev/null"],
            ));
            assert!(!said.text().contains("untouched"), "{what}: {said}");
        } else {
            assert!(said.err.trim().lines().count() <= 2, "{what}: {said}");
        }
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched", "{what}");
    }
}

/// Starts a host's engine, which must end by itself with one line that holds these words.
#[track_caller]
fn refuses_to_start(host: &TestHost, words: &[&str]) {
    let said = Running::start(&mut host.engine_command()).end();
    assert_ne!(said.code, 0, "{said}");
    let told: Vec<&str> =
        said.err.lines().filter(|line| words.iter().all(|word| line.to_lowercase().contains(word))).collect();
    assert!(!told.is_empty(), "no line with {words:?}: {said}");
    assert!(!said.err.contains("panicked"), "{said}");
}

#[test]
fn two_engines_on_one_data_root() {
    let Some(first) = TestHost::start_own(Wall::Process) else { return };
    let options = HostOptions { data_root: Some(first.data_root().to_path_buf()), ..HostOptions::default() };
    let Some(second) = TestHost::prepare(Wall::Process, &options) else { return };
    refuses_to_start(&second, &["data", "in use"]);
    assert_eq!(first.run(&[], &["echo", "fine"]).ok(), "fine");
}

#[test]
fn a_socket_in_use() {
    let Some(first) = TestHost::start_own(Wall::Process) else { return };
    let flag = format!("-H=unix://{}", first.socket().display());
    let options = HostOptions { flags: vec![flag], ..HostOptions::default() };
    let Some(second) = TestHost::prepare(Wall::Process, &options) else { return };
    refuses_to_start(&second, &["cannot serve", "docker.sock"]);
    assert_eq!(first.run(&[], &["echo", "fine"]).ok(), "fine");
}

#[test]
fn a_stale_socket_is_replaced() {
    let Some(mut host) = TestHost::prepare(Wall::Process, &HostOptions::default()) else { return };
    drop(std::os::unix::net::UnixListener::bind(host.socket()).unwrap());
    host.start_engine();
    assert_eq!(host.docker(&["ps", "-q"]).ok(), "");
}

#[test]
fn a_data_root_that_cannot_be_written() {
    let options = HostOptions { data_root: Some("/proc/bulkhead".into()), ..HostOptions::default() };
    let Some(host) = TestHost::prepare(Wall::Process, &options) else { return };
    if host.is_reference() {
        return;
    }
    refuses_to_start(&host, &["/proc/bulkhead"]);
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_half_made() {
    let Some(disk) = SmallDisk::mount(12) else { return };
    let options = HostOptions { data_root: Some(disk.path().join("data")), no_image: true, ..HostOptions::default() };
    let Some(host) = TestHost::start_own_with(Wall::Process, &options) else { return };
    let noise: Vec<u8> = (0..20_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let said = host.docker_input(&["import", "-", "big"], &Tar::new().file("noise", 0o644, &noise).bytes());
    said.fails_saying(1, &["no space left"]);
    assert_eq!(host.docker(&["images", "-q"]).ok(), "");
    assert!(disk.used() < 2 << 20, "{} bytes stay used", disk.used());
    // What fits, works.
    assert_eq!(host.docker_input(&["import", "-", "box"], &busybox_rootfs()).code, 0);
    assert_eq!(host.run(&[], &["echo", "fits"]).ok(), "fits");
}

/// A tmpfs of a few MiB.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(mebibytes: u32) -> Option<Self> {
        if let Some(reason) = bulkhead_e2e::Need::Root.missing() {
            bulkhead_e2e::skip(&reason);
            return None;
        }
        let folder = tempfile::Builder::new().prefix("bhdisk-").tempdir_in("/tmp").unwrap();
        let size = std::ffi::CString::new(format!("size={mebibytes}m")).unwrap();
        rustix::mount::mount(
            "tmpfs",
            folder.path(),
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            Some(size.as_c_str()),
        )
        .unwrap();
        Some(Self { folder })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn used(&self) -> u64 {
        let facts = rustix::fs::statvfs(self.path()).unwrap();
        (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.folder.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn without_qemu_hyperv_says_which_package_and_process_works() {
    let Some(shadow) = PathWithoutQemu::make() else { return };
    // Where KVM is usable nobody needs QEMU unless it is asked for.
    let flags = vec!["--backend=qemu-tcg".to_owned()];
    let options = HostOptions { path: Some(shadow.path.clone()), own_templates: true, flags, ..HostOptions::default() };
    let Some(host) = TestHost::start_own_with(Wall::Hyperv, &options) else { return };
    host.run(&["--name", "no-vm"], &["true"]).fails_saying(125, &["qemu-system-x86"]);
    assert_eq!(host.docker(&["ps", "-aq"]).ok(), "");
    let process = ["run", "--rm", "--network", "none", "--isolation=process", "box", "echo", "works"];
    assert_eq!(host.docker(&process).ok(), "works");
    let doctor = host.bulkhead(&["doctor"]);
    assert!((doctor.text() + &doctor.err).contains("qemu-system-x86"), "{doctor}");
}

/// A PATH that has everything of /usr/bin and /usr/sbin but QEMU.
struct PathWithoutQemu {
    path: String,
    _folder: tempfile::TempDir,
}

impl PathWithoutQemu {
    fn make() -> Option<Self> {
        let folder = tempfile::tempdir().ok()?;
        for source in ["/usr/sbin", "/usr/bin", "/sbin", "/bin"] {
            for entry in std::fs::read_dir(source).ok()?.flatten() {
                let name = entry.file_name();
                if !name.to_string_lossy().starts_with("qemu") {
                    // The same name in two folders: the first one counts, as in PATH.
                    let _ = std::os::unix::fs::symlink(entry.path(), folder.path().join(name));
                }
            }
        }
        Some(Self { path: folder.path().display().to_string(), _folder: folder })
    }
}

#[test]
fn what_is_not_there_yet_says_so() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    for words in [&["volume", "create", "v"][..], &["pull", "alpine"], &["build", "-"]] {
        let said = host.docker(words);
        assert_ne!(said.code, 0, "{said}");
        assert!(!said.err.trim().is_empty(), "{said}");
    }
    assert_eq!(host.docker(&["ps", "-aq"]).ok(), "");
}
