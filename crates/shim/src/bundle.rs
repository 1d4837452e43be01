//! A container's bundle: what stands in it, and what the shim writes into it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::{fs, process};

use oci_spec::runtime::Spec;
use proto::ErrorKind;
use proto::control::{ContainerBundle, ExitReport, UtilityVmReport, UtilityVmRequest};
use serde::{Deserialize, Serialize};

use crate::state::Exit;

/// A folder with OCI's `config.json` and, when our engine made it, [`ContainerBundle::FILE_NAME`].
#[derive(Debug, Clone)]
pub struct Bundle {
    path: PathBuf,
}

/// A bundle that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file of it.
    #[error("cannot {action} {}", path.display())]
    File {
        /// read or write.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file that holds something else.
    #[error("{} is not what it should be", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// `config.json` is no specification.
    #[error("{} is no OCI specification", path.display())]
    Spec {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: Box<oci_spec::OciSpecError>,
    },
}

impl BundleError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::File { source, .. } => kind_of_file(source),
            Self::Malformed { .. } | Self::Spec { .. } => ErrorKind::InvalidArgument,
        }
    }
}

/// What a caller can act on when a file cannot be had or made.
pub(crate) fn kind_of_file(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::StorageFull => ErrorKind::ResourceExhausted,
        _ => ErrorKind::Internal,
    }
}

/// A process that must not outlive its shim. The start time tells it from a later process with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Process id.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since boot.
    pub start_time: u64,
}

impl ProcessRecord {
    /// The record of a living process.
    ///
    /// # Errors
    /// There is none with that number.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_time = start_time(&stat).ok_or_else(|| io::Error::other(format!("unexpected /proc/{pid}/stat")))?;
        Ok(Self { pid, start_time })
    }

    /// True while the very process lives (a zombie does not).
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        start_time(&stat) == Some(self.start_time) && !matches!(state_letter(&stat), Some('Z' | 'X'))
    }

    /// True while the very process is about to go: of its files some may still be open, though nobody answers there any more. Source:
    /// proc(5), `/proc/pid/stat`, flags; Linux include/linux/sched.h, `PF_EXITING`.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        start_time(&stat) == Some(self.start_time) && flags(&stat).is_some_and(|flags| flags & PF_EXITING != 0)
    }
}

/// It ends.
const PF_EXITING: u32 = 4;

/// Everything behind the command's closing parenthesis, since a command may hold spaces and parentheses.
fn fields_after_command(stat: &str) -> Option<std::str::SplitWhitespace<'_>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace())
}

fn start_time(stat: &str) -> Option<u64> {
    fields_after_command(stat)?.nth(19)?.parse().ok()
}

fn flags(stat: &str) -> Option<u32> {
    fields_after_command(stat)?.nth(6)?.parse().ok()
}

fn state_letter(stat: &str) -> Option<char> {
    fields_after_command(stat)?.next()?.chars().next()
}

impl Bundle {
    /// Name of the file with the shim's process id and start time.
    pub const SHIM_PID: &'static str = "shim.pid";
    /// Name of the file with the [`ProcessRecord`]s of what must not outlive the shim.
    pub const PROCESSES: &'static str = "processes.json";
    /// Name of the file with the address that `start` printed.
    pub const ADDRESS: &'static str = "address";

    /// The bundle in a folder; nothing is read yet.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Folder of the container crate's state; it holds one folder named after the container.
    #[must_use]
    pub fn runtime_root(&self) -> PathBuf {
        self.path.join("runtime")
    }

    /// Folder of the utility VM's sockets and logs.
    #[must_use]
    pub fn vm_dir(&self) -> PathBuf {
        self.path.join("vm")
    }

    /// OCI's specification.
    ///
    /// # Errors
    /// [`BundleError`] when it is missing or malformed.
    pub fn spec(&self) -> Result<Spec, BundleError> {
        let path = self.path.join("config.json");
        Spec::load(&path).map_err(|source| BundleError::Spec { path, source: Box::new(source) })
    }

