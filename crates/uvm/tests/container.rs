//! What is behind a fork's slots, seen by a container in it: one layer, as many as there are slots, and more than that
//! (packed). And what a container can do to its utility VM: panic its kernel.
#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as expected")]

mod lab;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bulkhead_uvm::{ExitReason, GuestError, GuestStream, PodDisks, UtilityVm, UvmError};
use proto::control::UtilityVmRequest;
use proto::gcs::wire::{
    ContainerRequest, CreateContainerRequest, ExecRequest, RenewRequest, SignalRequest, StartRequest as Start,
    WaitOomKillRequest, WaitRequest,
};
use proto::gcs::{INIT_PROCESS, StreamHeader, StreamKind};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use lab::Lab;

/// Opens the lab with what is needed to make disks.
fn open(test: &str) -> Option<Lab> {
    let tools = ["mkfs.erofs", "mkfs.ext4", "busybox"];
    let missing = tools.iter().find(|tool| {
        Command::new("sh").args(["-c", &format!("command -v {tool} >/dev/null")]).status().is_ok_and(|s| !s.success())
    });
    match (Lab::open(), missing) {
        (Ok(lab), None) => Some(lab),
        (Err(missing), _) => {
            lab::skip(test, &missing);
            None
        }
        (_, Some(tool)) => {
            lab::skip(test, &format!("{tool} is not installed"));
            None
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Layers, lowest first: busybox in the first; each has a file of its own and the same file with its own number.
fn layers(lab: &Lab, count: usize) -> Vec<PathBuf> {
    let make = |number: usize| {
        let tree = lab.folder().join(format!("tree{number}"));
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::create_dir_all(tree.join("etc")).unwrap();
        if number == 0 {
            run(Command::new("sh").args(["-c", &format!("cp $(command -v busybox) {0}/bin/busybox", tree.display())]));
            for folder in ["proc", "sys", "dev", "tmp"] {
                fs::create_dir_all(tree.join(folder)).unwrap();
            }
        }
        fs::write(tree.join(format!("etc/layer{number}")), number.to_string()).unwrap();
        fs::write(tree.join("etc/top"), format!("top is {number}")).unwrap();
        let image = lab.folder().join(format!("layer{number}.erofs"));
        run(Command::new("mkfs.erofs").arg(&image).arg(&tree));
        let bytes = fs::metadata(&image).unwrap().len().next_multiple_of(4096);
        fs::File::options().write(true).open(&image).unwrap().set_len(bytes).unwrap();
        image
    };
    (0..count).map(make).collect()
}

fn scratch(lab: &Lab) -> PathBuf {
    scratch_named(lab, "scratch.img")
}

fn scratch_named(lab: &Lab, name: &str) -> PathBuf {
    let tree = lab.folder().join("scratch-tree");
    fs::create_dir_all(tree.join("upper")).unwrap();
    fs::create_dir_all(tree.join("work")).unwrap();
    let disk = lab.folder().join(name);
    fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&tree).arg(&disk));
    disk
}

fn spec(script: &str, capabilities: &[&str]) -> Value {
    let mount = |destination: &str, kind: &str| json!({"destination": destination, "type": kind, "source": kind});
    let namespaces = ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/busybox", "sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": false,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [mount("/proc", "proc"), mount("/dev", "tmpfs"), mount("/tmp", "tmpfs")],
        "linux": {"namespaces": namespaces}
    })
}

async fn start(lab: &Lab, name: &str, count: usize) -> UtilityVm {
    let request = lab.request();
    let mut start = lab.start_request(&request, name);
    start.layers = layers(lab, count);
    start.scratch = scratch(lab);
    UtilityVm::start(start).await.unwrap()
}

async fn create(vm: &UtilityVm, spec: &Value) {
    let request = CreateContainerRequest {
        id: "contract".into(),
        spec: spec.to_string().into_bytes(),
        layers: vm.layer_devices(),
        scratch_slot: vm.scratch_slot(),
        ..Default::default()
    };
    vm.guest().create_container(&request).await.unwrap();
    vm.guest().start(&Start::default()).await.unwrap();
}

