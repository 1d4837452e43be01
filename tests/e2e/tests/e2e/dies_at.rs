//! `kill -9` of the engine at named points of what changes the store: the next engine runs a container at once, and nothing
//! is left of what was under way. The points are those of `image::failpoint` (docs/design/0009).

use bulkhead_e2e::archive::{Tar, busybox_rootfs, saved_image};
use bulkhead_e2e::registry::RegistryOptions;
use bulkhead_e2e::{Need, TestHost, Wall, skip};

/// A host whose engine has not been started, if there is an engine that can be told where to die.
fn prepare() -> Option<TestHost> {
    let reason = Need::Failpoints.missing().or_else(|| Need::OwnEngine.missing());
    if let Some(reason) = reason {
        skip(&reason);
        return None;
    }
    TestHost::start_own(Wall::Process)
}

/// Two layers that no other image has.
fn image(name: &str) -> Vec<u8> {
    let own = |layer: &str| Tar::new().file(layer, 0o644, name.as_bytes()).bytes();
    saved_image(name, &[busybox_rootfs(), own("first"), own("second")])
}

/// What must hold of an engine that was started after a kill.
fn check_whole(host: &TestHost, point: &str) {
    assert_eq!(host.run(&[], &["echo", "alive"]).ok(), "alive", "after {point}");
    let temporary = std::fs::read_dir(host.data_root().join("images/tmp")).unwrap().count();
    assert_eq!(temporary, 0, "temporary files after {point}");
    let said = host.bulkhead(&["system", "check"]);
    assert!(said.code == 0 && said.text().contains("all well"), "after {point}: {said}");
    let containers = host.docker(&["ps", "-aq"]).lines().iter().filter(|line| !line.is_empty()).count();
    let folders = std::fs::read_dir(host.data_root().join("containers")).unwrap().count();
    assert_eq!(folders, containers, "folders of containers after {point}");
    assert_eq!(host.left_on_machine(), Vec::<String>::new(), "after {point}");
}

/// Has an engine die at a point of an operation, and the next one do the same operation to its end.
fn die_in(
    host: &mut TestHost,
    points: &[&str],
    set_up: impl Fn(&TestHost, &str),
    operate: impl Fn(&TestHost, &str) -> i32,
    done: impl Fn(&TestHost, &str) -> bool,
) {
    for (number, point) in points.iter().enumerate() {
        let name = format!("crash:{number}");
        set_up(host, &name);
        host.stop_engine();
        host.start_engine_dying_at(point);
        operate(host, &name);
        host.wait_engine_died(point);
        host.start_engine();
        check_whole(host, point);
        if !done(host, &name) {
            assert_eq!(operate(host, &name), 0, "once more after {point}");
            assert!(done(host, &name), "after {point}");
        }
    }
}

fn nothing(_: &TestHost, _: &str) {}

fn load(host: &TestHost, name: &str) {
    assert_eq!(host.docker_input(&["load", "-q"], &image(name)).code, 0);
}

fn exists(host: &TestHost, name: &str) -> bool {
    host.docker(&["image", "inspect", name]).code == 0
}

#[test]
fn a_load() {
    let Some(mut host) = prepare() else { return };
    let points = [
        "load.spooling",
        "load.spooled",
        "load.found",
        "load.image",
        "convert.begin",
        "convert.written",
        "convert.synced",
        "convert.synced:2",
        "commit.begin",
        "commit.kept-one",
        "commit.kept-all",
        "commit.synced",
        "records.begin",
        "records.written",
        "records.committed",
        "commit.end",
    ];
    let operate = |host: &TestHost, name: &str| host.docker_input(&["load", "-q"], &image(name)).code;
    let runs = |host: &TestHost, name: &str| {
        exists(host, name) && host.docker(&host.words_for(name, "run", &["--rm"], &["cat", "/second"])).ok() == name
    };
    die_in(&mut host, &points, nothing, operate, runs);
}

#[test]
fn an_import() {
    let Some(mut host) = prepare() else { return };
    let operate = |host: &TestHost, name: &str| {
        host.docker_input(&["import", "-", name], &Tar::new().file("x", 0o644, name.as_bytes()).bytes()).code
    };
    die_in(&mut host, &["convert.written", "import.converted", "commit.kept-all"], nothing, operate, exists);
}

