//! From creation to removal, also after the one who created it has died.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use bulkhead_container::{
    Blueprint, Container, CreateError, DeleteError, Helper, LoadError, StartError, remove_cgroup,
};
use proto::ErrorKind;
use serde_json::json;

use crate::Case;
use crate::fixture::{Fixture, silent, wait};

pub const CASES: &[Case] = &[
    ("start_happens_once", start_happens_once),
    ("a_specification_needs_no_file", a_specification_needs_no_file),
    ("pause_stops_everything", pause_stops_everything),
    ("delete_kills_what_is_left", delete_kills_what_is_left),
    ("a_fork_bomb_is_removed", a_fork_bomb_is_removed),
    ("half_made_containers_are_removed", half_made_containers_are_removed),
    ("a_container_outlives_its_creator", a_container_outlives_its_creator),
    ("a_creator_that_dies_early_leaves_no_process", a_creator_that_dies_early_leaves_no_process),
    ("hooks_run_in_order", hooks_run_in_order),
    ("a_failing_hook_fails_the_creation", a_failing_hook_fails_the_creation),
    ("helpers_end_when_they_are_not_needed", helpers_end_when_they_are_not_needed),
    ("many_at_once", many_at_once),
];

fn start_happens_once() {
    let fixture = Fixture::new("exec sleep 100");
    let (mut container, started) = fixture.create(silent());
    assert!(container.is_running(), "its process waits");
    let again = fixture.try_create(silent()).unwrap_err();
    assert!(matches!(again, CreateError::Exists { .. }) && again.kind() == ErrorKind::AlreadyExists);
    container.start().unwrap();
    assert!(matches!(container.start(), Err(StartError::NotCreated)));
    assert!(matches!(Container::load(&fixture.root(), &fixture.id).unwrap().delete(false), Err(DeleteError::Running)));
    container.delete(true).unwrap();
    assert_eq!(wait(started.pid), 128 + libc::SIGKILL);

    // One that was killed before its start.
    let (mut container, started) = fixture.create(silent());
    container.signal_all(libc::SIGKILL).unwrap();
    wait(started.pid);
    assert!(matches!(container.start(), Err(StartError::Ended)));
    container.delete(false).unwrap();
}

fn a_specification_needs_no_file() {
    let fixture = Fixture::new("exec sleep 100");
    let spec = serde_json::from_value(fixture.spec.clone()).unwrap();
    let blueprint = Blueprint { spec, seccomp: None, bundle: fixture.folder.path().to_owned() };
    let helper = Helper::spawn().unwrap();
    helper.await_ready();
    let created = Container::create_from(helper, &fixture.root(), &fixture.id, blueprint, silent()).unwrap();
    let (mut container, started) = created;
    container.start().unwrap();
    assert!(!fixture.folder.path().join("config.json").exists());
    let found = Container::load(&fixture.root(), &fixture.id).unwrap();
    assert_eq!((found.pid(), found.is_running()), (Some(started.pid), true));
    container.delete(true).unwrap();
    assert_eq!(wait(started.pid), 128 + libc::SIGKILL);
    assert!(matches!(fixture.create_without_file(), CreateError::Spec(_)));
}

fn pause_stops_everything() {
    let fixture = Fixture::new("while true; do echo x >> /tick; sleep 0.01; done");
    let (container, started) = fixture.start();
    fixture.await_file("tick");
    let length = || fs::metadata(fixture.rootfs().join("tick")).unwrap().len();
    container.pause().unwrap();
    let before = length();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(length(), before);
    container.pause().unwrap();
    container.resume().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while length() == before {
        assert!(Instant::now() < deadline, "it does not go on");
        std::thread::sleep(Duration::from_millis(5));
    }
    // A paused container is killed and removed like any other.
    container.pause().unwrap();
    container.signal_all(libc::SIGKILL).unwrap();
    assert_eq!(wait(started.pid), 128 + libc::SIGKILL);
    container.delete(false).unwrap();

    let (container, started) = fixture.start();
    container.pause().unwrap();
    container.delete(true).unwrap();
    assert_eq!(wait(started.pid), 128 + libc::SIGKILL);
}

