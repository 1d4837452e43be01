//! Standard input, output and error arrive complete, separate and in order.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use bulkhead_e2e::{TestHost, Wall, setting};

behind_both_walls! {
    fn output_and_error_are_separate(host) {
        let said = host.sh("echo to-out; echo to-err >&2");
        assert_eq!(said.ok(), "to-out");
        assert_eq!(said.err.trim(), "to-err");
    }

    fn input_reaches_the_command_until_it_is_closed(host) {
        let said = host.docker_input(&host.words("run", &["--rm", "-i"], &["sh", "-c", "cat; echo end"]), b"one\ntwo\n");
        assert_eq!(said.ok(), "one\ntwo\nend");
    }

    fn without_i_input_is_empty(host) {
        let said = host.docker_input(&host.words("run", &["--rm"], &["wc", "-c"]), b"never seen");
        assert_eq!(said.ok(), "0");
    }

    fn output_goes_on_after_input_ended(host) {
        let mut cat = host.spawn(&host.words("run", &["--rm", "-i"], &["sh", "-c", "cat >/dev/null; sleep 0.5; echo after"]));
        cat.write(b"x");
        assert_eq!(cat.end().ok(), "after");
    }

    /// `cat` keeps the lock of its output's pipe for as long as the terminal that it splices from has nothing: for ever.
    fn a_container_that_keeps_the_lock_of_its_pipe_stops_nobody(host) {
        let hostile = "while :; do for i in 1 2 3 4 5 6 7 8; do (echo $i; exec cat /dev/ptmx) & done; sleep 0.3; killall cat; done";
        let id = host.run_detached(&[], &["sh", "-c", hostile]);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(host.docker(&["exec", &id, "echo", "inside"]).ok(), "inside");
            assert_eq!(host.docker(&["inspect", "-f", "{{.State.Status}}", &id]).ok(), "running");
        }
        assert_eq!(host.docker(&["kill", &id]).ok(), id);
        host.wait_state(&id, "exited");
    }

    fn ten_thousand_lines_of_both_arrive_in_order(host) {
        let script = "i=0; while [ $i -lt 10000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
        let said = host.sh(script);
        let expected = |word: &str| (0..10_000).map(|i| format!("{word} {i}\n")).collect::<String>();
        assert_eq!(said.code, 0, "{}", said.err);
        assert!(said.text() == expected("out"), "{} bytes of output", said.out.len());
        assert!(said.err == expected("err"), "{} bytes of error", said.err.len());
    }

    fn the_last_bytes_of_a_short_command_are_never_lost(host) {
        for i in 0..8 {
            let text = format!("{i}{}", "x".repeat(5000));
            assert_eq!(host.run(&[], &["echo", &text]).ok(), text);
        }
    }

    fn a_slow_reader_loses_nothing(host) {
        let mut words = host.words("run", &["--rm", "--log-driver", "none"], &["dd", "if=/dev/zero", "bs=65536", "count=512"]);
        words.insert(0, "docker");
        let mut child = host.docker_command(&words[1..]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(3));
        let mut read = 0;
        let mut out = child.stdout.take().unwrap();
        let mut buffer = vec![0; 65536];
        while let Ok(count @ 1..) = out.read(&mut buffer) {
            read += count;
        }
        assert_eq!((read, child.wait().unwrap().code()), (512 * 65536, Some(0)));
    }
}

#[test]
fn a_gigabyte_through_a_process_container_is_the_same_byte_for_byte() {
    if let Some(host) = TestHost::start(Wall::Process) {
        bulk(&host, setting("BULKHEAD_E2E_BULK_MIB", 1024));
    }
}

/// Every byte is encrypted by nothing but copied by emulated processors: 1 GiB takes minutes there.
#[test]
fn bulk_through_a_hyperv_container_is_the_same_byte_for_byte() {
    if let Some(host) = TestHost::start(Wall::Hyperv) {
        bulk(&host, setting("BULKHEAD_E2E_HYPERV_BULK_MIB", 64));
    }
}

/// Sends pseudo-random bytes through `cat` and compares what comes back with the same sequence.
fn bulk(host: &TestHost, mebibytes: usize) {
    let words = host.words("run", &["--rm", "-i", "--log-driver", "none"], &["cat"]);
    let mut command = host.docker_command(&words);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let writer = std::thread::spawn(move || {
        let mut noise = Noise::default();
        let mut block = vec![0; 1 << 20];
        for _ in 0..mebibytes {
            noise.fill(&mut block);
            stdin.write_all(&block).unwrap();
        }
    });
    let mut noise = Noise::default();
    let (mut got, mut expected) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in 0..mebibytes {
        stdout.read_exact(&mut got).unwrap_or_else(|error| panic!("ended in MiB {at} of {mebibytes}: {error}"));
        noise.fill(&mut expected);
        assert!(got == expected, "MiB {at} differs");
    }
    assert_eq!(stdout.read(&mut got).unwrap(), 0, "more came back than was sent");
    writer.join().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// The same bytes every time. Source: Marsaglia, "Xorshift RNGs", 2003.
struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Self(0x9E37_79B9_7F4A_7C15)
    }
}

impl Noise {
    fn fill(&mut self, block: &mut [u8]) {
        for chunk in block.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}