/// Runs a script in a container and returns its exit code and output.
async fn output(vm: &UtilityVm, script: &str) -> (u32, String) {
    let header = |kind| StreamHeader { kind, process: INIT_PROCESS };
    let mut out = vm.guest().open_stream(header(StreamKind::Stdout)).await.unwrap();
    let mut err = vm.guest().open_stream(header(StreamKind::Stderr)).await.unwrap();
    create(vm, &spec(script, &[])).await;
    let mut text = String::new();
    let mut errors = String::new();
    let (read, failed) = tokio::join!(out.read_to_string(&mut text), err.read_to_string(&mut errors));
    read.unwrap();
    failed.unwrap();
    let wait = vm.guest().wait(&WaitRequest { process: INIT_PROCESS, ..Default::default() }).await.unwrap();
    (wait.exit_code, text + &errors)
}

async fn layers_are_seen(name: &str, count: usize) {
    let Some(lab) = open(name) else { return };
    let vm = start(&lab, name, count).await;
    let script = "busybox cat /etc/top; echo; busybox cat /etc/layer*; echo; echo written > /etc/new; busybox cat /etc/new; exit 7";
    let (code, text) = output(&vm, script).await;
    let numbers: String = (0..count).map(|number| number.to_string()).collect();
    assert_eq!((code, text.as_str()), (7, format!("top is {}\n{numbers}\nwritten\n", count - 1).as_str()));
    vm.guest().shutdown(&Default::default()).await.unwrap();
    vm.kill();
    vm.wait().await;
    // The change is in the scratch disk, and in nothing else.
    let found =
        Command::new("debugfs").args(["-R", "cat /upper/etc/new"]).arg(lab.folder().join("scratch.img")).output();
    if let Ok(found) = found {
        assert_eq!(String::from_utf8_lossy(&found.stdout), "written\n");
    }
}

#[tokio::test]
async fn one_layer_is_seen() {
    layers_are_seen("one_layer_is_seen", 1).await;
}

#[tokio::test]
async fn as_many_layers_as_slots_are_seen() {
    layers_are_seen("as_many_layers_as_slots_are_seen", 3).await;
}

#[tokio::test]
async fn more_layers_than_slots_are_seen() {
    layers_are_seen("more_layers_than_slots_are_seen", 9).await;
}

#[tokio::test]
async fn a_kernel_panic_ends_that_vm_only() {
    let Some(lab) = open("a_kernel_panic_ends_that_vm_only") else { return };
    let neighbour = lab.start("neighbour").await.unwrap();
    let vm = start(&lab, "panicking", 1).await;
    create(&vm, &spec("echo c > /proc/sysrq-trigger", &["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"])).await;
    let exit = tokio::time::timeout(lab::patient(Duration::from_secs(30)), vm.wait()).await.unwrap();
    assert_eq!(exit.reason, ExitReason::GuestPanic, "{exit:?}");
    assert!(exit.detail.contains("Kernel panic"), "{exit:?}");
    assert!(!lab::alive(vm.report().vmm_pids[0]));
    assert_eq!(
        neighbour.guest().processes(&Default::default()).await.unwrap_err().kind(),
        proto::ErrorKind::FailedPrecondition
    );
}

#[tokio::test]
async fn a_layer_cannot_be_written_from_the_guest() {
    let Some(lab) = open("a_layer_cannot_be_written_from_the_guest") else { return };
    let vm = start(&lab, "writer", 1).await;
    let before = fs::read(Path::new(lab.folder()).join("layer0.erofs")).unwrap();
    let header = StreamHeader { kind: StreamKind::Stdout, process: INIT_PROCESS };
    let mut out = vm.guest().open_stream(header).await.unwrap();
    let mut privileged = spec(
        "busybox mknod /tmp/disk b $(busybox cat /sys/block/vdb/dev | busybox tr : ' ') && \
         busybox dd if=/dev/zero of=/tmp/disk bs=4096 count=1 conv=fsync 2>/dev/null; echo status $?",
        &["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE"],
    );
    privileged["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"}));
    privileged["linux"]["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
    create(&vm, &privileged).await;
    let mut text = String::new();
    out.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("status ") && text != "status 0\n", "{text}");
    vm.kill();
    vm.wait().await;
    assert!(before == fs::read(Path::new(lab.folder()).join("layer0.erofs")).unwrap(), "a layer changed");
}

