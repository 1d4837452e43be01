//! The list of steps, with one runtime handler.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::client::{Client, Refused};
use super::messages::*;
use super::streaming::{self, RESIZE, STATUS, STDERR, STDIN, STDOUT, Stream};
use crate::daemon::{Containerd, IMAGE, PAUSE, hierarchies, namespace};
use crate::support::text;

const PATIENCE: Duration = Duration::from_secs(30);
/// Ends by itself at SIGTERM.
pub const GOOD: &str = "trap 'exit 6' TERM; while :; do sleep 0.02; done";

/// One runtime handler under test.
pub struct Side<'a> {
    containerd: &'a Containerd,
    client: &'a Client,
    handler: &'static str,
    /// The pods are utility VMs.
    in_vm: bool,
    /// What a pod's containers share by volumes.
    volume: PathBuf,
    pub seen: Vec<(&'static str, String)>,
}

/// A pod that runs.
#[derive(Debug)]
pub struct Pod {
    pub id: String,
    config: PodSandboxConfig,
}

/// What a container is besides its pod's.
#[derive(Default)]
pub struct Wish {
    config: ContainerConfig,
    resources: LinuxContainerResources,
    security: LinuxContainerSecurityContext,
}

impl Wish {
    pub fn script(script: &str) -> Self {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        Self { config: ContainerConfig { command, ..Default::default() }, ..Default::default() }
    }
}

impl<'a> Side<'a> {
    pub fn new(containerd: &'a Containerd, client: &'a Client, handler: &'static str) -> Self {
        let volume = containerd.path(&format!("volume-{handler}"));
        fs::create_dir_all(&volume).unwrap();
        let in_vm = handler == "bulkhead-hyperv";
        let this = Self { containerd, client, handler, in_vm, volume, seen: Vec::new() };
        for image in [IMAGE, PAUSE] {
            this.await_image(image);
        }
        this
    }

    /// CRI learns of what `ctr` has imported a moment later.
    fn await_image(&self, name: &str) {
        let request = ImageStatusRequest { image: Some(ImageSpec { image: name.to_owned() }) };
        // Right after its start containerd refuses what it does not know yet.
        let status = || self.client.call::<ImageStatusResponse>("ImageService/ImageStatus", &request);
        self.until(name, || status().ok()?.image);
    }

