//! A utility VM stands by for the next hyperv container: who gets it, who does not, and what is left when somebody is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::control::{Accelerator, UtilityVmReport};

use crate::daemon::{Containerd, IMAGE, Said, can_run, slowness, write_whole_options};
use crate::support::{guest_image, own_name, run, text};

const HYPERV: &str = "io.containerd.bulkhead-hyperv.v2";
/// More than a preparation takes, also on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where places are.
const PLACES: &str = "/run/bulkhead/standby";

/// A process that stands by, or is about to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Keeper {
    pid: i32,
    place: PathBuf,
}

impl Keeper {
    fn is_ready(&self) -> bool {
        self.place.join("s").exists()
    }

    fn vmm(&self) -> i32 {
        crate::kills::vmm_of(&self.place).expect("a VM stands by")
    }
}

fn lives(pid: i32) -> bool {
    // A zombie has no command line.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !words.is_empty())
}

/// CAP_SYS_RESOURCE, which a root in a container may lack.
fn may_show_itself_otherwise() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() & (1 << 24) != 0
}

#[track_caller]
fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < slowness() * PATIENCE, "{what}: not after {:?}", begin.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A containerd for whose containers something stands by. Dropped, none does any more.
struct Standing {
    containerd: Containerd,
    options: String,
}

impl Standing {
    fn new(image: &Path, more: &str) -> Self {
        let containerd = Containerd::start();
        let (file, state) = (containerd.path("options.toml"), containerd.kept("state"));
        write_whole_options(&file, &state, image, &format!("personalize-timeout-ms = 20000\n{more}"));
        Self { containerd, options: text(&file) }
    }

    fn words<'a>(&'a self, how: &'a str, more: &[&'a str], id: &'a str, command: &[&'a str]) -> Vec<&'a str> {
        let own = ["run", how, "--runtime", HYPERV, "--runtime-config-path", &self.options];
        [&own[..], more, &[IMAGE, id], command].concat()
    }

    fn run(&self, id: &str, command: &[&str]) -> Said {
        self.containerd.ctr(&self.words("--rm", &[], id, command))
    }

    fn detach(&self, more: &[&str], id: &str) {
        self.containerd.ctr(&self.words("-d", more, id, &["sleep", "1000"])).ok();
        self.containerd.await_task(id, Some("RUNNING"));
    }

    fn delete(&self, id: &str) {
        self.containerd.ctr(&["task", "delete", "--force", id]);
        self.containerd.ctr(&["container", "delete", id]);
        self.containerd.assert_nothing_left(id);
    }

    fn report(&self, id: &str) -> UtilityVmReport {
        let file = self.containerd.bundle(id).join(UtilityVmReport::FILE_NAME);
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }

    /// Those of this containerd's.
    fn keepers(&self) -> Vec<Keeper> {
        let own = format!("TTRPC_ADDRESS={}", text(&self.containerd.path("sock.ttrpc")));
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let keeper = |process: PathBuf| {
            let place = fs::read_link(process.join("cwd")).ok().filter(|folder| folder.starts_with(PLACES))?;
            let environment = fs::read(process.join("environ")).ok()?;
            let is_own = environment.split(|byte| *byte == 0).any(|entry| entry == own.as_bytes());
            // Not its VMM, which may work there, too.
            let words = fs::read_to_string(process.join("cmdline")).ok()?;
            (is_own && words.contains("\0standby"))
                .then(|| Some(Keeper { pid: process.file_name()?.to_str()?.parse().ok()?, place }))?
        };
        processes.filter_map(keeper).collect()
    }

    /// The one that is ready.
    #[track_caller]
    fn await_ready(&self) -> Keeper {
        let mut found = None;
        await_that("a utility VM stands by", || {
            found = self.keepers().into_iter().find(Keeper::is_ready);
            found.is_some()
        });
        found.unwrap()
    }

    /// Starts a container and has the next VM ready.
    fn warm(&self) -> Keeper {
        self.run("first", &["true"]).ok();
        self.containerd.assert_nothing_left("first");
        self.await_ready()
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        for keeper in self.keepers() {
            let _ = kill(Pid::from_raw(keeper.pid), Signal::SIGKILL);
            let _ = fs::remove_dir_all(keeper.place);
        }
    }
}

