//! The state machine of one process of a container.
//!
//! ```text
//!              exec                      container's first process
//!
//!             Added                              Created
//!               │ start                       start │    │ exit (killed before it was started)
//!               ▼                                   ▼    │
//!            Running ──── exit ──▶ Stopped      Running ◀─┼── resume ── Paused
//!                                               │   └──── pause ────────▶ │
//!                                               │ exit                    │ exit
//!                                               └──────▶ Stopped ◀────────┘
//! ```
//!
//! An exec that could not be started goes from Added to Stopped.

use proto::ErrorKind;
use proto::control::ExitReport;

use crate::clock;

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; killed by signal N is 128 + N.
    pub code: u32,
    /// Nanoseconds since the epoch.
    pub at_ns: i64,
    /// Of a container's first process: how many of the container's processes the kernel has killed for want of memory.
    pub oom_kills: u64,
    /// Why, when that was not the process's own doing.
    pub error: Option<String>,
}

impl Exit {
    /// The exit of a process whose end nobody saw, now.
    pub fn unseen(why: impl Into<String>) -> Self {
        Self { code: 255, at_ns: clock::now_ns(), oom_kills: 0, error: Some(why.into()) }
    }
}

impl From<ExitReport> for Exit {
    fn from(report: ExitReport) -> Self {
        let oom_kills = report.least_oom_kills();
        Self { code: report.exit_code, at_ns: report.exited_at_ns, oom_kills, error: report.error }
    }
}

/// Where a process is; `P` is a live process, `A` what an exec will run.
#[derive(Debug)]
pub enum ProcessState<P, A> {
    /// An exec that was announced and not started.
    Added(A),
    /// Exists and waits for Start.
    Created(P),
    /// Runs.
    Running(P),
    /// Frozen with its container.
    Paused(P),
    /// Has ended.
    Stopped {
        /// Its process id when it lived; 0 if it never did.
        pid: u32,
        /// How it ended.
        exit: Exit,
    },
}

/// The request does not fit the process's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {action} a process that is {state}")]
pub struct WrongState {
    /// What was asked.
    pub action: &'static str,
    /// What the process is.
    pub state: &'static str,
}

impl WrongState {
    /// The kind: a process that has ended is "not found" to containerd's clients.
    #[must_use]
    pub fn kind(self) -> ErrorKind {
        if self.state == "stopped" && self.action == "kill" {
            ErrorKind::NotFound
        } else {
            ErrorKind::FailedPrecondition
        }
    }
}

