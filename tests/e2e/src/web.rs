//! A web server of a test: what it has is made before, or asked of a function.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// One answer.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Such as `200 OK`.
    pub status: String,
    /// Header lines, without their ends.
    pub headers: Vec<String>,
    /// The content.
    pub body: Vec<u8>,
}

impl Page {
    /// A content that is there.
    #[must_use]
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: "200 OK".into(), headers: Vec::new(), body: body.into() }
    }

    /// Something else.
    #[must_use]
    pub fn status(status: &str) -> Self {
        Self { status: status.into(), ..Self::default() }
    }

    /// With a further header line.
    #[must_use]
    pub fn with(mut self, header: &str) -> Self {
        self.headers.push(header.to_owned());
        self
    }

    /// The file of a folder that a path means.
    #[must_use]
    pub fn file(folder: &Path, path: &str) -> Self {
        let path = path.split('?').next().unwrap_or_default().trim_start_matches('/');
        std::fs::read(folder.join(path)).map_or_else(|_| Self::status("404 Not Found"), Self::ok)
    }
}

/// A server on a port of this host. It ends with this.
pub struct Web {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl Web {
    /// Starts one. Shape: the function is given the request's path with its query.
    ///
    /// # Panics
    /// Without a free port.
    #[must_use]
    pub fn start(pages: impl Fn(&str) -> Page + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let serving = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if until.load(Ordering::Relaxed) {
                    return;
                }
                // A client that hangs up is the test's affair, if it matters.
                let _ = stream.and_then(|stream| answer(stream, &pages));
            }
        });
        Self { address, ended, serving: Some(serving) }
    }

    /// The URL of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

fn answer(mut stream: TcpStream, pages: &impl Fn(&str) -> Page) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 64 << 10 {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let Page { status, headers, body } = pages(path);
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
    if method != "HEAD" {
        stream.write_all(&body)?;
    }
    Ok(())
}

impl Drop for Web {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the thread, which then ends.
        let woken = TcpStream::connect(self.address);
        if let (Ok(_), Some(serving)) = (woken, self.serving.take()) {
            let _ = serving.join();
        }
    }
}
