//! Every hyperv container is a fork of one frozen template, and no two forks share what must be unique (M7, M8).

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bulkhead_e2e::{HostOptions, TestHost, Wall, setting};
use sha2::{Digest, Sha256};

/// What must differ: machine-id, boot-id, host name, 64 bytes of /dev/urandom, a kernel-made uuid.
pub const IDENTITY: &str = "cat /etc/machine-id 2>/dev/null || cat /proc/sys/kernel/random/boot_id; \
    cat /proc/sys/kernel/random/boot_id; hostname; head -c 64 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; \
    cat /proc/sys/kernel/random/uuid";

#[test]
fn no_two_forks_share_an_identity_and_the_template_stays_as_it_was() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    assert_eq!(host.run(&[], &["true"]).code, 0);
    let before = digests(host.template_store());
    assert!(!before.is_empty(), "no template in {}", host.template_store().display());
    let forks = setting("BULKHEAD_E2E_FORKS", 20);
    let mut seen: Vec<HashSet<String>> = vec![HashSet::new(); 5];
    for _ in 0..forks {
        let lines = host.sh(IDENTITY).lines();
        assert_eq!(lines.len(), 5, "{lines:?}");
        for (set, line) in seen.iter_mut().zip(lines) {
            assert!(!line.trim().is_empty());
            assert!(set.insert(line.clone()), "two forks have {line}");
        }
    }
    assert_eq!(digests(host.template_store()), before, "the template's bytes changed");
}

#[test]
fn a_forks_clock_runs_as_fast_as_the_hosts() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let id = host.run_detached(&[], &["sleep", "1000"]);
    let now = || -> f64 {
        let uptime = host.docker(&["exec", &id, "cat", "/proc/uptime"]).ok();
        uptime.split(' ').next().unwrap().parse().unwrap()
    };
    // What an exec takes is bounded on both sides: before the first reading, and behind the second.
    now();
    let (outer, first) = (Instant::now(), now());
    let inner = Instant::now();
    std::thread::sleep(Duration::from_secs(2));
    let shortest = inner.elapsed().as_secs_f64();
    let passed = now() - first;
    let longest = outer.elapsed().as_secs_f64();
    assert!(passed > shortest * 0.98 && passed < longest * 1.02, "{shortest} < {passed} < {longest}");
}

/// The digest of each file of the template in use. Other tests share the store: only files that were there are compared.
fn digests(store: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![store.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.metadata().is_ok_and(|data| data.len() > 1024) {
                let mut hash = Sha256::new();
                std::io::copy(&mut std::fs::File::open(&path).unwrap(), &mut HashWriter(&mut hash)).unwrap();
                found.push((path.display().to_string(), hex::encode(hash.finalize())));
            }
        }
    }
    found.sort();
    found
}

struct HashWriter<'h>(&'h mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn forks_at_once_differ_too() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let words = host.words("run", &["--rm"], &["sh", "-c", IDENTITY]);
    let running: Vec<_> = (0..4).map(|_| host.spawn(&words)).collect();
    let mut lines: Vec<String> = running.into_iter().flat_map(|run| run.end().lines()).collect();
    assert_eq!(lines.len(), 20);
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len(), 20, "{lines:#?}");
}

#[test]
fn a_forks_clock_is_the_hosts() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let id = host.run_detached(&[], &["sleep", "1000"]);
    std::thread::sleep(Duration::from_secs(2));
    let nanoseconds = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let before = nanoseconds();
    let text = host.docker(&["exec", &id, "date", "+%s"]).ok();
    let after = nanoseconds();
    let inside = text.parse::<u128>().unwrap() * 1_000_000_000;
    // Whole seconds are all that busybox tells; the engine's own measurement is exact to its round trip.
    assert!(inside + 1_100_000_000 > before && inside < after + 100_000_000, "{before} {inside} {after}");
    let own = &host.inspect(&id)["Bulkhead"];
    if let Some(error) = own["ClockErrorMicroseconds"].as_i64() {
        assert!(error.abs() <= 50_000, "{own}");
    }
}

#[test]
fn a_guest_that_is_too_slow_is_destroyed_and_nothing_starts() {
    let options = HostOptions { flags: vec!["--personalize-timeout-ms=1".into()], ..HostOptions::default() };
    let Some(host) = TestHost::start_own_with(Wall::Hyperv, &options) else { return };
    let said = host.run(&["--name", "late"], &["echo", "must not be seen"]);
    said.fails_saying(125, &["personal"]);
    assert_eq!(said.text(), "");
    assert_eq!(host.docker(&["ps", "-aq"]).ok(), "", "a failed start leaves no container of --rm");
}

#[test]
fn what_a_fork_writes_dies_with_it() {
    let Some(host) = TestHost::start_own(Wall::Hyperv) else { return };
    let id = host.run_detached(
        &["--privileged"],
        &["sh", "-c", "test -e /file || echo kept > /file; echo 77 > /proc/sys/vm/swappiness; exec sleep 1000"],
    );
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(host.docker(&["exec", &id, "cat", "/proc/sys/vm/swappiness"]).ok(), "77");
    assert_eq!(host.docker(&["restart", "-t", "0", &id]).code, 0);
    // The container's own file is kept, the kernel's state is the template's again until the command has run.
    assert_eq!(host.docker(&["exec", &id, "cat", "/file"]).ok(), "kept");
    assert_eq!(host.run(&[], &["cat", "/proc/sys/vm/swappiness"]).ok(), "60");
}
