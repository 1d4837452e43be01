//! `doctor`: what this host has and lacks, each finding with what to do about it.

mod checks;

use serde::Serialize;
use serde_json::Value;

use super::say;
use crate::args::system::DoctorArgs;
use crate::client::Client;
use crate::client::address::Address;
use crate::client::url::Url;
use crate::error::CliResult;
use crate::output::color::{self, Tone};
use crate::output::{pretty, progress};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Good,
    /// Works, but not as well as it could, or not everything.
    Warning,
    /// Something essential is missing.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    pub(super) subject: &'static str,
    /// How it is.
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
}

impl Finding {
    pub(super) fn good(subject: &'static str, detail: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Good, detail: detail.into(), fix: None }
    }

    pub(super) fn warning(subject: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Warning, detail: detail.into(), fix: Some(fix.into()) }
    }

    pub(super) fn bad(subject: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Bad, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// `doctor`. The code is 1 if something essential is missing.
pub(super) async fn doctor(client: &Client, args: &DoctorArgs) -> CliResult<u8> {
    let findings = progress::patiently(look(client), async { "looking at the host".to_owned() }).await;
    let code = u8::from(findings.iter().any(|finding| finding.verdict == Verdict::Bad));
    if args.format.is_some() {
        say(&pretty(&findings).map_err(|error| crate::error::CliError::Answer(error.to_string()))?)?;
        return Ok(code);
    }
    let colored = color::on_stdout();
    for finding in &findings {
        say(&line(finding, colored))?;
    }
    Ok(code)
}

async fn look(client: &Client) -> Vec<Finding> {
    let mut findings = Vec::new();
    let info: Result<Value, _> = client.get(&Url::new("/info")).await;
    match &info {
        Ok(info) => {
            let version = info["ServerVersion"].as_str().unwrap_or("unknown");
            findings.push(Finding::good("engine", format!("version {version} at {}", client.address())));
            findings.extend(checks::same_version(version));
        }
        Err(error) => findings.push(Finding::bad(
            "engine",
            error.to_string(),
            "start it (systemctl start bulkhead, or bulkheadd), or name its socket with -H or BULKHEAD_HOST",
        )),
    }
    match client.address() {
        Address::Unix(path) => findings.extend(checks::socket(path)),
        // What follows would be about this host, not about the engine's.
        Address::Ssh(_) => return findings,
    }
    if info.is_ok() {
        match client.get::<Value>(&Url::new("/bulkhead/probe")).await {
            Ok(probe) => findings.extend(checks::hyperv(&probe)),
            Err(error) => {
                findings.push(Finding::bad(
                    "isolation hyperv",
                    error.to_string(),
                    "see the engine's log for the reason",
                ));
            }
        }
    }
    findings.push(checks::kvm_device());
    findings.push(checks::cgroups());
    findings.push(checks::file_system("overlay", "process containers cannot be started"));
    findings.push(checks::file_system("erofs", "no image can be mounted for process containers"));
    findings.push(checks::loop_devices());
    let data_root = info.as_ref().ok().and_then(|info| info["DockerRootDir"].as_str()).unwrap_or("/var/lib");
    findings.push(checks::disk_space(std::path::Path::new(data_root)));
    findings.push(checks::firewall());
    findings.push(checks::memory());
    findings
}

fn line(finding: &Finding, colored: bool) -> String {
    let (mark, tone) = match finding.verdict {
        Verdict::Good => ("ok  ", Tone::Good),
        Verdict::Warning => ("warn", Tone::Warn),
        Verdict::Bad => ("FAIL", Tone::Bad),
    };
    let mark = color::paint(mark, tone, colored);
    let mut text = format!("{mark}  {:<18} {}", finding.subject, finding.detail);
    if let Some(fix) = &finding.fix {
        text.push_str(&format!("\n{:24} {} {fix}", "", color::paint("->", Tone::Dim, colored)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_what_to_do() {
        let finding = Finding::bad("overlay", "not there", "load it: modprobe overlay");
        let text = line(&finding, false);
        assert!(text.starts_with("FAIL  overlay") && text.contains("-> load it"), "{text}");
        assert!(!line(&Finding::good("x", "y"), false).contains("->"));
    }
}