    /// Asks until there is an answer.
    #[track_caller]
    pub fn until<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            let patience = self.containerd.patience(if self.in_vm { 4 * PATIENCE } else { PATIENCE });
            assert!(begin.elapsed() < patience, "{}: no {what}\n{}", self.handler, self.containerd.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn see(&mut self, step: &'static str, outcome: impl Into<String>) {
        self.seen.push((step, outcome.into()));
    }

    #[track_caller]
    fn call<A: prost::Message + Default>(&self, method: &str, request: &(impl prost::Message + std::fmt::Debug)) -> A {
        let answer = self.client.call(&format!("RuntimeService/{method}"), request);
        answer.unwrap_or_else(|refused| {
            panic!("{} {method} {request:?}: {refused:?}\n{}", self.handler, self.containerd.log())
        })
    }

    pub fn of_id<A: prost::Message + Default>(&self, method: &str, id: &str) -> Result<A, Refused> {
        self.client.call(&format!("RuntimeService/{method}"), &Id { id: id.to_owned() })
    }

    pub fn run_pod(&self, name: &str, namespaces: NamespaceOption) -> Pod {
        let pod = self.ask_for_pod(name, namespaces);
        pod.unwrap_or_else(|refused| panic!("{} {name}: {refused:?}\n{}", self.handler, self.containerd.log()))
    }

    pub fn ask_for_pod(&self, name: &str, namespaces: NamespaceOption) -> Result<Pod, Refused> {
        let log_directory = self.containerd.path(&format!("log-{}-{name}", self.handler));
        fs::create_dir(&log_directory).unwrap();
        let own = |text: &str| text.to_owned();
        let sysctls = if namespaces.ipc == 2 { [].into() } else { [(own("kernel.shm_rmid_forced"), own("1"))].into() };
        let metadata =
            PodSandboxMetadata { name: own(name), uid: format!("{name}-{}", self.handler), namespace: own("default") };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            hostname: if namespaces.network == 2 { String::new() } else { own("a-pod") },
            log_directory: text(&log_directory),
            dns_config: Some(DnsConfig { servers: vec![own("10.88.0.1")] }),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", namespace()),
                security_context: Some(LinuxSandboxSecurityContext { namespace_options: Some(namespaces) }),
                sysctls,
            }),
            ..Default::default()
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: own(self.handler) };
        let id: Id = self.client.call("RuntimeService/RunPodSandbox", &request)?;
        Ok(Pod { id: id.id, config })
    }

    pub fn list_pods(&self) -> Vec<String> {
        let listed: ListPodSandboxResponse = self.call("ListPodSandbox", &Nothing {});
        listed.items.into_iter().map(|pod| pod.id).collect()
    }

    pub fn create(&self, pod: &Pod, name: &str, wish: Wish) -> String {
        let id: Id = self.call("CreateContainer", &Self::request(pod, name, wish));
        id.id
    }

    pub fn ask_for_container(&self, pod: &Pod, name: &str) -> Result<Id, Refused> {
        self.client.call("RuntimeService/CreateContainer", &Self::request(pod, name, Wish::script(GOOD)))
    }

    fn request(pod: &Pod, name: &str, wish: Wish) -> CreateContainerRequest {
        let mut config = wish.config;
        config.metadata = Some(ContainerMetadata { name: name.to_owned(), attempt: 0 });
        config.image = Some(ImageSpec { image: IMAGE.to_owned() });
        config.log_path = format!("{name}.log");
        let pod_security = pod.config.linux.as_ref().and_then(|linux| linux.security_context.clone());
        let mut security = wish.security;
        security.namespace_options = pod_security.and_then(|security| security.namespace_options);
        config.linux = Some(LinuxContainerConfig { resources: Some(wish.resources), security_context: Some(security) });
        CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        }
    }

    pub fn start(&self, pod: &Pod, name: &str, wish: Wish) -> String {
        let id = self.create(pod, name, wish);
        self.of_id::<Nothing>("StartContainer", &id)
            .unwrap_or_else(|refused| panic!("{} {name}: {refused:?}\n{}", self.handler, self.containerd.log()));
        id
    }

    pub fn status(&self, id: &str) -> String {
        let status: ContainerStatusResponse = self.of_id("ContainerStatus", id).unwrap();
        let ContainerStatus { state, exit_code, reason } = status.status.unwrap();
        let state = ["created", "running", "exited", "unknown"][usize::try_from(state).unwrap()];
        format!("{state} {exit_code} {reason}")
    }

    #[track_caller]
    pub fn end(&self, id: &str) -> String {
        self.until("end", || Some(self.status(id)).filter(|status| status.starts_with("exited")))
    }

    fn exec(&self, id: &str, cmd: &[&str], timeout: i64) -> Result<ExecSyncResponse, Refused> {
        let cmd = cmd.iter().map(|&word| word.to_owned()).collect();
        let request = ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        self.client.call("RuntimeService/ExecSync", &request)
    }

    #[track_caller]
    pub fn sh(&self, id: &str, script: &str) -> String {
        let said = self.exec(id, &["sh", "-c", script], 20);
        let said = said.unwrap_or_else(|error| panic!("{script}: {error:?}\n{}", self.containerd.log()));
        let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        format!("{} {out:?} {err:?}", said.exit_code)
    }

    /// A container that does its work and ends: how, and what its log has.
    fn once(&mut self, step: &'static str, pod: &Pod, wish: Wish) {
        let id = self.start(pod, &step.replace(' ', "-"), wish);
        let end = self.end(&id);
        let log = self.log(pod, &step.replace(' ', "-"));
        self.see(step, format!("{end} {log:?}"));
        self.of_id::<Nothing>("RemoveContainer", &id).unwrap();
    }

    /// Lines of a container's log without their times, in the order of their streams.
    fn log(&self, pod: &Pod, name: &str) -> Vec<String> {
        let path = PathBuf::from(&pod.config.log_directory).join(format!("{name}.log"));
        let content = fs::read_to_string(path).unwrap();
        let mut lines: Vec<String> = content.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect();
        lines.sort();
        lines
    }

    pub fn list(&mut self) {
        let pod = self.run_pod("main", NamespaceOption { pid: 1, ..Default::default() });
        let status: PodSandboxStatusResponse = self.of_id("PodSandboxStatus", &pod.id).unwrap();
        let status = status.status.unwrap();
        assert_eq!(status.runtime_handler, self.handler);
        let address = status.network.unwrap().ip;
        self.see("a pod", format!("{} {}", status.state, address.starts_with("10.88.")));
        let main = self.life(&pod);
        self.neighbours(&pod, &main);
        self.wishes(&pod);
        self.limits(&pod, &main);
        self.streams(&pod, &main, &address);
        self.loopback(&pod);
        self.ends(&pod, &main);
        if !self.in_vm {
            self.shared_namespaces();
        }
    }

    fn life(&mut self, pod: &Pod) -> String {
        let id = self.create(pod, "life", Wish::script(&format!("echo begun; {GOOD}")));
        self.see("created", self.status(&id));
        self.of_id::<Nothing>("StartContainer", &id).unwrap();
        self.see("running", self.status(&id));
        let again = self.of_id::<Nothing>("StartContainer", &id).unwrap_err();
        self.see("started again", again.code.to_string());
        self.see("exec", self.sh(&id, "echo out; echo err >&2; exit 3"));
        let none = self.exec(&id, &["nosuch"], 5).unwrap_err();
        self.see("exec of no program", format!("{} {}", none.code, none.message.contains("nosuch")));
        let late = self.exec(&id, &["sleep", "100"], 1).unwrap_err();
        self.see("exec that takes too long", late.code.to_string());
        self.see("who is there", self.sh(&id, "ps | grep -c 'sleep 10[0]'"));
        self.logs(pod, &id);
        id
    }

    fn logs(&mut self, pod: &Pod, id: &str) {
        let path = PathBuf::from(&pod.config.log_directory).join("life.log");
        self.until("log", || fs::read_to_string(&path).unwrap().contains("begun").then_some(()));
        let moved = path.with_extension("1");
        fs::rename(&path, &moved).unwrap();
        self.of_id::<Nothing>("ReopenContainerLog", id).unwrap();
        self.sh(id, "echo after >/proc/1/fd/1");
        self.until("new log", || fs::read_to_string(&path).unwrap().contains("after").then_some(()));
        let old = fs::read_to_string(moved).unwrap();
        self.see("a log that is opened again", format!("{:?} {}", self.log(pod, "life"), old.contains("after")));
    }

    fn neighbours(&mut self, pod: &Pod, main: &str) {
        let mut wish = Wish::script("exec sleep 1000");
        wish.config.mounts = vec![
            Mount { container_path: "/shared".to_owned(), host_path: text(&self.volume), readonly: false },
            Mount { container_path: "/fixed".to_owned(), host_path: text(&self.volume), readonly: true },
        ];
        let other = self.start(pod, "other", wish);
        let namespaces = "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done";
        let of = |id: &str| self.sh(id, namespaces).replace("\\n", " ").replace('"', "");
        let (a, b) = (of(main), of(&other));
        let shared: Vec<bool> = a.split_whitespace().zip(b.split_whitespace()).map(|(a, b)| a == b).collect();
        self.see("what containers share", format!("{shared:?}"));
        self.see("a name", self.sh(&other, "hostname; cat /etc/hostname; cat /etc/resolv.conf"));
        self.see("a network", self.sh(&other, "ls /sys/class/net; cat /proc/sys/kernel/shm_rmid_forced"));
        self.see("volumes", self.sh(&other, "echo x >/shared/file; cat /fixed/file; echo y >/fixed/file"));
        self.see("shared memory", self.sh(main, "echo z >/dev/shm/z; cat /dev/shm/z"));
        self.see("shared memory next door", self.sh(&other, "cat /dev/shm/z; stat -f -c %T /dev/shm"));
        self.see("next door lives on", self.sh(main, "echo still"));
        self.of_id::<Nothing>("RemoveContainer", &other).unwrap();
    }

    fn wishes(&mut self, pod: &Pod) {
        let mut wish = Wish::script("echo $A $PWD; id; cat /proc/self/oom_score_adj; echo x >/new");
        wish.config.envs = vec![KeyValue { key: "A".to_owned(), value: "b".to_owned() }];
        wish.config.working_dir = "/tmp".to_owned();
        wish.security.run_as_user = Some(Int64Value { value: 1000 });
        wish.security.supplemental_groups = vec![2000];
        wish.security.readonly_rootfs = true;
        self.once("a user and a folder", pod, wish);
        // runc puts containers into systemd's hierarchy, too.
        let facts = "grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/kcore | head -c 1; \
                     echo 1 >/proc/sys/kernel/panic; mkdir /sys/fs/cgroup/pids/mine; ls /dev; mount | cut -d' ' -f3 | grep -v systemd";
        self.once("what a process may", pod, Wish::script(facts));
        let mut wish = Wish::script(facts);
        wish.security.capabilities = Some(Capability {
            add_capabilities: vec!["NET_ADMIN".to_owned()],
            drop_capabilities: vec!["ALL".to_owned()],
        });
        wish.security.no_new_privs = true;
        wish.security.masked_paths = vec!["/proc/kcore".to_owned(), "/proc/meminfo".to_owned()];
        wish.security.readonly_paths = vec!["/proc/sys".to_owned()];
        self.once("what a process may when it is confined", pod, wish);
        let mut wish = Wish::script("grep Cap /proc/self/status; [ -e /dev/kmsg ] && echo kmsg");
        wish.security.privileged = true;
        let outcome = self.client.call::<Id>(
            "RuntimeService/CreateContainer",
            &CreateContainerRequest {
                pod_sandbox_id: pod.id.clone(),
                config: Some(ContainerConfig {
                    metadata: Some(ContainerMetadata { name: "privileged".to_owned(), attempt: 0 }),
                    image: Some(ImageSpec { image: IMAGE.to_owned() }),
                    linux: Some(LinuxContainerConfig { resources: None, security_context: Some(wish.security) }),
                    ..wish.config
                }),
                sandbox_config: Some(pod.config.clone()),
            },
        );
        self.see("a privileged container in a plain pod", outcome.unwrap_err().code.to_string());
        self.once("no command", pod, {
            let mut wish = Wish::default();
            wish.config.command = vec!["echo".to_owned(), "from the log".to_owned()];
            wish
        });
    }

    fn limits(&mut self, pod: &Pod, main: &str) {
        let mut wish = Wish::script("dd if=/dev/zero of=/dev/null bs=64M");
        wish.resources.memory_limit_in_bytes = 8 << 20;
        let id = self.start(pod, "hungry", wish);
        self.see("killed for want of memory", self.end(&id));
        self.of_id::<Nothing>("RemoveContainer", &id).unwrap();
        // One of its processes: it goes on itself, and its reason for ending some day is known already. Again and again, since runc's shim
        // does not hear of what happens before it listens.
        let mut wish = Wish::script("while :; do dd if=/dev/zero of=/dev/null bs=64M; sleep 0.2; done");
        wish.resources.memory_limit_in_bytes = 8 << 20;
        let id = self.start(pod, "survives", wish);
        let told =
            self.until("lack of memory", || Some(self.status(&id)).filter(|status| status.ends_with("OOMKilled")));
        self.see("one of its processes killed for want of memory", told);
        self.call::<Nothing>("StopContainer", &StopContainerRequest { container_id: id.clone(), timeout: 0 });
        self.of_id::<Nothing>("RemoveContainer", &id).unwrap();
        let update = UpdateContainerResourcesRequest {
            container_id: main.to_owned(),
            linux: Some(LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 50_000,
                cpu_shares: 200,
                memory_limit_in_bytes: 64 << 20,
            }),
        };
        self.call::<Nothing>("UpdateContainerResources", &update);
        let names = ["memory.limit_in_bytes", "cpu.cfs_quota_us", "cpu.shares", "memory.max", "cpu.max", "cpu.weight"];
        let mut limits = Vec::new();
        for hierarchy in hierarchies() {
            let folder = hierarchy.join(namespace()).join(main);
            limits.extend(
                names.iter().filter_map(|name| {
                    Some(format!("{name}={}", fs::read_to_string(folder.join(name)).ok()?.trim_end()))
                }),
            );
        }
        limits.sort();
        limits.dedup();
        self.see("an update", format!("{limits:?}"));
        if self.in_vm {
            // It sees its own cgroup, and no other.
            let files = "cd /sys/fs/cgroup; cat memory.max cpu.max cpu.weight; ls -d pod";
            self.see("an update in the guest", self.sh(main, files));
        }
        let stats: ContainerStatsResponse = self.of_id("ContainerStats", main).unwrap();
        let stats = stats.stats.unwrap();
        let some = |value: Option<UInt64Value>| value.is_some_and(|value| value.value > 0);
        let (cpu, memory) = (stats.cpu.unwrap_or_default(), stats.memory.unwrap_or_default());
        let there = [cpu.usage_core_nano_seconds, memory.working_set_bytes, memory.usage_bytes].map(some);
        self.see("statistics", format!("{there:?}"));
    }

    fn streams(&mut self, pod: &Pod, main: &str, address: &str) {
        let exec = |script: &str, tty: bool| ExecRequest {
            container_id: main.to_owned(),
            cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        let open = |url: Url| Stream::open(self.client, self.containerd.pid(), &url.url);
        let mut stream = open(self.call("Exec", &exec("read x; echo got $x; echo bad >&2; exit 4", false)));
        stream.send(STDIN, b"a line\n");
        let (status, out, err) = (stream.read_all(STATUS), stream.text(STDOUT), stream.text(STDERR));
        let mut stream = open(self.call("Exec", &exec("stty size; read x; stty size; echo got $x", true)));
        stream.until(STDOUT, "\n");
        stream.send(RESIZE, br#"{"Width":77,"Height":33}"#);
        std::thread::sleep(Duration::from_millis(200));
        stream.send(STDIN, b"typed\n");
        let (tty_status, tty) = (stream.read_all(STATUS), stream.text(STDOUT));
        let mut wish = Wish::script("while read x; do echo heard $x; done");
        wish.config.stdin = true;
        let talker = self.start(pod, "talker", wish);
        let attach = AttachRequest { container_id: talker.clone(), stdin: true, stdout: true, stderr: true };
        let mut stream = open(self.call("Attach", &attach));
        stream.send(STDIN, b"me\n");
        let heard = stream.until(STDOUT, "\n");
        drop(stream);
        let server = self.start(pod, "server", Wish::script("nc -ll -p 8080 -e echo from the pod"));
        let forward = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![8080] };
        let forwarded = self.until("answer", || {
            let mut stream = open(self.call("PortForward", &forward));
            let text = stream.read_all(STDIN);
            // Each channel begins with the port, in two bytes.
            Some(text.chars().skip(2).collect::<String>()).filter(|text| !text.is_empty())
        });
        let answer = |to: &str| {
            let answer =
                || Some(self.sh(&server, &format!("nc {to} 8080 </dev/null"))).filter(|said| said.starts_with('0'));
            self.until("server", answer)
        };
        let (answer, neighbour) = (answer(address), self.sh(main, "nc 127.0.0.1 8080 </dev/null"));
        self.see("a stream's status", status);
        self.see("a stream's output", format!("{out:?}"));
        self.see("a stream's errors", format!("{err:?}"));
        self.see("a terminal", format!("{tty:?} {tty_status}"));
        self.see("attached", format!("{heard:?}"));
        self.see("a forwarded port", format!("{:?}", forwarded));
        self.see("next door by 127.0.0.1", neighbour);
        self.see("the pod's address", answer);
        for id in [talker, server] {
            self.of_id::<Nothing>("RemoveContainer", &id).unwrap();
        }
    }

    /// What containerd does to forward a port, without its protocol for it, which knows no half-closed connections.
    fn loopback(&mut self, pod: &Pod) {
        let server = self.start(pod, "echo", Wish::script("nc -ll -p 8081 -e cat"));
        let netns = self.containerd.network_namespace();
        let echo = |address: &str, port, text: &str| streaming::echo(&netns, address, port, text);
        self.until("echo", || echo("127.0.0.1", 8081, "?").ok());
        // No more: the server has a short queue.
        let at_once = std::thread::scope(|scope| {
            let ask = |number: usize| {
                let text = number.to_string().repeat(40_000);
                scope.spawn(move || echo("127.0.0.1", 8081, &text).is_ok_and(|said| said == text))
            };
            let asking: Vec<_> = (0..3).map(ask).collect();
            asking.into_iter().map(|asking| asking.join().unwrap()).filter(|said| *said).count()
        });
        let six = format!("{:?}", echo("::1", 8081, "six").map_err(|error| error.kind()));
        let nobody = format!("{:?}", echo("127.0.0.1", 9, "x").map_err(|error| error.kind()));
        self.see("connections at once", at_once.to_string());
        self.see("a port at ::1", six);
        self.see("a port without a server", nobody);
        self.of_id::<Nothing>("RemoveContainer", &server).unwrap();
    }

    fn ends(&mut self, pod: &Pod, main: &str) {
        let stop = |id: &str, timeout| {
            let request = StopContainerRequest { container_id: id.to_owned(), timeout };
            self.call::<Nothing>("StopContainer", &request);
            self.status(id)
        };
        let stopped = stop(main, 10);
        let again = stop(main, 10);
        let deaf = self.start(pod, "deaf", Wish::script("trap '' TERM; echo deaf; while :; do sleep 0.02; done"));
        self.until("trap", || (!self.log(pod, "deaf").is_empty()).then_some(()));
        let killed = stop(&deaf, 1);
        let failed = self.create(pod, "failed", {
            let mut wish = Wish::default();
            wish.config.command = vec!["/nosuch".to_owned()];
            wish
        });
        let refused = self.of_id::<Nothing>("StartContainer", &failed).unwrap_err();
        let failed = self.status(&failed);
        self.see("stopped", stopped);
        self.see("stopped again", again);
        self.see("stopped by force", killed);
        self.see("no such command", format!("{} {} {failed}", refused.code, refused.message.contains("/nosuch")));
        self.of_id::<Nothing>("RemoveContainer", main).unwrap();
        let running = self.start(pod, "running", Wish::script(GOOD));
        self.stop_pod(&pod.id);
        self.see("in a stopped pod", self.end(&running));
        let status: PodSandboxStatusResponse = self.of_id("PodSandboxStatus", &pod.id).unwrap();
        self.see("a stopped pod", status.status.unwrap().state.to_string());
        self.remove(pod, &[main, &deaf, &running]);
    }

    /// A pod whose containers see each other's processes, and one on the node's network.
    fn shared_namespaces(&mut self) {
        for (step, namespaces) in [
            ("one pid namespace", NamespaceOption { pid: 0, ..Default::default() }),
            ("the node's namespaces", NamespaceOption { network: 2, pid: 2, ipc: 2 }),
        ] {
            let pod = self.run_pod(&step.replace(' ', "-").replace('\'', ""), namespaces);
            // Among the node's processes are those of other tests' pods. Its beginning is a random number.
            let own = u32::from_str_radix(&pod.id[..7], 16).unwrap();
            let id = self.start(&pod, "one", Wish::script(&format!("exec sleep {own}")));
            let script = "cat /proc/1/comm; ls /sys/class/net; mkdir /sys/fs/cgroup/pids/mine";
            self.see(step, self.sh(&id, &format!("ps | grep -v grep | grep -c 'sleep {own}$'; {script}")));
            let of_pod = self.sh(&id, "ps | grep -q 'sleep 21474836[4]7'");
            self.see("the pod's first process", of_pod);
            self.stop_pod(&pod.id);
            self.see("in a stopped pod", self.end(&id));
            self.remove(&pod, &[&id]);
        }
    }

    /// As a kubelet, again and again: CNI's bridge sometimes fails over a link that has just gone by itself.
    pub fn stop_pod(&self, id: &str) {
        self.until("end of the pod", || self.of_id::<Nothing>("StopPodSandbox", id).ok());
    }

    pub fn remove(&self, pod: &Pod, containers: &[&str]) {
        self.of_id::<Nothing>("RemovePodSandbox", &pod.id).unwrap();
        for id in containers.iter().chain([&pod.id.as_str()]) {
            self.containerd.assert_nothing_left(id);
        }
    }
}