/// A utility VM that has rehearsed with one layer, left a file in its scratch, and was renewed.
async fn stand_by(lab: &Lab) -> UtilityVm {
    let request = lab.request();
    let mut start = lab.start_request(&request, "standby");
    start.layers = layers(lab, 1);
    start.scratch = scratch_named(lab, "rehearsal.img");
    start.rehearsal = true;
    let vm = UtilityVm::start(start).await.unwrap();
    let (code, text) = output(&vm, "echo left > /left; busybox cat /etc/top /left").await;
    assert_eq!((code, text.as_str()), (0, "top is 0left\n"));
    vm.guest().renew(&Default::default()).await.unwrap();
    vm
}

#[tokio::test]
async fn an_adopted_vm_has_the_containers_disks_and_nothing_of_the_rehearsal() {
    // One layer has a slot of its own, more than three are packed.
    for count in [1, 5] {
        let Some(lab) = open("an_adopted_vm_has_the_containers_disks_and_nothing_of_the_rehearsal") else { return };
        let vm = stand_by(&lab).await;
        let rehearsed = vm.report().clone();
        assert_eq!(rehearsed.standby_us, None);
        let mut request = lab.request();
        request.machine_id = "fedcba9876543210".repeat(2);
        let mut start = lab.start_request(&request, "adopted");
        start.layers = layers(&lab, count);
        // The guest must not show what it remembers of the first image.
        for layer in &start.layers {
            assert!(layer.exists());
        }
        start.scratch = scratch_named(&lab, "adopted.img");
        let vm = vm.adopt(start).await.unwrap();
        assert_ne!(vm.report().entropy_fingerprint, rehearsed.entropy_fingerprint);
        assert_eq!((&vm.report().boot_id, &vm.report().vmm_pids), (&rehearsed.boot_id, &rehearsed.vmm_pids));
        assert!(vm.report().standby_us.is_some());
        let script = "busybox cat /etc/top; echo; busybox cat /etc/layer*; echo; busybox ls /left; \
                      busybox cat /etc/machine-id; echo kept > /kept";
        let (code, text) = output(&vm, script).await;
        let numbers: String = (0..count).map(|number| number.to_string()).collect();
        let machine_id = &request.machine_id;
        let expected = format!("top is {}\n{numbers}\nls: /left: No such file or directory\n{machine_id}\n", count - 1);
        assert_eq!((code, sorted(&text)), (0, sorted(&expected)));
        vm.guest().shutdown(&Default::default()).await.unwrap();
        vm.kill();
        vm.wait().await;
        let listed = |disk: &str| {
            let listed = Command::new("debugfs").args(["-R", "ls -p /upper"]).arg(lab.folder().join(disk)).output();
            String::from_utf8_lossy(&listed.unwrap().stdout).into_owned()
        };
        assert!(listed("rehearsal.img").contains("/left/") && !listed("rehearsal.img").contains("/kept/"));
        assert!(listed("adopted.img").contains("/kept/") && !listed("adopted.img").contains("/left/"));
    }
}

/// Standard output and standard error come in any order.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn a_vm_that_did_not_rehearse_is_never_renewed() {
    let Some(lab) = open("a_vm_that_did_not_rehearse_is_never_renewed") else { return };
    let vm = start(&lab, "real", 1).await;
    let refused = |outcome: Result<_, bulkhead_uvm::GuestError>| outcome.unwrap_err().kind();
    assert_eq!(refused(vm.guest().renew(&Default::default()).await), proto::ErrorKind::FailedPrecondition);
    output(&vm, "true").await;
    assert_eq!(refused(vm.guest().renew(&Default::default()).await), proto::ErrorKind::FailedPrecondition);
}