/// A network namespace as a plugin furnishes it, made when a VM stood by already.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let this = Self(own_name("bhs-"));
        let ip = |words: String| run(Command::new("ip").args(words.split(' ')));
        ip(format!("netns add {}", this.0));
        ip(format!("-n {} link add eth0 type veth peer name other", this.0));
        ip(format!("-n {} address add 10.88.0.7/24 dev eth0", this.0));
        ip(format!("-n {} link set other up", this.0));
        ip(format!("-n {} link set eth0 up", this.0));
        this
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).output();
    }
}

#[test]
fn a_container_gets_the_vm_that_stands_by_and_the_next_one_is_made() {
    let (true, Some(image)) = (can_run(), guest_image()) else { return };
    // Asked for, since it is not done unasked where there is KVM.
    let standing = Standing::new(&image, "standby-vms = 1");
    let first = standing.warm();
    assert_eq!(standing.keepers(), std::slice::from_ref(&first), "one stands by");
    let vmm = first.vmm();
    // With folder and network that came later.
    let (namespace, shared) = (Namespace::new(), standing.containerd.path("shared"));
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "shared\n").unwrap();
    let network = format!("network:/run/netns/{}", namespace.0);
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:ro", text(&shared));
    standing.detach(&["--with-ns", &network, "--mount", &mount], "taker");
    assert_eq!(standing.containerd.shim_pid("taker"), first.pid);
    if may_show_itself_otherwise() {
        let shown = fs::read_to_string(format!("/proc/{}/cmdline", first.pid)).unwrap();
        assert!(shown.contains("\0serve\0-id\0taker\0-namespace\0") && !shown.contains("standby"), "{shown:?}");
    }
    // The bundle is on another file system than what stands by.
    let logs = standing.containerd.bundle("taker").join("vm");
    assert!(["qemu.log", "vmm.log"].iter().any(|name| logs.join(name).exists()), "{}", logs.display());
    assert!(!first.place.exists() || standing.keepers().iter().all(|keeper| keeper.pid != first.pid));
    let report = standing.report("taker");
    assert!(report.standby_us.is_some() && report.vmm_pids.contains(&vmm.cast_unsigned()), "{report:?}");
    let exec = |number: &str, command: &[&str]| {
        let said = standing.containerd.ctr(&[&["task", "exec", "--exec-id", number, "taker"], command].concat());
        said.ok().to_owned()
    };
    assert_eq!(exec("1", &["cat", "/etc/second", "/mnt/file"]), "second\nshared");
    assert!(exec("2", &["busybox", "ip", "address"]).contains("10.88.0.7/24"));
    // The next is ready while this one lives on, and is another's.
    let second = standing.await_ready();
    assert!(second.pid != first.pid && second.vmm() != vmm);
    let said = standing.run("short", &["sh", "-c", "uname -r; ls /rehearsal; exit 3"]);
    assert_eq!((said.code, said.out.lines().count()), (3, 1), "{said:?}\n{}", standing.containerd.log());
    standing.containerd.assert_nothing_left("short");
    assert!(!lives(second.pid), "it has ended with its container");
    standing.delete("taker");
    assert!(!lives(first.pid) && !lives(vmm));
    let third = standing.await_ready();
    assert!(![first.pid, second.pid].contains(&third.pid));
}

#[test]
fn by_default_it_is_a_vm_under_emulation_and_a_process_with_kvm() {
    let (true, Some(image)) = (can_run(), guest_image()) else { return };
    let standing = Standing::new(&image, "");
    let keeper = standing.warm();
    let vmm = keeper.vmm();
    standing.detach(&[], "taker");
    assert_eq!(standing.containerd.shim_pid("taker"), keeper.pid);
    let report = standing.report("taker");
    let is_emulated = report.accelerator == Accelerator::Tcg;
    assert_eq!((&report.vmm_pids[..], report.standby_us.is_some()), (&[vmm.cast_unsigned()][..], is_emulated));
    standing.containerd.ctr(&["task", "exec", "--exec-id", "1", "taker", "true"]).ok();
    if !is_emulated {
        // What waits has no guest that could have ended: a shim whose process has died starts another.
        let next = standing.await_ready();
        kill(Pid::from_raw(next.vmm()), Signal::SIGKILL).unwrap();
        standing.detach(&[], "other");
        assert_eq!(standing.containerd.shim_pid("other"), next.pid);
        standing.delete("other");
    }
    standing.delete("taker");
    assert!(!lives(keeper.pid) && !lives(vmm));
}

