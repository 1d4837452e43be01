//! QEMU's command line. Boot and fork have the same machine; only the source of memory and the slots' backends differ.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;

use proto::control::Accelerator;
use serde_json::{Value, json};

use super::slots::SlotNode;
use crate::guest_image::GuestImage;
use crate::machine::MachineConfig;

/// Name of the memory, the same when saving and loading.
const MEMORY_ID: &str = "memory";
/// Translated code of an emulated guest, MiB: as much as it touches becomes private memory of its QEMU. Creating a
/// container needs 39 MiB; a smaller cache is thrown away half-way, which costs a third more processor time.
const TRANSLATION_CACHE_MIB: u32 = 48;
/// Bytes of console output that are kept; a power of two.
const CONSOLE_BYTES: u32 = 64 * 1024;
/// Name of the console's character device.
pub(super) const CONSOLE_ID: &str = "console";
/// PCI device numbers on the root bus, fixed so that the guest finds its slots in order.
const PORT_ADDRESS: u32 = 2;
const FIRST_DISK_ADDRESS: u32 = 3;

/// A command line under construction, and the descriptors that it names.
#[derive(Debug)]
pub(super) struct Arguments {
    list: Vec<OsString>,
    descriptors: Vec<OwnedFd>,
    /// Whether there is nothing behind each slot.
    bare: Vec<bool>,
}