#[test]
fn a_removal_and_a_prune_of_images() {
    let Some(mut host) = prepare() else { return };
    let gone = |host: &TestHost, name: &str| !exists(host, name);
    let points =
        ["remove.begin", "records.written", "remove.recorded", "remove.file-gone", "remove.file-gone:2", "remove.end"];
    die_in(&mut host, &points, load, |host, name| host.docker(&["rmi", name]).code, gone);
    let used_box = |host: &TestHost, name: &str| {
        load(host, name);
        if host.docker(&["ps", "-aq"]).ok().is_empty() {
            assert_eq!(host.docker(&host.words("create", &[], &["true"])).code, 0);
        }
    };
    die_in(&mut host, &["prune.one-gone"], used_box, |host, _| host.docker(&["image", "prune", "-af"]).code, gone);
}

#[test]
fn a_collection_of_what_the_last_container_used() {
    let Some(mut host) = prepare() else { return };
    let set_up = |host: &TestHost, name: &str| {
        load(host, name);
        let id = host.docker(&host.words_for(name, "create", &["--name", &name.replace(':', "-")], &["true"])).ok();
        assert_eq!(host.docker(&["rmi", "-f", name]).code, 0, "{id}");
    };
    let operate = |host: &TestHost, name: &str| host.docker(&["rm", &name.replace(':', "-")]).code;
    let gone = |host: &TestHost, name: &str| {
        let layers = || std::fs::read_dir(host.data_root().join("images/layers")).unwrap().count();
        host.docker(&["container", "inspect", &name.replace(':', "-")]).code != 0
            && bulkhead_e2e::eventually(std::time::Duration::from_secs(5), || layers() == 1)
    };
    let points = ["collect.begin", "collect.recorded", "remove.file-gone", "collect.end"];
    die_in(&mut host, &points, set_up, operate, gone);
}

#[test]
fn a_creation_and_a_removal_of_a_container() {
    let Some(mut host) = prepare() else { return };
    let container = |name: &str| name.replace(':', "-");
    let there = move |host: &TestHost, name: &str| host.docker(&["container", "inspect", &container(name)]).code == 0;
    let create = move |host: &TestHost, name: &str| {
        host.docker(&host.words("create", &["--name", &container(name)], &["true"])).code
    };
    die_in(&mut host, &["create.folder", "create.writable", "create.recorded"], nothing, create, there);
    let removable = move |host: &TestHost, name: &str| {
        if !there(host, name) {
            assert_eq!(create(host, name), 0);
        }
    };
    let remove = move |host: &TestHost, name: &str| host.docker(&["rm", &container(name)]).code;
    let points = ["rm.begin", "rm.record-gone", "rm.folder-gone"];
    die_in(&mut host, &points, removable, remove, move |host, name| !there(host, name));
}

/// The volumes that the engine lists, which must be those that have a folder; and the one that no kill concerns.
fn volumes(host: &TestHost) -> Vec<String> {
    let folder = host.data_root().join("volumes");
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut folders: Vec<_> = entries.collect();
    folders.sort();
    let mut listed: Vec<_> = host.docker(&["volume", "ls", "-q"]).ok().lines().map(str::to_owned).collect();
    listed.sort();
    assert_eq!(listed, folders);
    assert_eq!(std::fs::read_to_string(folder.join("kept/_data/file")).unwrap(), "kept");
    listed
}

/// A volume with a label and a file.
fn make_volume(host: &TestHost, name: &str) {
    assert_eq!(host.docker(&["volume", "create", "--label", "of=test", name]).ok(), name);
    std::fs::write(host.data_root().join(format!("volumes/{name}/_data/file")), name).unwrap();
}