#[test]
fn of_two_containers_one_gets_it_and_one_that_does_not_fit_leaves_it() {
    let (true, Some(image)) = (can_run(), guest_image()) else { return };
    let standing = Standing::new(&image, "");
    let keeper = standing.warm();
    standing.detach(&["--memory-limit", "536870912"], "large");
    assert_ne!(standing.containerd.shim_pid("large"), keeper.pid);
    assert_eq!(standing.report("large").standby_us, None);
    standing.delete("large");
    assert_eq!(standing.await_ready(), keeper, "it still stands by");
    let begin = |id: &str| -> Child {
        let mut command = standing.containerd.ctr_command(&standing.words("-d", &[], id, &["sleep", "1000"]));
        command.stdout(Stdio::null()).spawn().unwrap()
    };
    for mut child in ["one", "two"].map(begin) {
        assert!(child.wait().unwrap().success(), "{}", standing.containerd.log());
    }
    let shims = ["one", "two"].map(|id| standing.containerd.shim_pid(id));
    assert_eq!(shims.iter().filter(|pid| **pid == keeper.pid).count(), 1, "{shims:?} {keeper:?}");
    let took = ["one", "two"].map(|id| standing.report(id).standby_us.is_some());
    assert_eq!(took, shims.map(|pid| pid == keeper.pid));
    standing.delete("one");
    standing.delete("two");
}

#[test]
fn killed_while_it_waits_or_when_it_is_taken_it_leaves_nothing() {
    let (true, Some(image)) = (can_run(), guest_image()) else { return };
    let mut standing = Standing::new(&image, "");
    let killed = |pid: i32| kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    // The process that waits: its VM goes with it, and the next container does without.
    let waiting = standing.warm();
    let vmm = waiting.vmm();
    killed(waiting.pid);
    await_that("its VM ends", || !lives(vmm) && !lives(waiting.pid));
    standing.detach(&[], "without");
    assert_eq!(standing.report("without").standby_us, None);
    // Its VM: it goes, too.
    let waiting = standing.await_ready();
    killed(waiting.vmm());
    await_that("it ends with its VM", || !lives(waiting.pid));
    standing.delete("without");
    standing.run("first", &["true"]).ok();
    // When it is a container's, as any shim; a containerd that was away meanwhile finds it.
    let waiting = standing.await_ready();
    standing.containerd.kill();
    standing.containerd.start_again();
    standing.detach(&[], "taken");
    assert_eq!(standing.containerd.shim_pid("taken"), waiting.pid);
    let vmm = crate::kills::vmm_of(&standing.containerd.bundle("taken")).unwrap();
    standing.containerd.kill();
    standing.containerd.start_again();
    standing.containerd.await_task("taken", Some("RUNNING"));
    killed(waiting.pid);
    standing.containerd.await_task("taken", None);
    await_that("its VM ends", || !lives(vmm));
    standing.containerd.assert_nothing_left("taken");
    let left = standing.containerd.await_nothing_but(&[]);
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn unused_or_without_its_containerd_it_ends_and_nothing_stands_by_where_it_is_switched_off() {
    let (true, Some(image)) = (can_run(), guest_image()) else { return };
    let mut standing = Standing::new(&image, "standby-unused-s = 1");
    let unused = standing.warm();
    await_that("nobody has come", || !lives(unused.pid));
    assert!(!unused.place.exists());
    let rewrite = |standing: &Standing, more: &str| {
        write_whole_options(Path::new(&standing.options), &standing.containerd.kept("state"), &image, more);
    };
    rewrite(&standing, "standby-vms = 0\npersonalize-timeout-ms = 20000");
    standing.run("off", &["true"]).ok();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(standing.keepers(), []);
    rewrite(&standing, "standby-vms = 1\npersonalize-timeout-ms = 20000");
    let bereft = standing.warm();
    let vmm = bereft.vmm();
    standing.containerd.kill();
    await_that("containerd is gone", || !lives(bereft.pid) && !lives(vmm));
    assert!(!bereft.place.exists());
    standing.containerd.start_again();
}
