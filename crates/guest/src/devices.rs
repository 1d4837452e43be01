//! The virtio bus: which devices there are, and binding their drivers one by one.
//!
//! The port's device and the disk slots are bound before the freeze point: binding a disk runs much kernel code for the
//! first time, which every fork would pay for. In the template the slots have an empty disk of a nominal size; in a fork
//! there are other disks behind them. So it is with network devices, which have a silent tap behind them in the template.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use proto::ErrorKind;

use crate::sys;

const BUS: &str = "/sys/bus/virtio";
/// How long the kernel may take to announce the port.
const PORT_DEADLINE: Duration = Duration::from_secs(10);

/// What a virtio device is. Source: virtio 1.2 §5, "Device Types".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeviceType {
    Network,
    Block,
    Console,
    Balloon,
    Socket,
    FileSystem,
}

impl DeviceType {
    fn id(self) -> u32 {
        match self {
            Self::Network => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Balloon => 5,
            Self::Socket => 19,
            Self::FileSystem => 26,
        }
    }

    fn driver(self) -> &'static str {
        match self {
            Self::Network => "virtio_net",
            Self::Block => "virtio_blk",
            Self::Console => "virtio_console",
            Self::Balloon => "virtio_balloon",
            Self::Socket => "vmw_vsock_virtio_transport",
            Self::FileSystem => "virtiofs",
        }
    }
}

/// A disk slot that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The machine has fewer slots.
    #[error("no disk slot {slot}: this machine has {count}")]
    NoSlot {
        /// Which slot was named.
        slot: u32,
        /// How many there are.
        count: usize,
    },
    /// The disk has no such partition.
    #[error("no partition {partition} on the disk in slot {slot}")]
    NoPartition {
        /// Which slot.
        slot: u32,
        /// Which partition.
        partition: u32,
    },
    /// The disk cannot be bound or read.
    #[error("cannot use the disk in slot {slot}")]
    Disk {
        /// Which slot.
        slot: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl SlotError {
    /// What a caller can act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSlot { .. } | Self::NoPartition { .. } => ErrorKind::InvalidArgument,
            Self::Disk { .. } => ErrorKind::Unavailable,
        }
    }
}

