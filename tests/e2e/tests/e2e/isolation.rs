//! One image, two walls, chosen when a container is started (M1 to M7, M10, M11 of the design).

use bulkhead_e2e::{HostOptions, IMAGE, TestHost, Wall, procfs};
use rustix::process::Signal;

use crate::options::WaitExec;

fn kernel_of_the_host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim().to_owned()
}

fn boot_of_the_host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

#[test]
fn one_image_runs_behind_both_walls_with_different_kernels() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let run = |isolation: &str, command: &[&str]| {
        let words = ["run", "--rm", "--network", "none", "--isolation", isolation, IMAGE];
        host.docker(&[&words, command].concat()).ok()
    };
    let facts = ["cat", "/proc/sys/kernel/osrelease", "/proc/sys/kernel/random/boot_id"];
    let process = run("process", &facts);
    assert_eq!(process, format!("{}\n{}", kernel_of_the_host(), boot_of_the_host()));
    // As typed by people: case does not matter, and `default` is the daemon's setting.
    assert_eq!(run("Process", &facts), process);
    assert_eq!(run("default", &facts), process);
    let hyperv = run("HyperV", &facts);
    let (release, boot) = hyperv.split_once('\n').unwrap();
    // A host may run the very kernel that its utility VMs run; but no kernel boots twice.
    assert_eq!(host.get_json("/info")["Bulkhead"]["Hyperv"]["GuestKernel"].as_str(), Some(release));
    assert_ne!(boot, boot_of_the_host());
    assert_eq!(run("hyperv", &["uname", "-r"]), release);
    assert!(run("hyperv", &["cat", "/proc/version"]).contains(release));
    let messages = run("hyperv", &["sh", "-c", "dmesg 2>&1 | head -3"]);
    assert!(messages.contains(release) || messages.contains("not permitted"), "{messages}");
}

#[test]
fn the_daemons_default_can_be_hyperv() {
    let options = HostOptions { flags: vec!["--isolation=hyperv".into()], ..HostOptions::default() };
    let Some(host) = TestHost::start_own_with(Wall::Hyperv, &options) else { return };
    let boot = ["cat", "/proc/sys/kernel/random/boot_id"];
    let run = |options: &[&str]| {
        host.docker(&[&["run", "--rm", "--network", "none"], options, &[IMAGE], &boot].concat()).ok()
    };
    assert_ne!(run(&[]), boot_of_the_host());
    assert_eq!(run(&["--isolation=process"]), boot_of_the_host());
}

#[test]
fn inspect_says_which_wall_it_is() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let hyperv = host.run_detached(&[], &["sleep", "1000"]);
    let shown = host.inspect(&hyperv);
    assert_eq!(shown["HostConfig"]["Isolation"], "hyperv");
    let own = &shown["Bulkhead"];
    let accelerator = own["Accelerator"].as_str().unwrap();
    let boundary = own["Boundary"].as_str().unwrap();
    match accelerator {
        "tcg" => assert_eq!(boundary, "none (software emulation)"),
        "kvm" => assert_eq!(boundary, "hardware virtualization"),
        other => panic!("{other}"),
    }
    assert_eq!(own["Template"].as_str().unwrap().len(), 64, "{own}");
    assert!(own["ForkMicroseconds"].as_u64().unwrap() > 0, "{own}");
    let memory = own["HostMemoryBytes"].as_u64().unwrap();
    assert!(memory > 1 << 20 && memory < 512 << 20, "{own}");
    // Docker's own client reads it too.
    let format = "{{.HostConfig.Isolation}} {{.GraphDriver.Name}}";
    assert!(host.docker(&["inspect", "--format", format, &hyperv]).ok().starts_with("hyperv "));

    let process = host.docker(&["run", "-d", "--network", "none", "--isolation=process", IMAGE, "sleep", "1000"]).ok();
    let shown = host.inspect(&process);
    assert_eq!(shown["HostConfig"]["Isolation"], "process");
    assert!(shown["State"]["Pid"].as_i64().unwrap() > 0);
}

#[test]
fn a_process_containers_sleep_is_a_process_of_the_host() {
    let Some(host) = TestHost::start(Wall::Process) else { return };
    let id = host.run_detached(&[], &["sleep", "765432"]);
    let found = procfs::find_command("sleep 765432");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(host.inspect(&id)["State"]["Pid"].as_i64(), Some(i64::from(found[0])));
    procfs::kill(found[0], Signal::KILL);
    host.wait_state(&id, "exited");
    assert_eq!(host.state(&id).1, 137);
}