impl Arguments {
    /// The parts that are always the same.
    pub(super) fn new(accelerator: Accelerator, config: &MachineConfig) -> Self {
        let mut arguments = Self { list: Vec::new(), descriptors: Vec::new(), bare: Vec::new() };
        arguments.flags("-nodefaults -no-user-config -display none -S -no-reboot -no-shutdown");
        arguments.flags("-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        let machine = "q35,sata=off,smbus=off,usb=off,i8042=off,hpet=off,vmport=off,smm=off,mem-merge=off,\
                       dump-guest-core=off,memory-backend=";
        arguments.pair("-machine", format!("{machine}{MEMORY_ID}"));
        match accelerator {
            Accelerator::Kvm => arguments.flags("-accel kvm -cpu host"),
            Accelerator::Tcg => {
                let thread = if config.vcpus() == 1 { "single" } else { "multi" };
                arguments.pair("-accel", format!("tcg,thread={thread},tb-size={TRANSLATION_CACHE_MIB}"));
                // Without 5-level page tables (slower walks), nested virtualization (needless surface), and the "fast
                // string" features, for which a guest clears pages byte by byte: emulated, that makes a page fault
                // three times as slow.
                arguments.pair("-cpu", "max,-la57,-svm,-erms,-fsrm".into());
            }
        }
        arguments.pair("-smp", config.vcpus().to_string());
        arguments.pair("-m", format!("{}M", config.memory_bytes() >> 20));
        arguments.pair("-chardev", format!("ringbuf,id={CONSOLE_ID},size={CONSOLE_BYTES}"));
        arguments.pair("-serial", format!("chardev:{CONSOLE_ID}"));
        arguments
    }

    /// Whether there is nothing behind each slot. Shape: slot 0 first.
    pub(super) fn bare_slots(&self) -> Vec<bool> {
        self.bare.clone()
    }

    /// The list for exec, and the descriptors to keep open.
    pub(super) fn into_parts(self) -> (Vec<OsString>, Vec<OwnedFd>) {
        (self.list, self.descriptors)
    }

    /// The guest's end of the port, and QEMU's end of QMP.
    pub(super) fn sockets(&mut self, port: OwnedFd, control: OwnedFd) {
        let port = self.inherit(port);
        self.pair("-chardev", format!("socket,id=port,fd={port}"));
        let address = format!("{PORT_ADDRESS:#x}");
        self.json(
            "-device",
            &json!({"driver": "virtio-serial-pci", "id": "ports", "max_ports": 2,
            "addr": address, "disable-legacy": "on"}),
        );
        // As JSON too: QEMU makes all devices in that form after all others.
        self.json(
            "-device",
            &json!({"driver": "virtserialport", "chardev": "port", "nr": 1, "name": "dev.bulkhead.gcs"}),
        );
        let control = self.inherit(control);
        self.pair("-chardev", format!("socket,id=control,fd={control}"));
        self.flags("-mon chardev=control,mode=control");
    }

    /// Memory for a boot: what the guest writes is in the file.
    pub(super) fn shared_memory(&mut self, memory: File, config: &MachineConfig) {
        let path = self.inherited_path(memory.into());
        self.json(
            "-object",
            &json!({"qom-type": "memory-backend-file", "id": MEMORY_ID, "mem-path": path,
            "size": config.memory_bytes(), "share": true, "prealloc": false}),
        );
    }

    /// Memory for a fork: the file's, copied on write.
    pub(super) fn private_memory(&mut self, memory: File, config: &MachineConfig, read_only_file: bool) {
        let path = self.inherited_path(memory.into());
        let mut object = json!({"qom-type": "memory-backend-file", "id": MEMORY_ID, "mem-path": path,
            "size": config.memory_bytes(), "share": false, "prealloc": false});
        if read_only_file {
            object["readonly"] = json!(true);
            object["rom"] = json!("off");
        }
        self.json("-object", &object);
    }

    /// What to boot. A fork has none of it: its guest has left the firmware and the kernel's image behind.
    ///
    /// Shape: `about_host` are words of the kernel's command line that tell it of this host, and belong to no configuration.
    pub(super) fn kernel(&mut self, image: &GuestImage, config: &MachineConfig, about_host: &str) {
        self.list.extend(["-kernel".into(), image.kernel().into(), "-initrd".into(), image.initramfs().into()]);
        let line = format!("{} {about_host}", config.kernel_command_line());
        self.pair("-append", line.trim_end().to_owned());
    }

    /// The state to load, when told to. Returns the descriptor's number for `migrate-incoming`.
    pub(super) fn incoming(&mut self, state: File) -> RawFd {
        self.flags("-incoming defer");
        self.inherit(state.into())
    }

    /// The disk slots with these nodes behind them.
    pub(super) fn slots(&mut self, nodes: Vec<SlotNode>) {
        for node in nodes {
            self.bare.push(node.is_nothing());
            let (slot, disk) = (node.slot(), node.disk());
            for (set, descriptor) in node.descriptors {
                let number = self.inherit(descriptor);
                self.pair("-add-fd", format!("fd={number},set={set}"));
            }
            self.json("-blockdev", &node.backing);
            self.json("-blockdev", &disk);
            let address = format!("{:#x}", FIRST_DISK_ADDRESS + slot);
            self.json(
                "-device",
                &json!({"driver": "virtio-blk-pci", "id": format!("slot{slot}"),
                "drive": disk["node-name"], "addr": address, "disable-legacy": "on"}),
            );
        }
    }

    /// The network slots with these taps behind them, slot 0 first. The guest learns its true hardware address when it is
    /// personalized, so nobody is told about the one that the machine has.
    pub(super) fn network(&mut self, taps: Vec<OwnedFd>, config: &MachineConfig) {
        let first_address = FIRST_DISK_ADDRESS + config.disk_slots();
        for (slot, tap) in (0..).zip(taps) {
            let number = self.inherit(tap);
            self.pair("-netdev", format!("tap,id=net{slot},fd={number},vhost=off"));
            let address = format!("{:#x}", first_address + slot);
            self.json(
                "-device",
                &json!({"driver": "virtio-net-pci", "id": format!("nic{slot}"), "netdev": format!("net{slot}"),
                "addr": address, "romfile": "", "disable-legacy": "on", "guest_announce": false,
                // What is not for the guest does not come this far, so nobody tells the device what to let through: each
                // word on this queue is a wait for QEMU's main thread, a start would have some ten.
                "ctrl_vq": false, "ctrl_rx": false, "ctrl_rx_extra": false, "ctrl_vlan": false, "ctrl_mac_addr": false,
                "ctrl_guest_offloads": false}),
            );
        }
    }

    fn inherited_path(&mut self, descriptor: OwnedFd) -> PathBuf {
        format!("/proc/self/fd/{}", self.inherit(descriptor)).into()
    }

    fn inherit(&mut self, descriptor: OwnedFd) -> RawFd {
        let number = descriptor.as_raw_fd();
        self.descriptors.push(descriptor);
        number
    }

    fn flags(&mut self, words: &str) {
        self.list.extend(words.split(' ').map(OsString::from));
    }

    fn pair(&mut self, flag: &str, value: String) {
        self.list.extend([flag.into(), value.into()]);
    }

    fn json(&mut self, flag: &str, value: &Value) {
        self.pair(flag, value.to_string());
    }
}
