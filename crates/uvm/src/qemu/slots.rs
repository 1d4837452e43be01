//! What is behind a machine's disk slots, as QEMU's block nodes.
//!
//! ```text
//! virtio-blk "slot1" ── node "disk1" (raw, always there) ── node "backing1-0" (a file, packed layers, or nothing)
//!                                                    └─ rebind ─▶ "backing1-1"
//! ```
//!
//! The guest's device belongs to the upper node, which stays; what is under it can be exchanged in a running machine.
//! QEMU gets all files as descriptors, in numbered sets: it could not open them by name, and must not.
//!
//! Source: QEMU QMP Reference Manual, "blockdev-add", "blockdev-reopen", "add-fd".

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd as _, OwnedFd};

use proto::control::DiskRates;
use rustix::fs::MemfdFlags;
use serde_json::{Value, json};

use crate::disk::{DiskError, PackedDisk, SlotDisk};
use crate::hypervisor::{SlotBinding, SlotBindings};
use crate::machine::{MachineConfig, NOMINAL_DISK_BYTES};
use crate::slots;

/// Numbers of descriptor sets that one generation of backings may use.
const SETS_PER_GENERATION: u32 = 1000;

/// A slot with what is behind it.
#[derive(Debug)]
pub(super) struct SlotNode {
    slot: u32,
    /// The lower node; it names the sets of `descriptors`.
    pub(super) backing: Value,
    /// The set's number and the open file to put into it.
    pub(super) descriptors: Vec<(u32, OwnedFd)>,
    generation: u32,
    read_only: bool,
}

impl SlotNode {
    /// The upper node, leading to this backing.
    pub(super) fn disk(&self) -> Value {
        json!({"driver": "raw", "node-name": disk_name(self.slot), "file": backing_name(self.slot, self.generation),
            "read-only": self.read_only, "discard": "unmap"})
    }

    /// Which generation the lower node is of.
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// There is nothing behind the slot.
    pub(super) fn is_nothing(&self) -> bool {
        self.descriptors.is_empty()
    }

    /// The slot's number.
    pub(super) fn slot(&self) -> u32 {
        self.slot
    }
}

/// Name of a slot's upper node.
pub(super) fn disk_name(slot: u32) -> String {
    format!("disk{slot}")
}

/// Name of a slot's lower node in one generation.
pub(super) fn backing_name(slot: u32, generation: u32) -> String {
    format!("backing{slot}-{generation}")
}

/// True for the descriptor sets of one generation.
pub(super) fn is_of_generation(set: u64, generation: u32) -> bool {
    set / u64::from(SETS_PER_GENERATION) == u64::from(generation)
}

/// All slots with nothing behind them.
pub(super) fn empty(config: &MachineConfig, generation: u32) -> Vec<SlotNode> {
    let mut sets = Sets::new(config, generation);
    (0..config.disk_slots()).map(|slot| sets.node(slot, Backing::Nothing)).collect()
}

/// All slots, those of the bindings with their disks behind them. Opens the disks.
pub(super) fn bound(
    config: &MachineConfig,
    bindings: &SlotBindings,
    generation: u32,
) -> Result<Vec<SlotNode>, DiskError> {
    let mut disks = slots::open(bindings)?.into_iter();
    let mut sets = Sets::new(config, generation);
    (0..config.disk_slots()).map(|slot| sets.bound(slot, disks.next().flatten())).collect()
}

/// One slot. Opens its disks.
pub(super) fn bound_one(
    config: &MachineConfig,
    slot: u32,
    binding: &SlotBinding,
    generation: u32,
) -> Result<SlotNode, DiskError> {
    Sets::new(config, generation).bound(slot, slots::open_one(binding)?)
}

/// A lower node, not named yet.
enum Backing {
    Nothing,
    Node(Value),
}