#[tokio::test]
async fn a_standby_of_another_size_is_not_adopted() {
    let Some(lab) = open("a_standby_of_another_size_is_not_adopted") else { return };
    let vm = stand_by(&lab).await;
    let pid = vm.report().vmm_pids[0];
    let request = UtilityVmRequest { memory_bytes: Some(64 << 20), ..lab.request() };
    let mut start = lab.start_request(&request, "limited");
    start.layers = layers(&lab, 1);
    start.scratch = scratch(&lab);
    assert!(matches!(vm.adopt(start).await.unwrap_err(), UvmError::Unfit));
    lab::until(Duration::from_secs(5), || !lab::alive(pid)).await;
}

/// One of a pod's containers, created and started.
async fn add(vm: &UtilityVm, number: u32, disks: &PodDisks, script: &str) -> Result<GuestStream, GuestError> {
    add_as(vm, number, disks, spec(script, &[])).await
}

async fn add_as(vm: &UtilityVm, number: u32, disks: &PodDisks, mut spec: Value) -> Result<GuestStream, GuestError> {
    let header = StreamHeader { kind: StreamKind::Stdout, process: 10 * number };
    let out = vm.guest().open_stream(header).await?;
    spec["linux"]["namespaces"] = json!(["pid", "mount"].map(|kind| json!({"type": kind})));
    spec.as_object_mut().unwrap().remove("hostname");
    let request = CreateContainerRequest {
        id: format!("member-{number}"),
        spec: spec.to_string().into_bytes(),
        layers: disks.layers.clone(),
        scratch_slot: disks.scratch_slot,
        container: number,
        process: 10 * number,
        ..Default::default()
    };
    vm.guest().create_container(&request).await?;
    vm.guest().start(&Start { container: number, ..Default::default() }).await?;
    Ok(out)
}

async fn said(mut out: GuestStream) -> String {
    let mut text = String::new();
    out.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_pods_containers_come_and_go_each_with_disks_of_its_own() {
    let Some(lab) = open("a_pods_containers_come_and_go_each_with_disks_of_its_own") else { return };
    let request = lab.request();
    let mut start = lab.start_request(&request, "pod");
    start.pod = true;
    let vm = UtilityVm::start(start).await.unwrap();
    let layers = layers(&lab, 5);
    let bind = |place: u32, scratch: &str, count: usize| {
        vm.bind_disks(place, scratch_named(&lab, scratch), layers[..count].to_vec())
    };
    let seen = "busybox cat /etc/top; echo; busybox cat /etc/layer*; echo; busybox ls / | busybox grep -c mark; echo x > /mark";
    let of = |number: u32| ContainerRequest { container: number, ..Default::default() };
    let first = bind(0, "first.img", 2).await.unwrap();
    let mut stays = add(&vm, 1, &first, &format!("{seen}; busybox sleep 1000")).await.unwrap();
    let mut begin = [0; 14];
    stays.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"top is 1\n01\n0\n");
    // One place, and a container after another in it: none sees what the one before had.
    let last = bulkhead_uvm::POD_CONTAINERS - 1;
    for (number, count) in [(2, 1), (3, 5), (4, 3)] {
        let disks = bind(last, &format!("{number}.img"), count).await.unwrap();
        let text = said(add(&vm, number, &disks, &format!("{seen}; exit 3")).await.unwrap()).await;
        let numbers: String = (0..count).map(|number| number.to_string()).collect();
        assert_eq!(text, format!("top is {}\n{numbers}\n0\n", count - 1));
        let wait = WaitRequest { process: 10 * number, ..Default::default() };
        assert_eq!(vm.guest().wait(&wait).await.unwrap().exit_code, 3);
        vm.guest().remove_container(&of(number)).await.unwrap();
        vm.unbind_disks(last).await.unwrap();
        // One that does not come to be leaves nothing to the next, either.
        let disks = bind(last, "refused.img", 4).await.unwrap();
        let PodDisks { scratch_slot, layers } = disks;
        let spec = b"{".to_vec();
        let request =
            CreateContainerRequest { spec, layers, scratch_slot, container: 99, process: 99, ..Default::default() };
        assert_eq!(vm.guest().create_container(&request).await.unwrap_err().kind(), proto::ErrorKind::InvalidArgument);
        vm.unbind_disks(last).await.unwrap();
        assert_eq!(vm.guest().processes(&of(number)).await.unwrap_err().kind(), proto::ErrorKind::NotFound);
    }
    // Its neighbours' coming and going did nothing to the first.
    assert!(!vm.guest().processes(&of(1)).await.unwrap().processes.is_empty());
    assert!(vm.guest().stats(&of(1)).await.unwrap().memory_bytes > 0);
    let again = add(&vm, 1, &first, "true").await.unwrap_err();
    assert_eq!(again.kind(), proto::ErrorKind::AlreadyExists);
    assert_eq!(add(&vm, 0, &first, "true").await.unwrap_err().kind(), proto::ErrorKind::FailedPrecondition);
    // A disk that it still has is not its last word: it is killed, and what it wrote is on its own disk.
    vm.guest().remove_container(&of(1)).await.unwrap();
    vm.unbind_disks(0).await.unwrap();
    for disk in ["first.img", "2.img", "4.img"] {
        let listed = Command::new("debugfs").args(["-R", "cat /upper/mark"]).arg(lab.folder().join(disk)).output();
        assert_eq!(String::from_utf8_lossy(&listed.unwrap().stdout), "x\n", "{disk}");
    }
    vm.kill();
    vm.wait().await;
}

