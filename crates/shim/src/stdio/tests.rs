use std::time::Instant;

use super::*;

struct Pipes {
    folder: tempfile::TempDir,
    paths: StdioPaths,
}

impl Pipes {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = folder.path().join(name);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let paths = StdioPaths {
            stdin: make("in"),
            stdout: make("out"),
            stderr: make("err"),
            terminal: false,
            stdin_end: StdinEnd::Request,
            owner: Owner::default(),
        };
        Self { folder, paths }
    }

    fn caller_reads(&self, name: &str) -> pipe::Receiver {
        pipe::OpenOptions::new().open_receiver(self.folder.path().join(name)).unwrap()
    }

    fn caller_writes(&self, name: &str) -> pipe::Sender {
        pipe::OpenOptions::new().open_sender(self.folder.path().join(name)).unwrap()
    }
}

async fn read_to_end(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), from.read_to_end(&mut all)).await.expect("no end of file").unwrap();
    all
}

#[tokio::test]
async fn the_input_ends_by_close_and_not_by_a_caller_that_dies() {
    let pipes = Pipes::new();
    let (inherited, streams) = Fifos::open(&pipes.paths).await.unwrap().pipe().unwrap();
    let mut caller = pipes.caller_writes("in");
    caller.write_all(b"first").await.unwrap();
    drop(caller);
    let mut process = reader(inherited.stdin.unwrap()).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(process.read(&mut buffer).await.unwrap(), 5);
    let more = tokio::time::timeout(Duration::from_millis(100), process.read(&mut buffer)).await;
    assert!(more.is_err(), "the death of the caller must not be an end of file");
    pipes.caller_writes("in").write_all(b"second").await.unwrap();
    streams.close_stdin();
    streams.close_stdin();
    assert_eq!(read_to_end(process).await, b"second");
}

#[tokio::test]
async fn with_a_foreign_containerd_the_input_ends_when_its_writer_closes() {
    let mut pipes = Pipes::new();
    pipes.paths.stdin_end = StdinEnd::Writer;
    (pipes.paths.stdout, pipes.paths.stderr) = (String::new(), String::new());
    let (inherited, _streams) = Fifos::open(&pipes.paths).await.unwrap().pipe().unwrap();
    let mut process = reader(inherited.stdin.unwrap()).unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), process.read(&mut [0; 1])).await;
    assert!(early.is_err(), "a writer that has not come yet is no end of file");
    let mut caller = pipes.caller_writes("in");
    caller.write_all(b"all of it").await.unwrap();
    drop(caller);
    assert_eq!(read_to_end(process).await, b"all of it");
}