/// The arguments that limit one slot's device. All slots share one group of limits.
///
/// Source: QEMU QMP Reference Manual, "block_set_io_throttle"; docs/throttle.txt.
pub(super) fn throttle(slot: u32, rates: DiskRates) -> Value {
    let rate = |rate: Option<NonZeroU64>| rate.map_or(0, NonZeroU64::get);
    json!({"id": format!("/machine/peripheral/slot{slot}/virtio-backend"), "group": "disks", "bps": 0, "iops": 0,
        "bps_rd": rate(rates.read_bytes), "bps_wr": rate(rates.write_bytes),
        "iops_rd": rate(rates.read_requests), "iops_wr": rate(rates.write_requests)})
}

/// Hands out numbers of descriptor sets, and keeps the descriptors of the node that is being described.
struct Sets<'a> {
    config: &'a MachineConfig,
    generation: u32,
    next: u32,
    descriptors: Vec<(u32, OwnedFd)>,
}

impl<'a> Sets<'a> {
    fn new(config: &'a MachineConfig, generation: u32) -> Self {
        Self { config, generation, next: generation * SETS_PER_GENERATION, descriptors: Vec::new() }
    }

    /// The name by which QEMU opens this descriptor.
    fn add(&mut self, descriptor: OwnedFd) -> String {
        let set = self.next;
        self.next += 1;
        self.descriptors.push((set, descriptor));
        format!("/dev/fdset/{set}")
    }

    fn bound(&mut self, slot: u32, disk: Option<SlotDisk>) -> Result<SlotNode, DiskError> {
        let backing = match disk {
            None => Backing::Nothing,
            Some(SlotDisk::Plain { disk, read_only }) => {
                let is_unnamed = disk.is_unnamed;
                let path = self.add(disk.file.into());
                let mut file = json!({"driver": "file", "filename": path, "read-only": read_only, "discard": "unmap"});
                if is_unnamed {
                    // To exchange it flushes it, too, which takes the host's disk some 10 ms.
                    file["cache"] = json!({"no-flush": true});
                }
                Backing::Node(file)
            }
            Some(SlotDisk::Packed(packed)) => Backing::Node(packed_backing(&packed, self)?),
        };
        Ok(self.node(slot, backing))
    }

    fn node(&mut self, slot: u32, backing: Backing) -> SlotNode {
        let read_only = !self.config.is_writable(slot);
        let mut backing = match backing {
            Backing::Node(backing) => backing,
            Backing::Nothing => json!({"driver": "null-co", "size": NOMINAL_DISK_BYTES, "read-zeroes": true,
                "read-only": read_only}),
        };
        backing["node-name"] = json!(backing_name(slot, self.generation));
        let descriptors = std::mem::take(&mut self.descriptors);
        SlotNode { slot, backing, descriptors, generation: self.generation, read_only }
    }
}

fn packed_backing(packed: &PackedDisk, sets: &mut Sets<'_>) -> Result<Value, DiskError> {
    let mut names = vec![in_memory("head", &packed.head, sets)?];
    for layer in &packed.layers {
        names.push(sets.add(layer.file.try_clone().map_err(DiskError::Pack)?.into()));
    }
    names.push(in_memory("tail", &packed.tail, sets)?);
    let descriptor = in_memory("descriptor", packed.descriptor(&names).as_bytes(), sets)?;
    let file = json!({"driver": "file", "filename": descriptor, "read-only": true});
    Ok(json!({"driver": "vmdk", "read-only": true, "file": file}))
}

