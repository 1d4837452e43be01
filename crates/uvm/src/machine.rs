//! What a utility VM consists of: memory, processors, slots, kernel command line. Boot and fork use the same.

use proto::ErrorKind;
use proto::control::Accelerator;
use proto::network::NETWORK_SLOTS;
use serde::Serialize;

const MIB: u64 = 1 << 20;
/// Memory of the smallest size class.
const NOMINAL_MEMORY_BYTES: u64 = 1024 * MIB;
/// What the guest's kernel and compute service need beside the container.
const GUEST_RESERVE_BYTES: u64 = 96 * MIB;
/// The largest size class.
const LARGEST_MEMORY_BYTES: u64 = 1 << 40;
const MOST_VCPUS: u32 = 64;

/// Disk slots of a machine for one container: one for the scratch disk, then three for layers.
pub const DISK_SLOTS: u32 = 4;
/// Containers that a pod's machine has room for at a time. Each slot is a device, and our own VMM has interrupts for no more.
pub const POD_CONTAINERS: u32 = 6;
/// Disk slots of each: one for the scratch disk, one for all layers.
pub(crate) const POD_CONTAINER_SLOTS: u32 = 2;
/// Capacity that the guest believes each disk slot to have. The disks are bound in the template, with nothing behind
/// them, because binding a driver after the fork costs 100 ms of cold code under software emulation; a fork's disk has
/// its own content and real end, and no file system looks beyond its own.
pub const NOMINAL_DISK_BYTES: u64 = 1 << 42;

/// A request for memory or processors that no size class has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineConfigError {
    /// More memory than the largest class.
    #[error("{requested} bytes of memory are more than a utility VM can have ({most} bytes)")]
    TooMuchMemory {
        /// What was asked for.
        requested: u64,
        /// What is possible.
        most: u64,
    },
    /// More processors than the largest class.
    #[error("{requested_milli} thousandths of a processor are more than a utility VM can have ({most} processors)")]
    TooManyVcpus {
        /// What was asked for.
        requested_milli: u64,
        /// What is possible.
        most: u32,
    },
}

impl MachineConfigError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// The size of a utility VM and what follows from it; an input of the template's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineConfig {
    memory_bytes: u64,
    vcpus: u32,
    disk_slots: u32,
    slots_per_container: u32,
    network_slots: u32,
    nominal_disk_bytes: u64,
    kernel_command_line: String,
}

impl MachineConfig {
    /// The smallest size class that has room for the request.
    ///
    /// Shape: memory is a power of two from 1 GiB on and leaves 96 MiB for the guest itself, except that the
    /// unlimited request gets the smallest; processors are a power of two from 1 (emulated) or 2 (hardware) on.
    ///
    /// # Errors
    /// [`MachineConfigError`] when no class is large enough.
    pub fn for_request(
        accelerator: Accelerator,
        memory_bytes: Option<u64>,
        cpus_milli: Option<u64>,
    ) -> Result<Self, MachineConfigError> {
        let requested = memory_bytes.unwrap_or(0);
        let wanted = if requested == 0 { 0 } else { requested.saturating_add(GUEST_RESERVE_BYTES) };
        let memory = wanted.max(NOMINAL_MEMORY_BYTES).checked_next_power_of_two().unwrap_or(u64::MAX);
        if memory > LARGEST_MEMORY_BYTES {
            let most = LARGEST_MEMORY_BYTES - GUEST_RESERVE_BYTES;
            return Err(MachineConfigError::TooMuchMemory { requested, most });
        }
        let nominal_vcpus = match accelerator {
            Accelerator::Kvm => 2,
            Accelerator::Tcg => 1,
        };
        let requested_milli = cpus_milli.unwrap_or(0);
        let vcpus = u32::try_from(requested_milli.div_ceil(1000))
            .ok()
            .and_then(|vcpus| vcpus.max(nominal_vcpus).checked_next_power_of_two())
            .filter(|&vcpus| vcpus <= MOST_VCPUS)
            .ok_or(MachineConfigError::TooManyVcpus { requested_milli, most: MOST_VCPUS })?;
        Ok(Self {
            memory_bytes: memory,
            vcpus,
            disk_slots: DISK_SLOTS,
            slots_per_container: DISK_SLOTS,
            network_slots: NETWORK_SLOTS,
            nominal_disk_bytes: NOMINAL_DISK_BYTES,
            kernel_command_line: kernel_command_line(accelerator),
        })
    }

