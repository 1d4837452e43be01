//! Runs the lab machine: QEMU emulates two processors with AMD's virtualization (SVM with nested paging).

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::hang;

/// Large enough for several utility VMs at once; the host gives only what is touched.
const MEMORY_MIB: u32 = 4096;
/// Translated code. What is translated again and again costs more than the memory.
const TRANSLATION_CACHE_MIB: u32 = 512;
/// Sparse; for everything that a run writes.
const SCRATCH_BYTES: u64 = 8 << 30;
/// How many lines of the console are shown when a run fails.
const CONSOLE_LINES: usize = 40;
const POLL: Duration = Duration::from_millis(100);
/// Quiet; a panic ends the machine at once; an emulator has no speculation to mitigate. The time-stamp counter is not called
/// reliable: on a busy host the kernel may measure its frequency wrongly (333 seconds in 100 were seen), and only its
/// watchdog notices. A processor that never comes back from a guest, which the emulated virtualization has been seen to do, ends the
/// machine, too, instead of keeping it busy until the limit. One that does not end otherwise is interrupted for its last words.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 nowatchdog mitigations=off no_timer_check \
     rcupdate.rcu_cpu_stall_timeout=120 sysctl.kernel.panic_on_rcu_stall=1 unknown_nmi_panic";
/// The emulator's monitor, in the run's folder.
const MONITOR: &str = "monitor";

/// What the machine is made of; all in files.
#[derive(Debug)]
pub struct Machine {
    /// Uncompressed kernel.
    pub kernel: PathBuf,
    /// First file system, with the kernel modules.
    pub initramfs: PathBuf,
    /// Root file system, EROFS, never written.
    pub root: PathBuf,
    /// The run's own disk, EROFS: first program, job, binaries.
    pub payload: PathBuf,
    /// Folder for the logs and the disk that the run writes.
    pub folder: PathBuf,
}

/// It ended without saying how the job did: its kernel panicked, or the job switched it off; or it stands. Shape: how, with its console's
/// last lines.
#[derive(Debug)]
pub struct MachineDied(String);

impl std::error::Error for MachineDied {}

impl std::fmt::Display for MachineDied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the lab's machine {}", self.0)
    }
}

/// How long a machine is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For its end.
    pub whole: Duration,
    /// For something new of its output, if its job is known to say something in that time.
    pub silence: Option<Duration>,
}

/// Why it did not end by itself.
enum Late {
    /// The time is over.
    Over,
    /// It said nothing for so long.
    Silent(Duration),
}

/// Who sits at the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat {
    /// A person at this terminal.
    Terminal,
    /// Nobody: what the job prints is printed here, and it has no input.
    Log,
}

impl Machine {
    /// Runs the job to its end and returns its exit code. When: takes a few seconds to boot, then as long as the job; a
    /// machine that has not switched itself off within its limits is ended.
    ///
    /// # Errors
    /// When QEMU cannot be run, when the time is over, when the machine ended without saying how the job did; with the
    /// last lines of its console.
    pub fn run(&self, seat: Seat, limits: Limits) -> Result<i32> {
        self.make_scratch()?;
        let mut command = self.command(seat);
        if seat == Seat::Log {
            File::create(self.output()).context("cannot make the output's file")?;
            command.stdin(Stdio::null());
        }
        let mut child = command.spawn().context("cannot run qemu-system-x86_64 (scripts/setup lab)")?;
        let followed = self.follow(&mut child, seat, limits);
        let ended = match followed {
            Ok(ended) => ended,
            Err(error) => {
                end(&mut child)?;
                return Err(error);
            }
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(late) => {
                let hung = hang::describe(child.id(), &PathBuf::from(format!("/proc/{}/cwd/{MONITOR}", child.id())));
                end(&mut child)?;
                let said = format!("\n{hung}its console said last:\n{}", self.console());
                match late {
                    Late::Over => bail!("the lab did not end within {} s{said}", limits.whole.as_secs()),
                    Late::Silent(time) => {
                        return Err(MachineDied(format!("said nothing for {} s{said}", time.as_secs())).into());
                    }
                }
            }
        };
        ensure!(ended.success(), "the lab's qemu-system-x86_64 ended with {ended}");
        let status = fs::read_to_string(self.status()).unwrap_or_default();
        match exit_code(&status) {
            Some(code) => Ok(code),
            None => Err(MachineDied(format!("died; its console said last:\n{}", self.console())).into()),
        }
    }

    /// How it ended by itself, or why it did not.
    fn follow(&self, child: &mut Child, seat: Seat, limits: Limits) -> Result<Result<ExitStatus, Late>> {
        if seat == Seat::Terminal {
            return Ok(Ok(child.wait().context("cannot wait for qemu")?));
        }
        let began = Instant::now();
        let mut spoke = began;
        let mut output = File::open(self.output()).context("cannot read the lab's output")?;
        loop {
            // Asked first, so that what is written before the end is copied after it.
            let ended = child.try_wait().context("cannot wait for qemu")?;
            if copy_new(&mut output)? {
                spoke = Instant::now();
            }
            if let Some(ended) = ended {
                return Ok(Ok(ended));
            }
            if began.elapsed() > limits.whole {
                return Ok(Err(Late::Over));
            }
            if let Some(silence) = limits.silence.filter(|&silence| spoke.elapsed() > silence) {
                return Ok(Err(Late::Silent(silence)));
            }
            std::thread::sleep(POLL);
        }
    }

