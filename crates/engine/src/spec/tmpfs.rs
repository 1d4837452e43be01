//! Options of `--tmpfs`, merged with Docker's defaults.

/// Docker's defaults, each changed by its opposite.
const DEFAULTS: [&str; 3] = ["noexec", "nosuid", "nodev"];

/// Words that take no value, with their opposites. Source: moby `pkg/mount`, `MergeTmpfsOptions`.
const FLAGS: [(&str, &str); 9] = [
    ("exec", "noexec"),
    ("suid", "nosuid"),
    ("dev", "nodev"),
    ("rw", "ro"),
    ("async", "sync"),
    ("atime", "noatime"),
    ("diratime", "nodiratime"),
    ("relatime", "norelatime"),
    ("strictatime", "nostrictatime"),
];

/// Words that take a value. Source: tmpfs(5).
const VALUES: [&str; 8] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol", "huge"];

/// Merges a comma-separated list into the defaults: the last word wins.
///
/// # Errors
/// Docker's text, if a word is no option of tmpfs.
pub fn merge(options: &str) -> Result<Vec<String>, String> {
    let mut merged: Vec<String> = DEFAULTS.iter().map(ToString::to_string).collect();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let replaced: Vec<&str> = match option.split_once('=') {
            Some((key, value)) if VALUES.contains(&key) && !value.is_empty() => vec![key],
            None => match FLAGS.iter().find(|(on, off)| option == *on || option == *off) {
                Some((on, off)) => vec![on, off],
                None => return Err(format!("Invalid tmpfs option [\"{option}\"]")),
            },
            Some(_) => return Err(format!("Invalid tmpfs option [\"{option}\"]")),
        };
        merged.retain(|kept| !replaced.contains(&kept.split('=').next().unwrap_or_default()));
        merged.push(option.to_owned());
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_wins_over_dockers_defaults() {
        assert_eq!(merge("").unwrap(), DEFAULTS);
        assert_eq!(merge("exec,size=64m,mode=1777").unwrap(), ["nosuid", "nodev", "exec", "size=64m", "mode=1777"]);
        assert_eq!(merge("size=1m,size=2m,ro,rw").unwrap(), ["noexec", "nosuid", "nodev", "size=2m", "rw"]);
    }

    #[test]
    fn words_that_tmpfs_does_not_know_are_refused() {
        for bad in ["nonsense", "size", "size=", "lowerdir=/etc", "bind"] {
            assert!(merge(bad).is_err(), "{bad}");
        }
    }
}
