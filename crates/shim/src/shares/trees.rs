//! Mounts that hang nowhere, handed to the process that serves them: descriptors beside one byte.
//!
//! Source: unix(7), SCM_RIGHTS.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::MOST;

/// Sends all. Shape: 1 to [`MOST`]; the kernel takes 253 at once.
pub(super) fn send(socket: impl AsFd, trees: &[OwnedFd]) -> io::Result<()> {
    let trees: Vec<BorrowedFd<'_>> = trees.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if trees.is_empty() || !beside.push(SendAncillaryMessage::ScmRights(&trees)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(&[0])], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives what was sent.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    let rights = beside.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let trees: Vec<OwnedFd> = rights.flatten().collect();
    if trees.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(trees) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn all_arrive_in_order() {
        let files: Vec<OwnedFd> = (0..MOST).map(|_| tempfile::tempfile().unwrap().into()).collect();
        let inode = |file: &OwnedFd| File::from(file.try_clone().unwrap()).metadata().unwrap().ino();
        for count in [1, 2, MOST] {
            let (one, other) = UnixStream::pair().unwrap();
            send(&one, &files[..count]).unwrap();
            let received = receive(&other).unwrap();
            assert!(received.iter().map(inode).eq(files[..count].iter().map(inode)), "{count}");
        }
        let (one, other) = UnixStream::pair().unwrap();
        assert!(send(&one, &[]).is_err());
        drop(one);
        assert!(receive(&other).is_err());
    }
}
