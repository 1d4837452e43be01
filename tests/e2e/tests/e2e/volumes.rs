//! Volumes, binds and what else is mounted in a container beside its root.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bulkhead_e2e::{TestHost, Wall};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// A folder of the host for binds.
fn folder(host: &TestHost, name: &str) -> PathBuf {
    let folder = host.folder().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn volumes(host: &TestHost, options: &[&str]) -> Vec<String> {
    let said = host.docker(&[&["volume", "ls", "-q"], options].concat());
    said.ok().lines().map(str::to_owned).collect()
}

/// An image that declares a volume at /data, which has content, an owner and a mode.
fn image_with_volume(host: &TestHost) -> &'static str {
    let script = "mkdir -p /data/deep; echo content > /data/deep/file; ln -s deep/file /data/link; chown -R 1000:1001 /data; chmod 2770 /data";
    let id = host.run_detached(&[], &["sh", "-c", script]);
    host.wait_state(&id, "exited");
    assert_eq!(host.docker(&["commit", "-c", "VOLUME /data", &id, "voluminous"]).code, 0);
    assert_eq!(host.docker(&["rm", &id]).code, 0);
    "voluminous"
}

#[test]
fn volumes_are_made_listed_and_removed_as_dockers_are() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    assert_eq!(host.docker(&["volume", "create", "--label", "tier=db", "data1"]).ok(), "data1");
    assert_eq!(host.docker(&["volume", "create", "data1"]).ok(), "data1");
    let unnamed = host.docker(&["volume", "create"]).ok();
    assert_eq!(unnamed.len(), 64);
    host.docker(&["volume", "create", "a/b"]).fails_saying(1, &["create a/b:", "includes invalid characters"]);
    host.docker(&["volume", "create", "-d", "flocker", "x1"])
        .fails_saying(1, &["create x1: error looking up volume plugin flocker"]);
    host.docker(&["volume", "create", "-o", "type=nfs", "x1"])
        .fails_saying(1, &["create x1: missing required option: \"device\""]);
    host.docker(&["volume", "inspect", "nope"]).fails_saying(1, &["get nope: no such volume"]);
    host.docker(&["volume", "rm", "nope"]).fails_saying(1, &["get nope: no such volume"]);
    let inspected =
        host.docker(&["volume", "inspect", "-f", "{{.Driver}} {{.Scope}} {{.Labels.tier}} {{.Mountpoint}}", "data1"]);
    assert!(
        inspected.ok().starts_with("local local db /") && inspected.text().trim().ends_with("/volumes/data1/_data"),
        "{inspected}"
    );
    assert_eq!(volumes(&host, &["-f", "label=tier=db", "-f", "dangling=true"]), ["data1"]);
    let id = host.run_detached(&["-v", "data1:/x"], &["sleep", "1000"]);
    assert_eq!(volumes(&host, &["-f", "name=data", "-f", "dangling=true"]), Vec::<String>::new());
    host.docker(&["volume", "rm", "-f", "data1"])
        .fails_saying(1, &[&format!("remove data1: volume is in use - [{id}]")]);
    assert_eq!(host.docker(&["ps", "-q", "--no-trunc", "-f", "volume=data1"]).ok(), id);
    let pruned = host.docker(&["volume", "prune", "-af"]).ok();
    assert!(pruned.contains(&unnamed) && !pruned.contains("data1"), "{pruned}");
    assert_eq!(host.docker(&["rm", "-fv", &id]).code, 0);
    assert_eq!(volumes(&host, &[]), ["data1"], "a volume with a name outlives its container");
    assert_eq!(host.docker(&["volume", "rm", "data1"]).ok(), "data1");
}

