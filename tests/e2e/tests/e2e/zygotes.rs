//! A plain hyperv container is made of a zygote that the template has; another one from its specification. Nobody inside can
//! tell which.

use bulkhead_e2e::archive::{Tar, busybox_rootfs, saved_image};
use bulkhead_e2e::{IMAGE, TestHost, Wall};

/// Prints what a container can see of how it was made.
const LOOK: &str = r#"
    echo "--- mounts"; awk '{ for (i = 7; $i != "-"; i++); print $5, $6, $(i + 1), $(i + 3) }' /proc/self/mountinfo | sort
    echo "--- status"; grep -E "^(Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups|NSpid)" /proc/self/status
    echo "--- limits"; cat /proc/self/limits
    echo "--- devices"; cd /dev; stat -c "%A %U %G %t %T %N" *; cd - >/dev/null
    echo "--- names"; hostname; cat /etc/hostname; pwd; umask; id
    echo "--- environment"; env | sort
    echo "--- cgroup"; cat /proc/self/cgroup /proc/self/oom_score_adj; cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max
    echo "--- namespaces"; ls /proc/self/ns
    echo "--- hidden"; head -c 1 /proc/kcore | wc -c; ls /sys/firmware /proc/acpi; (echo 1 >/proc/sys/kernel/panic) 2>&1
    echo "--- sessions"; awk '{ print $5, $6 }' /proc/1/stat; ls /proc/1/fd
"#;

/// One in another is what no zygote has.
const NOT_PLAIN: [&str; 4] = ["--tmpfs", "/elsewhere", "--tmpfs", "/elsewhere/inner"];

/// What tells the two apart: the second has two mounts more, and what binds them.
fn without_differences(seen: &str) -> String {
    let kept = seen.lines().filter(|line| !line.starts_with("/elsewhere") && !line.starts_with("/etc/machine-id "));
    kept.collect::<Vec<_>>().join("\n")
}

fn look(host: &TestHost, flags: &[&str]) -> String {
    let words = ["run", "--rm", "--network", "none", "--isolation=hyperv", "--hostname", "same", "--name", "same"];
    host.docker(&[&words, flags, &[IMAGE, "sh", "-c", LOOK]].concat()).ok()
}

#[test]
fn a_plain_container_is_what_its_specification_says() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let variants: [&[&str]; 6] = [
        &[],
        &["--read-only", "--user", "1234:2345", "--group-add", "7", "--workdir", "/made/here"],
        &["--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--security-opt", "no-new-privileges", "-e", "A=b c"],
        &["--ulimit", "nofile=100:200", "--pids-limit", "50", "--memory", "64m", "--oom-score-adj", "300"],
        &["--security-opt", "seccomp=unconfined", "--domainname", "example.org", "-t"],
        &["--tmpfs", "/run", "--tmpfs", "/made/here:size=1m,mode=700,uid=5"],
    ];
    for flags in variants {
        let plain = look(&host, flags);
        let from_specification = look(&host, &[flags, &NOT_PLAIN].concat());
        assert!(plain.contains("--- sessions") && from_specification.contains("/elsewhere "), "{from_specification}");
        assert_eq!(without_differences(&plain), without_differences(&from_specification), "{flags:?}");
    }
}

#[test]
fn a_plain_container_is_made_of_a_zygote() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let source = |flags: &[&str]| {
        let words = ["run", "--rm", "--network", "none", "--isolation=hyperv"];
        let command = [IMAGE, "awk", "$5 == \"/etc/hosts\" { print $4 }", "/proc/self/mountinfo"];
        host.docker(&[&words, flags, &command].concat()).ok()
    };
    for flags in
        [[].as_slice(), &["-t"], &["--memory=64m", "--cpus=0.5"], &["--user=1000", "--read-only"], &["--tmpfs=/x"]]
    {
        assert!(source(flags).contains("/zygotes/"), "{flags:?}");
    }
    for flags in [["--privileged"].as_slice(), &NOT_PLAIN, &["--shm-size=1m"], &["--ipc=none"]] {
        assert!(!source(flags).contains("/zygotes/"), "{flags:?}");
    }
}

#[test]
fn an_image_keeps_a_machine_id_of_its_own() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let own = "0123456789abcdef0123456789abcdef\n";
    let layers = [busybox_rootfs(), Tar::new().file("etc/machine-id", 0o444, own.as_bytes()).bytes()];
    host.docker_input(&["load"], &saved_image("identified:1", &layers)).ok();
    let id_in = |image: &str| {
        host.docker(&["run", "--rm", "--network", "none", "--isolation=hyperv", image, "cat", "/etc/machine-id"]).ok()
    };
    assert_eq!(id_in("identified:1"), own.trim());
    let (first, second) = (id_in(IMAGE), id_in(IMAGE));
    assert_eq!((first.len(), second.len()), (32, 32), "{first} {second}");
    assert_ne!(first, second);
}

#[test]
fn no_link_of_an_image_leads_a_mount_over_proc() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let layers = [busybox_rootfs(), Tar::new().symlink("run", "proc/self").symlink("more", "tmp").bytes()];
    host.docker_input(&["load"], &saved_image("linked:1", &layers)).ok();
    let with = |place: &str| {
        let words = ["run", "--rm", "--network", "none", "--isolation=hyperv", "--tmpfs", place, "linked:1"];
        host.docker(&[&words, ["stat", "-f", "-c", "%T", "/tmp"].as_slice()].concat())
    };
    with("/run").fails_saying(125, &["cannot mount /run"]);
    assert_eq!(with("/more").ok(), "tmpfs");
}
