//! The wall: what a container may not do, and what of the host does not reach it.

use std::fs;
use std::fs::OpenOptions;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::Case;
use crate::fixture::{Fixture, exec, process, silent, wait};

pub const CASES: &[Case] = &[
    ("privileges_are_as_specified", privileges_are_as_specified),
    ("seccomp_holds_for_the_first_and_further_processes", seccomp_holds_for_the_first_and_further_processes),
    ("a_seccomp_profile_leaves_the_capabilities_as_asked_for", a_seccomp_profile_leaves_the_capabilities_as_asked_for),
    ("masked_comparisons_of_seccomp_are_right", masked_comparisons_of_seccomp_are_right),
    ("loopback_is_up", loopback_is_up),
    ("a_read_only_root_and_masked_paths_hold", a_read_only_root_and_masked_paths_hold),
    ("devices_are_denied", devices_are_denied),
    ("nothing_of_the_helper_leaks", nothing_of_the_helper_leaks),
    ("the_engines_program_cannot_be_overwritten", the_engines_program_cannot_be_overwritten),
    ("a_working_directory_cannot_be_a_leaked_descriptor", a_working_directory_cannot_be_a_leaked_descriptor),
    ("links_of_the_image_do_not_lead_to_the_host", links_of_the_image_do_not_lead_to_the_host),
    ("processes_are_alone", processes_are_alone),
];

/// Docker's default set, as a mask.
const DEFAULT_CAPABILITIES: &str = "00000000a80425fb";

fn status(text: &str, field: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).trim_start_matches(':').trim().to_owned()
}

fn privileges_are_as_specified() {
    let mut fixture = Fixture::new("");
    // Not by the shell, which ignores SIGQUIT.
    fixture.set("/process/args", json!(["cat", "/proc/self/status"]));
    let text = fixture.output();
    for field in ["CapBnd", "CapEff", "CapPrm"] {
        assert_eq!(status(&text, field), DEFAULT_CAPABILITIES, "{field}");
    }
    for field in ["CapInh", "CapAmb", "SigIgn", "SigBlk"] {
        assert_eq!(status(&text, field), "0000000000000000", "{field}");
    }
    assert_eq!((status(&text, "NoNewPrivs"), status(&text, "Seccomp")), ("0".into(), "0".into()));

    let mut fixture = Fixture::new("cat /proc/self/status");
    fixture.set("/process/noNewPrivileges", json!(true));
    fixture.set("/annotations", json!({ "dev.bulkhead.user": "app" }));
    let text = fixture.output();
    assert_eq!(status(&text, "NoNewPrivs"), "1");
    assert_eq!(status(&text, "Uid"), "1000\t1000\t1000\t1000");
    assert_eq!(status(&text, "CapBnd"), DEFAULT_CAPABILITIES);
    assert_eq!(status(&text, "CapEff"), "0000000000000000", "execve takes them from another user");

    // A capability that we ourselves do not have is left out, and no reason to fail.
    let mut fixture = Fixture::new("cat /proc/self/status");
    let all = ["CAP_CHOWN", "CAP_SYS_RESOURCE", "CAP_SYS_ADMIN"];
    fixture.set("/process/capabilities", json!({ "bounding": all, "effective": all, "permitted": all }));
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = u64::from_str_radix(&status(&own, "CapBnd"), 16).unwrap();
    let expected = own & (1 | 1 << 24 | 1 << 21);
    assert_eq!(status(&fixture.output(), "CapBnd"), format!("{expected:016x}"));
}

fn seccomp_holds_for_the_first_and_further_processes() {
    for no_new_privileges in [false, true] {
        let script = "mkdir /tmp/x 2>&1; cat /proc/self/status; touch /ready; exec sleep 100";
        let mut fixture = Fixture::new(script);
        fixture.set("/process/noNewPrivileges", json!(no_new_privileges));
        let deny = json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 });
        let profile =
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [deny] });
        fixture.set("/linux/seccomp", profile);
        let (container, started) = fixture.start();
        fixture.await_file("ready");
        assert!(!fixture.rootfs().join("tmp/x").exists());

        let further = process(&fixture, &["sh", "-c", "mkdir /tmp/x; cat /proc/self/status"]);
        let outcome = exec(&container, &further).unwrap();
        assert!(outcome.stderr.contains("not supported"), "{outcome:?}");
        assert_eq!(status(&outcome.stdout, "Seccomp"), "2");
        assert_eq!(status(&outcome.stdout, "NoNewPrivs"), u8::from(no_new_privileges).to_string());
        assert_eq!(status(&outcome.stdout, "CapEff"), DEFAULT_CAPABILITIES);
        container.signal_all(libc::SIGKILL).unwrap();
        wait(started.pid);
        container.delete(false).unwrap();
    }
}

