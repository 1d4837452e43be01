//! A request's body as a reader for code that waits.

use std::io::{self, Read};

use axum::body::{Body, Bytes};
use futures_util::StreamExt;
use tokio::sync::mpsc;

/// Pieces that may lie between the network and the reader; the client is held back when they are full.
const PIECES: usize = 16;

/// The reading half: blocks until the next piece comes. When: in a thread that may wait.
pub struct BodyReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

/// Starts a task that feeds the reader. It ends with the body: what a reader that is gone has not read is dropped, since a
/// connection that is closed while the client still sends would hide the answer from it.
pub fn of_body(body: Body) -> BodyReader {
    let (sender, pieces) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        let mut stream = body.into_data_stream();
        while let Some(piece) = stream.next().await {
            let broken = piece.is_err();
            // An error here means that the reader is gone; the rest is read all the same.
            let _ = sender.send(piece.map_err(io::Error::other)).await;
            if broken {
                return;
            }
        }
    });
    BodyReader { pieces, current: Bytes::new() }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_read_whole_and_in_order() {
        let pieces: Vec<io::Result<Bytes>> =
            (0..100u8).map(|byte| Ok(Bytes::from(vec![byte; usize::from(byte)]))).collect();
        let mut reader = of_body(Body::from_stream(futures_util::stream::iter(pieces)));
        let read = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        let all = read.await.unwrap().unwrap();
        assert_eq!(all.len(), (0..100).sum::<usize>());
        assert!(all.is_sorted());
    }

    #[tokio::test]
    async fn a_broken_connection_is_an_error_and_no_end() {
        let pieces = [Ok(Bytes::from_static(b"abc")), Err(io::Error::other("reset"))];
        let mut reader = of_body(Body::from_stream(futures_util::stream::iter(pieces)));
        let read = tokio::task::spawn_blocking(move || reader.read_to_end(&mut Vec::new()));
        assert!(read.await.unwrap().is_err());
    }
}
