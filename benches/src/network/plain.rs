//! QEMU without anything of ours but the guest's kernel: what emulation alone leaves of a network.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_e2e::{HostNetwork, archive, eventually};
use cpio::newc::{Builder, ModeFileType, trailer};

use super::{PORT, iperf_files, output};

/// The machine's.
pub const ADDRESS: &str = "10.177.0.2";
const HOST_ADDRESS: &str = "10.177.0.1/24";
const TAP: &str = "plain0";

/// In the place of the guest compute service: modules, an address, a server.
const INIT: &str = "#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for name in $($b cat /modules/order); do $b insmod /modules/$name.ko; done
$b ip link set lo up
$b ip address add 10.177.0.2/24 dev eth0
$b ip link set eth0 up
exec /usr/bin/iperf3 -s
";

/// A running machine, its tap in a network namespace of its own, which is its host.
pub struct PlainMachine {
    network: HostNetwork,
    machine: Option<Child>,
}

impl PlainMachine {
    /// Boots it, and waits until its server listens. `folder` takes its initramfs and its log.
    pub fn boot(folder: &Path) -> anyhow::Result<Self> {
        let guest_image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/boot");
        let initramfs = folder.join("plain-initramfs.cpio");
        let ours = std::fs::read(guest_image.join("initramfs.cpio")).context("no guest image: make build makes it")?;
        // Of two archives behind each other the second one's files count.
        std::fs::write(&initramfs, [ours, overlay()?].concat())?;
        let mut this = Self { network: HostNetwork::make()?, machine: None };
        let wait = |condition: &dyn Fn() -> bool| eventually(Duration::from_secs(60), condition);
        for words in [
            format!("tuntap add {TAP} mode tap"),
            format!("address add {HOST_ADDRESS} dev {TAP}"),
            format!("link set {TAP} up"),
        ] {
            output(this.on_host("ip").args(words.split(' ')))?;
        }
        let log = folder.join("plain-console.log");
        this.machine = Some(this.qemu(&guest_image, &initramfs, &log)?);
        let listens = || output(this.on_host("iperf3").args(["-c", ADDRESS, "-p", PORT, "-n", "1K"])).is_ok();
        ensure!(wait(&listens), "the plain machine does not answer; see {}", log.display());
        Ok(this)
    }

    /// The processor, cache and devices are those of a utility VM.
    fn qemu(&self, guest_image: &Path, initramfs: &Path, log: &Path) -> anyhow::Result<Child> {
        let mut qemu = self.on_host("qemu-system-x86_64");
        qemu.args("-nodefaults -no-user-config -display none -machine q35,sata=off,usb=off".split(' '));
        qemu.args("-accel tcg,thread=single,tb-size=48 -cpu max,-la57,-svm,-erms,-fsrm -m 1024M".split(' '));
        qemu.arg("-kernel").arg(guest_image.join("vmlinux")).arg("-initrd").arg(initramfs);
        qemu.args(["-append", "console=ttyS0 quiet panic=-1"]).arg("-serial").arg(format!("file:{}", log.display()));
        qemu.arg("-netdev").arg(format!("tap,id=net,ifname={TAP},script=no,downscript=no,vhost=off"));
        qemu.args(["-device", "virtio-net-pci,netdev=net,disable-legacy=on,romfile="]);
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log.with_extension("qemu"))?);
        qemu.spawn().context("qemu-system-x86_64 does not start")
    }

    /// A program on its host.
    pub fn on_host(&self, program: &str) -> Command {
        self.network.command(program)
    }
}

impl Drop for PlainMachine {
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