fn a_seccomp_profile_leaves_the_capabilities_as_asked_for() {
    // Loading it takes capabilities that the container must not keep, in any set, whoever its user is.
    let capabilities = |profile: Option<serde_json::Value>, user: u32, no_new_privileges: bool| {
        let mut fixture = Fixture::new("grep -E '^(Cap|NoNewPrivs|Uid|Gid|Groups)' /proc/self/status");
        fixture.set("/process/user", json!({ "uid": user, "gid": user }));
        fixture.set("/process/noNewPrivileges", json!(no_new_privileges));
        if let Some(profile) = profile {
            fixture.set("/linux/seccomp", profile);
        }
        fixture.output()
    };
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }],
    });
    for user in [0, 1000] {
        for no_new_privileges in [false, true] {
            let plain = capabilities(None, user, no_new_privileges);
            assert!(plain.lines().count() >= 9, "{plain}");
            assert_eq!(capabilities(Some(profile.clone()), user, no_new_privileges), plain);
        }
    }
}

fn masked_comparisons_of_seccomp_are_right() {
    // As in Docker's profile: clone is allowed unless it makes namespaces.
    let mut fixture =
        Fixture::new("true & wait; (exit 3); echo $?; unshare -m true 2>&1 | grep -c 'not permitted'; id -u");
    symlink("busybox", fixture.rootfs().join("bin/unshare")).unwrap();
    let rule = |names: &[&str], args: serde_json::Value| json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": args });
    let masked =
        |value: u64| json!([{ "index": 0, "value": 0x7E02_0000_u64, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" }]);
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [rule(&["unshare"], masked(0x2_0000)), rule(&["clone"], masked(0x2_0000))],
    });
    fixture.set("/linux/seccomp", profile);
    let all = ["CAP_SYS_ADMIN"];
    fixture.set("/process/capabilities", json!({ "bounding": all, "effective": all, "permitted": all }));
    assert_eq!(fixture.output(), "3\n1\n0\n");
}

fn loopback_is_up() {
    let fixture = Fixture::new(
        "cat /sys/class/net/lo/operstate /sys/class/net/lo/flags; ping -c1 127.0.0.1 | grep -c ' 0% packet loss'",
    );
    symlink("busybox", fixture.rootfs().join("bin/ping")).unwrap();
    assert_eq!(fixture.output(), "unknown\n0x9\n1\n");
}

fn a_read_only_root_and_masked_paths_hold() {
    let script = "touch /x 2>&1; touch /tmp/in-tmpfs && echo tmpfs-ok; wc -c < /proc/meminfo; ls /sys/firmware | wc -l; \
                  echo 1 > /proc/sys/kernel/domainname; touch /sys/x; true";
    let mut fixture = Fixture::new(script);
    fixture.set("/root/readonly", json!(true));
    fixture.set("/linux/maskedPaths", json!(["/proc/meminfo", "/sys/firmware", "/proc/does-not-exist"]));
    let tmp =
        json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "size=1m"] });
    fixture.spec["mounts"].as_array_mut().unwrap().push(tmp);
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, "touch: /x: Read-only file system\ntmpfs-ok\n0\n0\n");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 2, "{}", outcome.stderr);
    assert_eq!(outcome.code, 0);
}

fn devices_are_denied() {
    // Numbers that no driver has, so that an open that is allowed fails in another way.
    let script = "mknod /tmp/disk b 240 7; mknod /tmp/strange c 240 7; mknod /tmp/tun c 10 200; mknod /tmp/null c 1 3; \
                  for d in disk strange tun; do head -c1 /tmp/$d 2>&1 | grep -c 'Operation not permitted'; done; \
                  echo x > /tmp/null && echo x > /dev/null && head -c4 /dev/zero | wc -c";
    let outcome = Fixture::new(script).run();
    assert_eq!(outcome.stdout, "1\n1\n1\n4\n", "{outcome:?}");
    // Allowed when asked for.
    let mut fixture = Fixture::new("mknod /tmp/strange c 240 7; head -c1 /tmp/strange 2>&1 | grep -c 'No such device'");
    let allowed = json!({ "allow": true, "type": "c", "major": 240, "minor": 7, "access": "rwm" });
    fixture.set("/linux/resources/devices", json!([{ "allow": false, "access": "rwm" }, allowed]));
    assert_eq!(fixture.output(), "1\n");
}