behind_both_walls! {
    /// Each `cat` keeps the lock of its output's pipe while it asks for the file's end: of a hyperv container, the host.
    fn what_is_read_from_a_volume_comes_out_at_the_same_time(host) {
        if host.is_reference() {
            return;
        }
        let script = "echo content > /data/f; i=0; while [ $i -lt 60 ]; do cat /data/f; i=$((i+1)); done";
        assert_eq!(host.run(&["-v", "looped:/data"], &["sh", "-c", script]).ok().lines().count(), 60);
        assert_eq!(host.docker(&["volume", "rm", "looped"]).code, 0);
    }

    fn a_volume_starts_with_what_the_image_has_there(host) {
        if host.is_reference() {
            return;
        }
        let image = image_with_volume(host);
        let look = ["sh", "-c", "stat -c %u:%g:%a /data; cat /data/link; echo more > /data/own"];
        let run = |options: &[&str]| host.docker(&host.words_for(image, "run", options, &look));
        assert_eq!(run(&["--rm"]).ok(), "1000:1001:2770\ncontent");
        assert_eq!(volumes(host, &[]), Vec::<String>::new(), "--rm takes volumes without names along");
        assert_eq!(run(&["--rm", "-v", "kept:/data"]).ok(), "1000:1001:2770\ncontent");
        let again = host.docker(&host.words_for(image, "run", &["--rm", "-v", "kept:/data"], &["cat", "/data/own"]));
        assert_eq!(again.ok(), "more");
        let empty =
            host.docker(&host.words_for(image, "run", &["--rm", "-v", "bare:/data:nocopy"], &["ls", "-A", "/data"]));
        assert_eq!(empty.ok(), "");
        host.run(&["-v", "fresh:/etc/plain"], &["true"]).fails_saying(125, &["cannot mount volume over existing file"]);
        assert_eq!(volumes(host, &[]), ["bare", "kept"]);
    }

    fn volumes_are_taken_from_other_containers(host) {
        if host.is_reference() {
            return;
        }
        let first =
            host.run_detached(&["-v", "/shared", "-v", "named:/n"], &["sh", "-c", "echo x > /shared/f; exec sleep 1000"]);
        assert_eq!(host.run(&["--volumes-from", &first], &["sh", "-c", "cat /shared/f; echo y > /n/g"]).ok(), "x");
        host.run(&["--volumes-from", &format!("{first}:ro")], &["touch", "/shared/g"])
            .fails_saying(1, &["Read-only file system"]);
        host.run(&["--volumes-from", "nope"], &["true"]).fails_saying(125, &["No such container: nope"]);
        assert_eq!(host.docker(&["exec", &first, "cat", "/n/g"]).ok(), "y");
        let kinds =
            host.docker(&["inspect", "-f", "{{range .Mounts}}{{.Type}}:{{.Destination}}:{{.RW}} {{end}}", &first]).ok();
        let mut kinds: Vec<_> = kinds.split_whitespace().collect();
        kinds.sort_unstable();
        assert_eq!(kinds, ["volume:/n:true", "volume:/shared:true"]);
    }

    fn a_part_of_a_volume_is_looked_up_in_the_volume(host) {
        if host.is_reference() {
            return;
        }
        // Whatever its containers have put in its place.
        assert_eq!(
            host.run(&["-v", "v1:/v"], &["sh", "-c", "mkdir -p /v/a/b; echo part > /v/a/b/f; ln -s /etc /v/out"]).code,
            0
        );
        let part = |path: &str| {
            let mount = format!("type=volume,source=v1,target=/y,volume-subpath={path}");
            host.run(&["--mount", &mount], &["ls", "/y"])
        };
        assert_eq!(part("a/b").ok(), "f");
        for (path, word) in [("out", "cannot access path"), ("none", "cannot access path"), ("../v2", "within the volume")]
        {
            part(path).fails_saying(125, &[word]);
        }
    }

    fn volumes_that_are_used_are_not_pruned(host) {
        if host.is_reference() {
            return;
        }
        let id = host.run_detached(&["-v", "used:/u", "-v", "/nameless"], &["sh", "-c", "echo x > /u/f; exec sleep 1000"]);
        assert_eq!(host.docker(&["volume", "create", "idle"]).code, 0);
        assert_eq!(volumes(host, &["-f", "dangling=false"]).len(), 2);
        let pruned = host.docker(&["volume", "prune", "-af"]).ok();
        assert!(pruned.contains("idle") && !pruned.contains("used"), "{pruned}");
        host.docker(&["volume", "rm", "used"]).fails_saying(1, &["volume is in use"]);
        host.wait_state(&id, "running");
        assert_eq!(host.docker(&["exec", &id, "cat", "/u/f"]).ok(), "x");
        assert_eq!(host.docker(&["rm", "-fv", &id]).code, 0);
        assert_eq!(volumes(host, &[]), ["used"]);
        assert!(host.docker(&["volume", "prune", "-af"]).ok().contains("used"));
        assert!(volumes(host, &[]).is_empty());
    }
}

