//! What runs in the lab, as the script that its first program runs.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::builds::{BENCH, Builds};
use super::payload::WRITTEN;

/// One test program with some of its tests.
#[derive(Debug, Clone, Copy)]
pub struct Suite {
    /// For a person, and for `--only`.
    name: &'static str,
    package: &'static str,
    program: &'static str,
    /// The harness's arguments: names of tests, all if empty.
    arguments: &'static [&'static str],
    /// The arguments of a quick run; `None`: it is not part of one.
    quick: Option<&'static [&'static str]>,
    /// What its utility VMs run in, as `BULKHEAD_TEST_BACKEND` has it; `auto` must come to our own VMM.
    backend: &'static str,
    /// Seconds for one test, several times what the longest one takes.
    limit_s: u32,
}

/// The suites, cheapest first.
const SUITES: [Suite; 10] = [
    Suite {
        name: "container",
        package: "bulkhead-container",
        program: "container",
        arguments: &[],
        quick: Some(&[]),
        backend: "auto",
        limit_s: 300,
    },
    Suite {
        name: "qemu-contract",
        package: "bulkhead-uvm",
        program: "contract",
        arguments: &[],
        quick: Some(&["the_machine_runs", "a_fork_is_paused", "forks_are_unique", "the_hosts_cgroup", "a_vmm_killed"]),
        backend: "qemu-kvm",
        limit_s: 400,
    },
    Suite {
        name: "qemu-container",
        package: "bulkhead-uvm",
        program: "container",
        arguments: &[],
        quick: Some(&["more_layers", "a_kernel_panic"]),
        backend: "qemu-kvm",
        limit_s: 400,
    },
    Suite {
        name: "own-vmm-contract",
        package: "bulkhead-uvm",
        program: "contract",
        arguments: &[],
        quick: Some(&["forks_are_unique", "a_vmm_killed"]),
        backend: "kvm",
        limit_s: 400,
    },
    Suite {
        name: "own-vmm-container",
        package: "bulkhead-uvm",
        program: "container",
        arguments: &[],
        quick: Some(&["a_layer_cannot_be_written"]),
        backend: "kvm",
        limit_s: 400,
    },
    Suite {
        name: "shim",
        package: "bulkhead-shim",
        program: "process",
        arguments: &[],
        quick: None,
        backend: "auto",
        limit_s: 300,
    },
    Suite {
        name: "ctr",
        package: "bulkhead-shim",
        program: "containerd",
        arguments: &["side_by_side::", "standby::a_container_gets_the_vm_that_stands_by", "standby::by_default"],
        quick: Some(&["side_by_side::a_lack_of_memory_is_told_when_it_happens"]),
        backend: "auto",
        limit_s: 600,
    },
    Suite {
        name: "qemu-e2e",
        package: "bulkhead-e2e",
        program: "e2e",
        arguments: &E2E,
        quick: Some(&E2E_QUICK),
        backend: "qemu-kvm",
        limit_s: 400,
    },
    Suite {
        name: "own-vmm-e2e",
        package: "bulkhead-e2e",
        program: "e2e",
        arguments: &E2E_KVM,
        quick: Some(&E2E_KVM_QUICK),
        backend: "auto",
        limit_s: 600,
    },
    Suite {
        name: MANY_FORKS,
        package: "bulkhead-uvm",
        program: "contract",
        arguments: &["a_template_is_removed_under_running_forks"],
        quick: None,
        backend: "kvm",
        limit_s: 2400,
    },
];
/// F110 with as many forks as the case says.
const MANY_FORKS: &str = "many-forks";

/// End-to-end tests about what differs here: cgroup version 2, and QEMU on KVM. The others do not see a difference.
const E2E: [&str; 13] = [
    "crashes::",
    "defaults::",
    "events::a_lack_of_memory",
    "exec::its_",
    "exec::it_ends",
    "exit_codes::",
    "forks::forks_at_once",
    "info::",
    "isolation::",
    "lifecycle::",
    "options::",
    "stdio::output",
    "templates::",
];
/// One of each kind.
const E2E_QUICK: [&str; 14] = [
    "crashes::the_shim_is_killed_and_its_container_is_dead::process",
    "crashes::the_vmm_is_killed_and_only_its_container_ends",
    "events::a_lack_of_memory_is_told_while_the_container_goes_on::process",
    "exec::its_exit_code_streams_and_options_are_its_own",
    "exit_codes::the_commands_own_code_is_passed_on",
    "forks::forks_at_once_differ_too",
    "info::info_names_the_hosts_cgroups_and_accelerator",
    "isolation::inspect_says_which_wall_it_is",
    "isolation::one_image_runs_behind_both_walls_with_different_kernels",
    "lifecycle::pause_stops_time_inside",
    "lifecycle::stats_measure_the_container::process",
    "options::memory_is_limited",
    "options::the_number_of_processes_is_limited::process",
    "stdio::output_and_error_are_separate",
];