/// Puts generated bytes where QEMU can open them, with nothing left on disk.
fn in_memory(name: &str, bytes: &[u8], sets: &mut Sets<'_>) -> Result<String, DiskError> {
    let make = || -> io::Result<File> {
        let mut file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
        file.write_all(bytes)?;
        file.rewind()?;
        // QEMU matches a descriptor's access mode with the one it wants.
        File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
    };
    Ok(sets.add(make().map_err(DiskError::Pack)?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DiskBinding;

    fn file(folder: &tempfile::TempDir, name: &str) -> std::path::PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, vec![0; 4096]).unwrap();
        path
    }

    fn config() -> MachineConfig {
        MachineConfig::for_request(proto::control::Accelerator::Tcg, None, None).unwrap()
    }

    #[test]
    fn every_slot_has_two_nodes_and_no_set_is_used_twice() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = DiskBinding { path: file(&folder, "scratch"), read_only: false };
        let bindings = |layers: usize| SlotBindings {
            scratch: Some(scratch.clone()),
            layers: (0..layers).map(|n| file(&folder, &n.to_string())).collect(),
            rates: DiskRates::default(),
        };
        for (layers, drivers) in
            [(1, ["file", "file", "null-co", "null-co"]), (5, ["file", "vmdk", "null-co", "null-co"])]
        {
            let mut seen = std::collections::BTreeSet::new();
            for generation in [0, 1] {
                let nodes = bound(&config(), &bindings(layers), generation).unwrap();
                assert_eq!(
                    nodes.iter().map(|node| node.backing["driver"].as_str().unwrap()).collect::<Vec<_>>(),
                    drivers
                );
                for node in &nodes {
                    assert_eq!(node.disk()["file"], node.backing["node-name"]);
                    assert_eq!(node.disk()["read-only"], node.slot() != 0);
                    assert_eq!(node.backing["read-only"], node.slot() != 0);
                    for (set, _) in &node.descriptors {
                        assert!(seen.insert(*set), "set {set} twice");
                    }
                }
            }
            // scratch and layers; the packed disk has head, tail and descriptor besides.
            let packed = if layers == 5 { 3 } else { 0 };
            assert_eq!(seen.len(), 2 * (1 + layers + packed));
        }
    }

    #[test]
    fn what_is_lost_with_its_process_is_not_flushed_to_the_hosts_disk() {
        let unnamed = tempfile::tempfile().unwrap();
        unnamed.set_len(4096).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let unnamed = format!("/proc/self/fd/{}", unnamed.as_raw_fd()).into();
        for (path, expected) in [(unnamed, json!({"no-flush": true})), (file(&folder, "named"), Value::Null)] {
            let scratch = Some(DiskBinding { path, read_only: false });
            let bindings = SlotBindings { scratch, layers: Vec::new(), rates: DiskRates::default() };
            let nodes = bound(&config(), &bindings, 0).unwrap();
            assert_eq!(nodes[0].backing["cache"], expected);
            assert_eq!(nodes.iter().map(SlotNode::is_nothing).collect::<Vec<_>>(), [false, true, true, true]);
        }
    }

    #[test]
    fn generations_do_not_share_names() {
        let empty = |generation| empty(&config(), generation);
        assert_ne!(empty(0)[2].backing["node-name"], empty(1)[2].backing["node-name"]);
        assert_eq!(empty(0)[2].disk()["node-name"], empty(1)[2].disk()["node-name"]);
        assert!(is_of_generation(999, 0) && is_of_generation(1000, 1) && !is_of_generation(1000, 0));
    }

    #[test]
    fn a_pods_slots_are_pairs_and_bound_one_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let config = config().for_pod();
        assert_eq!(empty(&config, 0).iter().map(|node| node.disk()["read-only"] == true).collect::<Vec<_>>(), {
            [false, true].repeat(6)
        });
        let one = |slot, binding| bound_one(&config, slot, &binding, 7).unwrap();
        let layers = one(5, SlotBinding::Layers(vec![file(&folder, "layer")]));
        assert_eq!((&layers.backing["driver"], layers.descriptors.len()), (&json!("vmdk"), 4));
        assert_eq!(layers.backing["node-name"], "backing5-7");
        let scratch = one(4, SlotBinding::Scratch(file(&folder, "scratch")));
        assert_eq!((&scratch.backing["driver"], &scratch.disk()["read-only"]), (&json!("file"), &json!(false)));
        assert_eq!(one(4, SlotBinding::Nothing).backing["driver"], "null-co");
    }
}
