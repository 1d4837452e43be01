//! The options of `docker run`, each seen from inside.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use bulkhead_e2e::{TestHost, eventually, skip};

/// The device that a folder is on.
fn device_of(folder: &Path) -> Option<String> {
    let device = std::fs::metadata(folder).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let node = format!("/dev/{}", link.file_name()?.to_str()?);
    Path::new(&node).exists().then_some(node)
}

behind_both_walls! {
    fn environment_directory_user_and_host_name(host) {
        assert_eq!(host.run(&["-e", "A=1", "-e", "B=x y"], &["sh", "-c", "echo $A $B $HOSTNAME"]).ok().split(' ').take(3).collect::<Vec<_>>(), ["1", "x", "y"]);
        assert_eq!(host.run(&["-w", "/made/up"], &["pwd"]).ok(), "/made/up");
        assert_eq!(host.run(&["--hostname", "named"], &["sh", "-c", "hostname; cat /etc/hostname; echo $HOSTNAME"]).ok(), "named\nnamed\nnamed");
        let users = [
            (&[][..], "uid=0(root) gid=0(root)"),
            (&["-u", "app"][..], "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)"),
            (&["-u", "1000"][..], "uid=1000(app) gid=1000(app)"),
            (&["-u", "app:extra"][..], "uid=1000(app) gid=2000(extra)"),
            (&["-u", "4711:4712"][..], "uid=4711 gid=4712"),
        ];
        for (options, expected) in users {
            let said = host.run(options, &["id"]).ok();
            assert!(said.starts_with(expected), "{options:?}: {said}");
        }
        assert_eq!(host.run(&["-u", "app"], &["sh", "-c", "echo $HOME"]).ok(), "/home/app");
        host.run(&["-u", "nobodyhere"], &["true"]).fails_saying(125, &["unable to find user nobodyhere"]);
    }

    fn the_default_host_name_is_the_short_id(host) {
        let id = host.run_detached(&[], &["hostname"]);
        host.wait_state(&id, "exited");
        assert_eq!(host.docker(&["logs", &id]).ok(), id[..12]);
    }

    fn entrypoint_and_default_command(host) {
        assert_eq!(host.run(&["--entrypoint", "echo"], &["from", "entrypoint"]).ok(), "from entrypoint");
        let said = host.run(&["--entrypoint", ""], &[]);
        assert_eq!(said.code, 125, "{said}");
        assert!(said.err.to_lowercase().contains("no command specified"), "{said}");
    }

    fn a_read_only_root_cannot_be_written(host) {
        let said = host.run(&["--read-only"], &["sh", "-c", "touch /file"]);
        assert!(said.fails(1).contains("Read-only file system"), "{said}");
        assert_eq!(host.run(&["--read-only", "--tmpfs", "/scratch"], &["sh", "-c", "touch /scratch/file && echo fine"]).ok(), "fine");
    }

    fn capabilities_are_added_and_dropped(host) {
        let capabilities = |options: &[&str]| {
            let text = host.run(options, &["sh", "-c", "grep CapEff /proc/self/status"]).ok();
            u64::from_str_radix(text.split_whitespace().nth(1).unwrap(), 16).unwrap()
        };
        let (net_admin, chown) = (1 << 12, 1);
        let default = capabilities(&[]);
        assert_eq!(capabilities(&["--cap-add", "NET_ADMIN"]), default | net_admin);
        assert_eq!(capabilities(&["--cap-drop", "CAP_CHOWN"]), default & !chown);
        assert_eq!(capabilities(&["--cap-drop", "ALL"]), 0);
        assert_eq!(capabilities(&["--cap-drop", "ALL", "--cap-add", "CHOWN"]), chown);
        host.run(&["--cap-add", "NO_SUCH"], &["true"]).fails_saying(125, &["NO_SUCH"]);
    }

    fn memory_is_limited(host) {
        // One buffer of twice the limit.
        let id = host.run_detached(&["--memory", "32m"], &["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]);
        host.wait_state(&id, "exited");
        let state = &host.inspect(&id)["State"];
        assert_eq!((state["OOMKilled"].as_bool(), state["ExitCode"].as_i64()), (Some(true), Some(137)), "{state}");
        assert_eq!(host.inspect(&id)["HostConfig"]["Memory"].as_i64(), Some(32 << 20));
    }

    fn nobody_raises_his_own_limits(host) {
        // Of both cgroup versions; a folder below would be as good as a number.
        let script = "cd /sys/fs/cgroup; if [ -e memory.max ]; then mkdir a; limit=memory.max; else limit=memory/memory.limit_in_bytes; fi; \
                      echo -1 >$limit; echo max >$limit; mkdir pids/a memory/a systemd/a; ls -d a */a; cat $limit";
        assert_eq!(host.run(&["--memory", "64m"], &["sh", "-c", script]).ok(), "67108864");
    }

    fn the_number_of_processes_is_limited(host) {
        let said = host.run(&["--pids-limit", "12"], &["sh", "-c", "for i in $(seq 40); do sleep 5 & done; echo all"]);
        assert!(!said.text().contains("all") || said.err.contains("fork"), "{said}");
        assert!(said.err.to_lowercase().contains("fork"), "{said}");
    }

    fn processor_time_is_limited(host) {
        // Measured on the host, from outside: what the container's process, or its utility VM, takes in all.
        let id = host.run_detached(&["--cpus", "0.2"], &["sh", "-c", "while :; do :; done"]);
        let pid = host.inspect(&id)["State"]["Pid"].as_u64().unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let (before, began) = (processor_seconds(pid), std::time::Instant::now());
        std::thread::sleep(Duration::from_secs(4));
        let share = (processor_seconds(pid) - before) / began.elapsed().as_secs_f64();
        // A VM works for itself besides; the host's own limit alone would allow it 0.7, no limit 1.
        let most = if host.wall() == bulkhead_e2e::Wall::Process { 0.3 } else { 0.5 };
        assert!(share > 0.01 && share < most, "{share} of a processor, 0.2 allowed");
        host.run(&["--cpus", "100000"], &["true"]).fails_saying(125, &["cpu"]);
    }

    fn a_disks_rate_is_limited(host) {
        let Some(device) = device_of(host.data_root()) else {
            return skip("what the engine keeps its files on is no block device with a node");
        };
        // Two megabytes, straight to the disk, at one a second; what a full bucket holds passes at once.
        let write = "t=$(cut -d. -f1 /proc/uptime); dd if=/dev/zero of=/file bs=64k count=32 oflag=direct 2>&1; echo took $(($(cut -d. -f1 /proc/uptime) - t))";
        let seconds = |options: &[&str]| -> u64 {
            let said = host.run(options, &["sh", "-c", write]).ok();
            said.rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{said}"))
        };
        let limited = format!("{device}:1mb");
        let took = seconds(&["--device-write-bps", &limited]);
        assert!((1..=20).contains(&took), "{took} s");
        let id = host.run_detached(&["--device-write-bps", &limited], &["sleep", "1000"]);
        let shown = host.inspect(&id);
        assert_eq!(shown["HostConfig"]["BlkioDeviceWriteBps"][0]["Rate"].as_i64(), Some(1 << 20));
        host.run(&["--device-write-bps", "/dev/nothing-there:1mb"], &["true"]).fails_saying(125, &["/dev/nothing-there"]);
    }

    fn what_was_asked_for_is_shown(host) {
        let id = host.run_detached(&["--cpus", "0.5", "--pids-limit", "50", "--label", "a=b", "-e", "X=y", "-w", "/tmp", "--stop-signal", "INT"], &["sleep", "1000"]);
        let shown = host.inspect(&id);
        assert_eq!(shown["HostConfig"]["NanoCpus"].as_i64(), Some(500_000_000));
        assert_eq!(shown["HostConfig"]["PidsLimit"].as_i64(), Some(50));
        assert_eq!(shown["Config"]["Labels"]["a"], "b");
        assert_eq!(shown["Config"]["WorkingDir"], "/tmp");
        assert_eq!(shown["Config"]["StopSignal"], "INT");
        assert_eq!(shown["Path"], "sleep");
        assert_eq!(shown["Args"][0], "1000");
        assert!(shown["Config"]["Env"].as_array().unwrap().iter().any(|entry| entry == "X=y"), "{shown}");
    }

    fn the_loopback_is_the_only_network(host) {
        let names = host.run(&[], &["ls", "/sys/class/net"]).ok();
        assert!(names.split_whitespace().all(|name| ["lo", "tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0"].contains(&name)), "{names}");
        assert_eq!(host.run(&[], &["sh", "-c", "ping -c 1 -W 2 127.0.0.1 >/dev/null && echo up"]).ok(), "up");
    }

    fn a_one_shot_tmpfs_has_its_options(host) {
        let said = host.run(&["--tmpfs", "/t:size=1m,mode=700"], &["sh", "-c", "stat -c %a /t; dd if=/dev/zero of=/t/f bs=1M count=2 2>/dev/null; stat -c %s /t/f"]).ok();
        assert_eq!(said, "700\n1048576");
    }
}

/// User and system time of a process of the host so far.
fn processor_seconds(pid: u64) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS_PER_SECOND
}

/// Waits, by exec, until a condition holds inside.
pub(crate) trait WaitExec {
    fn wait_exec(&self, container: &str, condition: &str);
}

impl WaitExec for TestHost {
    #[track_caller]
    fn wait_exec(&self, container: &str, condition: &str) {
        let holds = || self.docker(&["exec", container, "sh", "-c", condition]).code == 0;
        assert!(eventually(Duration::from_secs(20), holds), "never: {condition}");
    }
}
