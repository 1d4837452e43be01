//! One operation on a container's files, over one connection.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::thread;

use proto::files::{FilesOpened, FilesRequest, FrameReceiver, FrameSender, status_of};
use proto::{ErrorKind, Status};
use rustix::fs::OFlags;

use super::changes;
use super::confine::confine;
use super::error::ArchiveError;
use super::layer::Own;
use super::mounts::{Attachment, enter};
use super::pack::{Packer, View};
use super::path::{Place, Wanted};
use super::unpack::{Placing, Rules, place, unpack};
use crate::rootpath::Root;

/// Gathered before it is written to a pipe.
const STREAM_BYTES: usize = 64 << 10;

/// A container's trees, open.
pub struct ContainerFiles {
    /// The whole, as the container sees it.
    pub merged: Root,
    /// Its changes; needed for [`FilesRequest::Changes`] and [`FilesRequest::Layer`].
    pub upper: Option<Root>,
    /// What is below them; needed for [`FilesRequest::Changes`].
    pub lower: Option<Root>,
    /// What is mounted in it. Only [`FilesRequest::Stat`], [`FilesRequest::Read`] and [`FilesRequest::Write`] see that.
    pub mounts: Vec<Attachment>,
}

/// Serves one request. Shape: `open` gives the trees that the request needs, and what is to be kept until it was served, such
/// as mounts; that is dropped before the End is sent.
///
/// When: blocks; does its work in a thread of its own, confined to the container's root.
///
/// # Errors
/// The connection broke before the End was sent. What failed otherwise is told to the other side.
pub fn serve<K>(
    from: impl Read + Send,
    to: impl Write + Send,
    open: impl FnOnce(&FilesRequest) -> Result<(ContainerFiles, K), Status>,
) -> io::Result<()> {
    let (mut receiver, mut sender) = (FrameReceiver::new(from), FrameSender::new(to));
    let request: FilesRequest = receiver.message()?;
    let opened = open(&request);
    if opened.is_ok() {
        sender.message(&FilesOpened {})?;
    }
    let outcome = opened.and_then(|(files, kept)| {
        let outcome = thread::scope(|scope| {
            let work = || confined(&request, &files, &mut receiver, &mut sender).map_err(|error| told(&error));
            let worker = thread::Builder::new().name("files".into()).spawn_scoped(scope, work);
            let worker = worker.map_err(|error| Status::from_error(ErrorKind::ResourceExhausted, &error))?;
            worker.join().unwrap_or_else(|_| Err(Status::new(ErrorKind::Internal, "the work on the files broke off")))
        });
        drop((files, kept));
        outcome
    });
    sender.end(&outcome)
}

/// Does what is asked for, confined to the container's root, with what is mounted there in its place.
fn confined<R: Read, W: Write>(
    request: &FilesRequest,
    files: &ContainerFiles,
    receiver: &mut FrameReceiver<R>,
    sender: &mut FrameSender<W>,
) -> Result<(), ArchiveError> {
    if files.mounts.is_empty() {
        return confine(files.merged.folder()).and_then(|()| operate(request, files, receiver, sender));
    }
    let (merged, home) = enter(&files.merged, &files.mounts)?;
    let within = ContainerFiles { merged, upper: None, lower: None, mounts: Vec::new() };
    let outcome = confine(within.merged.folder()).and_then(|()| operate(request, &within, receiver, sender));
    drop(within);
    outcome.and(home.come_back())
}

/// An error of the connection may carry what the other side said.
fn told(error: &ArchiveError) -> Status {
    match error {
        ArchiveError::Stream(source) => status_of(source),
        other => Status::from_error(other.kind(), other),
    }
}

/// Does what is asked for. When: in a thread that is confined.
pub(super) fn operate<R: Read, W: Write>(
    request: &FilesRequest,
    files: &ContainerFiles,
    receiver: &mut FrameReceiver<R>,
    sender: &mut FrameSender<W>,
) -> Result<(), ArchiveError> {
    match request {
        FilesRequest::Stat { path, .. } => {
            let stat = Wanted::parse(path).stat(&files.merged)?;
            sender.message(&stat).map_err(ArchiveError::Stream)
        }
        FilesRequest::Read { path, .. } => {
            let wanted = Wanted::parse(path);
            let stat = wanted.stat(&files.merged)?;
            let place = wanted.find(&files.merged)?;
            sender.message(&stat).map_err(ArchiveError::Stream)?;
            read(place, &wanted.base, sender)
        }
        FilesRequest::Write { path, keep_kinds, root_read_only, .. } => {
            unpack(&files.merged, path, &Rules { keep_kinds: *keep_kinds, root_read_only: *root_read_only }, receiver)
        }
        FilesRequest::Place { path, folder, owner } => {
            place(&files.merged, &Placing { path, folder: *folder, owner: owner.as_deref() }, receiver)
        }
        FilesRequest::Export => pack_root(&files.merged, b"", View::Tree, sender),
        FilesRequest::Layer { own, .. } => {
            pack_root(tree(files.upper.as_ref())?, b"./", View::Layer(&Own::new(own)), sender)
        }
        FilesRequest::Changes { own } => {
            let (upper, lower) = (tree(files.upper.as_ref())?, tree(files.lower.as_ref())?);
            changes::list(upper.folder(), lower.folder(), &Own::new(own), &mut |line| {
                let mut text = serde_json::to_vec(line)?;
                text.push(b'\n');
                sender.write_all(&text)
            })
        }
    }
}

fn tree(tree: Option<&Root>) -> Result<&Root, ArchiveError> {
    tree.ok_or_else(|| ArchiveError::Confine(io::Error::other("the container's changes are not at hand")))
}

/// Writes a folder as the layer of an image that overlayfs has noted in it. When: in a thread that ends with it, since the thread
/// is confined to the folder.
///
/// # Errors
/// The folder cannot be read; nobody takes what is written.
pub fn pack_layer(folder: &Root, to: impl Write) -> Result<(), ArchiveError> {
    confine(folder.folder())?;
    pack_root(folder, b"./", View::Layer(&Own::new(&[])), &mut io::BufWriter::with_capacity(STREAM_BYTES, to))
}

fn pack_root(root: &Root, path: &[u8], view: View<'_>, sender: &mut impl Write) -> Result<(), ArchiveError> {
    let folder: OwnedFd = root
        .resolve(std::path::Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)
        .map_err(ArchiveError::at("open", b"/"))?;
    let mut packer = Packer::new(sender, view);
    packer.folder(folder.as_fd(), path)?;
    packer.tar.finish().and_then(|sender| sender.flush()).map_err(ArchiveError::Stream)
}

fn read<W: Write>(place: Place, base: &str, sender: &mut FrameSender<W>) -> Result<(), ArchiveError> {
    let mut packer = Packer::new(sender, View::Tree);
    let top = base.as_bytes();
    // `/` and `.` are put before the names as they are.
    let top = if base == "." { b"./" } else { top };
    match place {
        Place::Folder(folder) => packer.folder(folder.as_fd(), top)?,
        Place::Named { folder, name, .. } => {
            let stat = rustix::fs::statat(&folder, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(ArchiveError::at("look at", name.as_bytes()))?;
            if super::entry::is_folder(&stat) {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(&folder, &name, flags, rustix::fs::Mode::empty());
                let opened = opened.map_err(ArchiveError::at("open", name.as_bytes()))?;
                packer.folder(opened.as_fd(), top)?;
            } else {
                packer.node(folder.as_fd(), &name, top)?;
            }
        }
    }
    packer.tar.finish().map(drop).map_err(ArchiveError::Stream)
}