    /// Writes OCI's specification.
    ///
    /// # Errors
    /// [`BundleError`] when it cannot be written.
    pub fn write_spec(&self, spec: &Spec) -> Result<(), BundleError> {
        self.write_json("config.json", spec)
    }

    /// What our engine says beyond it; `None` for a foreign containerd's bundle.
    ///
    /// # Errors
    /// [`BundleError`] when it is there and malformed.
    pub fn container(&self) -> Result<Option<ContainerBundle>, BundleError> {
        self.read_json(ContainerBundle::FILE_NAME)
    }

    /// Writes what [`Bundle::container`] answers.
    ///
    /// # Errors
    /// [`BundleError`] when it cannot be written.
    pub fn write_container(&self, container: &ContainerBundle) -> Result<(), BundleError> {
        self.write_json(ContainerBundle::FILE_NAME, container)
    }

    /// For what a hypervisor's process is to wait here, if one is to.
    ///
    /// # Errors
    /// [`BundleError`] when it is there and malformed.
    pub fn waiting(&self) -> Result<Option<UtilityVmRequest>, BundleError> {
        self.read_json(UtilityVmRequest::WAITING_FILE_NAME)
    }

    /// How the container ended, if that was recorded.
    ///
    /// # Errors
    /// [`BundleError`] when it is there and malformed.
    pub fn exit_report(&self) -> Result<Option<ExitReport>, BundleError> {
        self.read_json(ExitReport::FILE_NAME)
    }

    /// Records how the container ended.
    ///
    /// # Errors
    /// [`BundleError`] when it cannot be written.
    pub fn write_exit_report(&self, exit: &Exit) -> Result<(), BundleError> {
        let report = ExitReport {
            exit_code: exit.code,
            oom_killed: exit.oom_kills > 0,
            oom_kills: exit.oom_kills,
            error: exit.error.clone(),
            exited_at_ns: exit.at_ns,
        };
        self.write_json(ExitReport::FILE_NAME, &report)
    }

    /// Removes an earlier run's exit report.
    ///
    /// # Errors
    /// [`BundleError`] when it is there and cannot be removed.
    pub fn forget_exit_report(&self) -> Result<(), BundleError> {
        let path = self.path.join(ExitReport::FILE_NAME);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(BundleError::File { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Records what the utility VM is.
    ///
    /// # Errors
    /// [`BundleError`] when it cannot be written.
    pub fn write_utility_vm(&self, report: &UtilityVmReport) -> Result<(), BundleError> {
        self.write_json(UtilityVmReport::FILE_NAME, report)
    }

    /// Records what must not outlive the shim.
    ///
    /// # Errors
    /// [`BundleError`] when it cannot be written, or one of the processes has gone.
    pub fn write_processes(&self, pids: &[u32]) -> Result<(), BundleError> {
        let path = self.path.join(Self::PROCESSES);
        let records: io::Result<Vec<_>> = pids.iter().map(|&pid| ProcessRecord::of(pid)).collect();
        let records = records.map_err(|source| BundleError::File { action: "describe processes in", path, source })?;
        self.write_process_records(&records)
    }

    /// As [`Bundle::write_processes`], of processes that were described before.
    ///
    /// # Errors
    /// [`BundleError`] when it cannot be written.
    pub fn write_process_records(&self, records: &[ProcessRecord]) -> Result<(), BundleError> {
        self.write_json(Self::PROCESSES, &records)
    }

    /// What [`Bundle::write_processes`] recorded; empty without a record.
    ///
    /// # Errors
    /// [`BundleError`] when it is there and malformed.
    pub fn processes(&self) -> Result<Vec<ProcessRecord>, BundleError> {
        Ok(self.read_json(Self::PROCESSES)?.unwrap_or_default())
    }

    /// Records this process as the bundle's shim.
    ///
    /// # Errors
    /// [`BundleError`] when it cannot be written.
    pub fn write_shim_pid(&self) -> Result<(), BundleError> {
        let path = self.path.join(Self::SHIM_PID);
        let record = ProcessRecord::of(process::id());
        self.write_shim(record.map_err(|source| BundleError::File { action: "write", path, source })?)
    }

    /// Records a process as the bundle's shim.
    ///
    /// # Errors
    /// [`BundleError`] when it cannot be written.
    pub fn write_shim(&self, ProcessRecord { pid, start_time }: ProcessRecord) -> Result<(), BundleError> {
        let path = self.path.join(Self::SHIM_PID);
        let written = write_whole(&path, format!("{pid} {start_time}\n").as_bytes());
        written.map_err(|source| BundleError::File { action: "write", path, source })
    }

    /// The shim that [`Bundle::write_shim_pid`] recorded.
    #[must_use]
    pub fn shim(&self) -> Option<ProcessRecord> {
        let text = fs::read_to_string(self.path.join(Self::SHIM_PID)).ok()?;
        let (pid, start_time) = text.trim_end().split_once(' ')?;
        Some(ProcessRecord { pid: pid.parse().ok()?, start_time: start_time.parse().ok()? })
    }

    fn read_json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<Option<T>, BundleError> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|source| BundleError::Malformed { path, source })
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BundleError::File { action: "read", path, source }),
        }
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), BundleError> {
        let path = self.path.join(name);
        let written = serde_json::to_vec(value).map_err(io::Error::from).and_then(|bytes| write_whole(&path, &bytes));
        written.map_err(|source| BundleError::File { action: "write", path, source })
    }
}

