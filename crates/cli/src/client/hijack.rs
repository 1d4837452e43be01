//! A connection that became a container's standard streams.

use std::io;

use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper::{Response, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::ClientError;

/// Most bytes read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Both directions of a hijacked connection.
pub struct Hijacked {
    /// What the container writes.
    pub output: Output<ReadHalf<TokioIo<Upgraded>>>,
    /// What the container reads. Shutting it down is its end of file.
    pub input: WriteHalf<TokioIo<Upgraded>>,
}

impl Hijacked {
    /// Takes over the connection of an answer with status 101.
    ///
    /// # Errors
    /// [`ClientError::Broken`].
    pub async fn new(response: Response<Incoming>) -> Result<Self, ClientError> {
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let raw = content_type.is_some_and(|value| value.as_bytes().ends_with(b"raw-stream"));
        let upgraded = hyper::upgrade::on(response).await?;
        let (read, input) = tokio::io::split(TokioIo::new(upgraded));
        Ok(Self { output: Output { stream: read, raw }, input })
    }
}

/// A container's output, framed by stream unless it has a terminal.
pub struct Output<R> {
    stream: R,
    raw: bool,
}

impl<R: AsyncRead + Unpin> Output<R> {
    /// Reads output that is raw, or framed.
    pub fn new(stream: R, raw: bool) -> Self {
        Self { stream, raw }
    }

    /// Copies everything to the two writers until the end. Shape of a frame: stream (1 is out, 2 is err, 3 the engine's own
    /// words), three zeros, length as 32 bits big endian, the bytes. Source: Docker Engine API, "Stream format".
    ///
    /// # Errors
    /// When the connection breaks within a frame, or a writer fails.
    pub async fn copy(
        mut self,
        out: &mut (impl AsyncWrite + Unpin),
        err: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        if self.raw {
            loop {
                match self.stream.read(&mut chunk).await? {
                    0 => return Ok(()),
                    count => write(out, &chunk[..count]).await?,
                }
            }
        }
        while let Some((stream, length)) = self.header().await? {
            let mut left = length;
            while left > 0 {
                let wanted = left.min(chunk.len());
                let count = self.stream.read(&mut chunk[..wanted]).await?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                match stream {
                    2 | 3 => write(err, &chunk[..count]).await?,
                    _ => write(out, &chunk[..count]).await?,
                }
                left -= count;
            }
        }
        Ok(())
    }

    async fn header(&mut self) -> io::Result<Option<(u8, usize)>> {
        let mut header = [0; 8];
        let mut have = 0;
        while have < header.len() {
            match self.stream.read(&mut header[have..]).await? {
                0 if have == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => have += count,
            }
        }
        let [stream, _, _, _, length @ ..] = header;
        let length = u32::from_be_bytes(length);
        Ok(Some((stream, usize::try_from(length).map_err(io::Error::other)?)))
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_are_sorted_by_stream() {
        let framed = b"\x01\0\0\0\0\0\0\x03out\x02\0\0\0\0\0\0\x03err\x01\0\0\0\0\0\0\x01!";
        let (mut out, mut err) = (Vec::new(), Vec::new());
        Output::new(&framed[..], false).copy(&mut out, &mut err).await.unwrap();
        assert_eq!((out.as_slice(), err.as_slice()), (&b"out!"[..], &b"err"[..]));
        let mut raw = Vec::new();
        Output::new(&b"\x01\0raw"[..], true).copy(&mut raw, &mut Vec::new()).await.unwrap();
        assert_eq!(raw, b"\x01\0raw");
    }

    #[tokio::test]
    async fn a_broken_frame_is_no_end() {
        for broken in [&b"\x01\0\0"[..], &b"\x01\0\0\0\0\0\0\x05ab"[..]] {
            assert!(Output::new(broken, false).copy(&mut Vec::new(), &mut Vec::new()).await.is_err());
        }
    }
}