behind_both_walls! { own:
    fn f48_a_source_that_is_swapped_meanwhile_is_one_or_the_other(host) {
        let bound = folder(host, "raced");
        for (name, word) in [("part", "inside"), ("other", "beside")] {
            std::fs::create_dir(bound.join(name)).unwrap();
            std::fs::write(bound.join(name).join("f"), word).unwrap();
        }
        symlink("other", bound.join("link")).unwrap();
        let local = format!("type=none,o=bind,device={}", bound.display());
        let options: Vec<_> = local.split(',').flat_map(|option| ["-o", option]).collect();
        host.docker(&[&["volume", "create"], &options[..], &["raced"]].concat()).ok();
        let over = AtomicBool::new(false);
        let [part, link] = ["part", "link"].map(|name| bound.join(name));
        let (folder, within) =
            (format!("{}:/y", part.display()), "type=volume,source=raced,target=/y,volume-subpath=part");
        let (mut bound, mut parts) = (Vec::new(), Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    renameat_with(CWD, &part, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
            for _ in 0..5 {
                bound.push(host.run(&["-v", &folder], &["cat", "/y/f"]));
                parts.push(host.run(&["--mount", within], &["cat", "/y/f"]));
            }
            over.store(true, Ordering::Relaxed);
        });
        // A folder of the host is bound as it is found, links and all, as dockerd does.
        for said in bound {
            assert!(["inside", "beside"].contains(&said.ok().as_str()), "{said}");
        }
        for said in parts {
            assert!(said.out == b"inside" || said.err.contains("cannot access path"), "{said}");
        }
    }
}

#[test]
fn folders_and_files_of_the_host_are_bound() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let bound = folder(&host, "bound");
    std::fs::write(bound.join("file"), "from outside\n").unwrap();
    let path = bound.display().to_string();
    let script = "cat /b/file; echo inside > /b/new; chown 7:8 /b/new; chmod 640 /b/new";
    assert_eq!(host.run(&["-v", &format!("{path}:/b")], &["sh", "-c", script]).ok(), "from outside");
    let new = bound.join("new").metadata().unwrap();
    assert_eq!((new.uid(), new.gid(), new.permissions().mode() & 0o777), (7, 8, 0o640));
    let read_only = host.run(&["-v", &format!("{path}:/b:ro")], &["sh", "-c", "cat /b/file; echo x > /b/file"]);
    read_only.fails_saying(1, &["Read-only file system"]);
    let one =
        host.run(&["-v", &format!("{path}/file:/etc/one")], &["sh", "-c", "cat /etc/one; echo changed > /etc/one"]);
    assert_eq!(one.ok(), "from outside");
    assert_eq!(std::fs::read_to_string(bound.join("file")).unwrap(), "changed\n");
    let made = host.folder().join("made/here");
    assert_eq!(host.run(&["-v", &format!("{}:/m", made.display())], &["ls", "/m"]).ok(), "");
    assert!(made.is_dir(), "-v makes its source");
    let missing = format!("type=bind,source={}/none,target=/m", path);
    host.run(&["--mount", &missing], &["true"]).fails_saying(125, &["bind source path does not exist"]);
    let over_file = host.run(&["-v", &format!("{path}:/etc/plain")], &["true"]);
    assert!(over_file.code != 0 && over_file.err.contains("not a directory"), "{over_file}");
}

