//! What a fuzzer calls: the host's end of a connection to a guest that says anything. Ordinary tests call it, too, with bytes made by
//! chance. Only for `fuzz/` (feature `fuzzing`) and for tests.

use std::time::Duration;

use proto::gcs::wire::{ContainerRequest, Network, WaitOomKillRequest, WaitRequest};
use proto::gcs::{INIT_PROCESS, StreamHeader, StreamKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::connection::GuestConnection;
use crate::personalize::{Identity, personalize};

/// The guest closes its end after its last word, so that nothing has to wait longer.
const LIMIT: Duration = Duration::from_secs(8);
/// What the guest says at most.
const MOST_STEPS: usize = 100;
/// Of what it sends on a stream that somebody reads.
const MOST_READ: u64 = 1 << 20;

/// Calls a guest that answers with these bytes: yamux frames and answers of ttrpc that are more or less right, and plain bytes.
///
/// # Panics
/// When the host's end does not end with the guest's.
pub fn gcs(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (host, guest) = UnixStream::pair().expect("two sockets");
        tokio::spawn(say(guest, data.to_vec()));
        tokio::time::timeout(LIMIT, ask(host)).await.expect("what is asked of a guest that has gone comes to an end");
    });
}

/// Everything that reads what the guest says. Any outcome is right, but for none.
async fn ask(port: UnixStream) {
    let Ok(guest) = GuestConnection::open(port).await else { return };
    let network = Network::new();
    let names = || "fuzz".to_owned();
    let identity =
        Identity { hostname: names(), domainname: names(), machine_id: "0f".repeat(16), rehearsal: false, network };
    let stream = async {
        let header = StreamHeader { kind: StreamKind::Stdout, process: INIT_PROCESS };
        let Ok(stream) = guest.open_stream(header).await else { return };
        // A guest may cut its stream anywhere.
        let _ = stream.take(MOST_READ).read_to_end(&mut Vec::new()).await;
    };
    let (container, wait, lack) = (ContainerRequest::default(), WaitRequest::default(), WaitOomKillRequest::default());
    let _ = tokio::join!(
        personalize(&guest, &identity, LIMIT / 2),
        guest.stats(&container),
        guest.processes(&container),
        guest.wait(&wait),
        guest.wait_oom_kill(&lack),
        stream
    );
}

async fn say(mut port: UnixStream, data: Vec<u8>) {
    let mut rest = data.as_slice();
    for _ in 0..MOST_STEPS {
        let Some(said) = step(&mut rest) else { break };
        if said.is_empty() {
            tokio::task::yield_now().await;
        } else if port.write_all(&said).await.is_err() {
            // The host has had enough.
            return;
        }
    }
}

/// What is said next; nothing to let the host read. `None` at the end.
fn step(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let [kind, a, b, c] = take(rest)?;
    let content = {
        let length = usize::from(c).min(rest.len());
        let (content, behind) = rest.split_at(length);
        *rest = behind;
        content
    };
    // The host's streams have odd numbers from 1 on, and so have the calls on the first.
    let odd = |byte: u8| u32::from(byte % 8) * 2 + 1;
    match kind {
        0..=19 => Some(Vec::new()),
        20..=139 => Some(frame(0, u16::from(b % 4), 1, &answer(odd(a), 2, content))),
        140..=179 => Some(frame(0, u16::from(b % 16), odd(a), content)),
        180..=209 => {
            // A window, a ping, or the last word: the length says something else.
            let value = u32::from_be_bytes([0, a, b, c]);
            Some(header(1 + kind % 3, u16::from(b % 16), if kind % 3 == 0 { odd(a) } else { 0 }, value).to_vec())
        }
        210..=229 => Some(frame(0, 0, 1, &answer(u32::from(a), b, content))),
        _ => Some([&[kind, a, b, c], content].concat()),
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*head)
}

/// Source: yamux spec.md, "Framing".
fn header(kind: u8, flags: u16, stream: u32, length: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[1] = kind;
    bytes[2..4].copy_from_slice(&flags.to_be_bytes());
    bytes[4..8].copy_from_slice(&stream.to_be_bytes());
    bytes[8..].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn frame(kind: u8, flags: u16, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    [&header(kind, flags, stream, length)[..], content].concat()
}

/// An answer of ttrpc, which is a `Response`: field 2 is the payload. Source: ttrpc PROTOCOL.md.
fn answer(call: u32, kind: u8, content: &[u8]) -> Vec<u8> {
    // One byte is enough for the length of what is short; longer content is no response, and said as it is.
    let message = match u8::try_from(content.len()) {
        Ok(length @ 1..=0x7f) => [&[0x12, length], content].concat(),
        _ => content.to_vec(),
    };
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &call.to_be_bytes(), &[kind, 0], &message].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_guest_says_comes_to_an_end() {
        let mut random = 1_u64;
        for round in 0..60 {
            let byte = || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                u8::try_from(random >> 56).unwrap()
            };
            let data: Vec<u8> = std::iter::repeat_with(byte).take(round * 8).collect();
            gcs(&data);
        }
    }

    #[test]
    fn frames_are_those_of_the_protocols() {
        assert_eq!(frame(0, 1, 3, b"ab"), [0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 2, b'a', b'b']);
        assert_eq!(answer(5, 2, b"x"), [0, 0, 0, 3, 0, 0, 0, 5, 2, 0, 0x12, 1, b'x']);
    }
}
