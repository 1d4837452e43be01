//! QEMU without anything of ours but the guest's kernel: what emulation alone leaves of a network.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_e2e::{HostNetwork, TestHost, archive, eventually};
use cpio::newc::{Builder, ModeFileType, trailer};

use super::{PORT, iperf_files, output};

/// The machine's, where its tap is on its host.
const ADDRESS: &str = "10.177.0.2";
const HOST_ADDRESS: &str = "10.177.0.1/24";
const TAP: &str = "plain0";
const MAC: &str = "52:54:00:12:34:56";
/// The host's end of the link to a machine in a container's place.
const LINK: &str = "bench-plain";
/// As the rules of a container's namespace call it.
const PLACES_TAP: &str = "nic0";
/// As a utility VM's kernel.
const CLOCK: &str = "tsc=reliable clocksource=tsc no_timer_check mitigations=off";

/// In the place of the guest compute service: modules, an address, a server.
const INIT: &str = "#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for name in $($b cat /modules/order); do $b insmod /modules/$name.ko; done
$b ip link set lo up
address=$($b sed -n 's/.*plain.address=\\([^ ]*\\).*/\\1/p' /proc/cmdline)
$b ip address add $address dev eth0
$b ip link set eth0 up
exec /usr/bin/iperf3 -s
";

/// A running machine.
pub struct PlainMachine<'a> {
    /// Where its tap is.
    network: HostNetwork,
    /// Whose network it is on, if not its own namespace's.
    host: Option<&'a TestHost>,
    address: String,
    machine: Option<Child>,
}

impl<'a> PlainMachine<'a> {
    /// Boots one whose tap is in a network namespace of its own, which is its host.
    pub fn on_a_host(folder: &Path) -> anyhow::Result<Self> {
        let this = Self { network: HostNetwork::make()?, host: None, address: ADDRESS.into(), machine: None };
        let network = [
            format!("tuntap add {TAP} mode tap"),
            format!("address add {HOST_ADDRESS} dev {TAP}"),
            format!("link set {TAP} up"),
        ];
        this.carry_out(&network)?;
        this.boot(folder, "host", &format!("{ADDRESS}/24"), MAC)
    }

    /// Boots one whose tap has the place that a hyperv container's has: the same links and bridges up to the host, and the same rules.
    pub fn in_a_containers_place(folder: &Path, host: &'a TestHost) -> anyhow::Result<Self> {
        let place = Place::of_a_container(host)?;
        let this =
            Self { network: HostNetwork::make()?, host: Some(host), address: place.address.clone(), machine: None };
        let path = this.network.path();
        let holder = path.iter().nth(2).and_then(|name| name.to_str()).context("a namespace without a process")?;
        for words in [
            format!("link add {LINK} type veth peer name eth0 netns {holder}"),
            format!("link set {LINK} master {} up", place.bridge),
        ] {
            output(host.on_host("ip").args(words.split(' ')))?;
        }
        let network = [
            "link add br0 type bridge mcast_snooping 0".to_owned(),
            "link set br0 up".to_owned(),
            "link set eth0 master br0 up".to_owned(),
            format!("tuntap add {PLACES_TAP} mode tap"),
            format!("link set {PLACES_TAP} master br0 up"),
        ];
        this.carry_out(&network)?;
        let rules = folder.join("plain-rules.nft");
        std::fs::write(&rules, &place.rules)?;
        output(this.network.command("nft").arg("-f").arg(&rules))?;
        this.boot(folder, "place", &format!("{}/{}", place.address, place.prefix), &place.mac)
    }

    fn carry_out(&self, changes: &[String]) -> anyhow::Result<()> {
        changes.iter().try_for_each(|words| output(self.network.command("ip").args(words.split(' '))).map(drop))
    }

    /// Waits until its server listens. `folder` takes its initramfs and its log.
    fn boot(mut self, folder: &Path, name: &str, address: &str, mac: &str) -> anyhow::Result<Self> {
        let guest_image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/boot");
        let initramfs = folder.join("plain-initramfs.cpio");
        let ours = std::fs::read(guest_image.join("initramfs.cpio")).context("no guest image: make build makes it")?;
        // Of two archives behind each other the second one's files count.
        std::fs::write(&initramfs, [ours, overlay()?].concat())?;
        let log = folder.join(format!("plain-{name}.log"));
        let tap = if self.host.is_some() { PLACES_TAP } else { TAP };
        let device = (tap, address, mac);
        self.machine = Some(self.qemu(&guest_image, &initramfs, &log, device)?);
        let listens = || output(self.on_host("iperf3").args(["-c", &self.address, "-p", PORT, "-n", "1K"])).is_ok();
        ensure!(
            eventually(Duration::from_secs(60), listens),
            "the plain machine does not answer; see {}",
            log.display()
        );
        Ok(self)
    }

