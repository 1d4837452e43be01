//! The docker CLI in a real terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::patience::{eventually, patient};

/// A pseudo-terminal whose foreground process is a command. `setsid --ctty` makes it the controlling terminal, so that
/// changes of its size arrive as SIGWINCH.
pub struct Terminal {
    master: File,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts `command` (which has program, arguments and environment) in a terminal of this size.
    ///
    /// # Panics
    /// When the machine has no pseudo-terminals.
    #[must_use]
    pub fn start(command: &Command, columns: u16, rows: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pseudo-terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("an unlocked pseudo-terminal");
        let name = ptsname(&master, Vec::new()).expect("a pseudo-terminal's name");
        tcsetwinsize(&master, size(columns, rows)).expect("a terminal's size");
        let path = name.to_str().expect("an ASCII path");
        let slave = File::options().read(true).write(true).open(path).expect("the terminal's other side");
        let copy = || Stdio::from(slave.try_clone().expect("a copy of a descriptor"));
        let mut wrapped = Command::new("setsid");
        wrapped.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        wrapped.envs(command.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
        let child = wrapped.stdin(copy()).stdout(copy()).stderr(copy()).spawn().expect("setsid(1) of util-linux");
        let master = File::from(master);
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let (mut reader, collected) = (master.try_clone().expect("a copy of a descriptor"), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal whose other side is closed reads as EIO.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                collected.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
        });
        Self { master, child, shown }
    }

    /// Types text.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_text(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("a terminal takes input");
    }

    /// Changes the size, as a window manager does.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn resize(&self, columns: u16, rows: u16) {
        tcsetwinsize(&self.master, size(columns, rows)).expect("a terminal's size");
    }

    /// Everything shown up to now.
    #[must_use]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until this text is shown.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        assert!(
            eventually(Duration::from_secs(30), || self.shown().contains(text)),
            "the terminal did not show {text:?}, but: {:?}",
            self.shown()
        );
    }

    /// Waits for the command's end and gives its exit code.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn end(&mut self) -> i32 {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                // What was written last may still be on its way through the terminal.
                std::thread::sleep(Duration::from_millis(50));
                return status.code().unwrap_or(-1);
            }
            assert!(
                began.elapsed() < patient(Duration::from_secs(60)),
                "did not end; the terminal shows {:?}",
                self.shown()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }
}
