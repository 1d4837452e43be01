//! Containers in a network namespace that somebody else has made and furnished, as containerd's CNI plugins do.

#![allow(clippy::unwrap_used, reason = "this is test code, which clippy knows only of functions marked as tests")]

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxNamespaceType, MountBuilder};
use proto::{ErrorKind, Isolation};
use support::*;

const MAC: &str = "02:42:0a:58:00:02";

/// Two namespaces: one that stands for a node and what is beyond, and the one that a plugin has furnished.
struct Cni {
    node: String,
    pod: String,
    server: Option<Child>,
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What a plugin gives a pod.
#[derive(Clone, Copy)]
enum Plugin {
    /// An address of the node's subnet, and a gateway on it.
    Bridge,
    /// As Calico: no subnet, and a gateway that is a neighbour by a route of its own.
    PointToPoint,
    /// As the plugin `ptp` on GKE: an address of a subnet that is reached by the gateway.
    SubnetByGateway,
}

impl Plugin {
    /// What `ip` is told on the node and in the pod.
    fn words(self, node: &str, pod: &str) -> Vec<String> {
        let (on_node, in_pod): (&[&str], &[&str]) = match self {
            Self::Bridge => (
                &["address add 10.88.0.1/24 dev host0"],
                &["address add 10.88.0.2/24 dev eth0", "link set eth0 up", "route add default via 10.88.0.1"],
            ),
            Self::PointToPoint => (
                &["address add 169.254.1.1/32 dev host0", "route add 10.88.0.2/32 dev host0"],
                &[
                    "address add 10.88.0.2/32 dev eth0",
                    "link set eth0 up",
                    "route add 169.254.1.1 dev eth0 scope link",
                    "route add default via 169.254.1.1 dev eth0 metric 5",
                ],
            ),
            Self::SubnetByGateway => (
                &["address add 10.88.0.1/32 dev host0", "route add 10.88.0.2/32 dev host0"],
                &[
                    "address add 10.88.0.2/24 dev eth0",
                    "link set eth0 up",
                    "route delete 10.88.0.0/24 dev eth0",
                    "route add 10.88.0.1 dev eth0 scope link src 10.88.0.2",
                    "route add 10.88.0.0/24 via 10.88.0.1 dev eth0 src 10.88.0.2",
                    "route add 10.99.0.0/16 via 10.88.0.1",
                    "route add default via 172.31.0.9 dev eth0 onlink metric 9",
                ],
            ),
        };
        let told =
            |namespace: &str, words: &[&str]| words.iter().map(|words| format!("-n {namespace} {words}")).collect();
        let told: [Vec<String>; 2] = [told(node, on_node), told(pod, in_pod)];
        told.concat()
    }
}

impl Cni {
    fn furnish(name: &str, plugin: Plugin) -> Self {
        let [node, pod] = ["bhn", "bhp"].map(|kind| own_name(&format!("{kind}-{name}-")));
        let mut this = Self { node, pod, server: None };
        let (node, pod) = (&this.node, &this.pod);
        ip(&format!("netns add {node}"));
        ip(&format!("netns add {pod}"));
        ip(&format!("-n {node} link add host0 type veth peer name eth0 address {MAC} mtu 1400 netns {pod}"));
        for words in [
            // The address beyond the gateway is reached by a route only.
            format!("-n {node} address add 10.99.0.1/32 dev lo"),
            format!("-n {node} link set lo up"),
            format!("-n {node} link set host0 mtu 1400 up"),
        ] {
            ip(&words);
        }
        plugin.words(node, pod).iter().for_each(|words| ip(words));
        let server = this.on_node("busybox nc -ll -p 7 -e /bin/echo beyond the gateway").spawn().unwrap();
        this.server = Some(server);
        this
    }

