//! The columns of ps(1) that can be told of a process in a utility VM, whose kernel alone knows it and which has no ps.

use proto::ProcessDetails;

use crate::clock::Timestamp;
use crate::error::{ApiError, ApiResult};

/// What stands in a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    User,
    UserId,
    Pid,
    Parent,
    Percent,
    Start,
    Elapsed,
    Terminal,
    Time,
    Name,
    Command,
}

/// A column: its title, and what stands in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// As ps writes it, or as the client wants it.
    pub title: String,
    field: Field,
}

/// Keywords of `ps -o` with their titles. Source: ps(1), STANDARD FORMAT SPECIFIERS.
const KEYWORDS: &[(&str, &str, Field)] = &[
    ("user", "USER", Field::User),
    ("euser", "EUSER", Field::User),
    ("uname", "USER", Field::User),
    ("uid", "UID", Field::UserId),
    ("euid", "EUID", Field::UserId),
    ("pid", "PID", Field::Pid),
    ("tgid", "TGID", Field::Pid),
    ("ppid", "PPID", Field::Parent),
    ("c", "C", Field::Percent),
    ("stime", "STIME", Field::Start),
    ("start_time", "START", Field::Start),
    ("bsdstart", "START", Field::Start),
    ("etime", "ELAPSED", Field::Elapsed),
    ("tty", "TT", Field::Terminal),
    ("tt", "TT", Field::Terminal),
    ("tname", "TTY", Field::Terminal),
    ("time", "TIME", Field::Time),
    ("cputime", "TIME", Field::Time),
    ("comm", "COMMAND", Field::Name),
    ("ucmd", "CMD", Field::Name),
    ("args", "COMMAND", Field::Command),
    ("cmd", "CMD", Field::Command),
    ("command", "COMMAND", Field::Command),
];

/// The columns of `ps -ef`, which are those without arguments, too.
const FULL: [(&str, Field); 8] = [
    ("UID", Field::User),
    ("PID", Field::Pid),
    ("PPID", Field::Parent),
    ("C", Field::Percent),
    ("STIME", Field::Start),
    ("TTY", Field::Terminal),
    ("TIME", Field::Time),
    ("CMD", Field::Command),
];

/// Reads ps' arguments: `-ef`, or `-o` with keywords and titles for them.
///
/// # Errors
/// 400 for `-o` without the process id, in dockerd's words; 501 for columns and options that cannot be told from outside.
pub fn of_arguments(arguments: &str) -> ApiResult<Vec<Column>> {
    let mut columns = Vec::new();
    let mut words = arguments.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "-ef" | "ef" | "-e" | "-A" | "-f" | "-fe" | "e" | "ax" | "-a" => {}
            "-o" | "o" | "-eo" | "-ao" | "axo" | "--format" => {
                let list = words.next().ok_or_else(|| ApiError::internal("error: format specifier is missing"))?;
                read_list(list, &mut columns)?;
            }
            _ => match word.strip_prefix("-o").or_else(|| word.strip_prefix("--format=")) {
                Some(list) => read_list(list, &mut columns)?,
                None => return Err(untold(&format!("the ps option {word:?}"))),
            },
        }
    }
    if columns.is_empty() {
        return Ok(FULL.map(|(title, field)| Column { title: title.into(), field }).into());
    }
    if columns.iter().all(|column| column.title != "PID") {
        return Err(ApiError::internal("Couldn't find PID field in ps output"));
    }
    Ok(columns)
}

fn untold(what: &str) -> ApiError {
    let known: Vec<&str> = KEYWORDS.iter().map(|(word, ..)| *word).collect();
    ApiError::not_implemented(format!(
        "{what} is not known of a hyperv container's processes: use -ef, or -o with {}",
        known.join(",")
    ))
}