/// Mounts made below a bound folder later are seen behind the wall as the bind says.
#[test]
fn mounts_propagate_as_asked() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let bound = folder(&host, "bound");
    let path = bound.display().to_string();
    let ran = |words: &str| {
        let status = std::process::Command::new("sh").args(["-c", words]).status().unwrap();
        assert!(status.success(), "{words}");
    };
    ran(&format!("mount -t tmpfs tmpfs {path} && mount --make-shared {path} && mkdir {path}/in"));
    for mode in ["", ":rslave"] {
        let id = host.run_detached(&["-v", &format!("{path}:/b{mode}")], &["sleep", "1000"]);
        ran(&format!("mount -t tmpfs tmpfs {path}/in && touch {path}/in/seen"));
        let inside = host.docker(&["exec", &id, "ls", "/b/in"]).ok();
        assert_eq!(inside == "seen", !mode.is_empty(), "{mode:?}");
        host.docker(&["rm", "-f", &id]).ok();
        ran(&format!("umount {path}/in"));
    }
    let mounting = "mount -t tmpfs tmpfs /b/in && touch /b/in/seen && echo done; sleep 1000";
    let id = host.run_detached(&["--privileged", "-v", &format!("{path}:/b:rshared")], &["sh", "-c", mounting]);
    host.wait_log(&id, "done");
    assert!(bound.join("in/seen").exists(), "what is mounted below a shared bind is seen on the host");
    host.docker(&["rm", "-f", &id]).ok();
    ran(&format!("umount {path}/in && umount {path}"));
}

#[test]
fn mounts_that_would_break_the_wall_are_refused() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    for (option, words) in [
        ("/tmp:/", "destination can't be '/'"),
        ("/tmp:/a/../..", "destination can't be '/'"),
        ("/tmp:/proc", "cannot be mounted because it is not of type proc"),
        ("/tmp:/proc/x", "cannot be mounted because it is inside /proc"),
        ("/proc/self/mem:/m", "the engine's own"),
        ("/tmp:b", "mount path must be absolute"),
    ] {
        host.run(&["-v", option], &["true"]).fails_saying(125, &[words]);
    }
    host.run(&["-v", "/tmp:/a", "-v", "/etc:/a"], &["true"]).fails_saying(125, &["Duplicate mount point: /a"]);
    let outside = folder(&host, "outside");
    symlink("/etc/shadow", outside.join("link")).unwrap();
    let followed = host.run(&["-v", &format!("{}:/o", outside.display())], &["cat", "/o/link"]);
    assert!(followed.code != 0 && !followed.text().contains("root:"), "{followed}");
}

#[test]
fn volumes_have_options_and_sizes() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let real = folder(&host, "real");
    std::fs::write(real.join("f"), "bound\n").unwrap();
    let device = format!("device={}", real.display());
    assert_eq!(host.docker(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, "tied"]).code, 0);
    assert_eq!(
        host.docker(&["volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m", "memory"]).code,
        0
    );
    let script = "cat /t/f; grep -c ' /m .*size=1024k' /proc/self/mountinfo; head -c 300000 /dev/zero > /k/f";
    let id = host.run_detached(
        &["-v", "tied:/t", "-v", "memory:/m", "-v", "big:/k"],
        &["sh", "-c", &format!("{script}; exec sleep 1000")],
    );
    host.wait_log(&id, "bound\n1\n");
    let usage = host.get_json("/v1.43/system/df?type=volume");
    let sizes: Vec<(String, i64)> = usage["Volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| (volume["Name"].as_str().unwrap().into(), volume["UsageData"]["RefCount"].as_i64().unwrap()))
        .collect();
    assert_eq!(sizes, [("big".into(), 1), ("memory".into(), 1), ("tied".into(), 1)]);
    assert!(usage["Volumes"][0]["UsageData"]["Size"].as_i64().unwrap() >= 300_000, "{usage}");
    assert_eq!(host.docker(&["rm", "-f", &id]).code, 0);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains("volumes/memory/_data") && !mounts.contains("volumes/tied/_data"),
        "released with the container"
    );
}

/// The volumes `memory`, which is a tmpfs, and `tied`, which is a folder of the host.
fn volumes_with_options(host: &TestHost) {
    let device = format!("device={}", folder(host, "real").display());
    let create = |options: [&str; 3], name: &str| {
        let options = options.map(|option| ["-o", option]).concat();
        assert_eq!(host.docker(&[&["volume", "create"], &options[..], &[name]].concat()).ok(), name);
    };
    create(["type=none", "o=bind", &device], "tied");
    create(["type=tmpfs", "device=tmpfs", "o=size=1m"], "memory");
}