/// Writes under another name and renames, so that a reader sees the whole or nothing. Not synced: nothing in a bundle
/// outlives the machine's run.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let new = path.with_file_name(name);
    fs::File::create(&new)?.write_all(bytes)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_report_is_read_back_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(folder.path().to_owned());
        assert_eq!(bundle.exit_report().unwrap(), None);
        bundle.forget_exit_report().unwrap();
        let exit = Exit { code: 137, at_ns: 1_700_000_000_000_000_001, oom_kills: 2, error: Some("why".into()) };
        bundle.write_exit_report(&exit).unwrap();
        let report = bundle.exit_report().unwrap().unwrap();
        assert_eq!(
            (report.exit_code, report.oom_killed, report.oom_kills, report.exited_at_ns),
            (137, true, 2, exit.at_ns)
        );
        assert_eq!(report.error.as_deref(), Some("why"));
        bundle.forget_exit_report().unwrap();
        assert_eq!(bundle.exit_report().unwrap(), None);
    }

    #[test]
    fn a_malformed_engine_file_is_an_error_and_a_missing_one_is_a_foreign_bundle() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(folder.path().to_owned());
        assert!(bundle.container().unwrap().is_none());
        fs::write(folder.path().join(ContainerBundle::FILE_NAME), r#"{"isolation":"hyperv","surprise":1}"#).unwrap();
        assert_eq!(bundle.container().unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn a_record_knows_its_process_from_a_later_one() {
        let me = ProcessRecord::of(process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!ProcessRecord { start_time: me.start_time + 1, ..me }.is_alive());
        assert!(!me.is_ending());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let record = ProcessRecord::of(child.id()).unwrap();
        assert!(record.is_alive() && !record.is_ending());
        child.kill().unwrap();
        // Nobody has asked for its end yet.
        let begin = std::time::Instant::now();
        while !record.is_ending() {
            assert!(begin.elapsed() < std::time::Duration::from_secs(10));
        }
        assert!(!ProcessRecord { start_time: record.start_time + 1, ..record }.is_ending());
        child.wait().unwrap();
        assert!(!record.is_ending());
        let folder = tempfile::tempdir().unwrap();
        let bundle = Bundle::at(folder.path().to_owned());
        assert_eq!(bundle.shim(), None);
        bundle.write_shim_pid().unwrap();
        assert_eq!(bundle.shim(), Some(me));
        bundle.write_processes(&[me.pid]).unwrap();
        assert_eq!(bundle.processes().unwrap(), [me]);
    }

    #[test]
    fn a_command_with_parentheses_does_not_confuse_the_start_time() {
        let mut stat = "42 (a) R (b) S 1".to_owned();
        for field in 5..=30 {
            stat.push_str(&format!(" {field}"));
        }
        assert_eq!((start_time(&stat), state_letter(&stat)), (Some(22), Some('S')));
    }
}