    fn on_node(&self, words: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.node]).args(words.split(' '));
        command.stdin(Stdio::null());
        command
    }

    fn in_pod(&self, words: &str) -> String {
        let output = Command::new("ip").args(["-n", &self.pod]).args(words.split(' ')).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The pod's interface as it is.
    fn interface(&self) -> String {
        self.in_pod("link show dev eth0") + &self.in_pod("-4 address show dev eth0")
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.pod)
    }

    /// A container there, with a file of names as a container engine gives it.
    fn setup(&self, isolation: Isolation, script: &str, names: &std::path::Path) -> Setup {
        let mut setup = Setup { isolation, ..Setup::process(&["sh", "-c", script]) };
        let mut linux = setup.spec.linux().clone().unwrap();
        let mut namespaces = linux.namespaces().clone().unwrap();
        for namespace in namespaces.iter_mut().filter(|namespace| namespace.typ() == LinuxNamespaceType::Network) {
            namespace.set_path(Some(self.path()));
        }
        linux.set_namespaces(Some(namespaces));
        setup.spec.set_linux(Some(linux));
        let mut mounts = setup.spec.mounts().clone().unwrap();
        let bind = MountBuilder::default().source(names).destination("/etc/resolv.conf").typ("bind");
        mounts.push(bind.options(vec!["rbind".to_owned(), "ro".to_owned()]).build().unwrap());
        setup.spec.set_mounts(Some(mounts));
        setup
    }

    /// What the container serves to the node.
    fn fetch(&self) -> String {
        let begin = Instant::now();
        loop {
            let output = self.on_node("busybox nc -w 2 10.88.0.2 80").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if !text.is_empty() || begin.elapsed() > Duration::from_secs(20) {
                return text;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Cni {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
        for name in [&self.node, &self.pod] {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

fn ready() -> bool {
    let has_ip = Command::new("ip").arg("-V").output().is_ok();
    if !has_ip {
        skip("needs ip: apt-get install iproute2");
    }
    has_ip && can_run()
}

/// Its own look at its network, a word from beyond the gateway, and a word for who asks.
const SCRIPT: &str = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu /etc/resolv.conf
busybox nc -w 5 10.99.0.1 7
busybox nc -l -p 80 -e /bin/echo served";

async fn is_reached_and_reaches(isolation: Isolation, name: &str, plugin: Plugin) {
    let cni = Cni::furnish(name, plugin);
    let folder = tempfile::tempdir().unwrap();
    let names = folder.path().join("resolv.conf");
    std::fs::write(&names, "nameserver 10.99.0.53\n").unwrap();
    let before = cni.interface();
    // Twice: what the first one leaves must serve the second.
    for _ in 0..2 {
        let mut shim = Fixture::new(cni.setup(isolation, SCRIPT, &names)).await;
        let pipes = shim.pipes(false);
        shim.run(&pipes).await;
        let out = pipes.output();
        assert_eq!(cni.fetch(), "served\n", "{}", shim.log());
        assert_eq!(shim.wait("").await, 0, "{}", shim.log());
        let said = String::from_utf8_lossy(&read_all(out).await).into_owned();
        assert_eq!(said, format!("{MAC}\n1400\nnameserver 10.99.0.53\nbeyond the gateway\n"), "{}", shim.log());
        shim.finish().await;
        assert_eq!(cni.interface(), before, "the namespace is as it was");
        assert_eq!(cni.in_pod("-o link show").lines().count(), 2, "{}", cni.in_pod("link show"));
    }
}

#[tokio::test]
async fn a_process_container_is_in_a_namespace_of_cnis() {
    if ready() {
        is_reached_and_reaches(Isolation::Process, "p", Plugin::Bridge).await;
    }
}

#[tokio::test]
async fn a_utility_vm_has_the_network_of_a_namespace_of_cnis() {
    if ready() && guest_image().is_some() {
        is_reached_and_reaches(Isolation::Hyperv, "h", Plugin::Bridge).await;
    }
}

#[tokio::test]
async fn a_utility_vm_has_a_gateway_that_is_on_no_subnet() {
    if ready() && guest_image().is_some() {
        is_reached_and_reaches(Isolation::Hyperv, "c", Plugin::PointToPoint).await;
    }
}

#[tokio::test]
async fn a_utility_vm_reaches_its_own_subnet_by_a_gateway() {
    if ready() && guest_image().is_some() {
        is_reached_and_reaches(Isolation::Hyperv, "g", Plugin::SubnetByGateway).await;
    }
}

#[tokio::test]
async fn a_utility_vm_is_refused_what_it_cannot_have_and_a_killed_shim_gives_back() {
    if !ready() || guest_image().is_none() {
        return;
    }
    let cni = Cni::furnish("k", Plugin::Bridge);
    let folder = tempfile::tempdir().unwrap();
    let names = folder.path().join("resolv.conf");
    std::fs::write(&names, "").unwrap();
    let before = cni.interface();
    ip(&format!("-n {} route add blackhole 10.77.0.0/16", cni.pod));
    let mut shim = Fixture::new(cni.setup(Isolation::Hyperv, "true", &names)).await;
    let pipes = shim.pipes(false);
    let error = shim.create(&pipes).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotImplemented, "{error}");
    assert!(error.to_string().contains("the route 10.77.0.0/16"), "{error}");
    assert_eq!(cni.interface(), before);
    let _ = shim.delete("").await;
    shim.shut_down(false).await;
    ip(&format!("-n {} route delete blackhole 10.77.0.0/16", cni.pod));

    let mut shim = Fixture::new(cni.setup(Isolation::Hyperv, "sleep 1000", &names)).await;
    let pipes = shim.pipes(false);
    shim.run(&pipes).await;
    assert_ne!(cni.interface(), before, "its hardware address is the guest's");
    shim.shim.kill().unwrap();
    shim.shim.wait().unwrap();
    assert_eq!(shim.delete_after_crash().exit_status, 137);
    shim.assert_nothing_left();
    assert_eq!(cni.interface(), before);
}
