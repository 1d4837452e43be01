//! Network namespaces that outlive whoever made them: each is bound on a file.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::NetworkError;
use crate::failpoint;

/// A network namespace by the file on which it is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    path: PathBuf,
}

impl Namespace {
    /// Makes an empty namespace, with its loopback up, and binds it on `path`. What was there from an earlier engine goes.
    ///
    /// # Errors
    /// When the kernel refuses; nothing stays.
    pub fn make(path: &Path) -> Result<Self, NetworkError> {
        Self::bind(&unbound()?, path)
    }

    /// Binds an open namespace on `path`. What was there from an earlier engine goes.
    pub(crate) fn bind(file: &File, path: &Path) -> Result<Self, NetworkError> {
        let failed = NetworkError::kernel("bind a network namespace");
        Self::remove(path)?;
        failpoint::step("bind a network namespace")?;
        let bound = File::options().write(true).create_new(true).mode_private().open(path).and_then(|_| {
            mount_bind(format!("/proc/self/fd/{}", file.as_raw_fd()), path).inspect_err(|_| {
                if let Err(left) = fs::remove_file(path) {
                    tracing::warn!(path = %path.display(), error = %left, "left behind");
                }
            })?;
            Ok(())
        });
        bound.map_err(failed)?;
        Ok(Self { path: path.to_owned() })
    }

    /// One that somebody else has made, such as `/proc/PID/ns/net`.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a namespace is bound there.
    #[must_use]
    pub fn exists(&self) -> bool {
        rustix::fs::statfs(&self.path).is_ok_and(|found| found.f_type == NSFS_MAGIC)
    }

    /// Opens it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn open(&self) -> Result<File, NetworkError> {
        File::open(&self.path)
            .map_err(NetworkError::kernel(format!("open the network namespace {}", self.path.display())))
    }

    /// Runs a closure in a thread of its own that is in the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and what the closure says.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T, NetworkError> + Send) -> Result<T, NetworkError> {
        run_in(&self.open()?, work)
    }

    /// Lets go of what is bound on `path`; nothing there is none to remove. Its links go with its last process.
    ///
    /// # Errors
    /// When the kernel keeps it.
    pub fn remove(path: &Path) -> Result<(), NetworkError> {
        let failed = |source| NetworkError::Kernel { what: format!("remove {}", path.display()), source };
        match unmount(path, UnmountFlags::DETACH) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) | Ok(()) => {}
            Err(error) => return Err(failed(error.into())),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }
}

/// An empty namespace with its loopback up, which lasts as long as the file, or what is bound of it.
pub(crate) fn unbound() -> Result<File, NetworkError> {
    failpoint::step("make a network namespace")?;
    let made = in_thread(|| {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
        crate::netlink::bring_up_loopback()?;
        File::open("/proc/thread-self/ns/net")
    });
    made.map_err(NetworkError::kernel("make a network namespace"))
}

/// Runs a closure in a thread of its own that is in an open namespace.
pub(crate) fn run_in<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    in_thread(|| {
        Ok(match move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)) {
            Ok(()) => work(),
            Err(error) => Err(NetworkError::kernel("enter a network namespace")(error.into())),
        })
    })
    .map_err(NetworkError::kernel("start a thread for a network namespace"))?
}

/// Source: Linux include/uapi/linux/magic.h.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

trait Private {
    fn mode_private(&mut self) -> &mut Self;
}

impl Private for fs::OpenOptions {
    fn mode_private(&mut self) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::mode(self, 0o600)
    }
}

/// A thread that enters another namespace is of no use to others afterwards, so it ends with its work.
pub(crate) fn in_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}
