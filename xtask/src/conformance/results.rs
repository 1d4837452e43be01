//! What the cases of a suite came to.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Suite;
use super::side::Side;

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should.
    Passed,
    /// Otherwise, or not in time.
    Failed,
    /// The suite itself did not run it, or does not care how it ends.
    Skipped,
}

/// A case that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// How.
    pub outcome: Outcome,
    /// Why it did not pass; the end of what was printed.
    #[serde(default)]
    pub detail: String,
    /// What it showed, where a suite compares that with what dockerd shows: two that differ are a difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<String>,
    /// How long it took.
    #[serde(default)]
    pub seconds: f64,
}

/// Cases by name.
pub type Cases = BTreeMap<String, Case>;

/// The file with the last run's results of a suite against a daemon.
pub fn file(folder: &Path, suite: Suite, side: Side) -> PathBuf {
    folder.join(format!("{}-{}.json", suite.word(), side.word()))
}

/// Writes a run's results over the last run's: those of cases that were not run stay.
pub fn save(path: &Path, cases: &Cases, whole: bool) -> anyhow::Result<()> {
    let mut all = if whole { Cases::new() } else { load(path)?.unwrap_or_default() };
    all.extend(cases.clone());
    fs::write(path, serde_json::to_vec_pretty(&all)?).with_context(|| format!("cannot write {}", path.display()))
}

/// The last run's results, if there was one.
pub fn load(path: &Path) -> anyhow::Result<Option<Cases>> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("in {}", path.display()))?)),
    }
}