/// End-to-end tests of what a utility VM has a part in: each of its devices, its limits, its neighbours, its end.
const E2E_KVM: [&str; 37] = [
    "copy::changes_are_listed::hyperv",
    "crashes::the_engine_is_killed_and_knows_everything_again::hyperv",
    "crashes::the_shim_is_killed_and_its_container_is_dead::hyperv",
    "crashes::the_vmm_is_killed_and_only_its_container_ends",
    "events::a_lack_of_memory_is_told_while_the_container_goes_on::hyperv",
    "exec::it_works_while_output_flows::hyperv",
    "exec::its_exit_code_streams_and_options_are_its_own::hyperv",
    "forks::a_forks_clock",
    "forks::a_guest_that_is_too_slow_is_destroyed_and_nothing_starts",
    "forks::no_two_forks_share_an_identity_and_the_template_stays_as_it_was",
    "info::info_names_the_hosts_cgroups_and_accelerator",
    "isolation::a_privileged_guests_panic_ends_only_its_container",
    "isolation::containers_see_nothing_of_each_other::hyperv",
    "isolation::one_image_runs_behind_both_walls_with_different_kernels",
    "lifecycle::pause_stops_time_inside::hyperv",
    "lifecycle::stats_measure_the_container::hyperv",
    "network_rates::",
    "networks::a_utility_vm_cannot_pose_as_another",
    "networks::a_utility_vm_has_a_slot_for_each_of_four_networks",
    "networks::a_utility_vm_leaves_segmentation_to_the_host",
    "networks::neighbours_are_reached_by_name_and_the_host_reaches_ports::hyperv",
    "networks::networks_are_apart_and_change_while_a_container_runs::hyperv",
    "options::a_disks_rate_is_limited::hyperv",
    "options::memory_is_limited::hyperv",
    "options::processor_time_is_limited::hyperv",
    "options::the_number_of_processes_is_limited::hyperv",
    "scratch::a_hyperv_containers_changes_are_in_one_sparse_disk_file",
    "scratch::files_survive_a_stop_and_a_kill::hyperv",
    "standby::",
    "standby_networks::a_utility_vm_stands_by_on_the_network_of_the_last_one",
    "stdio::input_reaches_the_command_until_it_is_closed::hyperv",
    "templates::",
    "terminal::a_resize_is_seen_in_the_container::hyperv",
    "volumes::a_utility_vm_reaches_just_the_folder",
    "volumes::data_is_shared_by_both_walls_at_once_and_outlives_a_change_of_them",
    "volumes::what_is_read_from_a_volume_comes_out_at_the_same_time::hyperv",
    "vsock::",
];
/// One of each kind.
const E2E_KVM_QUICK: [&str; 5] = [
    "exec::its_exit_code_streams_and_options_are_its_own::hyperv",
    "info::info_names_the_hosts_cgroups_and_accelerator",
    "isolation::inspect_says_which_wall_it_is",
    "networks::neighbours_are_reached_by_name_and_the_host_reaches_ports::hyperv",
    "options::memory_is_limited::hyperv",
];

/// Seconds for one test of a quick run. On a quiet machine the longest takes 20; a guest that the emulated virtualization does not bring back
/// is given up early enough for another try.
const QUICK_LIMIT_S: u32 = 200;

/// How long a test that was killed may take to be cleared away and told.
const REPORTED: Duration = Duration::from_secs(60);

/// How many forks a test of many makes: as many as whoever runs the lab says, or two, which are enough for most.
const FORKS: &str = "BULKHEAD_TEST_FORKS";

