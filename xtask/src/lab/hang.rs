//! What a lab that does not end can still say: whether its emulator works, where its processors are, and what its own kernel prints when
//! it is interrupted. A lab has gone silent with nothing else to tell by (docs/design/0006-lab.md).

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How long the emulator is watched at work, and how long the kernel may print.
const WATCHED: Duration = Duration::from_secs(2);
/// How long the emulator may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Answers and events of the monitor that are read while one is waited for.
const MOST_LINES: usize = 1000;

/// Describes a hung machine, and has its kernel panic, which prints where it was. Shape: QEMU's process, and its monitor.
pub fn describe(qemu: u32, monitor: &Path) -> String {
    let mut text = String::new();
    let before = busy(qemu);
    std::thread::sleep(WATCHED);
    for ((thread, ticks), (_, earlier)) in busy(qemu).into_iter().zip(before) {
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "{thread}: {} of {} hundredths of a second at work",
            ticks - earlier,
            WATCHED.as_millis() / 10
        );
    }
    match interrupt(monitor) {
        Ok(registers) => text.push_str(&registers),
        Err(error) => {
            let _ = writeln!(text, "its monitor: {error}");
        }
    }
    std::thread::sleep(WATCHED);
    text
}

/// Where each processor is; then an interrupt that its kernel cannot mask, at which it panics (`unknown_nmi_panic`).
fn interrupt(monitor: &Path) -> io::Result<String> {
    let stream = UnixStream::connect(monitor)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    ask(&stream, &mut answers, &json!({"execute": "qmp_capabilities"}))?;
    let registers = json!({"execute": "human-monitor-command", "arguments": {"command-line": "info registers -a"}});
    let registers = ask(&stream, &mut answers, &registers)?;
    ask(&stream, &mut answers, &json!({"execute": "inject-nmi"}))?;
    Ok(places(registers.as_str().unwrap_or_default()))
}

/// The lines that say which processor, and where it is.
fn places(registers: &str) -> String {
    let lines = registers.lines().filter(|line| line.starts_with("CPU#") || line.starts_with("RIP="));
    lines.fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

fn ask(mut stream: &UnixStream, answers: &mut impl io::BufRead, request: &Value) -> io::Result<Value> {
    stream.write_all(request.to_string().as_bytes())?;
    for line in answers.lines().take(MOST_LINES) {
        let mut answer: Value = serde_json::from_str(&line?)?;
        if let Some(error) = answer.get("error") {
            return Err(io::Error::other(error.to_string()));
        }
        if answer.get("return").is_some() {
            return Ok(answer["return"].take());
        }
    }
    Err(io::Error::from(io::ErrorKind::UnexpectedEof))
}

/// Hundredths of a second that each of QEMU's processors has been at work. Source: proc_pid_stat(5).
fn busy(qemu: u32) -> Vec<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{qemu}/task")).into_iter().flatten().flatten();
    let mut found: Vec<(String, u64)> = tasks
        .filter_map(|task| {
            let name = fs::read_to_string(task.path().join("comm")).ok()?.trim().to_owned();
            let text = fs::read_to_string(task.path().join("stat")).ok()?;
            let mut fields = text.rsplit_once(") ")?.1.split(' ').skip(11);
            let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
            name.starts_with("CPU ").then_some((name, ticks))
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_all_registers_the_places_are_kept() {
        let text = "CPU#0\r\nRAX=0 RBX=1\r\nRIP=ffffffff81000000 RFL=2 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n\r\nCPU#1\r\nRIP=7f00 RFL=2\r\n";
        let kept = places(text);
        assert_eq!(kept.lines().count(), 4);
        assert!(kept.contains("HLT=1\nCPU#1\n") && !kept.contains("RAX"), "{kept}");
    }

    #[test]
    fn answers_are_told_from_events() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let said = "{\"QMP\": {}}\n{\"event\": \"STOP\"}\n{\"return\": {\"a\": 1}}\n{\"error\": {\"desc\": \"no\"}}\n";
        (&theirs).write_all(said.as_bytes()).unwrap();
        let mut answers = BufReader::new(ours.try_clone().unwrap());
        assert_eq!(ask(&ours, &mut answers, &json!({"execute": "x"})).unwrap()["a"], 1);
        assert!(ask(&ours, &mut answers, &json!({"execute": "y"})).unwrap_err().to_string().contains("no"));
        drop(theirs);
        assert!(interrupt(Path::new("/nonexistent")).is_err() && busy(u32::MAX).is_empty());
    }
}