    /// The processor, cache and devices are those of a utility VM.
    fn qemu(
        &self,
        guest_image: &Path,
        initramfs: &Path,
        log: &Path,
        (tap, address, mac): (&str, &str, &str),
    ) -> anyhow::Result<Child> {
        let mut qemu = self.network.command("qemu-system-x86_64");
        qemu.args("-nodefaults -no-user-config -display none -machine q35,sata=off,usb=off".split(' '));
        qemu.args("-accel tcg,thread=single,tb-size=48 -cpu max,-la57,-svm,-erms,-fsrm -m 1024M".split(' '));
        qemu.arg("-kernel").arg(guest_image.join("vmlinux")).arg("-initrd").arg(initramfs);
        qemu.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 {CLOCK} plain.address={address}"));
        qemu.arg("-serial").arg(format!("file:{}", log.display()));
        qemu.arg("-netdev").arg(format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost=off"));
        qemu.arg("-device").arg(format!("virtio-net-pci,netdev=net,mac={mac},disable-legacy=on,romfile="));
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log.with_extension("qemu"))?);
        qemu.spawn().context("qemu-system-x86_64 does not start")
    }

    /// A program on its host.
    pub fn on_host(&self, program: &str) -> Command {
        self.host.map_or_else(|| self.network.command(program), |host| host.on_host(program))
    }

    /// The machine's address.
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// What a hyperv container's tap has around it, for a machine with another address.
struct Place {
    bridge: String,
    mac: String,
    address: String,
    prefix: u64,
    rules: String,
}

impl Place {
    fn of_a_container(host: &TestHost) -> anyhow::Result<Self> {
        let docker = |words: &[&str]| output(&mut host.docker_command(words));
        let bridge = "{{index .Options \"com.docker.network.bridge.name\"}}";
        let bridge = docker(&["network", "inspect", "-f", bridge, "bridge"])?;
        let id = docker(&["run", "-d", "--isolation=hyperv", bulkhead_e2e::IMAGE, "sleep", "1000"])?;
        let endpoint = host.inspect(&id)["NetworkSettings"]["Networks"]["bridge"].clone();
        let field = |name: &str| endpoint[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
        let (own, mac) = (field("IPAddress")?, field("MacAddress")?);
        let namespace = host.folder().join("run/n").join(id.get(..12).context("a short id")?);
        let mut list = Command::new("nsenter");
        list.arg(format!("--net={}", namespace.display())).args(["--", "nft", "list", "ruleset"]);
        let rules = output(&mut list)?;
        docker(&["rm", "-f", &id])?;
        // Far from those that containers get.
        let network: Vec<&str> = own.split('.').take(2).collect();
        let address = format!("{}.200.200", network.join("."));
        ensure!(rules.contains(&own) && rules.contains(&mac), "no guard in: {rules}");
        let rules = rules.replace(&own, &address);
        let prefix =
            endpoint["IPPrefixLen"].as_u64().filter(|prefix| *prefix <= 16).context("a small default network")?;
        Ok(Self { bridge, mac, address, prefix, rules })
    }
}

impl Drop for PlainMachine<'_> {
    fn drop(&mut self) {
        // nsenter(1) executes its program in place.
        if let Some(machine) = &mut self.machine
            && let Err(error) = machine.kill().and_then(|()| machine.wait())
        {
            eprintln!("the plain machine was not ended: {error}");
        }
    }
}

/// What is laid over the guest image's own archive.
fn overlay() -> anyhow::Result<Vec<u8>> {
    let busybox = archive::busybox().context("busybox-static is missing")?;
    let mut files = iperf_files()?;
    files.push(("/bin/busybox".into(), std::fs::read(busybox)?));
    files.push(("/init".into(), INIT.as_bytes().to_vec()));
    let mut bytes = Vec::new();
    let mut made = vec![PathBuf::from("/")];
    for (path, content) in files {
        let mut folders: Vec<&Path> = Path::new(&path).ancestors().skip(1).collect();
        folders.reverse();
        for folder in folders {
            if !made.iter().any(|known| known == folder) {
                add(&mut bytes, folder, ModeFileType::Directory, &[])?;
                made.push(folder.to_owned());
            }
        }
        add(&mut bytes, Path::new(&path), ModeFileType::Regular, &content)?;
    }
    Ok(trailer(bytes)?)
}

fn add(bytes: &mut Vec<u8>, path: &Path, kind: ModeFileType, content: &[u8]) -> anyhow::Result<()> {
    use std::io::Write;
    let name = path.to_str().context("a path that is no text")?.trim_start_matches('/');
    let entry = Builder::new(name).mode(0o755).set_mode_file_type(kind);
    let mut writer = entry.write(std::mem::take(bytes), u32::try_from(content.len())?);
    writer.write_all(content)?;
    *bytes = writer.finish()?;
    Ok(())
}