fn is_mounted(host: &TestHost, volume: &str) -> bool {
    let folder = host.data_root().join(format!("volumes/{volume}/_data"));
    std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&format!(" {} ", folder.display()))
}

const WITH_OPTIONS: [&str; 4] = ["-v", "memory:/m", "-v", "tied:/t"];

behind_both_walls! {
    own: fn what_a_volumes_options_mount_stays_for_who_uses_it(host) {
        volumes_with_options(host);
        let keep = "echo kept > /m/f; echo kept > /t/f; echo ready; exec sleep 1000";
        let user = host.run_detached(&WITH_OPTIONS, &["sh", "-c", keep]);
        host.wait_log(&user, "ready");
        let looks = |host: &TestHost| host.run(&WITH_OPTIONS, &["cat", "/m/f", "/t/f"]).ok();
        assert_eq!((looks(host), looks(host)), ("kept\nkept".into(), "kept\nkept".into()));
        // Two end while no engine runs: the next one finds that while it takes up the first.
        let until = ["sh", "-c", "while [ ! -e /t/end ]; do sleep 0.1; done"];
        let ended: Vec<String> = (0..2).map(|_| host.run_detached(&WITH_OPTIONS, &until)).collect();
        host.engine().kill();
        std::fs::write(host.folder().join("real/end"), "").unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        host.start_engine();
        ended.iter().for_each(|id| host.wait_state(id, "exited"));
        assert_eq!(looks(host), "kept\nkept");
        assert_eq!(host.docker(&["exec", &user, "cat", "/m/f", "/t/f"]).ok(), "kept\nkept");
        assert_eq!(host.docker(&["rm", "-f", &user]).code, 0);
        assert!(!is_mounted(host, "memory") && !is_mounted(host, "tied"), "nobody uses them");
    }
}

#[test]
fn a_volume_is_not_unmounted_under_one_that_starts() {
    let Some(mut host) = TestHost::start_own(Wall::Process) else { return };
    volumes_with_options(&host);
    let run = || host.run(&WITH_OPTIONS, &["grep", "-c", " /m .*size=1024k", "/proc/self/mountinfo"]).ok();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3).map(|_| scope.spawn(|| (0..4).map(|_| run()).collect::<Vec<_>>())).collect();
        let said: Vec<String> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        assert_eq!(said, ["1"; 12]);
    });
    assert!(!is_mounted(&host, "memory") && !is_mounted(&host, "tied"), "nobody uses them");
    // What an engine that was killed has mounted for a start that never came.
    host.engine().kill();
    let left = host.data_root().join("volumes/memory/_data");
    rustix::mount::mount("tmpfs", &left, "tmpfs", rustix::mount::MountFlags::empty(), c"").unwrap();
    host.start_engine();
    assert!(!is_mounted(&host, "memory"), "nobody uses it");
}

#[test]
fn volume_events_tell_who_mounts_what() {
    let Some(host) = TestHost::start_own(Wall::Process) else { return };
    let id = host.run_detached(&["-v", "watched:/w:ro"], &["true"]);
    host.wait_state(&id, "exited");
    assert_eq!(host.docker(&["rm", &id]).code, 0);
    assert_eq!(host.docker(&["volume", "rm", "watched"]).code, 0);
    let format = "{{.Action}} {{.Actor.ID}} {{.Actor.Attributes.driver}} {{index .Actor.Attributes \"destination\"}}";
    // Some time ahead: the CLI may lose what comes together with the end.
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 2;
    let said = host.docker(&[
        "events",
        "--since",
        "0",
        "--until",
        &until.to_string(),
        "--filter",
        "type=volume",
        "--format",
        format,
    ]);
    let lines: Vec<_> = said
        .lines()
        .iter()
        .map(|line| line.trim_end().replace("<no value>", ""))
        .map(|line| line.trim_end().to_owned())
        .collect();
    assert_eq!(
        lines,
        ["create watched local", "mount watched local /w", "unmount watched local", "destroy watched local"]
    );
}