fn read_list(list: &str, columns: &mut Vec<Column>) -> ApiResult<()> {
    for word in list.split(',').filter(|word| !word.is_empty()) {
        let (word, title) = word.split_once('=').map_or((word, None), |(word, title)| (word, Some(title)));
        let Some((_, usual, field)) = KEYWORDS.iter().find(|(known, ..)| *known == word) else {
            return Err(untold(&format!("the ps column {word:?}")));
        };
        columns.push(Column { title: title.unwrap_or(usual).to_owned(), field: *field });
    }
    Ok(())
}

impl Column {
    /// What stands in it for a process.
    #[must_use]
    pub fn show(&self, process: &ProcessDetails, now: Timestamp) -> String {
        let started = Timestamp(process.started_at_ns);
        let lived_ms = u64::try_from((now.0.saturating_sub(started.0)) / 1_000_000).unwrap_or(0).max(1);
        match self.field {
            Field::User if process.user_id == 0 => "root".into(),
            Field::User | Field::UserId => process.user_id.to_string(),
            Field::Pid => process.pid.to_string(),
            Field::Parent => process.parent.to_string(),
            Field::Percent => (process.cpu_ms.saturating_mul(100) / lived_ms).min(99).to_string(),
            Field::Start => started.to_hour_minute(),
            Field::Elapsed => elapsed(lived_ms / 1000),
            Field::Terminal => printable(&process.terminal),
            Field::Time => {
                let seconds = process.cpu_ms / 1000;
                format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
            }
            Field::Name => printable(&name(&process.command)),
            Field::Command => printable(&process.command),
        }
    }
}

/// `[[DD-]hh:]mm:ss`. Source: ps(1), etime.
fn elapsed(seconds: u64) -> String {
    let (days, hours, rest) = (seconds / 86_400, seconds / 3600 % 24, seconds % 3600);
    let rest = format!("{:02}:{:02}", rest / 60, rest % 60);
    match (days, hours) {
        (0, 0) => rest,
        (0, _) => format!("{hours:02}:{rest}"),
        _ => format!("{days}-{hours:02}:{rest}"),
    }
}

/// The program's own name: 15 bytes, as the kernel keeps it.
fn name(command: &str) -> String {
    let program = command.split(' ').next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default().trim_matches(['[', ']', '-']);
    program.chars().take(15).collect()
}

/// A command comes from the container: nothing in it may steer the client's terminal.
fn printable(command: &str) -> String {
    command.chars().take(4096).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(arguments: &str) -> Vec<String> {
        of_arguments(arguments).unwrap().into_iter().map(|column| column.title).collect()
    }

    #[test]
    fn a_row_reads_as_ps_writes_it() {
        let details = ProcessDetails {
            pid: 7,
            parent: 1,
            user_id: 0,
            terminal: "pts/0".into(),
            started_at_ns: 3_600_000_000_000,
            cpu_ms: 61_000,
            command: "/bin/sh\u{1b}[2J -c x".into(),
        };
        let now = Timestamp(3_600_000_000_000 + 122_000_000_000);
        let row = |arguments| -> Vec<String> {
            of_arguments(arguments).unwrap().iter().map(|column| column.show(&details, now)).collect()
        };
        assert_eq!(row("-ef"), ["root", "7", "1", "50", "01:00", "pts/0", "00:01:01", "/bin/sh?[2J -c x"]);
        assert_eq!(row("-o uid,pid,etime,comm"), ["0", "7", "02:02", "sh?[2J"]);
        assert_eq!(elapsed(90_061), "1-01:01:01");
    }

    #[test]
    fn columns_are_chosen_as_for_ps() {
        assert_eq!(titles("").len(), 8);
        assert_eq!(titles("-eo pid,cmd"), ["PID", "CMD"]);
        assert_eq!(titles("-o pid -o comm=NAME -oargs"), ["PID", "NAME", "COMMAND"]);
        assert_eq!(of_arguments("-o cmd").unwrap_err().message, "Couldn't find PID field in ps output");
        for (untold, word) in [("aux", "aux"), ("-o pid,rss", "rss")] {
            let error = of_arguments(untold).unwrap_err();
            assert_eq!(error.http_status(), 501);
            assert!(error.message.contains(word), "{}", error.message);
        }
    }
}