/// Where things are outside, and so inside.
#[derive(Debug)]
pub struct Environment<'a> {
    /// The workspace.
    pub root: &'a Path,
    /// Its target folder.
    pub target: &'a Path,
}

/// Names of all suites.
pub fn names() -> Vec<&'static str> {
    SUITES.iter().map(|suite| suite.name).collect()
}

/// The suites of a run, with the arguments that they get in it.
pub fn choose(quick: bool, only: Option<&str>) -> Vec<Suite> {
    let of_run = |suite: &Suite| {
        if !quick {
            return Some(*suite);
        }
        suite.quick.map(|arguments| Suite { arguments, limit_s: suite.limit_s.min(QUICK_LIMIT_S), ..*suite })
    };
    let chosen = SUITES.iter().filter(|suite| only.is_none_or(|word| suite.name.contains(word)));
    chosen.filter_map(of_run).collect()
}

/// Longer than any of these suites' tests can be without a word: then it is not a test that hangs.
pub fn silence(suites: &[Suite]) -> Duration {
    let longest = suites.iter().map(|suite| suite.limit_s).max().unwrap_or(0);
    Duration::from_secs(longest.into()) + REPORTED
}

/// The script that runs suites and ends with 1 if one failed.
///
/// # Errors
/// When a test program was not built.
///
/// Shape: of each suite's tests those whose name holds `matching`; none of a suite is a failure.
pub fn job(environment: &Environment, builds: &Builds, suites: &[Suite], matching: Option<&str>) -> Result<String> {
    let mut script = prologue(environment);
    let _ = writeln!(script, "matching={}", quoted(matching.unwrap_or_default()));
    script.push_str(HARNESS);
    let asked = std::env::var(FORKS).ok();
    for suite in suites {
        let program = quoted(&builds.test(suite.package, suite.program)?.display().to_string());
        let arguments: Vec<String> = suite.arguments.iter().map(|argument| quoted(argument)).collect();
        let few_or_many = if suite.name == MANY_FORKS { "100" } else { "2" };
        // Writing into a string cannot fail.
        let _ = writeln!(script, "export {FORKS}={}", quoted(asked.as_deref().unwrap_or(few_or_many)));
        let _ = writeln!(script, "export BULKHEAD_TEST_BACKEND={}", suite.backend);
        let _ = writeln!(script, "suite {} {} {program} {}", suite.name, suite.limit_s, arguments.join(" "));
    }
    script.push_str("report\n");
    Ok(script)
}

/// The script that measures our own VMM, in so many rounds: all of it, or what these flags of the benchmark's choose. Programs are loaded at the same addresses each time: an emulator finds
/// translated code again by its address, and would charge every new process for the translation of all it runs.
pub fn bench(environment: &Environment, rounds: u32, flags: &[String]) -> String {
    let program = quoted(&environment.target.join(BENCH).display().to_string());
    let fixed = "echo 0 > /proc/sys/kernel/randomize_va_space\n";
    let flags = if flags.is_empty() {
        "--kvm".to_owned()
    } else {
        flags.iter().map(|flag| quoted(flag)).collect::<Vec<_>>().join(" ")
    };
    format!("{}{fixed}exec {program} {flags} --rounds {rounds}\n", prologue(environment))
}

/// The script for a person, or for one command.
pub fn shell(environment: &Environment, command: &[String]) -> String {
    let mut script = prologue(environment);
    let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    let run = match words.as_slice() {
        [] => format!("cd {}/release\nexec /bin/busybox sh -i\n", quoted(&environment.target.display().to_string())),
        // One word is a script, several are a command and its arguments.
        [script] => format!("exec /bin/busybox sh -c {script}\n"),
        words => format!("exec {}\n", words.join(" ")),
    };
    script.push_str(&run);
    script
}