fn delete_kills_what_is_left() {
    // Without a pid namespace the children survive their parent.
    let mut fixture = Fixture::new("sleep 1000 & setsid sleep 1000 & touch /ready; exit 0");
    let namespaces = fixture.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    let (container, started) = fixture.start();
    fixture.await_file("ready");
    assert_eq!(wait(started.pid), 0);
    assert_eq!(container.processes().unwrap().len(), 2);
    assert!(!fixture.cgroup_folders().is_empty());
    container.delete(false).unwrap();
    assert_eq!(fixture.cgroup_folders(), [] as [PathBuf; 0]);
    assert!(matches!(Container::load(&fixture.root(), &fixture.id), Err(LoadError::NotFound { .. })));
}

fn a_fork_bomb_is_removed() {
    // A shell that has no room for a fork ends, so the first process makes only one, at first, when there is room.
    let mut fixture = Fixture::new("f() { f & f & wait; }; f & : > /ready; exec sleep 100");
    fixture.set("/linux/resources/pids", json!({ "limit": 100 }));
    let (container, started) = fixture.start();
    fixture.await_file("ready");
    container.delete(true).unwrap();
    wait(started.pid);
    assert_eq!(fixture.cgroup_folders(), [] as [PathBuf; 0]);
}

fn half_made_containers_are_removed() {
    // A creator that died at any point: an empty folder, a specification, a specification and a cgroup.
    let fixture = Fixture::new("true");
    let folder = fixture.root().join(&fixture.id);
    fs::create_dir_all(&folder).unwrap();
    Container::load(&fixture.root(), &fixture.id).unwrap().delete(false).unwrap();
    assert!(!folder.exists());

    fs::create_dir_all(folder.join("bundle")).unwrap();
    fs::write(folder.join("bundle/config.json"), fixture.spec.to_string()).unwrap();
    // In version 1, or in version 2, which has no such hierarchy.
    let hierarchy = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(PathBuf::from).into_iter().find(|path| path.is_dir());
    let cgroup = hierarchy.unwrap().join(fixture.cgroup().strip_prefix("/").unwrap());
    fs::create_dir_all(cgroup.join("nested")).unwrap();
    let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(cgroup.join("nested/cgroup.procs"), sleeper.id().to_string()).unwrap();
    Container::load(&fixture.root(), &fixture.id).unwrap().delete(false).unwrap();
    assert!(!folder.exists() && !cgroup.exists());
    assert!(!sleeper.wait().unwrap().success(), "it was in the cgroup, so it was killed");

    for bad in ["../x", "", "a/b", "nosuch"] {
        assert!(matches!(Container::load(&fixture.root(), bad), Err(LoadError::NotFound { .. })), "{bad:?}");
    }
}

/// Another process of this program, in place of a shim: creates the container of a folder and goes on as told.
const CREATOR: &str = "BULKHEAD_TEST_CREATOR";

/// What that other process does; see `main`.
pub fn act_as_creator() {
    let Ok(what) = std::env::var(CREATOR) else { return };
    let (folder, id) = what.split_once(' ').unwrap();
    let folder = PathBuf::from(folder);
    let helper = Helper::spawn().unwrap();
    let (mut container, _) = Container::create(helper, &folder.join("state"), id, &folder, silent()).unwrap();
    container.start().unwrap();
    // Until it is killed.
    std::thread::sleep(Duration::from_secs(1000));
}

fn creator(fixture: &Fixture) -> Command {
    fixture.write_spec();
    let mut command = Command::new("/proc/self/exe");
    command.env(CREATOR, format!("{} {}", fixture.folder.path().display(), fixture.id)).process_group(0);
    command
}

fn a_container_outlives_its_creator() {
    let fixture = Fixture::new("touch /ready; exec sleep 1000");
    let mut other = creator(&fixture).spawn().unwrap();
    fixture.await_file("ready");
    other.kill().unwrap();
    other.wait().unwrap();
    let container = Container::load(&fixture.root(), &fixture.id).unwrap();
    assert!(container.is_running());
    assert!(matches!(container.delete(false), Err(DeleteError::Running)));
    Container::load(&fixture.root(), &fixture.id).unwrap().delete(true).unwrap();
    assert_eq!(fixture.cgroup_folders(), [] as [PathBuf; 0]);
    assert!(!fixture.root().join(&fixture.id).exists());
}

