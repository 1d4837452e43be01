//! `--security-opt`, and the paths of /proc and /sys that are hidden or read-only.

use std::path::Path;

use proto::{Isolation, MASKED_PATHS, READ_ONLY_PATHS};

use super::SpecError;

/// What a container's seccomp filter is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Filter {
    /// Docker's default profile.
    #[default]
    Default,
    /// None at all.
    Unconfined,
    /// A profile in Docker's JSON format, as sent.
    Profile(String),
}

/// The options of `--security-opt`, all words understood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SecurityOptions {
    pub(super) filter: Filter,
    pub(super) no_new_privileges: bool,
    /// `boundary=required`: refuse a utility VM that is no security boundary.
    pub(super) boundary_required: bool,
}

impl SecurityOptions {
    /// Reads the list as the docker CLI sends it: `key=value`, the old `key:value`, and bare `no-new-privileges`.
    ///
    /// Source: moby `daemon/daemon_unix.go`, `parseSecurityOpt`.
    pub(super) fn parse(options: &[String]) -> Result<Self, SpecError> {
        let mut parsed = Self::default();
        for option in options {
            match option.as_str() {
                "no-new-privileges" => parsed.no_new_privileges = true,
                "disable" => {}
                _ => parsed.apply(option)?,
            }
        }
        Ok(parsed)
    }

    fn apply(&mut self, option: &str) -> Result<(), SpecError> {
        let invalid = |number: u8| SpecError::Security(format!("invalid --security-opt {number}: {option:?}"));
        let (key, value) = option.split_once('=').or_else(|| option.split_once(':')).ok_or_else(|| invalid(1))?;
        match (key, value) {
            ("seccomp", "unconfined") => self.filter = Filter::Unconfined,
            ("seccomp", "builtin" | "") => self.filter = Filter::Default,
            ("seccomp", profile) => self.filter = Filter::Profile(profile.to_owned()),
            ("no-new-privileges", word) => self.no_new_privileges = parse_bool(word).ok_or_else(|| invalid(2))?,
            ("boundary", "required") => self.boundary_required = true,
            ("boundary", _) => {
                return Err(SpecError::Security(format!("{option:?}: the only value of boundary is 'required'")));
            }
            ("apparmor", "unconfined" | "") | ("label", "disable") => {}
            ("apparmor" | "label", _) => {
                return Err(SpecError::NotAvailable(format!(
                    "--security-opt {option}: no security module is used yet"
                )));
            }
            _ => return Err(invalid(2)),
        }
        Ok(())
    }
}

/// Go's `strconv.ParseBool`, which Docker's clients rely on.
fn parse_bool(word: &str) -> Option<bool> {
    match word {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Most processors whose thermal counters are looked for.
const MAX_CPUS: usize = 8192;

/// What to hide: what the client says, else the default; nothing when privileged.
pub(super) fn masked_paths(chosen: Option<&Vec<String>>, privileged: bool, isolation: Isolation) -> Vec<String> {
    if privileged {
        return Vec::new();
    }
    chosen.cloned().unwrap_or_else(|| {
        let mut paths: Vec<String> = MASKED_PATHS.iter().map(ToString::to_string).collect();
        if isolation == Isolation::Process {
            paths.extend(thermal_counters(Path::new("/sys/devices/system/cpu")));
        }
        paths
    })
}

/// What to make read-only: what the client says, else the default; nothing when privileged.
pub(super) fn read_only_paths(chosen: Option<&Vec<String>>, privileged: bool) -> Vec<String> {
    if privileged {
        return Vec::new();
    }
    chosen.cloned().unwrap_or_else(|| READ_ONLY_PATHS.iter().map(ToString::to_string).collect())
}

/// The processors' thermal throttle counters, through which containers can observe each other. Source: moby GHSA-6fw5-f8r9-fgfm.
fn thermal_counters(cpus: &Path) -> impl Iterator<Item = String> + use<'_> {
    (0..MAX_CPUS)
        .map(|number| cpus.join(format!("cpu{number}")))
        .take_while(|cpu| cpu.exists())
        .map(|cpu| cpu.join("thermal_throttle"))
        .filter(|counters| counters.exists())
        .map(|counters| counters.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<SecurityOptions, SpecError> {
        SecurityOptions::parse(&options.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn options_in_every_form_docker_takes() {
        let options = parse(&["no-new-privileges", "seccomp=unconfined", "apparmor:unconfined", "label=disable"]);
        let options = options.unwrap();
        assert!(options.no_new_privileges && !options.boundary_required);
        assert_eq!(options.filter, Filter::Unconfined);
        assert!(!parse(&["no-new-privileges:true", "no-new-privileges=false"]).unwrap().no_new_privileges);
        assert!(parse(&["boundary=required"]).unwrap().boundary_required);
        let json = r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#;
        assert_eq!(parse(&[&format!("seccomp={json}")]).unwrap().filter, Filter::Profile(json.into()));
    }

    #[test]
    fn a_word_that_is_not_understood_never_weakens_silently() {
        for (bad, text) in [
            ("nonsense", "invalid --security-opt 1: \"nonsense\""),
            ("foo=bar", "invalid --security-opt 2: \"foo=bar\""),
            ("no-new-privileges=maybe", "invalid --security-opt 2: \"no-new-privileges=maybe\""),
        ] {
            assert_eq!(parse(&[bad]).unwrap_err().to_string(), text);
        }
        assert!(parse(&["boundary=maybe"]).is_err());
        assert!(matches!(parse(&["apparmor=my-profile"]), Err(SpecError::NotAvailable(_))));
    }

    #[test]
    fn kernel_secrets_are_masked_unless_privileged() {
        let masked = masked_paths(None, false, Isolation::Process);
        for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/interrupts"] {
            assert!(masked.iter().any(|masked| masked == path), "{path}");
        }
        assert!(read_only_paths(None, false).contains(&"/proc/sysrq-trigger".to_owned()));
        assert!(masked_paths(None, true, Isolation::Hyperv).is_empty() && read_only_paths(None, true).is_empty());
        assert!(masked_paths(Some(&Vec::new()), false, Isolation::Process).is_empty());
    }

    #[test]
    fn thermal_counters_are_found_where_they_exist() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["cpu0/thermal_throttle", "cpu1", "cpu2/thermal_throttle", "cpu4/thermal_throttle"] {
            std::fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        assert_eq!(thermal_counters(folder.path()).count(), 2);
    }
}