/// The target folder where it is outside; tests write into three folders of it. The crates' folders exist too, since paths go
/// through them.
fn prologue(environment: &Environment) -> String {
    let (root, target) = (environment.root.display().to_string(), environment.target.display().to_string());
    let (root, target) = (quoted(&root), quoted(&target));
    format!(
        "target={target}\n\
         mkdir -p {root}/crates/container {root}/crates/uvm {root}/crates/shim \"$target\" /tmp/skips\n\
         mount --bind /lab/target \"$target\" || exit 1\n\
         for name in {}; do\n\
         mkdir -p /run/scratch/target/$name && mount --bind /run/scratch/target/$name \"$target/$name\" || exit 1\n\
         done\n\
         export BULKHEAD_GUEST_IMAGE=\"$target/boot\" BULKHEAD_TEST_BACKEND=auto BULKHEAD_TEST_ACCELERATOR=kvm\n\
         export BULKHEAD_VMM=\"$target/release/bulkhead-vmm\"\n\
         export BULKHEAD_TEST_PATIENCE=10 BULKHEAD_E2E_SKIPS=/tmp/skips RUST_BACKTRACE=1 RUST_TEST_THREADS=2\n",
        WRITTEN.join(" ")
    )
}

/// Nothing may be missing in the lab: what is skipped there counts as failed. Each test is a process of its own, two at once,
/// as outside: they count processes, and one that hangs is to hold nothing up. One that fails gets one more try, alone, as the end-to-end tests do
/// outside, and is named: what is under it, emulated virtualization, is not above doubt.
const HARNESS: &str = r#"export BULKHEAD_E2E_REQUIRE=1 BULKHEAD_TEST_REQUIRE=1
failed=0
summary=
now() { cut -d. -f1 /proc/uptime; }
count() { grep -c "$1" "$results/outcomes" 2>/dev/null; }
# suite NAME SECONDS PROGRAM [TEST]...
suite() {
  name=$1 limit=$2 program=$3 began=$(now)
  shift 3
  results=$(mktemp -d /run/results.XXXXXX)
  echo "=== lab: $name"
  "$program" --list --format terse "$@" 2>/dev/null | sed -n 's/: test$//p' | grep -F -- "$matching" > "$results/names"
  busybox xargs -P 2 -n 1 busybox sh /lab/run-test "$program" "$limit" "$results" < "$results/names"
  again=
  if [ -e "$results/failed" ]; then
    mv "$results/failed" "$results/again"
    again=", $(wc -l < "$results/again") TRIED AGAIN: $(tr '\n' ' ' < "$results/again")"
    echo "ONCE MORE$again"
    busybox xargs -n 1 busybox sh /lab/run-test "$program" "$limit" "$results" < "$results/again"
  fi
  failed_now=$(cat "$results/failed" 2>/dev/null | wc -l)
  line="$name: $(wc -l < "$results/names") tests run: $(count pass) passed, $failed_now failed, in $(($(now) - began)) s$again"
  echo "$line"
  summary="$summary$line
"
  # No test at all, or one that came to no end, is a failure too.
  [ -s "$results/names" ] && [ "$(count pass)" = "$(wc -l < "$results/names")" ] || failed=1
}
report() {
  for skipped in /tmp/skips/*; do
    [ -e "$skipped" ] && echo "SKIPPED $(basename "$skipped"): $(cat "$skipped")"
  done
  echo "=== lab: summary (kernel $(uname -r), $(grep ' /sys/fs/cgroup ' /proc/mounts | cut -d' ' -f3), kvm_amd npt=$(cat /sys/module/kvm_amd/parameters/npt))"
  printf %s "$summary"
  exit $failed
}
"#;

/// A word that a shell reads as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment<'static> {
        Environment { root: Path::new("/w"), target: Path::new("/w/target") }
    }

    #[test]
    fn a_quick_run_is_a_part_of_the_whole() {
        let whole: Vec<&str> = choose(false, None).iter().map(|suite| suite.name).collect();
        let quick: Vec<&str> = choose(true, None).iter().map(|suite| suite.name).collect();
        assert_eq!(whole, names());
        assert!(!quick.is_empty() && quick.len() < whole.len() && quick.iter().all(|name| whole.contains(name)));
        assert_eq!((choose(false, Some("qemu-contract")).len(), choose(true, Some("own-vmm")).len()), (1, 3));
        assert!(choose(false, Some("nothing")).is_empty());
    }

    #[test]
    fn words_stay_words() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
        let script = shell(&environment(), &["echo".into(), "a b".into()]);
        assert!(script.ends_with("exec 'echo' 'a b'\n"), "{script}");
        let script = shell(&environment(), &["echo a; echo b".into()]);
        assert!(script.ends_with("exec /bin/busybox sh -c 'echo a; echo b'\n"), "{script}");
        assert!(shell(&environment(), &[]).ends_with("sh -i\n"));
    }
}
