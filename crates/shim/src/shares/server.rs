//! `share`: answers FUSE requests for one folder, or for several in one, in a jail with nothing but these.
//!
//! Requests come over standard input, one after the other, each with its length in front, as `/dev/fuse` gives them; answers go
//! back the same way. Everything in a request is a hostile guest's.
//!
//! Source: Linux `include/uapi/linux/fuse.h`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use fuse_backend_rs::api::server::{MAX_BUFFER_SIZE, Server};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader};

use super::{greeting, jail, trees};

/// The shares are folders by their numbers.
pub const ALL: &str = "all";
/// The one share is all that there is.
pub const ONE: &str = "one";
/// The shortest request: a header. Source: `struct fuse_in_header`.
const LEAST_BYTES: usize = 40;
/// The longest: a header, a write's, and what is written.
const MOST_BYTES: usize = MAX_BUFFER_SIZE as usize + 4096;
/// For how long the guest's kernel may believe what it was told of a name or of a file's attributes. What others change is seen
/// after that, and content at the next opening.
const BELIEVED: Duration = Duration::from_millis(100);

/// Serves until the other side hangs up. Shape: `cgroup` is the container's on the host; `place` is [`ALL`] or [`ONE`].
///
/// When: in a process without threads; standard input is a socket, standard output one over which the shares come.
///
/// # Errors
/// The shares cannot be entered, or the other side says what is no request.
pub fn run(cgroup: &str, place: &str) -> anyhow::Result<()> {
    // The work is the container's. Its limits are a fence of many: a host without that cgroup serves it all the same.
    if let Err(error) = uvm::join_cgroup(cgroup) {
        tracing::warn!(cgroup, %error, "a process that serves a mount stays outside of its container's cgroup");
    }
    let socket = File::from(io::stdin().as_fd().try_clone_to_owned().context("no standard input")?);
    let shares = trees::receive(io::stdout()).context("no shares")?;
    close_output()?;
    jail::enter(shares, place == ALL)?;
    let files = PassthroughFs::<()>::new(config()).context("cannot open the folder")?;
    jail::confine().context("cannot confine the process")?;
    serve(&Arc::new(files), socket)
}

/// Nothing more comes over standard output.
fn close_output() -> anyhow::Result<()> {
    let nothing: OwnedFd = File::from(io::stdin().as_fd().try_clone_to_owned()?).into();
    rustix::stdio::dup2_stdout(&nothing)?;
    Ok(())
}

fn config() -> Config {
    Config {
        root_dir: jail::ROOT.to_owned(),
        attr_timeout: BELIEVED,
        entry_timeout: BELIEVED,
        cache_policy: CachePolicy::Auto,
        // Others write to the folder at the same time.
        writeback: false,
        xattr: true,
        killpriv_v2: true,
        // Otherwise it offers the write-back cache whatever is said above.
        do_import: true,
        // The bytes of a request lie anywhere in memory.
        allow_direct_io: false,
        ..Config::default()
    }
}

fn serve(files: &Arc<PassthroughFs<()>>, mut socket: File) -> anyhow::Result<()> {
    let server = Server::new(Arc::clone(files));
    let mut request = vec![0; MOST_BYTES];
    let mut answer = vec![0; MOST_BYTES];
    while let Some(length) = read_request(&mut socket, &mut request)? {
        if let Some(greeting) = greeting::answer(files, &request[..length]) {
            socket.write_all(&greeting).context("cannot answer")?;
            continue;
        }
        let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(&mut request[..length]));
        let writer = FuseDevWriter::<()>::new(socket.as_raw_fd(), &mut answer);
        let (Ok(reader), Ok(writer)) = (reader, writer) else { anyhow::bail!("no buffer for a request") };
        // It has answered with an error, or the request was none and has no answer.
        let _ = server.handle_message(reader, writer.into(), None, None);
    }
    Ok(())
}

/// Reads one request. None at the end.
fn read_request(socket: &mut File, buffer: &mut [u8]) -> anyhow::Result<Option<usize>> {
    // Both kernels are of one architecture, which has the low byte first.
    let (head, rest) = buffer.split_at_mut(size_of::<u32>());
    match socket.read_exact(head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other.context("cannot read a request")?,
    }
    let length = head.iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte));
    anyhow::ensure!((LEAST_BYTES..=MOST_BYTES).contains(&length), "a request of {length} bytes");
    socket.read_exact(&mut rest[..length - size_of::<u32>()]).context("a request broke off")?;
    Ok(Some(length))
}
