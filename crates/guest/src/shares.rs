//! Folders of the host that containers mount. A VM's one container may have them all in its machine's file system device. Otherwise it is
//! FUSE in the guest's kernel, whose requests go to the host over a substream of each, and whose answers come back the same way.
//!
//! The guest understands neither: both carry their length in front, and that is all it looks at. Whoever waits for such a folder
//! waits for this task, so nothing of the guest that runs beside it may do so: see `GuestService::aside`.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::substreams::Substream;
use crate::sys;

/// Where they are mounted, by number.
pub const SHARES: &str = "/run/bulkhead/shares";
/// The name of the machine's file system device.
const DEVICE: &str = "bulkhead";
/// The longest message: what is written at once, 1 MiB, and headers. Source: Linux `fs/fuse/fuse_i.h`.
const MOST_BYTES: usize = (1 << 20) + 4096;
/// The shortest: an answer's header. Source: `struct fuse_out_header`.
const LEAST_BYTES: usize = 16;

/// A folder or file of the host that the container has mounted.
#[derive(Debug, Clone)]
pub struct SharedMount {
    /// Where it is in the container.
    pub destination: PathBuf,
    /// Where it is in the guest.
    pub place: PathBuf,
    /// Nothing may be written to it.
    pub read_only: bool,
}

/// What of a specification is the host's. Shape: nothing, if it cannot be read, which whoever runs it finds out.
pub fn shared_mounts(spec: &[u8]) -> Vec<SharedMount> {
    let spec: Option<oci_spec::runtime::Spec> = serde_json::from_slice(spec).ok();
    let mounts = spec.and_then(|spec| spec.mounts().clone()).unwrap_or_default();
    let shared = |mount: &oci_spec::runtime::Mount| {
        let place = mount.source().clone().filter(|source| source.starts_with(SHARES))?;
        let read_only = mount.options().iter().flatten().any(|option| option == "ro" || option == "rro");
        Some(SharedMount { destination: mount.destination().clone(), place, read_only })
    };
    mounts.iter().filter_map(shared).collect()
}

/// The mounted folders. Shape: unmounted by [`Shares::unmount`], or on drop.
#[derive(Debug, Default)]
pub struct Shares(Vec<PathBuf>);

impl Shares {
    /// Mounts each, numbered from `first` on, and begins to carry its messages. When: within the runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mount(first: u32, streams: Vec<Substream>) -> io::Result<Self> {
        let mut shares = Self::default();
        for (number, stream) in (first..).zip(streams) {
            let point = Path::new(SHARES).join(number.to_string());
            fs::create_dir_all(&point)?;
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let device = open("/dev/fuse", flags, Mode::empty())?;
            let options = format!(
                "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
                device.as_raw_fd()
            );
            let options = CString::new(options)?;
            mount("host", &point, "fuse", MountFlags::empty(), Some(options.as_c_str()))?;
            shares.0.push(point);
            tokio::spawn(carry(sys::watch(device)?, stream));
        }
        Ok(shares)
    }

    /// Mounts the device, in which all of them are.
    ///
    /// # Errors
    /// The kernel's: there is no such device.
    pub fn mount_device() -> io::Result<Self> {
        fs::create_dir_all(SHARES)?;
        mount(DEVICE, SHARES, "virtiofs", MountFlags::empty(), None)?;
        Ok(Self(vec![PathBuf::from(SHARES)]))
    }

    /// Unmounts them, so that the host has everything that was written.
    ///
    /// # Errors
    /// The kernel's; the others are unmounted all the same.
    pub fn unmount(mut self) -> io::Result<()> {
        std::mem::take(&mut self.0).into_iter().map(|point| release(&point)).fold(Ok(()), Result::and)
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        for point in self.0.drain(..) {
            if let Err(error) = release(&point) {
                tracing::warn!("cannot unmount {}: {error}", point.display());
            }
        }
    }
}

fn release(point: &Path) -> io::Result<()> {
    unmount(point, UnmountFlags::empty())?;
    fs::remove_dir(point)
}

/// Carries messages until one side ends; closing the device then ends the mount's connection, and whoever waits for it.
async fn carry(device: AsyncFd<OwnedFd>, stream: Substream) {
    let (mut from_host, mut to_host) = tokio::io::split(stream);
    let ended = tokio::select! {
        ended = async {
            let mut buffer = vec![0; MOST_BYTES];
            loop {
                let Some(length) = next_request(&device, &mut buffer).await? else { return Ok(()) };
                to_host.write_all(&buffer[..length]).await?;
                to_host.flush().await?;
            }
        } => ended,
        ended = async {
            let mut buffer = Vec::new();
            loop {
                next_answer(&mut from_host, &mut buffer).await?;
                give(&device, &buffer)?;
            }
        } => ended,
    };
    if let Err::<(), io::Error>(error) = ended {
        tracing::info!("a folder of the host is gone: {error}");
    }
}

/// Reads a request of the kernel. None when the file system was unmounted.
async fn next_request(device: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        let mut ready = device.readable().await?;
        match ready.try_io(|device| Ok(rustix::io::read(device.get_ref(), &mut *buffer)?)) {
            Err(_) => {}
            Ok(Ok(length)) => return Ok(Some(length)),
            Ok(Err(error)) => match Errno::from_io_error(&error) {
                Some(Errno::NODEV) => return Ok(None),
                // The request was interrupted before it was read.
                Some(Errno::NOENT | Errno::INTR) => {}
                _ => return Err(error),
            },
        }
    }
}

async fn next_answer(from: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> io::Result<()> {
    let length = from.read_u32_le().await?;
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    if !(LEAST_BYTES..=MOST_BYTES).contains(&bytes) {
        return Err(io::Error::other(format!("an answer of {length} bytes")));
    }
    buffer.resize(bytes, 0);
    let (head, rest) = buffer.split_at_mut(size_of::<u32>());
    head.copy_from_slice(&length.to_le_bytes());
    from.read_exact(rest).await.map(drop)
}

fn give(device: &AsyncFd<OwnedFd>, answer: &[u8]) -> io::Result<()> {
    match rustix::io::write(device.get_ref(), answer) {
        // Whoever asked was killed meanwhile.
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_are_bounded_and_whole() {
        let mut buffer = Vec::new();
        let mut good: &[u8] = &[&17u32.to_le_bytes()[..], &[7; 13]].concat();
        next_answer(&mut good, &mut buffer).await.unwrap();
        assert_eq!((buffer.len(), buffer[0], buffer[16]), (17, 17, 7));
        for bad in [&15u32.to_le_bytes()[..], &u32::MAX.to_le_bytes(), &[20, 0, 0, 0, 1], &[1]] {
            assert!(next_answer(&mut { bad }, &mut buffer).await.is_err(), "{bad:?}");
        }
    }
}
