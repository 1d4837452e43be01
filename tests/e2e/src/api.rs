//! A client of the engine's API below the level of any SDK: it can send what no SDK would.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How much of a body is read at most, in bytes; streams may never end.
const MAX_BODY_BYTES: usize = 1 << 20;
/// See [`ApiConnection::set_pause`]; enough where only a stream's beginning is of interest.
const STREAM_PAUSE: Duration = Duration::from_millis(150);

/// One connection, used for one request after another.
pub struct ApiConnection {
    stream: UnixStream,
    /// What was read and belongs to the next answer.
    buffer: Vec<u8>,
    pause: Duration,
    most: usize,
}

/// What the engine answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names in lower case, values as they came.
    pub headers: Vec<(String, String)>,
    /// The body, or the beginning of a stream.
    pub body: Vec<u8>,
    /// The body was read to its end: the connection can be used again.
    pub complete: bool,
}

impl Answer {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The text of an error.
    #[must_use]
    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl ApiConnection {
    /// Connects to an engine's socket. Reading waits at most 30 seconds.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        let mut connection = Self { stream, buffer: Vec::new(), pause: STREAM_PAUSE, most: MAX_BODY_BYTES };
        connection.set_patience(Duration::from_secs(30))?;
        Ok(connection)
    }

    /// How long reading waits for the head of an answer.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn set_patience(&mut self, patience: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(patience))
    }

    /// How long a stream that has begun may pause before it is taken as it is.
    pub fn set_pause(&mut self, pause: Duration) {
        self.pause = pause;
    }

    /// How many bytes of an answer's body are read; what has more is not complete, and the connection of no further use.
    pub fn set_most(&mut self, bytes: usize) {
        self.most = bytes;
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The engine has closed the connection.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// The engine has closed the connection.
    pub fn finish(&self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)
    }

    /// One request with a JSON body, or none, and its answer.
    ///
    /// # Errors
    /// As [`ApiConnection::answer`].
    pub fn request(&mut self, method: &str, path: &str, body: Option<&[u8]>) -> io::Result<Answer> {
        let mut request = head(method, path, "application/json", body.map(<[u8]>::len));
        request.extend_from_slice(body.unwrap_or_default());
        self.exchange(&request, method == "HEAD")
    }

    /// Sends a request as it is and reads the answer, which may come before all is sent: a body that is too long is refused.
    ///
    /// # Errors
    /// As [`ApiConnection::answer`].
    pub fn exchange(&mut self, request: &[u8], bare: bool) -> io::Result<Answer> {
        let sent = self.send(request);
        self.answer(bare).map_err(|error| sent.err().unwrap_or(error))
    }

    /// Reads an answer. `bare`: only its head, since it has no body, or one that is not of interest.
    ///
    /// # Errors
    /// The engine closed the connection, said what is no HTTP, or says nothing for too long.
    pub fn answer(&mut self, bare: bool) -> io::Result<Answer> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut head = httparse::Response::new(&mut headers);
            let parsed = head.parse(&self.buffer).map_err(io::Error::other)?;
            let httparse::Status::Complete(length) = parsed else {
                self.read_more()?;
                continue;
            };
            let status = head.code.unwrap_or_default();
            let headers: Vec<(String, String)> = head
                .headers
                .iter()
                .map(|header| (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).into_owned()))
                .collect();
            self.buffer.drain(..length);
            // An interim answer: the one that is meant follows.
            if status == 100 {
                continue;
            }
            let mut answer = Answer { status, headers, body: Vec::new(), complete: false };
            self.read_body(&mut answer, bare)?;
            return Ok(answer);
        }
    }

    fn read_body(&mut self, answer: &mut Answer, bare: bool) -> io::Result<()> {
        if bare || matches!(answer.status, 204 | 304) {
            answer.complete = true;
            return Ok(());
        }
        if answer.status == 101 {
            return Ok(());
        }
        if let Some(length) = answer.header("content-length").and_then(|text| text.parse::<usize>().ok()) {
            while self.buffer.len() < length.min(self.most) {
                self.read_more()?;
            }
            answer.complete = length <= self.most;
            answer.body = self.buffer.drain(..length.min(self.most)).collect();
            return Ok(());
        }
        let patience = self.stream.read_timeout()?;
        self.stream.set_read_timeout(Some(self.pause))?;
        let chunked = answer.header("transfer-encoding").is_some_and(|value| value.contains("chunked"));
        let read = if chunked { self.read_chunks(answer) } else { self.read_to_end(answer) };
        self.stream.set_read_timeout(patience)?;
        match read {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(()),
            other => other,
        }
    }

    fn read_chunks(&mut self, answer: &mut Answer) -> io::Result<()> {
        while answer.body.len() < self.most {
            match httparse::parse_chunk_size(&self.buffer).map_err(|_| io::Error::other("no chunk"))? {
                httparse::Status::Partial => self.read_more()?,
                httparse::Status::Complete((begin, length)) => {
                    let end = begin + usize::try_from(length).map_err(io::Error::other)?;
                    while self.buffer.len() < end + 2 {
                        self.read_more()?;
                    }
                    answer.body.extend_from_slice(&self.buffer[begin..end]);
                    self.buffer.drain(..end + 2);
                    if length == 0 {
                        answer.complete = true;
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Asks for a stream in both directions, as the docker CLI does; what it carries is not read.
    ///
    /// # Errors
    /// As [`ApiConnection::answer`].
    pub fn upgrade(&mut self, path: &str, body: &[u8]) -> io::Result<Answer> {
        let mut request = head("POST", path, "application/json", Some(body.len()));
        request.splice(request.len() - 2.., *b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n");
        request.extend_from_slice(body);
        self.exchange(&request, false)
    }

    /// As [`ApiConnection::upgrade`], and reads what comes until the engine closes the stream.
    ///
    /// # Errors
    /// As [`ApiConnection::answer`]; the answer as text when it is not 101.
    pub fn hijack(&mut self, path: &str, body: &[u8]) -> io::Result<Vec<u8>> {
        let mut answer = self.upgrade(path, body)?;
        if answer.status != 101 {
            return Err(io::Error::other(format!("{} {}", answer.status, answer.message())));
        }
        self.stream.set_read_timeout(Some(self.pause))?;
        self.read_to_end(&mut answer)?;
        Ok(answer.body)
    }

    /// Reads so many bytes of a stream in both directions.
    ///
    /// # Errors
    /// The stream ends, or pauses for too long, before.
    pub fn read_for(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.read_more()?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    fn read_to_end(&mut self, answer: &mut Answer) -> io::Result<()> {
        loop {
            answer.body.append(&mut self.buffer);
            if answer.body.len() >= self.most || self.read_more().is_err() {
                return Ok(());
            }
        }
    }

    fn read_more(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16 << 10];
        let read = loop {
            match self.stream.read(&mut bytes) {
                // Whoever traces the client interrupts it.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        match read {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => {
                self.buffer.extend_from_slice(&bytes[..length]);
                Ok(())
            }
        }
    }
}

/// Runs a command in a container that runs, as the docker CLI does: announced, started over an upgraded connection, asked
/// for its end. Gives its exit code and its framed output; waits at most so long for each answer.
///
/// # Errors
/// The engine refuses, or does not answer.
pub fn exec(socket: &Path, container: &str, command: &[&str], patience: Duration) -> io::Result<(i64, Vec<u8>)> {
    let connect = || -> io::Result<ApiConnection> {
        let mut connection = ApiConnection::open(socket)?;
        connection.set_patience(patience)?;
        connection.set_pause(patience);
        Ok(connection)
    };
    let mut connection = connect()?;
    let body = json!({ "Cmd": command, "AttachStdout": true, "AttachStderr": true });
    let made =
        connection.request("POST", &format!("/containers/{container}/exec"), Some(body.to_string().as_bytes()))?;
    let answer = made.json();
    let Some(id) = answer["Id"].as_str() else {
        return Err(io::Error::other(format!("exec: {} {}", made.status, made.message())));
    };
    let output = connection.hijack(&format!("/exec/{id}/start"), b"{}")?;
    let code = connect()?.request("GET", &format!("/exec/{id}/json"), None)?.json()["ExitCode"].as_i64();
    Ok((code.unwrap_or(-1), output))
}

/// The head of a request; `length` is what it says of its body.
#[must_use]
pub fn head(method: &str, path: &str, content_type: &str, length: Option<usize>) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    if let Some(length) = length {
        head += &format!("Content-Type: {content_type}\r\nContent-Length: {length}\r\n");
    }
    head += "\r\n";
    head.into_bytes()
}
