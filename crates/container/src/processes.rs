//! What ps(1) says about a process.

use std::fs;
use std::io;

use proto::ProcessDetails;

/// Fields of `/proc/<pid>/stat` behind the name. Source: `proc_pid_stat(5)`.
#[derive(Debug, PartialEq, Eq)]
pub struct Stat {
    pub name: String,
    pub state: char,
    pub parent: u32,
    terminal: u64,
    cpu_ticks: u64,
    /// Ticks since boot.
    pub started: u64,
}

impl Stat {
    /// Reads it.
    pub fn of(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown form of /proc/<pid>/stat"))
    }

    fn parse(text: &str) -> Option<Self> {
        // The name may contain anything, parentheses and spaces included.
        let (before, after) = text.rsplit_once(") ")?;
        let name = before.split_once(" (")?.1.to_owned();
        let fields: Vec<&str> = after.split_whitespace().collect();
        // Field 3 of the manual page is the first one here.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            name,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            terminal: number(7)?,
            cpu_ticks: number(14)?.saturating_add(number(15)?),
            started: number(22)?,
        })
    }

    /// Whether it still runs or could run again.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Describes those of the processes that still exist.
pub fn describe(pids: &[u32]) -> io::Result<Vec<ProcessDetails>> {
    let boot_ns = boot_time_ns()?;
    Ok(pids.iter().filter_map(|pid| describe_one(*pid, boot_ns)).collect())
}

/// `None` when the process has ended meanwhile.
fn describe_one(pid: u32, boot_ns: u64) -> Option<ProcessDetails> {
    let stat = Stat::of(pid).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let user_id = ids.split_whitespace().nth(1)?.parse().ok()?;
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let started_ns = boot_ns.saturating_add(stat.started.saturating_mul(1_000_000_000 / ticks));
    Some(ProcessDetails {
        pid,
        parent: stat.parent,
        user_id,
        terminal: terminal_name(stat.terminal),
        started_at_ns: i64::try_from(started_ns).unwrap_or(i64::MAX),
        cpu_ms: stat.cpu_ticks.saturating_mul(1000 / ticks),
        command: command(&command_line, &stat.name),
    })
}

fn command(command_line: &[u8], name: &str) -> String {
    let arguments: Vec<_> = command_line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let joined = arguments.join(" ");
    let text = joined.trim_end();
    if text.is_empty() { format!("[{name}]") } else { text.to_owned() }
}

fn boot_time_ns() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/stat")?;
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
    let seconds = seconds.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no btime in /proc/stat"))?;
    Ok(seconds.saturating_mul(1_000_000_000))
}

/// Source: `proc_pid_stat(5)`, `tty_nr`; Linux, Documentation/admin-guide/devices.txt.
fn terminal_name(device: u64) -> String {
    let major = device >> 8 & 0xfff;
    let minor = device & 0xff | device >> 12 & 0xfff00;
    match major {
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 if minor < 64 => format!("tty{minor}"),
        4 => format!("ttyS{}", minor - 64),
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_are_no_trap() {
        let text = "42 (a) S (b) R 7 42 42 34817 42 4194304 1 0 0 0 3 4 0 0 20 0 1 0 555 1000 100 184\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.name.as_str(), stat.state, stat.parent), ("a) S (b", 'R', 7));
        assert_eq!((stat.cpu_ticks, stat.started), (7, 555));
        assert_eq!(terminal_name(stat.terminal), "pts/1");
        assert_eq!(Stat::parse("nonsense"), None);
    }

    #[test]
    fn terminals_are_named() {
        for (device, name) in [(0, "?"), (0x8800, "pts/0"), (0x8900, "pts/256"), (0x0401, "tty1"), (0x0440, "ttyS0")] {
            assert_eq!(terminal_name(device), name);
        }
        assert_eq!(terminal_name(0x0010_8800), "pts/256");
    }

    #[test]
    fn this_process_is_described() {
        let all = describe(&[std::process::id(), u32::MAX]).unwrap();
        assert_eq!(all.len(), 1);
        assert!(!all[0].command.is_empty() && all[0].started_at_ns > 0);
    }

    #[test]
    fn commands_are_joined() {
        assert_eq!(command(b"sh\0-c\0sleep 1\0", "sh"), "sh -c sleep 1");
        assert_eq!(command(b"", "kworker"), "[kworker]");
    }
}
