//! Where systemd has the say over cgroups: a systemd of the test's own, in namespaces, with a bus and a containerd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::daemon::{Containerd, IMAGE, can_run};
use crate::support::{own_name, skip, text};

const RUNTIME: &str = "io.containerd.bulkhead.v2";
const PATIENCE: Duration = Duration::from_secs(20);

/// Goes into cgroups of its own, gives itself what a machine has, and becomes systemd. Nothing of the host can be written to but the folder.
const BOOT: &str = r#"
set -e
cgroups() { awk '$3 == "cgroup" || $3 == "cgroup2" { print $2, $3, $4 }' /proc/self/mounts; }
if [ "$1" = outside ]; then
    for folder in $(cgroups | cut -d' ' -f1); do
        mkdir -p "$folder/$TOP"
        for file in cpuset.cpus cpuset.mems; do [ ! -e "$folder/$file" ] || cat "$folder/$file" >"$folder/$TOP/$file"; done
        echo $$ >"$folder/$TOP/cgroup.procs"
    done
    exec unshare --fork --pid --mount --cgroup --uts --ipc --net --mount-proc --kill-child sh "$0" inside
fi
cgroups >"$FOLDER/cgroups"
umount -R /sys/fs/cgroup
! grep -q '^/sys/fs/cgroup/' "$FOLDER/cgroups" || mount -t tmpfs tmpfs /sys/fs/cgroup
while read -r place kind options; do
    mkdir -p "$place"
    case $options in *name=systemd*) only=none,name=systemd ;; *) only=${options##*,} ;; esac
    if [ "$kind" = cgroup2 ]; then mount -t cgroup2 cgroup2 "$place"; else mount -t cgroup -o "$only" cgroup "$place"; fi
done <"$FOLDER/cgroups"
mount --bind "$FOLDER" "$FOLDER"
mount -t tmpfs tmpfs /run
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -o remount,bind,ro /
exec env -i PATH="$PATH" container=test SYSTEMD_UNIT_PATH="$FOLDER/units" SYSTEMD_GENERATOR_PATH="$FOLDER/none" \
    /lib/systemd/systemd --system --unit=test.target --show-status=no --log-target=null
"#;

/// Ends with all that runs in it.
struct Machine {
    outside: Child,
    top: String,
}

impl Machine {
    fn start(containerd: &Containerd) -> Self {
        let folder = containerd.path("");
        let units = containerd.path("units");
        fs::create_dir(&units).unwrap();
        let path = format!("{}:{}", containerd.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        let config = containerd.path("config.toml");
        let log = text(&containerd.path("log"));
        let unit = |name: &str, lines: &str| {
            fs::write(units.join(name), format!("[Unit]\nDefaultDependencies=no\n{lines}\n")).unwrap();
        };
        unit("test.target", "Requires=dbus.socket dbus.service containerd.service");
        unit("dbus.socket", "[Socket]\nListenStream=/run/dbus/system_bus_socket");
        let bus =
            "/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only";
        unit(
            "dbus.service",
            &format!("Requires=dbus.socket\n[Service]\nType=notify\nNotifyAccess=main\nExecStart={bus}"),
        );
        // As containerd's own unit: its shims' containers outlive it.
        let service = format!(
            "After=dbus.service\n[Service]\nType=notify\nDelegate=yes\nKillMode=process\nEnvironment=PATH={path}\n\
             ExecStart=/usr/bin/containerd --config {}\nStandardOutput=append:{log}\nStandardError=append:{log}",
            config.display()
        );
        unit("containerd.service", &service);
        fs::write(folder.join("boot.sh"), BOOT).unwrap();
        let top = own_name("bulkhead-systemd-");
        let mut command = Command::new("sh");
        command.arg(folder.join("boot.sh")).arg("outside").env("FOLDER", &folder).env("TOP", &top);
        let log = fs::File::create(folder.join("systemd.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self { outside: command.spawn().unwrap(), top }
    }

    /// A cgroup's folders on the host, one a hierarchy that has it.
    fn folders(&self, cgroup: &str) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let places =
            mounts.lines().filter(|line| line.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup")));
        let places = places.filter_map(|line| line.split(' ').nth(1));
        places.map(|place| Path::new(place).join(&self.top).join(cgroup)).filter(|folder| folder.exists()).collect()
    }

    fn run(&self, words: &[&str]) {
        let id = self.outside.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let done = Command::new("nsenter").args(["-a", "-t", children.trim()]).args(words).output().unwrap();
        assert!(done.status.success(), "{words:?}: {done:?}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.outside.kill();
        let _ = self.outside.wait();
        let begin = Instant::now();
        while !self.folders("").is_empty() && begin.elapsed() < PATIENCE {
            for folder in self.folders("") {
                let _ = Command::new("find")
                    .arg(folder)
                    .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                    .output();
            }
        }
    }
}

#[track_caller]
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn systemd_makes_a_containers_scope() {
    if !can_run() {
        return;
    }
    for (program, package) in [("/lib/systemd/systemd", "systemd"), ("/usr/bin/dbus-daemon", "dbus-daemon")] {
        if !Path::new(program).exists() {
            return skip(&format!("needs {program}: apt-get install {package}"));
        }
    }
    let mut containerd = Containerd::start();
    containerd.kill();
    let machine = Machine::start(&containerd);
    containerd.await_answer();
    // The machine has a /run of its own.
    let fifos = text(&containerd.path("fifos"));
    let start = |id: &str, cgroup: &str| {
        let command =
            ["run", "-d", "--fifo-dir", &fifos, "--runtime", RUNTIME, "--cgroup", cgroup, "--memory-limit", "67108864"];
        containerd.ctr(&[&command[..], &[IMAGE, id, "sleep", "1000"]].concat())
    };
    let scope = "kubepods.slice/kubepods-burstable.slice/cri-containerd-one.scope";
    start("one", "kubepods-burstable.slice:cri-containerd:one").ok();
    // Also where systemd keeps its units, without a controller.
    let all = machine.folders(scope);
    assert!(machine.folders(&format!("{scope}/container")).len() == all.len() && !all.is_empty(), "{all:?}");
    let limit = || {
        let folders = machine.folders(&format!("{scope}/container"));
        let files =
            folders.iter().flat_map(|folder| ["memory.limit_in_bytes", "memory.max"].map(|name| folder.join(name)));
        files.filter_map(|file| fs::read_to_string(file).ok()).collect::<String>()
    };
    assert_eq!(limit(), "67108864\n");
    machine.run(&["systemctl", "daemon-reload"]);
    machine.run(&["systemctl", "is-active", "cri-containerd-one.scope"]);
    assert_eq!(limit(), "67108864\n");

    let again = start("two", "kubepods-burstable.slice:cri-containerd:one");
    assert!(again.code != 0 && again.err.contains("systemd does not make cri-containerd-one.scope"), "{again:?}");
    let wrong = start("three", "kubepods:cri-containerd:three");
    assert!(wrong.code != 0 && wrong.err.contains("slice:prefix:name"), "{wrong:?}");
    containerd.await_task("one", Some("RUNNING"));

    containerd.ctr(&["task", "delete", "--force", "one"]).ok();
    eventually("the scope stays", || machine.folders(scope).is_empty());
    containerd.ctr(&["containers", "delete", "one"]).ok();
    start("one", "kubepods-burstable.slice:cri-containerd:one").ok();
    containerd.ctr(&["task", "delete", "--force", "one"]).ok();

    machine.run(&["systemctl", "stop", "dbus.socket", "dbus.service"]);
    let deaf = start("four", "kubepods-burstable.slice:cri-containerd:four");
    assert!(deaf.code != 0 && deaf.err.contains("asks for a scope of systemd's"), "{deaf:?}");
}