fn nothing_of_the_helper_leaks() {
    // A descriptor of ours that is not close-on-exec, as a careless caller might have.
    let leak = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let fixture = Fixture::new("ls /proc/self/fd; cat /proc/1/environ | grep -c CARGO; touch /ready; exec sleep 100");
    let mut pipes = crate::fixture::Pipes::new(b"");
    let (mut container, started) = fixture.create(pipes.stdio());
    container.start().unwrap();
    let outcome = exec(&container, &process(&fixture, &["ls", "/proc/self/fd"])).unwrap();
    // The fourth is the folder that ls reads.
    assert_eq!(outcome.stdout, "0\n1\n2\n3\n");
    fixture.await_file("ready");
    container.signal_all(libc::SIGKILL).unwrap();
    assert_eq!(pipes.collect(started.pid).stdout, "0\n1\n2\n3\n0\n");
    container.delete(false).unwrap();
}

fn the_engines_program_cannot_be_overwritten() {
    let fixture = Fixture::new("true");
    let (container, started) = fixture.create(silent());
    // The created process still is the engine's program. Through its /proc entry nobody gets at the file, root included.
    let exe = format!("/proc/{}/exe", started.pid);
    let mount = rustix::fs::statvfs(&exe).unwrap();
    assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{:?}", mount.f_flag);
    assert!(OpenOptions::new().write(true).open(&exe).is_err());
    container.delete(true).unwrap();
    wait(started.pid);
    // The same, tried from within: the container's command is the program that set it up.
    let mut fixture = Fixture::new("");
    fixture.set("/process/args", json!(["/proc/self/exe", "--help"]));
    if let Ok((mut container, started)) = fixture.try_create(silent()) {
        let _ = container.start();
        wait(started.pid);
        container.delete(true).unwrap();
    }
}

fn a_working_directory_cannot_be_a_leaked_descriptor() {
    for number in 3..20 {
        let mut fixture = Fixture::new("echo > /escaped");
        fixture.set("/process/cwd", json!(format!("/proc/self/fd/{number}")));
        assert!(fixture.try_create(silent()).is_err(), "{number}");
    }
}

fn links_of_the_image_do_not_lead_to_the_host() {
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("ptmx"), "the host's").unwrap();
    for name in ["dev", "proc", "sys"] {
        let fixture = Fixture::new("true");
        fs::remove_dir(fixture.rootfs().join(name)).unwrap();
        symlink(host.path(), fixture.rootfs().join(name)).unwrap();
        let error = fixture.try_create(silent()).unwrap_err();
        assert_eq!(error.kind(), proto::ErrorKind::InvalidArgument);
    }
    // Others are followed within the root.
    let mut fixture = Fixture::new("ls /link/made; cat /etc/hosts");
    symlink(host.path(), fixture.rootfs().join("link")).unwrap();
    fs::remove_file(fixture.rootfs().join("etc/passwd")).unwrap();
    symlink("/proc/self/environ", fixture.rootfs().join("etc/passwd")).unwrap();
    symlink(host.path().join("ptmx"), fixture.rootfs().join("etc/hosts")).unwrap();
    fs::create_dir_all(fixture.rootfs().join(host.path().strip_prefix("/").unwrap())).unwrap();
    fs::write(host.path().join("bound"), "bound\n").unwrap();
    let bind = |source: &str, destination: &str| json!({ "destination": destination, "type": "bind", "source": host.path().join(source), "options": ["rbind", "ro"] });
    let mounts = fixture.spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({ "destination": "/link/made", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"] }));
    mounts.push(bind("bound", "/etc/hosts"));
    assert_eq!(fixture.output(), "bound\n");
    let mut left: Vec<_> = fs::read_dir(host.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["bound", "ptmx"]);
    assert_eq!(fs::read_to_string(host.path().join("ptmx")).unwrap(), "the host's");
}

fn processes_are_alone() {
    let output =
        Fixture::new("ps -o pid,args; ls /sys/class/net; cat /proc/self/cgroup | grep -v ':/$'; echo $$").output();
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines[1].trim().starts_with('1'), "{output}");
    assert!(output.contains("\nlo\n") && !output.contains("eth"), "{output}");
    assert_eq!(lines.last(), Some(&"1"));
    assert!(!output.contains("bulkhead-test"), "the cgroup namespace hides where it is: {output}");
}
