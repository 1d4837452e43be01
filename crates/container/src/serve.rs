//! The helper's side: takes one request, does it, answers, and ends.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::cgroup::Readiness;
use crate::wire::{self, Answer, Request, StreamFds};
use crate::{exec, init, zygote_process};

/// Serves one request and ends the process. Shape: `still` for one that keeps nothing ready meanwhile.
pub fn run(still: bool) -> ! {
    // Nobody reads this status: the answer says it all.
    std::process::exit(i32::from(serve(still).is_none()))
}

fn serve(still: bool) -> Option<()> {
    let socket = take_socket()?;
    // From here on this process may touch what belongs to a container, and a container's process must not touch it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).ok()?;
    if !still {
        keep_ready(&socket);
    }
    let (request, fds) = wire::receive::<Request>(&socket).ok()??;
    let mut fds = fds.into_iter();
    let first = fds.next()?;
    let outcome = match request {
        Request::Create(request) => {
            let streams = request.streams.map(|streams| StreamFds::take(streams, &mut fds));
            init::create(&request, first, streams)
        }
        Request::Exec(request) => {
            let streams = request.streams.map(|streams| StreamFds::take(streams, &mut fds));
            exec::start(&request, &first, streams)
        }
        Request::Zygote(request) => zygote_process::create(&request, first, fds.next()),
    };
    let terminal: Vec<_> = outcome.terminal.iter().map(AsFd::as_fd).collect();
    if wire::send(&socket, &outcome.answer, &terminal).is_err()
        && let Answer::Started { pid } = outcome.answer
    {
        // The caller is gone: nobody will ever start, wait for, or remove this process.
        let pid = i32::try_from(pid).ok()?;
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    Some(())
}

/// Waits for the request's first byte for a while, and keeps the kernel ready for what it will ask. A helper that is needed at
/// all is mostly needed at once.
fn keep_ready(socket: &UnixStream) {
    const ROUND: Timespec = Timespec { tv_sec: 0, tv_nsec: 4_000_000 };
    const ROUNDS: usize = 40;
    let Some(readiness) = Readiness::new() else { return };
    for _ in 0..ROUNDS {
        readiness.renew();
        let mut polled = [PollFd::new(socket, PollFlags::IN)];
        if poll(&mut polled, Some(&ROUND)) != Ok(0) {
            return;
        }
    }
}

/// Moves the socket away from standard input, which becomes /dev/null like the other two.
fn take_socket() -> Option<UnixStream> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).ok()?;
    let null = File::open("/dev/null").ok()?;
    rustix::stdio::dup2_stdin(&null).ok()?;
    Some(UnixStream::from(socket))
}