#[test]
fn a_hyperv_containers_sleep_is_not() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let id = host.run_detached(&[], &["sleep", "876543"]);
    host.wait_exec(&id, "pidof sleep");
    assert!(host.docker(&["top", &id]).ok().contains("sleep 876543"));
    assert_eq!(procfs::find_command("sleep 876543"), Vec::<i32>::new());
    let names: Vec<String> = host.processes().into_iter().map(procfs::command_line).collect();
    assert!(!names.iter().any(|name| name.starts_with("sleep")), "{names:?}");
}

behind_both_walls! {
    fn containers_see_nothing_of_each_other(host) {
        let one = host.run_detached(&["-e", "SECRET=of-one", "--name", "one"], &["sh", "-c", "echo of-one > /tmp/secret; exec sleep 11111"]);
        let two = host.run_detached(&["-e", "SECRET=of-two", "--name", "two"], &["sh", "-c", "echo of-two > /tmp/secret; exec sleep 22222"]);
        for (id, own, others) in [(&one, "of-one", "of-two"), (&two, "of-two", "of-one")] {
            host.wait_exec(id, "test -s /tmp/secret");
            let seen = host.docker(&["exec", id, "sh", "-c", "cat /tmp/secret; cat /proc/*/environ | tr '\\0' '\\n' | grep SECRET; hostname"]).ok();
            assert!(seen.contains(own) && !seen.contains(others), "{seen}");
        }
        let processes = host.docker(&["exec", &one, "ps"]).ok();
        assert!(processes.contains("11111") && !processes.contains("22222"), "{processes}");
        let names: Vec<String> = [&one, &two].map(|id| host.docker(&["exec", id, "hostname"]).ok()).into();
        assert_ne!(names[0], names[1]);
        // An image is not changed by its containers.
        assert_eq!(host.run(&[], &["sh", "-c", "test -e /tmp/secret && echo there || echo clean"]).ok(), "clean");
    }

    fn the_hosts_names_and_files_are_not_inside(host) {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let inside = host.sh("hostname; cat /proc/mounts /etc/hosts").ok();
        assert!(!inside.lines().any(|line| line == name.trim()), "{inside}");
        let secret = host.folder().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        let script = format!("test -e {} && echo seen || echo unseen", secret.display());
        assert_eq!(host.sh(&script).ok(), "unseen");
    }
}

#[test]
fn a_utility_vm_is_no_machine_of_its_own() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let id = host.run_detached(&[], &["sleep", "1000"]);
    // Nothing that lists containers shows a second thing; the container has its own name inside.
    assert_eq!(host.docker(&["ps", "-aq", "--no-trunc"]).ok(), id);
    assert_eq!(host.docker(&["exec", &id, "hostname"]).ok(), id[..12]);
    assert_eq!(host.docker(&["exec", &id, "cat", "/etc/hostname"]).ok(), id[..12]);
    // Only what the container needs runs in there: its own process and the exec.
    let processes = host.docker(&["exec", &id, "sh", "-c", "ls -d /proc/[0-9]* | wc -l"]).ok();
    assert!(processes.parse::<u32>().unwrap() <= 4, "{processes}");
}

#[test]
fn a_privileged_guests_panic_ends_only_its_container() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let neighbour = host.run_detached(&["--name", "neighbour"], &["sleep", "1000"]);
    let words = ["run", "-d", "--network", "none", "--isolation=process", "--name", "beside", IMAGE, "sleep", "1000"];
    let process = host.docker(&words).ok();
    let doomed = host.run_detached(
        &["--privileged", "--name", "doomed"],
        &["sh", "-c", "sleep 1; echo c > /proc/sysrq-trigger; sleep 100"],
    );
    host.wait_state(&doomed, "exited");
    let state = &host.inspect(&doomed)["State"];
    assert_ne!(state["ExitCode"].as_i64(), Some(0), "{state}");
    assert!(state["Error"].as_str().unwrap().to_lowercase().contains("panic"), "{state}");
    assert_eq!(host.docker(&["exec", &neighbour, "echo", "alive"]).ok(), "alive");
    assert_eq!(host.docker(&["exec", &process, "echo", "alive"]).ok(), "alive");
    // And it can start again.
    assert_eq!(host.run(&[], &["echo", "next"]).ok(), "next");
}

#[test]
fn software_emulation_can_be_refused() {
    let options = HostOptions { flags: vec!["--backend=qemu-tcg".into()], ..HostOptions::default() };
    let Some(host) = TestHost::start_own_with(Wall::Hyperv, &options) else { return };
    let said = host.run(&["--security-opt", "boundary=required"], &["true"]);
    said.fails_saying(125, &["boundary"]);
    assert_eq!(host.docker(&["ps", "-q"]).ok(), "");
    // Without it the client is told when it asks.
    let info = host.docker(&["info"]);
    assert!((info.text() + &info.err).contains("software emulation"), "{info}");
}