fn a_creator_that_dies_early_leaves_no_process() {
    // Killed at many moments of the creation. Whatever is left then, load and delete remove it.
    for delay in 0..12 {
        let fixture = Fixture::new("exec sleep 1000");
        let mut other = creator(&fixture).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay * 4));
        other.kill().unwrap();
        other.wait().unwrap();
        // The helper may be busy for a moment yet; it ends by itself when it finds its caller gone.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match Container::load(&fixture.root(), &fixture.id) {
                Ok(container) => container.delete(true).unwrap(),
                Err(LoadError::NotFound { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            let gone = fixture.cgroup_folders().is_empty() && !fixture.root().join(&fixture.id).exists();
            if gone && !is_mentioned(&fixture.id) {
                break;
            }
            assert!(Instant::now() < deadline, "after {delay}: {:?}", fixture.cgroup_folders());
            remove_cgroup(&fixture.cgroup()).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether some process has this container's cgroup.
fn is_mentioned(id: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| fs::read_to_string(entry.path().join("cgroup")).ok()).any(|text| text.contains(id))
}

fn hooks_run_in_order() {
    let mut fixture = Fixture::new("echo command >> /log");
    let log = fixture.rootfs().join("log");
    let hook = |name: &str, path: &str| {
        let script = format!("cat > /dev/null; echo {name} >> {path}");
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }])
    };
    let outside = log.display().to_string();
    let hooks = json!({
        "prestart": hook("prestart", &outside),
        "createRuntime": hook("createRuntime", &outside),
        "createContainer": hook("createContainer", &outside),
        "startContainer": hook("startContainer", "/log"),
        "poststart": hook("poststart", &outside),
        "poststop": hook("poststop", &outside),
    });
    fixture.set("/hooks", hooks);
    fixture.spec["process"]["args"] = json!(["sh", "-c", "sleep 0.2; echo command >> /log"]);
    assert_eq!(fixture.run().code, 0);
    let order = fs::read_to_string(&log).unwrap();
    let expected = "prestart createRuntime createContainer startContainer poststart command poststop";
    assert_eq!(order.split_whitespace().collect::<Vec<_>>().join(" "), expected);
}

fn a_failing_hook_fails_the_creation() {
    for phase in ["prestart", "createRuntime", "createContainer"] {
        let mut fixture = Fixture::new("true");
        fixture.set("/hooks", json!({ phase: [{ "path": "/bin/false" }] }));
        let error = fixture.try_create(silent()).unwrap_err();
        assert!(error.to_string().contains("xit"), "{phase}: {error}");
        assert!(!fixture.root().join(&fixture.id).exists());
        assert_eq!(fixture.cgroup_folders(), [] as [PathBuf; 0]);
    }
    let mut fixture = Fixture::new("touch /ran");
    fixture.set("/hooks", json!({ "startContainer": [{ "path": "/bin/false" }] }));
    let (mut container, started) = fixture.create(silent());
    assert!(matches!(container.start(), Err(StartError::Ended)));
    assert_ne!(wait(started.pid), 0);
    assert!(!fixture.rootfs().join("ran").exists());
    container.delete(false).unwrap();
}

fn helpers_end_when_they_are_not_needed() {
    let children = || fs::read_to_string(format!("/proc/self/task/{}/children", nix::unistd::gettid())).unwrap();
    let before = children();
    let helpers: Vec<Helper> = (0..5).map(|_| Helper::spawn().unwrap()).collect();
    assert_eq!(children().split_whitespace().count(), before.split_whitespace().count() + 5);
    drop(helpers);
    assert_eq!(children(), before, "ended and reaped");
    // Also after a success and a failure.
    let mut fixture = Fixture::new("true");
    fixture.run();
    fixture.set("/process/args", json!(["nosuch"]));
    fixture.try_create(silent()).unwrap_err();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(children(), before, "no zombies");
}

fn many_at_once() {
    let runs: Vec<_> = (0..8)
        .map(|number| {
            std::thread::spawn(move || {
                for round in 0..3 {
                    let fixture = Fixture::new(&format!("echo {number} {round}; exit {number}"));
                    let outcome = fixture.run();
                    assert_eq!((outcome.code, outcome.stdout), (number, format!("{number} {round}\n")));
                    assert_eq!(fixture.cgroup_folders(), [] as [PathBuf; 0]);
                }
            })
        })
        .collect();
    runs.into_iter().for_each(|run| run.join().unwrap());
}
