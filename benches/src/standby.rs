//! Our engine prepares the next utility VM in the background: nothing is timed before it has one standing by.

use std::cell::Cell;
use std::time::Duration;

use bulkhead_e2e::{TestHost, eventually};

/// More than a preparation takes, also on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The standby of one engine. When: a hyperv container has run on it.
pub struct Standby<'a> {
    host: &'a TestHost,
    /// It came whenever it was waited for.
    comes: Cell<bool>,
}

impl<'a> Standby<'a> {
    /// The standby of this host's engine.
    pub fn new(host: &'a TestHost) -> Self {
        Self { host, comes: Cell::new(true) }
    }

    /// Waits until it is ready. One that did not come in time is not waited for again: then nothing is prepared, either.
    pub fn wait(&self) -> bool {
        let state = || self.host.get_json("/info")["Bulkhead"]["Standby"].as_str().unwrap_or("unknown").to_owned();
        if self.comes.get() && !eventually(PATIENCE, || state() == "ready") {
            self.comes.set(false);
            eprintln!("no utility VM stands by ({}): what follows is without it; the engine's log:", state());
            eprintln!("{}", self.host.log());
        }
        self.comes.get()
    }
}