    fn command(&self, seat: Seat) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        // Where its socket gets a short name.
        command.current_dir(&self.folder);
        let machine = "q35,sata=off,smbus=off,usb=off,i8042=off,hpet=off,vmport=off,smm=off";
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-machine", machine]);
        // So that its threads say which processor they are.
        command.args(["-name", "lab,debug-threads=on"]);
        command.arg("-accel").arg(format!("tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}"));
        // Without 5-level page tables (slower walks) and the "fast string" features, for which a kernel clears pages byte by
        // byte, which is slow when emulated.
        command.args(["-cpu", "max,-la57,-erms,-fsrm", "-smp", "2", "-m"]).arg(format!("{MEMORY_MIB}M"));
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs).args(["-append", COMMAND_LINE]);
        let disks = [(&self.root, "readonly=on"), (&self.payload, "readonly=on"), (&self.scratch(), "cache=unsafe")];
        for (number, (path, options)) in disks.into_iter().enumerate() {
            command.arg("-drive");
            command.arg(format!("if=none,id=disk{number},format=raw,{options},file={}", escaped(path)));
            // At addresses in this order, so that they are vda, vdb and vdc.
            command.arg("-device").arg(format!("virtio-blk-pci,drive=disk{number},addr={:#x}", number + 3));
        }
        command.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
        let mut file = |id: &str, path: &Path| {
            command.arg("-chardev").arg(format!("file,id={id},path={}", escaped(path)));
        };
        file("console", &self.console_log());
        file("status", &self.status());
        if seat == Seat::Log {
            file("output", &self.output());
        }
        command.args(["-serial", "chardev:console"]);
        command.arg("-chardev").arg(format!("socket,id=monitor,path={MONITOR},server=on,wait=off"));
        command.args(["-mon", "chardev=monitor,mode=control"]);
        command.args(["-device", "virtserialport,chardev=status,name=dev.bulkhead.lab.status"]);
        match seat {
            Seat::Log => command.args(["-device", "virtserialport,chardev=output,name=dev.bulkhead.lab.output"]),
            // Control-C is for the shell in there.
            Seat::Terminal => {
                command.args(["-chardev", "stdio,id=output,signal=off", "-device", "virtconsole,chardev=output"])
            }
        };
        command
    }

    fn make_scratch(&self) -> Result<()> {
        let path = self.scratch();
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        file.set_len(SCRATCH_BYTES).context("cannot size the lab's scratch disk")?;
        // It is gone after the run: no journal, and tables made when they are needed.
        let features = ["-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"];
        super::root::quiet(Command::new("mkfs.ext4").args(features).arg(&path))
            .context("mkfs.ext4 comes with Debian's e2fsprogs")
    }

    /// The last lines of the console.
    fn console(&self) -> String {
        let bytes = fs::read(self.console_log()).unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&bytes), CONSOLE_LINES)
    }

    fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    fn output(&self) -> PathBuf {
        self.folder.join("output.log")
    }

    fn status(&self) -> PathBuf {
        self.folder.join("status")
    }

    fn scratch(&self) -> PathBuf {
        self.folder.join("scratch.img")
    }
}

/// In a list of options a comma is written twice.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Prints what is new; true when something was.
fn copy_new(output: &mut File) -> Result<bool> {
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).context("cannot read the lab's output")?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&bytes).and_then(|()| stdout.flush()).context("cannot print the lab's output")?;
    Ok(!bytes.is_empty())
}

fn end(child: &mut Child) -> Result<()> {
    child.kill().and_then(|()| child.wait()).map(|_| ()).context("cannot end the lab's qemu")
}

/// Reads `exit CODE`, which the first program writes last.
fn exit_code(status: &str) -> Option<i32> {
    status.trim().strip_prefix("exit ")?.parse().ok()
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(seat: Seat) -> String {
        let machine = Machine {
            kernel: "/k".into(),
            initramfs: "/i".into(),
            root: "/with,comma/root".into(),
            payload: "/p".into(),
            folder: "/run".into(),
        };
        crate::workspace::shown(&machine.command(seat))
    }

    #[test]
    fn the_result_is_what_the_machine_wrote_last() {
        assert_eq!(exit_code("exit 0\n"), Some(0));
        assert_eq!(exit_code("exit 137\n"), Some(137));
        assert_eq!(exit_code(""), None);
        assert_eq!(exit_code("exit"), None);
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
    }

    #[test]
    fn only_a_person_gets_the_terminal() {
        assert!(words(Seat::Terminal).contains("stdio") && words(Seat::Terminal).contains("virtconsole"));
        assert!(!words(Seat::Log).contains("stdio") && words(Seat::Log).contains("/run/output.log"));
        assert!(words(Seat::Log).contains("file=/with,,comma/root"));
    }
}
