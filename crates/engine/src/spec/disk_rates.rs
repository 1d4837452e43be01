//! `--device-read-bps` and its like of a hyperv container: its disks are files on one device of the host, so what is asked for that
//! device limits them, in the utility VM's own devices. A process container's are limits of its cgroup.

use std::num::NonZeroU64;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use bollard::models::{HostConfig, ThrottleDevice};
use proto::control::DiskRates;

use super::{SpecError, devices};

/// The rates asked for the device that the files in this folder are on, or will be.
///
/// # Errors
/// [`SpecError::Device`] for what is not there; [`SpecError::Limit`] for what is no device, no rate, or a device that has nothing of
/// this container's: nothing could be limited there.
pub fn disk_rates(host: &HostConfig, folder: &Path) -> Result<DiskRates, SpecError> {
    let rate = |list: &Option<Vec<ThrottleDevice>>| -> Result<Option<NonZeroU64>, SpecError> {
        let mut found = None;
        for device in list.iter().flatten() {
            found = one(device, folder)?;
        }
        Ok(found)
    };
    Ok(DiskRates {
        read_bytes: rate(&host.blkio_device_read_bps)?,
        write_bytes: rate(&host.blkio_device_write_bps)?,
        read_requests: rate(&host.blkio_device_read_iops)?,
        write_requests: rate(&host.blkio_device_write_iops)?,
    })
}

/// One entry of a list; the last one counts, and zero is no limit, as with dockerd.
fn one(device: &ThrottleDevice, folder: &Path) -> Result<Option<NonZeroU64>, SpecError> {
    let path = Path::new(device.path.as_deref().unwrap_or_default());
    let failed = |source| SpecError::Device { path: path.into(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.file_type().is_block_device() {
        return Err(SpecError::Limit(format!("{} is no block device", path.display())));
    }
    let Some(rate) = device.rate.and_then(|rate| u64::try_from(rate).ok()) else {
        return Err(SpecError::Limit("invalid rate for a device: it must not be negative".into()));
    };
    let there = folder.ancestors().find_map(|folder| std::fs::metadata(folder).ok()).map_or(0, |found| found.dev());
    if metadata.rdev() != there && Some(metadata.rdev()) != whole_disk(there) {
        let (major, minor) = devices::numbers(there);
        return Err(SpecError::Limit(format!(
            "{} cannot be limited with isolation hyperv: the container's disks are on device {major}:{minor}",
            path.display()
        )));
    }
    Ok(NonZeroU64::new(rate))
}

/// The disk that a partition is on. Source: Linux Documentation/ABI/stable/sysfs-block.
fn whole_disk(device: u64) -> Option<u64> {
    let (major, minor) = devices::numbers(device);
    let folder = std::fs::canonicalize(PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))).ok()?;
    let disk = folder.join("partition").exists().then(|| folder.parent())??;
    let text = std::fs::read_to_string(disk.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(path: &str, rate: i64) -> HostConfig {
        let device = |rate| ThrottleDevice { path: Some(path.into()), rate: Some(rate) };
        HostConfig { blkio_device_write_bps: Some(vec![device(1), device(rate)]), ..HostConfig::default() }
    }

    /// A device node of the folder's own device, if it is on one.
    fn own_device(folder: &Path) -> Option<String> {
        let (major, minor) = devices::numbers(std::fs::metadata(folder).unwrap().dev());
        let link = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        let node = format!("/dev/{}", link.file_name()?.to_str()?);
        Path::new(&node).exists().then_some(node)
    }

    #[test]
    fn only_what_the_disks_are_on_can_be_limited() {
        let folder = Path::new("/var/lib/nothing/there/yet");
        for path in ["/dev/nothing-there", "/dev/null", "/"] {
            assert!(disk_rates(&asking(path, 7), folder).is_err(), "{path}");
        }
        assert_eq!(disk_rates(&HostConfig::default(), folder).unwrap(), DiskRates::default());
        let Some(node) = own_device(Path::new("/var/lib")) else {
            eprintln!("SKIPPED: /var/lib is on no block device that has a node");
            return;
        };
        let rates = disk_rates(&asking(&node, 1 << 20), folder).unwrap();
        assert_eq!(rates, DiskRates { write_bytes: NonZeroU64::new(1 << 20), ..DiskRates::default() });
        assert_eq!(disk_rates(&asking(&node, 0), folder).unwrap(), DiskRates::default());
        assert!(disk_rates(&asking(&node, -1), folder).is_err());
        let elsewhere = disk_rates(&asking(&node, 7), Path::new("/proc")).unwrap_err();
        assert!(elsewhere.to_string().contains("cannot be limited with isolation hyperv"), "{elsewhere}");
    }
}