#[test]
fn a_creation_and_a_removal_of_a_volume() {
    let Some(mut host) = prepare() else { return };
    make_volume(&host, "kept");
    let volume = |name: &str| name.replace(':', "-");
    let label = |host: &TestHost, name: &str| {
        host.docker(&["volume", "inspect", "--format", "{{.Labels.of}}", &volume(name)]).text().trim().to_owned()
    };
    let create =
        |host: &TestHost, name: &str| host.docker(&["volume", "create", "--label", "of=test", &volume(name)]).code;
    // There wholly, or not at all.
    let there = |host: &TestHost, name: &str| {
        let listed = volumes(host).contains(&volume(name));
        assert!(!listed || label(host, name) == "test", "{name}");
        listed
    };
    die_in(&mut host, &["volume.folder", "volume.recorded", "volume.made"], nothing, create, there);
    let removable = |host: &TestHost, name: &str| {
        host.docker(&["volume", "rm", "-f", &volume(name)]).ok();
        make_volume(host, &volume(name));
    };
    let remove = |host: &TestHost, name: &str| host.docker(&["volume", "rm", &volume(name)]).code;
    let gone = |host: &TestHost, name: &str| {
        let listed = there(host, name);
        let content = std::fs::read_to_string(host.data_root().join(format!("volumes/{}/_data/file", volume(name))));
        assert_eq!(content.ok(), listed.then(|| volume(name)));
        !listed
    };
    die_in(&mut host, &["volume.rm-begin", "volume.rm-renamed"], removable, remove, gone);
}

#[test]
fn a_filling_of_a_volume_and_its_removal_with_the_container() {
    let Some(mut host) = prepare() else { return };
    make_volume(&host, "kept");
    let container = |name: &str| name.replace(':', "-");
    let create = |host: &TestHost, name: &str| {
        let options = ["--name", &container(name), "-v", &format!("{}:/bin", container(name)), "-v", "/own"];
        host.docker(&host.words("create", &options, &["true"])).code
    };
    let there = |host: &TestHost, name: &str| host.docker(&["container", "inspect", &container(name)]).code == 0;
    let filled = |host: &TestHost, name: &str| {
        let there = there(host, name);
        assert!(!there || volumes(host).contains(&container(name)));
        // The image's programs are in the volume, so the container runs.
        there && host.docker(&["start", "-a", &container(name)]).code == 0
    };
    die_in(&mut host, &["volume.copying"], nothing, create, filled);
    let removable = |host: &TestHost, name: &str| assert!(there(host, name) || create(host, name) == 0);
    let remove = |host: &TestHost, name: &str| host.docker(&["rm", "-v", &container(name)]).code;
    let gone = |host: &TestHost, name: &str| {
        let gone = !there(host, name);
        // Between the container and its volume without a name, prune takes what is left, as after dockerd.
        assert!(!gone || host.docker(&["volume", "prune", "-f"]).code == 0);
        gone && volumes(host).iter().all(|volume| volume == "kept" || volume.starts_with("crash-"))
    };
    die_in(&mut host, &["rm.record-gone", "rm.folder-gone", "rm.volume-gone"], removable, remove, gone);
}

#[test]
fn the_clearing_up_after_a_crash() {
    let Some(mut host) = prepare() else { return };
    for point in ["open.locked", "open.emptied", "open.orphan-removed", "open.begun"] {
        host.stop_engine();
        let images = host.data_root().join("images");
        std::fs::write(images.join("tmp/half"), "x").unwrap();
        for digit in ["a", "b"] {
            std::fs::write(images.join(format!("layers/{}.erofs", digit.repeat(64))), "x").unwrap();
        }
        host.start_engine_dying_at(point);
        host.wait_engine_died(point);
        host.start_engine();
        check_whole(&host, point);
    }
}

#[test]
fn a_check_and_a_repair() {
    let Some(mut host) = prepare() else { return };
    let archive = image("crash:check");
    for point in ["check.marked", "check.end"] {
        assert_eq!(host.docker_input(&["load", "-q"], &archive).code, 0);
        let top = host.docker(&["image", "inspect", "--format", "{{index .RootFS.Layers 2}}", "crash:check"]).ok();
        let file = host.data_root().join(format!("images/layers/{}.erofs", top.strip_prefix("sha256:").unwrap()));
        std::fs::write(&file, "damaged").unwrap();
        host.stop_engine();
        host.start_engine_dying_at(point);
        assert_ne!(host.bulkhead(&["system", "check", "--repair"]).code, 0);
        host.wait_engine_died(point);
        host.start_engine();
        let said = host.bulkhead(&["system", "check", "--repair"]);
        assert!(said.code == 1 && said.text().contains("load crash:check"), "{said}");
        assert_eq!(host.docker_input(&["load", "-q"], &archive).code, 0);
        check_whole(&host, point);
    }
}