/// Makes the virtio bus bind nothing by itself. Returns false while there is no such bus.
pub fn switch_off_probing() -> io::Result<bool> {
    match fs::write(Path::new(BUS).join("drivers_autoprobe"), "0") {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Binds the device that carries the port.
pub fn bind_console() -> Result<()> {
    let devices = devices_of(DeviceType::Console).context("cannot list the virtio bus")?;
    let [device] = devices.as_slice() else { bail!("{} virtio consoles, expected one", devices.len()) };
    bind(device, DeviceType::Console).with_context(|| format!("the driver refused {}", device.display()))
}

/// Binds the network devices: the names of their links, in the order of the slots.
pub fn bind_network() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for device in devices_of(DeviceType::Network).context("cannot list the virtio bus")? {
        bind(&device, DeviceType::Network).with_context(|| format!("the driver refused {}", device.display()))?;
        let links = entries(&device.join("net")).context("cannot list a device's links")?;
        let link = links.first().and_then(|link| link.file_name()).context("a network device has no link")?;
        names.push(link.to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Binds the machine's file system, if it has one.
pub fn bind_file_system() -> Result<()> {
    for device in devices_of(DeviceType::FileSystem).context("cannot list the virtio bus")? {
        bind(&device, DeviceType::FileSystem).with_context(|| format!("the driver refused {}", device.display()))?;
    }
    Ok(())
}

/// Binds the machine's socket device, which must be there.
pub fn bind_socket() -> Result<()> {
    let devices = devices_of(DeviceType::Socket).context("cannot list the virtio bus")?;
    let [device] = devices.as_slice() else { bail!("{} virtio socket devices, expected one", devices.len()) };
    bind(device, DeviceType::Socket).with_context(|| format!("the driver refused {}", device.display()))
}

/// The machine's balloons: one, or none.
pub fn balloons() -> io::Result<Vec<PathBuf>> {
    devices_of(DeviceType::Balloon)
}

/// Binds a balloon: its driver reports free memory from then on.
pub fn bind_balloon(device: &Path) -> io::Result<()> {
    bind(device, DeviceType::Balloon)
}

/// The device file of the port with this name; waits for the kernel to announce it, since the host describes ports by
/// messages. Runs before the freeze point, so sleeping is harmless.
pub fn find_port(name: &str) -> Result<PathBuf> {
    let deadline = Instant::now() + PORT_DEADLINE;
    loop {
        if let Some(port) = port_named(name).context("cannot list the ports")? {
            return Ok(port);
        }
        if Instant::now() > deadline {
            bail!("the host offers no port {name}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn port_named(name: &str) -> io::Result<Option<PathBuf>> {
    for entry in entries(Path::new("/sys/class/virtio-ports"))? {
        let found = fs::read_to_string(entry.join("name")).unwrap_or_default();
        if found.trim_end() == name {
            return Ok(entry.file_name().map(|device| Path::new("/dev").join(device)));
        }
    }
    Ok(None)
}

/// The machine's disk slots, counted in the order of their PCI addresses.
#[derive(Debug)]
pub struct Slots(Vec<Slot>);

#[derive(Debug)]
struct Slot {
    /// The virtio device's folder in sysfs.
    device: PathBuf,
    /// The disk's device file, once it is bound.
    disk: Option<PathBuf>,
    /// Its partition table belongs to the disk that is there now.
    partitions_read: bool,
}

impl Slots {
    /// Finds the slots and binds each. One that cannot be bound now (it may have no disk yet) is bound when it is used.
    pub fn bind() -> io::Result<Self> {
        let devices = devices_of(DeviceType::Block)?;
        Ok(Self(devices.into_iter().map(Slot::bind_now).collect()))
    }

    /// The device file of the disk in a slot, with nothing of an earlier disk remembered; with `partition` above 0, of that
    /// partition.
    ///
    /// # Errors
    /// `NoSlot` and `NoPartition` — the machine or the disk has none with this number; `Disk` — the kernel refused.
    pub fn device(&mut self, slot: u32, partition: u32) -> Result<PathBuf, SlotError> {
        let count = self.0.len();
        let index = usize::try_from(slot).unwrap_or(usize::MAX);
        let found = self.0.get_mut(index).ok_or(SlotError::NoSlot { slot, count })?;
        let disk = found.refresh(partition > 0).map_err(|source| SlotError::Disk { slot, source })?;
        if partition == 0 {
            return Ok(disk);
        }
        // Names of virtio disks end in a letter, so a partition's number follows directly.
        let mut name = disk.into_os_string();
        name.push(partition.to_string());
        let partition_file = PathBuf::from(name);
        if partition_file.exists() { Ok(partition_file) } else { Err(SlotError::NoPartition { slot, partition }) }
    }

    /// Lets go of what was on these slots' disks, so that the host can put others in their place.
    ///
    /// # Errors
    /// `Disk` — the kernel refused, or something still uses the disk.
    pub fn forget(&mut self, which: impl Fn(u32) -> bool) -> Result<(), SlotError> {
        for (slot, found) in (0..).zip(&mut self.0).filter(|(slot, _)| which(*slot)) {
            found.forget().map_err(|source| SlotError::Disk { slot, source })?;
        }
        Ok(())
    }
}

impl Slot {
    fn bind_now(device: PathBuf) -> Self {
        let mut slot = Self { device, disk: None, partitions_read: false };
        match slot.bound() {
            Ok(disk) => leave_queueing_to_host(&disk),
            Err(error) => tracing::info!("{} is bound later: {error}", slot.device.display()),
        }
        slot
    }

    fn bound(&mut self) -> io::Result<PathBuf> {
        if let Some(disk) = &self.disk {
            return Ok(disk.clone());
        }
        // Binding adds the disk, reads its partition table and makes the device files before it returns.
        bind(&self.device, DeviceType::Block)?;
        let disks = entries(&self.device.join("block"))?;
        let name = disks.first().and_then(|disk| disk.file_name()).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.disk.insert(Path::new("/dev").join(name)).clone())
    }

    fn refresh(&mut self, with_partitions: bool) -> io::Result<PathBuf> {
        let disk = self.bound()?;
        if self.partitions_read {
            return Ok(disk);
        }
        let file = File::open(&disk)?;
        sys::flush_buffers(&file)?;
        if with_partitions {
            sys::reread_partitions(&file)?;
            // Once: it fails as soon as one of the partitions is mounted.
            self.partitions_read = true;
        }
        Ok(disk)
    }

    /// The device files of partitions stay until the next table is read, which is before any of them is used again.
    fn forget(&mut self) -> io::Result<()> {
        let Some(disk) = &self.disk else { return Ok(()) };
        // Exclusively: the kernel refuses while the disk, or a partition of it, is mounted anywhere.
        let file = File::options().read(true).custom_flags(libc::O_EXCL).open(disk)?;
        sys::flush_buffers(&file)?;
        self.partitions_read = false;
        Ok(())
    }
}

/// Switches off what the guest's kernel does to order and to delay a disk's requests. The disk is a file, and the host's
/// kernel does all that for the true disk; twice it helps nothing, and is code that every fork runs for the first time.
fn leave_queueing_to_host(disk: &Path) {
    let queue = Path::new("/sys/class/block").join(disk.file_name().unwrap_or_default()).join("queue");
    // In this order: a scheduler that goes switches the delays on.
    for (setting, value) in [("scheduler", "none"), ("wbt_lat_usec", "0")] {
        let path = queue.join(setting);
        if path.exists()
            && let Err(error) = fs::write(&path, value)
        {
            tracing::warn!("cannot set {}: {error}", path.display());
        }
    }
}

/// The devices of one type in the order of their PCI addresses.
fn devices_of(device_type: DeviceType) -> io::Result<Vec<PathBuf>> {
    let all = entries(&Path::new(BUS).join("devices"))?;
    let typed = all.into_iter().filter(|device| read_hex(&device.join("device")) == Some(device_type.id()));
    // .../pci0000:00/0000:00:03.0/virtio1: numbers of fixed width, so the paths sort as the addresses do.
    let mut devices: Vec<PathBuf> = typed.map(|device| device.canonicalize()).collect::<io::Result<_>>()?;
    devices.sort();
    Ok(devices)
}

fn bind(device: &Path, device_type: DeviceType) -> io::Result<()> {
    if device.join("driver").exists() {
        return Ok(());
    }
    let name = device.file_name().unwrap_or_default();
    fs::write(Path::new(BUS).join("drivers").join(device_type.driver()).join("bind"), name.as_encoded_bytes())
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn read_hex(file: &Path) -> Option<u32> {
    u32::from_str_radix(fs::read_to_string(file).ok()?.trim_end().strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(disk: Option<&Path>) -> Slot {
        Slot { device: PathBuf::new(), disk: disk.map(Path::to_owned), partitions_read: true }
    }

    #[test]
    fn a_disk_that_cannot_be_forgotten_is_named() {
        let no_disk = tempfile::NamedTempFile::new().unwrap();
        let mut slots = Slots(vec![slot(None), slot(Some(no_disk.path()))]);
        let error = slots.forget(|_| true).unwrap_err();
        assert!(matches!(error, SlotError::Disk { slot: 1, .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        slots.forget(|slot| slot == 0).unwrap();
        assert!(slots.0[1].partitions_read, "a failed attempt changes nothing");
    }
}
