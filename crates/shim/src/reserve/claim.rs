//! How a container gets the shim that stands by: a line of JSON each, and a last one that says that it is taken. Until then
//! either side may go away, and nothing has happened.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Place;
use crate::bundle::ProcessRecord;

/// How long `start` waits for each of the shim's words; it does nothing but this. Without an answer a new shim is started.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long the shim waits for each word of `start`, which has a few files to write.
const START_PATIENCE: Duration = Duration::from_secs(2);
/// The longest line: paths and numbers.
const MOST_BYTES: u64 = 64 << 10;

/// What `start` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The container.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Where the Task API is served.
    pub socket: PathBuf,
    /// The shim.
    pub shim: ProcessRecord,
    /// What must not outlive it.
    pub processes: Vec<ProcessRecord>,
}

/// Claims the shim that stands by at a place. Shape: `None` when there is none, or another container has it. When: blocks, half a
/// second at the very most unless `record` takes longer; it is called between offer and taking, and its error lets the shim go.
///
/// # Errors
/// It does not answer, or answers nonsense; what `record` says.
pub fn claim(place: &Place, claim: &Claim, record: impl FnOnce(&Offer) -> io::Result<()>) -> io::Result<Option<Offer>> {
    let Ok(mut stream) = place.connect() else { return Ok(None) };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    match stream.write_all(&line(claim)?) {
        Err(error) if is_gone(&error) => return Ok(None),
        written => written?,
    }
    let mut text = String::new();
    match BufReader::new((&stream).take(MOST_BYTES)).read_line(&mut text) {
        Ok(0) => return Ok(None),
        Err(error) if is_gone(&error) => return Ok(None),
        read => read?,
    };
    let offer: Offer = parse(&text)?;
    record(&offer)?;
    stream.write_all(b"\n")?;
    Ok(Some(offer))
}

/// Whoever listened there has stopped.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// The other side: reads the claim, makes the offer, and answers the claim if the shim is taken.
///
/// # Errors
/// The other side goes away, or talks nonsense; what `offer` says. Nothing is taken then.
pub async fn receive(stream: UnixStream, offer: impl FnOnce(&Claim) -> io::Result<Offer>) -> io::Result<Claim> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = tokio::io::BufReader::new(reader.take(MOST_BYTES));
    let asked = async {
        let mut text = String::new();
        reader.read_line(&mut text).await?;
        let claim: Claim = parse(&text)?;
        writer.write_all(&line(&offer(&claim)?)?).await?;
        let mut taken = String::new();
        match reader.read_line(&mut taken).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it was not taken")),
            _ => Ok(claim),
        }
    };
    tokio::time::timeout(START_PATIENCE, asked).await.map_err(|_| io::ErrorKind::TimedOut)?
}

fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(message)?;
    text.push(b'\n');
    Ok(text)
}

fn parse<T: DeserializeOwned>(text: &str) -> io::Result<T> {
    if text.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(text)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn offer() -> Offer {
        let shim = ProcessRecord { pid: 7, start_time: 8 };
        Offer { socket: "/s".into(), shim, processes: vec![shim] }
    }

    fn asked() -> Claim {
        Claim { id: "c".into(), bundle: "/b".into() }
    }

    /// A place with somebody ready in it, and what becomes of the first who comes.
    async fn ready(
        name: &str,
        offer: impl FnOnce(&Claim) -> io::Result<Offer> + Send + 'static,
    ) -> (Place, tokio::task::JoinHandle<io::Result<Claim>>) {
        let place = Place::of(&format!("test-{}-{name}", std::process::id()));
        let listener: UnixListener = place.take().unwrap().unwrap();
        place.open().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let received = tokio::spawn(async move {
            let (stream, _) = listener.accept().await?;
            receive(stream, offer).await
        });
        (place, received)
    }

    async fn claims(place: &Place, record: fn(&Offer) -> io::Result<()>) -> io::Result<Option<Offer>> {
        let place = place.clone();
        tokio::task::spawn_blocking(move || claim(&place, &asked(), record)).await.unwrap()
    }

    #[tokio::test]
    async fn it_is_taken_once_what_it_is_has_been_recorded() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIPPED: needs root");
        }
        let (place, received) = ready("taken", |_| Ok(offer())).await;
        assert_eq!(claims(&place, |_| Ok(())).await.unwrap(), Some(offer()));
        assert_eq!(received.await.unwrap().unwrap(), asked());
        // It listens no more.
        assert_eq!(claims(&place, |_| Ok(())).await.unwrap(), None);
        place.clear().unwrap();
    }

    #[tokio::test]
    async fn what_cannot_be_recorded_or_offered_is_not_taken() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIPPED: needs root");
        }
        let (place, received) = ready("unrecorded", |_| Ok(offer())).await;
        claims(&place, |_| Err(io::ErrorKind::StorageFull.into())).await.unwrap_err();
        assert_eq!(received.await.unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        place.clear().unwrap();
        let (place, received) = ready("unoffered", |_| Err(io::ErrorKind::Other.into())).await;
        assert_eq!(claims(&place, |_| Ok(())).await.unwrap(), None);
        received.await.unwrap().unwrap_err();
        place.clear().unwrap();
    }
}