#[test]
fn a_pull() {
    let Some(mut host) = prepare() else { return };
    let Some(registry) = crate::registry::registry(RegistryOptions::default()) else { return };
    let points = [
        "pull.resolved",
        "pull.configured",
        "pull.piece",
        "pull.piece:3",
        "convert.begin",
        "convert.written",
        "convert.synced:2",
        "pull.layers",
        "pull.adopted",
        "commit.kept-one",
        "records.written",
        "pull.committed",
    ];
    let set_up = |host: &TestHost, name: &str| {
        load(host, name);
        crate::registry::push(host, name, &registry.name(name));
        assert_eq!(host.docker(&["rmi", "-f", name, &registry.name(name)]).code, 0);
    };
    let operate = |host: &TestHost, name: &str| host.docker(&["pull", "-q", &registry.name(name)]).code;
    let runs = |host: &TestHost, name: &str| {
        let pulled = registry.name(name);
        exists(host, &pulled)
            && host.docker(&host.words_for(&pulled, "run", &["--rm"], &["cat", "/second"])).ok() == name
    };
    die_in(&mut host, &points, set_up, operate, runs);
}

#[test]
fn a_commit_of_a_container() {
    let Some(mut host) = prepare() else { return };
    let container = |name: &str| name.replace(':', "-");
    let set_up = |host: &TestHost, name: &str| {
        let script = format!("echo {name} > /own; echo up; exec sleep 1000");
        let id = host.run_detached(&["--name", &container(name)], &["sh", "-c", &script]);
        host.wait_log(&id, "up");
    };
    let operate = |host: &TestHost, name: &str| {
        // The last engine's death must not leave it standing still.
        assert_eq!(host.docker(&["exec", &container(name), "true"]).code, 0);
        host.docker(&["commit", &container(name), name]).code
    };
    let runs = |host: &TestHost, name: &str| {
        assert_eq!(host.docker(&["exec", &container(name), "cat", "/own"]).ok(), name);
        exists(host, name) && host.docker(&host.words_for(name, "run", &["--rm"], &["cat", "/own"])).ok() == name
    };
    let points = [
        "convert.begin",
        "convert.written",
        "container-commit.converted",
        "commit.kept-one",
        "container-commit.committed",
    ];
    die_in(&mut host, &points, set_up, operate, runs);
}

#[test]
fn a_save() {
    let Some(mut host) = prepare() else { return };
    let operate = |host: &TestHost, name: &str| {
        let file = host.folder().join("saved.tar");
        host.docker(&["save", "-o", file.to_str().unwrap(), name]).code
    };
    let saved = |host: &TestHost, _: &str| host.folder().join("saved.tar").exists();
    for point in ["save.begin", "save.layer", "save.image"] {
        drop(std::fs::remove_file(host.folder().join("saved.tar")));
        die_in(&mut host, &[point], load, operate, saved);
    }
}

/// Which end of the engine was one in order is known to the next: after another it reads layers before it uses them,
/// should the host have gone down as well.
#[test]
fn a_stop_is_told_from_a_kill() {
    let Some(mut host) = TestHost::start_own(Wall::Process) else { return };
    let told = |host: &TestHost| host.log().matches("was not closed in order").count();
    host.stop_engine();
    host.start_engine();
    assert_eq!(told(&host), 0);
    host.engine().kill();
    host.start_engine();
    assert_eq!(told(&host), 1);
    assert!(host.log().contains("host_went_down=false"), "{}", host.log());
}

/// The shim is gone by then, and the end is on no record yet.
#[test]
fn an_end() {
    let Some(mut host) = prepare() else { return };
    for (removed, wanted) in [(false, Some("23")), (true, None)] {
        host.stop_engine();
        host.start_engine_dying_at("end.released");
        let rm: &[&str] = if removed { &["--rm"] } else { &[] };
        let id = host.run_detached(rm, &["sh", "-c", "sleep 0.5; echo last; exit 23"]);
        host.wait_engine_died("end.released");
        host.start_engine();
        let said = host.docker(&["inspect", "-f", "{{.State.ExitCode}}", &id]);
        assert_eq!((said.code == 0).then(|| said.ok()).as_deref(), wanted, "{said}");
        if !removed {
            assert_eq!(host.docker(&["logs", &id]).ok(), "last");
            assert_eq!(host.docker(&["rm", &id]).code, 0);
        }
        check_whole(&host, "end.released");
    }
}