/// It goes on for ever, and may have 32 MiB.
fn limited() -> Value {
    let mut limited = spec("while :; do busybox sleep 1000; done", &[]);
    limited["linux"]["resources"] = json!({"memory": {"limit": 32 << 20}});
    limited
}

async fn oom_kills(vm: &UtilityVm, container: u32, seen: u64) -> Result<u64, GuestError> {
    let request = WaitOomKillRequest { container, seen, ..Default::default() };
    vm.guest().wait_oom_kill(&request).await.map(|answer| answer.kills)
}

/// A further process of a limited container, which takes more than it may have.
async fn eat(vm: &UtilityVm, container: u32, process: u32) {
    let mut spec = limited()["process"].take();
    spec["args"] = json!(["/bin/busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]);
    let spec = spec.to_string().into_bytes();
    vm.guest().exec(&ExecRequest { container, process, spec, ..Default::default() }).await.unwrap();
    let wait = vm.guest().wait(&WaitRequest { process, ..Default::default() }).await.unwrap();
    assert_eq!((wait.exit_code, wait.oom_kills), (137, 0), "it is no container's first process");
}

/// Nothing is said for a while.
async fn nothing(heard: impl Future<Output = Result<u64, GuestError>>) {
    let heard = tokio::time::timeout(Duration::from_secs(1), heard).await;
    assert!(heard.is_err(), "{heard:?}");
}

#[tokio::test]
async fn a_kill_for_want_of_memory_is_told_while_the_container_goes_on() {
    let Some(lab) = open("a_kill_for_want_of_memory_is_told_while_the_container_goes_on") else { return };
    let vm = start(&lab, "hungry", 1).await;
    assert_eq!(oom_kills(&vm, 0, 0).await.unwrap_err().kind(), proto::ErrorKind::FailedPrecondition);
    create(&vm, &limited()).await;
    nothing(oom_kills(&vm, 0, 0)).await;
    let (told, ()) = tokio::join!(oom_kills(&vm, 0, 0), eat(&vm, 0, 1));
    assert_eq!(told.unwrap(), 1);
    assert_eq!(oom_kills(&vm, 0, 0).await.unwrap(), 1, "whoever asks later is told, too");
    nothing(oom_kills(&vm, 0, 1)).await;
    eat(&vm, 0, 2).await;
    eat(&vm, 0, 3).await;
    assert_eq!(oom_kills(&vm, 0, 1).await.unwrap(), 3, "what happened meanwhile is one answer");
    assert_eq!(oom_kills(&vm, 7, 0).await.unwrap_err().kind(), proto::ErrorKind::NotFound);
    let kill = SignalRequest { signal: 9, all: true, ..Default::default() };
    let (told, killed) = tokio::join!(oom_kills(&vm, 0, 3), vm.guest().signal(&kill));
    killed.unwrap();
    assert_eq!(told.unwrap(), 3, "the end is no kill for want of memory");
    let wait = vm.guest().wait(&WaitRequest { process: INIT_PROCESS, ..Default::default() }).await.unwrap();
    assert_eq!((wait.exit_code, wait.oom_kills), (137, 3));
}

#[tokio::test]
async fn a_kill_in_a_pod_is_told_of_its_container_only() {
    let Some(lab) = open("a_kill_in_a_pod_is_told_of_its_container_only") else { return };
    let request = lab.request();
    let mut start = lab.start_request(&request, "pod");
    start.pod = true;
    let vm = UtilityVm::start(start).await.unwrap();
    let layers = layers(&lab, 1);
    for number in [1, 2] {
        let disks = vm.bind_disks(number - 1, scratch_named(&lab, &format!("{number}.img")), layers.clone()).await;
        add_as(&vm, number, &disks.unwrap(), limited()).await.unwrap();
    }
    let (told, ()) = tokio::join!(oom_kills(&vm, 2, 0), eat(&vm, 2, 21));
    assert_eq!(told.unwrap(), 1);
    nothing(oom_kills(&vm, 1, 0)).await;
    // One that is removed keeps nobody waiting.
    let removal = ContainerRequest { container: 1, ..Default::default() };
    let (told, removed) = tokio::join!(oom_kills(&vm, 1, 0), vm.guest().remove_container(&removal));
    removed.unwrap();
    assert!(matches!(told, Ok(0) | Err(GuestError::Refused(_))), "{told:?}");
    nothing(oom_kills(&vm, 2, 1)).await;
}

#[tokio::test]
async fn a_renewed_guest_counts_kills_anew() {
    let Some(lab) = open("a_renewed_guest_counts_kills_anew") else { return };
    let request = lab.request();
    let mut start = lab.start_request(&request, "standby");
    (start.layers, start.scratch, start.rehearsal) = (layers(&lab, 1), scratch_named(&lab, "rehearsal.img"), true);
    let vm = UtilityVm::start(start).await.unwrap();
    create(&vm, &limited()).await;
    let (told, ()) = tokio::join!(oom_kills(&vm, 0, 0), eat(&vm, 0, 1));
    assert_eq!(told.unwrap(), 1);
    let renewal = RenewRequest::default();
    let (told, renewed) = tokio::join!(oom_kills(&vm, 0, 1), vm.guest().renew(&renewal));
    renewed.unwrap();
    assert!(matches!(told, Ok(1) | Err(GuestError::Refused(_))), "{told:?}");
    let mut start = lab.start_request(&request, "adopted");
    (start.layers, start.scratch) = (layers(&lab, 1), scratch(&lab));
    let vm = vm.adopt(start).await.unwrap();
    create(&vm, &limited()).await;
    nothing(oom_kills(&vm, 0, 0)).await;
    let (told, ()) = tokio::join!(oom_kills(&vm, 0, 0), eat(&vm, 0, 1));
    assert_eq!(told.unwrap(), 1);
}

/// Private memory of a process, KiB. Source: proc_pid_smaps(5).
fn private_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn memory_that_a_container_frees_goes_back_to_the_host() {
    // QEMU's forks report nothing: docs/design/0018-own-vmm.md says why.
    if !lab::is_own_vmm() {
        return;
    }
    let Some(lab) = open("memory_that_a_container_frees_goes_back_to_the_host") else { return };
    let vm = start(&lab, "frees", 1).await;
    let header = StreamHeader { kind: StreamKind::Stdout, process: INIT_PROCESS };
    let mut out = vm.guest().open_stream(header).await.unwrap();
    let script = "busybox dd if=/dev/zero of=/tmp/big bs=1048576 count=128 2>/dev/null; echo used; busybox sleep 2; \
                  busybox rm /tmp/big; echo free; busybox sleep 100000";
    create(&vm, &spec(script, &[])).await;
    let mut word = [0; 5];
    out.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"used\n");
    let pid = vm.report().vmm_pids[0];
    let used = private_kib(pid);
    assert!(used > 128 << 10, "{used} KiB");
    out.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"free\n");
    lab::until(Duration::from_secs(60), || private_kib(pid) < used - (100 << 10)).await;
}
