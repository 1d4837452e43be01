//! Running the docker CLI, with a deadline, as a user's shell would.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::patience::patient;

/// How long a command may take before the test fails.
const DEADLINE: Duration = Duration::from_secs(90);

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Said {
    /// The command, as typed.
    pub command: String,
    /// Exit code; 128 + N for a command killed by signal N.
    pub code: i32,
    /// Standard output, byte for byte.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: String,
    /// From start to end.
    pub took: Duration,
}

impl Said {
    /// Standard output without the last line's end.
    ///
    /// # Panics
    /// Unless the command ended with 0.
    #[track_caller]
    #[allow(clippy::must_use_candidate, reason = "it is a check too")]
    pub fn ok(&self) -> String {
        assert_eq!(self.code, 0, "{self}");
        self.text().trim_end_matches(['\n', '\r']).to_owned()
    }

    /// Standard error of a command that must fail.
    ///
    /// # Panics
    /// Unless it ended with this code.
    #[track_caller]
    #[must_use]
    pub fn fails(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self}");
        &self.err
    }

    /// Checks that it failed with this code and one message that holds each of these words, case aside.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn fails_saying(&self, code: i32, words: &[&str]) {
        let message = self.fails(code).to_lowercase();
        for word in words {
            assert!(message.contains(&word.to_lowercase()), "expected {word:?} in: {self}");
        }
        assert!(!message.contains("panicked"), "{self}");
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// The lines of standard output.
    ///
    /// # Panics
    /// Unless the command ended with 0.
    #[track_caller]
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.ok().lines().map(str::to_owned).collect()
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let out = self.text();
        let shown: String = out.chars().take(2000).collect();
        write!(
            f,
            "`{}` ended with {} after {:?}\nstdout: {shown}\nstderr: {}",
            self.command, self.code, self.took, self.err
        )
    }
}

/// A command that runs, with its output collected.
pub struct Running {
    command: String,
    child: Child,
    stdin: Option<ChildStdin>,
    out: Arc<Collected>,
    err: Arc<Collected>,
    readers: Vec<JoinHandle<()>>,
    began: Instant,
    deadline: Duration,
}

#[derive(Default)]
struct Collected {
    bytes: Mutex<Vec<u8>>,
    grown: Condvar,
}

impl Collected {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(self: &Arc<Self>, mut from: impl Read + Send + 'static) -> JoinHandle<()> {
        let own = Arc::clone(self);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                own.bytes().extend_from_slice(&buffer[..count]);
                own.grown.notify_all();
            }
        })
    }

    fn wait_for(&self, text: &str, deadline: Duration) -> bool {
        let holds = |bytes: &Vec<u8>| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        let waited = self.grown.wait_timeout_while(self.bytes(), deadline, |bytes| !holds(bytes));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Running {
    /// Starts a command with standard input, output and error of its own.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let shown = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ");
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("cannot start `{shown}`: {error}"));
        let (out, err) = (Arc::<Collected>::default(), Arc::<Collected>::default());
        let mut readers = Vec::new();
        readers.extend(child.stdout.take().map(|pipe| out.collect(pipe)));
        readers.extend(child.stderr.take().map(|pipe| err.collect(pipe)));
        let stdin = child.stdin.take();
        Self { command: shown, child, stdin, out, err, readers, began: Instant::now(), deadline: patient(DEADLINE) }
    }

    /// Gives the command more or less time than usual.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Process id of the command on this machine.
    ///
    /// # Panics
    /// Never: a child's id is positive.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal to the command.
    ///
    /// # Panics
    /// When it has gone.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("the command still runs");
    }

    /// Writes to standard input.
    ///
    /// # Panics
    /// When the command has closed it.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("standard input is still open");
        stdin.write_all(bytes).and_then(|()| stdin.flush()).expect("the command reads");
    }

    /// Takes standard input away, to be written by another thread.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Ends standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until standard output holds this text.
    ///
    /// # Panics
    /// When it does not come in time.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        assert!(
            self.out.wait_for(text, self.deadline),
            "`{}` did not say {text:?}, but: {}\nstderr: {}",
            self.command,
            self.so_far(),
            String::from_utf8_lossy(&self.err.bytes())
        );
    }

    /// Standard output up to now.
    #[must_use]
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.out.bytes()).into_owned()
    }

    /// True while the command runs.
    ///
    /// # Panics
    /// When the system cannot say.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_none()
    }

    /// Closes standard input and waits for the end.
    ///
    /// # Panics
    /// When it does not end in time; it is killed then.
    #[track_caller]
    #[must_use]
    pub fn end(mut self) -> Said {
        self.close_stdin();
        self.wait()
    }

    /// Waits for the end, standard input left open.
    ///
    /// # Panics
    /// When it does not end in time; it is killed then.
    #[track_caller]
    #[must_use]
    pub fn wait(mut self) -> Said {
        use std::os::unix::process::ExitStatusExt;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            if self.began.elapsed() > self.deadline {
                drop(self.child.kill());
                panic!(
                    "`{}` did not end within {:?}; stdout: {}\nstderr: {}",
                    self.command,
                    self.deadline,
                    self.so_far(),
                    String::from_utf8_lossy(&self.err.bytes())
                );
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        let took = self.began.elapsed();
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does not panic");
        }
        Said {
            command: std::mem::take(&mut self.command),
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            out: std::mem::take(&mut self.out.bytes()),
            err: String::from_utf8_lossy(&self.err.bytes()).into_owned(),
            took,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}