#[tokio::test]
async fn a_foreign_client_that_is_about_to_read_is_waited_for() {
    let mut pipes = Pipes::new();
    pipes.paths.stdin_end = StdinEnd::Writer;
    pipes.paths.stderr = String::new();
    let paths = pipes.paths.clone();
    let opened = tokio::spawn(async move { Fifos::open(&paths).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!opened.is_finished());
    let out = pipes.caller_reads("out");
    let (inherited, streams) = opened.await.unwrap().unwrap().pipe().unwrap();
    streams.process_started();
    let mut process = std::fs::File::from(inherited.stdout.unwrap());
    std::io::Write::write_all(&mut process, b"in time").unwrap();
    drop(process);
    streams.complete().await;
    drop(streams);
    assert_eq!(read_to_end(out).await, b"in time");
}

#[tokio::test]
async fn output_waits_in_the_fifo_for_a_caller_that_comes_late() {
    let pipes = Pipes::new();
    let (inherited, streams) = Fifos::open(&pipes.paths).await.unwrap().pipe().unwrap();
    let mut out = std::fs::File::from(inherited.stdout.unwrap());
    std::io::Write::write_all(&mut out, b"nobody reads yet").unwrap();
    drop((out, inherited.stderr));
    streams.complete().await;
    assert_eq!(read_to_end(pipes.caller_reads("out")).await, b"nobody reads yet");
    assert_eq!(read_to_end(pipes.caller_reads("err")).await, b"");
}

#[tokio::test]
async fn copying_is_byte_for_byte_and_complete_waits_for_a_slow_caller() {
    let pipes = Pipes::new();
    let (mut process_out, source) = tokio::io::duplex(1024);
    let ends = ProcessEnds { stdout: Some(Box::pin(source)), ..ProcessEnds::default() };
    let streams = Fifos::open(&pipes.paths).await.unwrap().copy(ends).unwrap();
    let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    let sent = bytes.clone();
    let writing = tokio::spawn(async move { process_out.write_all(&sent).await.unwrap() });
    let caller = pipes.caller_reads("out");
    // Longer than a leaked writer is waited for: slowness of the caller must lose nothing.
    let reading = tokio::spawn(async move {
        tokio::time::sleep(LEAKED_WRITER + Duration::from_millis(500)).await;
        read_to_end(caller).await
    });
    streams.complete().await;
    writing.await.unwrap();
    let received = reading.await.unwrap();
    assert!(received == bytes, "{} of {} bytes", received.len(), bytes.len());
}

#[tokio::test]
async fn an_output_that_is_left_open_is_waited_for_two_seconds() {
    let pipes = Pipes::new();
    let (mut left_behind, source) = tokio::io::duplex(1024);
    let ends = ProcessEnds { stdout: Some(Box::pin(source)), ..ProcessEnds::default() };
    let streams = Fifos::open(&pipes.paths).await.unwrap().copy(ends).unwrap();
    left_behind.write_all(b"last words").await.unwrap();
    let begin = Instant::now();
    let caller = pipes.caller_reads("out");
    streams.complete().await;
    assert!((LEAKED_WRITER..LEAKED_WRITER * 3).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    assert_eq!(read_to_end(caller).await, b"last words");
}

#[tokio::test]
async fn the_end_of_the_input_reaches_the_process() {
    let pipes = Pipes::new();
    let (sink, process_in) = tokio::io::duplex(64);
    let ends = ProcessEnds { stdin: Some(Box::pin(sink)), ..ProcessEnds::default() };
    let streams = Fifos::open(&pipes.paths).await.unwrap().copy(ends).unwrap();
    let mut caller = pipes.caller_writes("in");
    caller.write_all(b"typed").await.unwrap();
    drop(caller);
    streams.close_stdin();
    assert_eq!(read_to_end(process_in).await, b"typed");
}

#[tokio::test]
async fn what_is_no_fifo_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let paths = |stdout: String| StdioPaths { stdout, ..StdioPaths::default() };
    let fifos = Fifos::open(&paths(format!("file://{}", file.display()))).await.unwrap();
    assert!(Path::new(&file).exists() && !fifos.has_stdin());
    let error = Fifos::open(&paths("syslog://host".into())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotImplemented);
    let error = Fifos::open(&paths("binary:///nosuch?x=y".into())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = Fifos::open(&paths(folder.path().join("none").to_str().unwrap().into())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn every_late_caller_sees_the_end() {
    let pipes = Pipes::new();
    let (inherited, streams) = Fifos::open(&pipes.paths).await.unwrap().pipe().unwrap();
    drop(inherited);
    streams.complete().await;
    for _ in 0..3 {
        assert_eq!(read_to_end(pipes.caller_reads("out")).await, b"");
        assert_eq!(read_to_end(pipes.caller_reads("err")).await, b"");
    }
}

#[tokio::test]
async fn a_process_that_keeps_its_pipes_lock_stops_no_caller() {
    let pipes = Pipes::new();
    let (inherited, streams) = Fifos::open(&pipes.paths).await.unwrap().pipe().unwrap();
    let (stdin, stdout) = (inherited.stdin.unwrap(), inherited.stdout.unwrap());
    let (silent, ours) = std::os::unix::net::UnixStream::pair().unwrap();
    // It ends when the other side is closed.
    let splicing = std::thread::spawn({
        let stdout = stdout.try_clone().unwrap();
        move || rustix::pipe::splice(silent, None, stdout, None, 1, rustix::pipe::SpliceFlags::empty())
    });
    // It has the lock now.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut caller = pipes.caller_reads("out");
    let reading = tokio::spawn(async move { caller.read(&mut [0; 16]).await });
    // What comes now makes our side read, and so wait for the lock.
    let writing = std::thread::spawn(move || rustix::io::write(&stdout, b"x"));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!splicing.is_finished() && !writing.is_finished(), "the lock is not kept");
    pipes.caller_writes("in").write_all(b"typed").await.unwrap();
    let another = pipes.caller_reads("out");
    drop((another, stdin, streams));
    drop(ours);
    splicing.join().unwrap().unwrap();
    // Whether anybody still reads by now is a matter of luck.
    let _ = writing.join().unwrap();
    reading.abort();
}