/// How many processes that serve mounts are in a container's cgroups on the host.
fn servers_in_cgroup(id: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let serves = |process: &PathBuf| {
        let read = |name: &str| std::fs::read(process.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&read("cgroup")).contains(id)
            && read("cmdline").split(|byte| *byte == 0).nth(1) == Some(b"share")
    };
    processes.filter(serves).count()
}

/// `docker run --rm` behind the other wall.
fn run_process(host: &TestHost, options: &[&str], script: &str) -> bulkhead_e2e::Said {
    let words =
        [&["run", "--rm", "--network", "none", "--isolation", "process"], options, &["box", "sh", "-c", script]];
    host.docker(&words.concat())
}

#[test]
fn data_is_shared_by_both_walls_at_once_and_outlives_a_change_of_them() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let volume = ["-v", "shared:/s"];
    assert_eq!(run_process(&host, &volume, "echo first > /s/a; mkdir /s/d; chown 7:8 /s/a").code, 0);
    let script = "cat /s/a; stat -c %u:%g /s/a; echo second > /s/d/b; mv /s/d/b /s/d/c; ln /s/d/c /s/e; ln -s a /s/l; cat /s/l; rm /s/e; exec sleep 1000";
    let id = host.run_detached(&volume, &["sh", "-c", script]);
    host.wait_log(&id, "first\n7:8\nfirst\n");
    assert_eq!(servers_in_cgroup(&id), 1, "what serves the volume is in the container's cgroup");
    assert_eq!(run_process(&host, &volume, "cat /s/d/c; ls /s; echo third >> /s/a").ok(), "second\na\nd\nl");
    // Names and attributes are believed for a tenth of a second.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(host.docker(&["exec", &id, "cat", "/s/a"]).ok(), "first\nthird");
    assert_eq!(host.docker(&["exec", "-w", "/s/d", &id, "sh", "-c", "pwd; cat c"]).ok(), "/s/d\nsecond");
    assert_eq!(host.docker(&["rm", "-f", &id]).code, 0);
    assert_eq!(run_process(&host, &volume, "cat /s/d/c").ok(), "second");
}

#[test]
fn a_utility_vm_reaches_just_the_folder() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let bound = folder(&host, "bound");
    std::fs::write(bound.join("file"), "from outside\n").unwrap();
    symlink("/etc/shadow", bound.join("shadow")).unwrap();
    symlink("../../../../../../etc", bound.join("up")).unwrap();
    let path = bound.display().to_string();
    let script =
        "cat /b/file; cat /b/shadow /b/up/shadow; ls -a /b/.. | grep -c bound; mknod /b/dev c 1 3; echo x > /b/new";
    let said = host.run(&["-v", &format!("{path}:/b")], &["sh", "-c", script]);
    assert!(said.text().starts_with("from outside\n0") && !said.text().contains("root:"), "{said}");
    assert!(bound.join("new").exists() && !bound.join("dev").exists());
    // Our own VMM has a device for it.
    let own = host.docker(&["info", "--format", "{{.Labels}}"]).ok().contains("hypervisor=bulkhead-vmm ");
    let kind = if own { " /b virtiofs " } else { " /b fuse " };
    let mounts = host.run(&["-v", &format!("{path}:/b")], &["cat", "/proc/mounts"]);
    assert!(mounts.text().contains(kind), "{mounts}");
    host.run(&["-v", &format!("{path}:/b:ro")], &["sh", "-c", "cat /b/file; echo x > /b/file"])
        .fails_saying(1, &["Read-only file system"]);
    let one =
        host.run(&["-v", &format!("{path}/file:/etc/one")], &["sh", "-c", "cat /etc/one; echo changed > /etc/one"]);
    assert_eq!(one.ok(), "from outside");
    assert_eq!(std::fs::read_to_string(bound.join("file")).unwrap(), "changed\n");
    host.run(&["-v", "/dev/null:/n"], &["true"]).fails_saying(125, &["neither a file nor a folder"]);
    host.run(&["-v", &format!("{path}:/b:rslave")], &["true"]).fails_saying(125, &["isolation hyperv"]);
}
