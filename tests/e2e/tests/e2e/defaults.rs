//! What a container may do when nothing was said: Docker's defaults, never weaker.

behind_both_walls! {
    fn capabilities_seccomp_and_privileges_are_dockers(host) {
        let status = host.run(&[], &["cat", "/proc/self/status"]).ok();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).unwrap_or_default().to_owned()
        };
        // Source: moby, oci/caps/defaults.go: 14 capabilities.
        assert_eq!(field("CapEff:"), "00000000a80425fb");
        assert_eq!(field("CapBnd:"), "00000000a80425fb");
        assert_eq!(field("CapAmb:"), "0000000000000000");
        assert_eq!(field("Seccomp:"), "2", "seccomp filters are on");
        let user = host.run(&["-u", "app"], &["grep", "CapEff", "/proc/self/status"]).ok();
        assert!(user.ends_with("0000000000000000"), "{user}");
    }

    fn no_new_privileges_when_asked_for(host) {
        let status = |options: &[&str]| host.run(options, &["grep", "NoNewPrivs", "/proc/self/status"]).ok();
        assert!(status(&[]).ends_with('0'));
        assert!(status(&["--security-opt", "no-new-privileges"]).ends_with('1'));
    }

    fn dangerous_calls_are_refused(host) {
        for script in [
            "mount -t tmpfs none /tmp",
            "mount -o remount,rw /sys",
            "umount /proc",
            "unshare -U true",
            "chroot / mount -t proc proc /root",
            "mknod /tmp/sda b 8 0 && cat /tmp/sda",
            "hostname changed",
            "swapoff -a /dev/vda",
            "ip link add d0 type dummy",
        ] {
            let said = host.sh(&format!("{script} 2>/dev/null"));
            assert_ne!(said.code, 0, "`{script}` was allowed");
        }
    }

    fn the_kernels_files_are_masked_or_read_only(host) {
        assert_eq!(host.sh("cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c").ok(), "0");
        assert_eq!(host.sh("ls /proc/acpi /proc/scsi /sys/firmware 2>/dev/null | grep -v : | wc -w").ok(), "0");
        for path in ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches", "/proc/irq/default_smp_affinity"] {
            let said = host.sh(&format!("echo 1 > {path}"));
            assert_ne!(said.code, 0, "{path} was written");
        }
        let writable = host.sh("for f in /sys/kernel /sys/class /sys/module; do touch $f/x 2>/dev/null && echo $f; done; true").ok();
        assert_eq!(writable, "");
    }

    fn the_devices_are_the_usual_ones(host) {
        let names = host.sh("ls /dev | tr '\\n' ' '").ok();
        for name in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "fd", "stdin", "stdout", "stderr"] {
            assert!(names.split(' ').any(|own| own == name), "no /dev/{name}: {names}");
        }
        for name in ["mem", "kmem", "sda", "vda", "vdb", "kvm", "vport0p1", "loop0", "hvc0", "ttyS0"] {
            assert!(!names.split(' ').any(|own| own == name), "/dev/{name} is there");
        }
    }

    fn only_its_own_processes_and_mounts_are_seen(host) {
        let processes = host.sh("ls -d /proc/[0-9]* | wc -l").ok();
        assert!(processes.parse::<u32>().unwrap() <= 4, "{processes}");
        let mounts = host.run(&[], &["cat", "/proc/self/mountinfo"]).ok();
        let roots: Vec<&str> = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/")).collect();
        assert!(roots.len() == 1 && roots[0].contains("overlay"), "{mounts}");
        assert!(mounts.lines().count() < 45, "{mounts}");
        let shared = mounts.lines().filter(|line| line.contains(" shared:")).count();
        assert_eq!(shared, 0, "mounts that propagate to the host: {mounts}");
    }

    fn a_privileged_container_may_more(host) {
        if host.is_reference() && !bulkhead_e2e::procfs::has_every_capability() {
            // runc insists on every capability there is; ours gives what the machine has.
            return bulkhead_e2e::skip("runc cannot start privileged containers without CAP_SYS_RESOURCE");
        }
        let status = host.run(&["--privileged"], &["grep", "Seccomp:", "/proc/self/status"]).ok();
        assert!(status.ends_with('0'), "{status}");
        assert_eq!(host.run(&["--privileged"], &["sh", "-c", "mount -t tmpfs none /tmp && echo mounted"]).ok(), "mounted");
    }
}
