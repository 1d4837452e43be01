//! What is behind a machine's disk slots, opened, for any backend.

use crate::disk::{DiskBinding, DiskError, DiskFile, PackedDisk, SlotDisk};
use crate::hypervisor::{SlotBinding, SlotBindings};

/// What is to be behind one slot.
pub(crate) fn open_one(binding: &SlotBinding) -> Result<Option<SlotDisk>, DiskError> {
    match binding {
        SlotBinding::Nothing => Ok(None),
        SlotBinding::Scratch(path) => {
            let disk = DiskFile::open(&DiskBinding { path: path.clone(), read_only: false })?;
            Ok(Some(SlotDisk::Plain { disk, read_only: false }))
        }
        SlotBinding::Layers(layers) => Ok(Some(SlotDisk::Packed(PackedDisk::open(layers)?))),
    }
}

/// What is behind each slot, slot 0 first; slots beyond the end have nothing.
pub(crate) fn open(slots: &SlotBindings) -> Result<Vec<Option<SlotDisk>>, DiskError> {
    let plain = |binding: &DiskBinding| -> Result<Option<SlotDisk>, DiskError> {
        Ok(Some(SlotDisk::Plain { disk: DiskFile::open(binding)?, read_only: binding.read_only }))
    };
    let scratch = slots.scratch.as_ref().map_or(Ok(None), plain)?;
    let mut disks = vec![scratch];
    if slots.packed() {
        disks.push(Some(SlotDisk::Packed(PackedDisk::open(&slots.layers)?)));
        return Ok(disks);
    }
    for path in &slots.layers {
        disks.push(plain(&DiskBinding { path: path.clone(), read_only: true })?);
    }
    Ok(disks)
}
