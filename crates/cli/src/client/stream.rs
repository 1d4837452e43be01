//! Connections to the engine: a socket, or `ssh` to another host's.

use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::process::{ChildStdin, ChildStdout};

use super::address::{Address, SshAddress};

/// Both directions of a connection.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Connects.
///
/// # Errors
/// What connecting says; that there is no `ssh`. What `ssh` itself has to say, it says on standard error.
pub async fn connect(address: &Address) -> io::Result<Box<dyn Duplex>> {
    match address {
        Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Address::Ssh(ssh) => dial(ssh),
    }
}

/// Runs `ssh`, which ends by itself when its standard input is closed. Source: docker/cli `connhelper`.
fn dial(address: &SshAddress) -> io::Result<Box<dyn Duplex>> {
    let mut command = tokio::process::Command::new("ssh");
    command.args(arguments(address)).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child =
        command.spawn().map_err(|error| io::Error::new(error.kind(), format!("cannot run ssh: {error}")))?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("ssh has no standard streams"));
    };
    Ok(Box::new(Piped { output, input: Some(input) }))
}

/// The two pipes of a program. Shutting it down closes the program's standard input, which tokio's own type does on drop only.
struct Piped {
    output: ChildStdout,
    input: Option<ChildStdin>,
}

impl AsyncRead for Piped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(context, buffer)
    }
}

impl AsyncWrite for Piped {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.input {
            Some(input) => Pin::new(input).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.input {
            Some(input) => Pin::new(input).poll_flush(context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input = None;
        Poll::Ready(Ok(()))
    }
}

fn arguments(address: &SshAddress) -> Vec<String> {
    let mut words: Vec<String> = ["-o", "ConnectTimeout=30", "-T"].map(str::to_owned).into();
    if let Some(user) = &address.user {
        words.extend(["-l".to_owned(), user.clone()]);
    }
    if let Some(port) = address.port {
        words.extend(["-p".to_owned(), port.to_string()]);
    }
    words.extend(["--".to_owned(), address.host.clone(), "bulkhead".to_owned()]);
    if let Some(socket) = &address.socket {
        // The other host's shell reads it.
        words.extend(["--host".to_owned(), format!("'unix://{}'", socket.replace('\'', "'\\''"))]);
    }
    words.extend(["system", "dial-stdio"].map(str::to_owned));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_hosts_shell_cannot_be_talked_into_anything() {
        let address =
            SshAddress { user: Some("me".into()), host: "box".into(), port: Some(22), socket: Some("/a';x".into()) };
        let expected =
            "-o ConnectTimeout=30 -T -l me -p 22 -- box bulkhead --host 'unix:///a'\\'';x' system dial-stdio";
        assert_eq!(arguments(&address).join(" "), expected);
    }
}