impl<P, A> ProcessState<P, A> {
    /// The state in one word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Added(_) => "added",
            Self::Created(_) => "created",
            Self::Running(_) => "running",
            Self::Paused(_) => "paused",
            Self::Stopped { .. } => "stopped",
        }
    }

    /// The live process.
    #[must_use]
    pub fn process(&self) -> Option<&P> {
        match self {
            Self::Created(process) | Self::Running(process) | Self::Paused(process) => Some(process),
            Self::Added(_) | Self::Stopped { .. } => None,
        }
    }

    /// The live process, for a request that needs one.
    ///
    /// # Errors
    /// [`WrongState`] when there is none.
    pub fn live(&self, action: &'static str) -> Result<&P, WrongState> {
        self.process().ok_or(self.wrong(action))
    }

    /// The process, for a request that only a running one answers.
    ///
    /// # Errors
    /// [`WrongState`] in every other state.
    pub fn running(&self, action: &'static str) -> Result<&P, WrongState> {
        match self {
            Self::Running(process) => Ok(process),
            _ => Err(self.wrong(action)),
        }
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            Self::Stopped { exit, .. } => Some(exit),
            _ => None,
        }
    }

    /// The error for a request that does not fit.
    #[must_use]
    pub fn wrong(&self, action: &'static str) -> WrongState {
        WrongState { action, state: self.word() }
    }

    /// Created to Running.
    ///
    /// # Errors
    /// [`WrongState`] in every other state; nothing changes.
    pub fn start(&mut self) -> Result<(), WrongState> {
        self.transition("start", |state| match state {
            Self::Created(process) => Ok(Self::Running(process)),
            other => Err(other),
        })
    }

    /// Added to Running.
    ///
    /// # Errors
    /// [`WrongState`] in every other state; nothing changes.
    pub fn start_exec(&mut self, process: P) -> Result<(), WrongState> {
        self.transition("start", |state| match state {
            Self::Added(_) => Ok(Self::Running(process)),
            other => Err(other),
        })
    }

    /// Running to Paused.
    ///
    /// # Errors
    /// [`WrongState`] in every other state; nothing changes.
    pub fn pause(&mut self) -> Result<(), WrongState> {
        self.transition("pause", |state| match state {
            Self::Running(process) => Ok(Self::Paused(process)),
            other => Err(other),
        })
    }

    /// Paused to Running.
    ///
    /// # Errors
    /// [`WrongState`] in every other state; nothing changes.
    pub fn resume(&mut self) -> Result<(), WrongState> {
        self.transition("resume", |state| match state {
            Self::Paused(process) => Ok(Self::Running(process)),
            other => Err(other),
        })
    }

    /// Any state to Stopped; the first exit counts. Answers the process it has taken out.
    pub fn stop(&mut self, pid: u32, exit: Exit) -> Option<P> {
        if self.exit().is_some() {
            return None;
        }
        match std::mem::replace(self, Self::Stopped { pid, exit }) {
            Self::Created(process) | Self::Running(process) | Self::Paused(process) => Some(process),
            Self::Added(_) | Self::Stopped { .. } => None,
        }
    }

    fn transition(
        &mut self,
        action: &'static str,
        step: impl FnOnce(Self) -> Result<Self, Self>,
    ) -> Result<(), WrongState> {
        let wrong = self.wrong(action);
        let nothing = Exit { code: 0, at_ns: 0, oom_kills: 0, error: None };
        // The step takes the state by value; what stands here meanwhile is seen by nobody.
        let now = std::mem::replace(self, Self::Stopped { pid: 0, exit: nothing });
        match step(now) {
            Ok(next) => {
                *self = next;
                Ok(())
            }
            Err(unchanged) => {
                *self = unchanged;
                Err(wrong)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type State = ProcessState<u32, &'static str>;

    fn exit(code: u32) -> Exit {
        Exit { code, at_ns: 1, oom_kills: 0, error: None }
    }

    #[test]
    fn what_an_older_shim_wrote_of_a_kill_is_one() {
        let report = |oom_killed, oom_kills| ExitReport {
            exit_code: 137,
            oom_killed,
            oom_kills,
            error: Some("why".to_owned()),
            exited_at_ns: 1,
        };
        let exit = |oom_kills| Exit { error: Some("why".to_owned()), oom_kills, ..exit(137) };
        assert_eq!(Exit::from(report(true, 0)), exit(1));
        assert_eq!(Exit::from(report(true, 3)), exit(3));
        assert_eq!(Exit::from(report(false, 0)), exit(0));
    }

    fn all() -> Vec<State> {
        vec![
            State::Added("ls"),
            State::Created(7),
            State::Running(7),
            State::Paused(7),
            State::Stopped { pid: 7, exit: exit(3) },
        ]
    }

    #[test]
    fn every_transition_is_allowed_from_one_state_only() {
        type Step = fn(&mut State) -> Result<(), WrongState>;
        let steps: [(&str, Step, &str, &str); 4] = [
            ("start", |state| state.start(), "created", "running"),
            ("start", |state| state.start_exec(7), "added", "running"),
            ("pause", |state| state.pause(), "running", "paused"),
            ("resume", |state| state.resume(), "paused", "running"),
        ];
        for (action, step, from, to) in steps {
            for mut state in all() {
                let before = state.word();
                let result = step(&mut state);
                if before == from {
                    assert_eq!((result, state.word()), (Ok(()), to), "{action} from {before}");
                    assert_eq!(state.process(), Some(&7));
                } else {
                    assert_eq!(result, Err(WrongState { action, state: before }));
                    assert_eq!(state.word(), before, "a refused {action} changes nothing");
                }
            }
        }
    }

    #[test]
    fn a_refused_request_keeps_the_exit() {
        let mut state = State::Stopped { pid: 7, exit: exit(3) };
        assert!(state.pause().is_err());
        assert_eq!(state.exit().map(|exit| exit.code), Some(3));
    }

    #[test]
    fn the_first_exit_counts() {
        for mut state in all() {
            let lived = state.process().copied();
            let had_stopped = state.exit().is_some();
            assert_eq!(state.stop(7, exit(9)), lived);
            assert_eq!(state.exit().map(|exit| exit.code), Some(if had_stopped { 3 } else { 9 }));
            assert_eq!(state.stop(7, exit(10)), None);
        }
    }

    #[test]
    fn killing_what_has_ended_is_not_found() {
        let state = State::Stopped { pid: 7, exit: exit(0) };
        assert_eq!(state.live("kill").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(state.running("exec in").unwrap_err().kind(), ErrorKind::FailedPrecondition);
        assert_eq!(State::Added("ls").live("kill").unwrap_err().kind(), ErrorKind::FailedPrecondition);
    }
}