    /// The same machine with disk slots for a pod's containers.
    #[must_use]
    pub fn for_pod(self) -> Self {
        let disk_slots = POD_CONTAINERS * POD_CONTAINER_SLOTS;
        Self { disk_slots, slots_per_container: POD_CONTAINER_SLOTS, ..self }
    }

    /// Number of disk slots.
    #[must_use]
    pub fn disk_slots(&self) -> u32 {
        self.disk_slots
    }

    /// How many of them each container has, the first of which can be written: the guest's driver learns that in the template.
    #[must_use]
    pub fn slots_per_container(&self) -> u32 {
        self.slots_per_container
    }

    /// True for a scratch disk's slot.
    #[must_use]
    pub fn is_writable(&self, slot: u32) -> bool {
        slot.is_multiple_of(self.slots_per_container)
    }

    /// Memory, bytes, a multiple of 1 MiB.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Number of virtual processors.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// The guest kernel's command line.
    #[must_use]
    pub fn kernel_command_line(&self) -> &str {
        &self.kernel_command_line
    }
}

/// Quiet; a panic or an oops resets the machine at once (that is how it is noticed); RCU grace periods are expedited,
/// since creating a container waits for several; no transparent huge pages, which would make a fork's private memory
/// two megabytes at a time; no pressure accounting and no security module but the two that containers can use, since
/// each is code that every fork would have to translate anew. Software emulation is no boundary and its guest has no speculation to mitigate.
fn kernel_command_line(accelerator: Accelerator) -> String {
    let all = "console=ttyS0 quiet panic=-1 oops=panic reboot=t nowatchdog rcupdate.rcu_expedited=1 \
               transparent_hugepage=never cryptomgr.notests psi=0 lsm=landlock,yama";
    match accelerator {
        Accelerator::Kvm => all.to_owned(),
        Accelerator::Tcg => format!("{all} tsc=reliable clocksource=tsc no_timer_check mitigations=off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_get_the_smallest_class_that_has_room() {
        let class = |memory, cpus| {
            MachineConfig::for_request(Accelerator::Tcg, memory, cpus).map(|c| (c.memory_bytes / MIB, c.vcpus))
        };
        assert_eq!(class(None, None), Ok((1024, 1)));
        assert_eq!(class(Some(64 * MIB), Some(500)), Ok((1024, 1)));
        assert_eq!(class(Some(928 * MIB), Some(1000)), Ok((1024, 1)));
        assert_eq!(class(Some(929 * MIB), Some(1001)), Ok((2048, 2)));
        assert_eq!(class(Some(1024 * MIB), Some(3000)), Ok((2048, 4)));
        assert!(matches!(class(Some(u64::MAX), None), Err(MachineConfigError::TooMuchMemory { .. })));
        assert!(matches!(class(None, Some(u64::MAX)), Err(MachineConfigError::TooManyVcpus { .. })));
        assert!(matches!(class(None, Some(65_000)), Err(MachineConfigError::TooManyVcpus { .. })));
    }

    #[test]
    fn each_container_has_one_disk_that_it_can_write() {
        let one = MachineConfig::for_request(Accelerator::Tcg, None, None).unwrap();
        let writable = |config: &MachineConfig| {
            (0..config.disk_slots()).filter(|&slot| config.is_writable(slot)).collect::<Vec<_>>()
        };
        assert_eq!((one.disk_slots(), writable(&one)), (4, vec![0]));
        let pod = one.for_pod();
        assert_eq!((pod.disk_slots(), writable(&pod)), (12, vec![0, 2, 4, 6, 8, 10]));
    }

    #[test]
    fn hardware_has_two_processors_and_keeps_its_mitigations() {
        let config = MachineConfig::for_request(Accelerator::Kvm, None, None).unwrap();
        assert_eq!(config.vcpus(), 2);
        assert!(!config.kernel_command_line().contains("mitigations=off"));
    }
}
