//! Which devices a container may use. On version 1 libcontainer writes the rules to the devices controller; on version 2
//! there is none, and a BPF program at the cgroup decides, which is made here.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use super::{Cgroup, CgroupError, write};
use crate::sys::device_program;

/// Kinds of access as the kernel passes them. Source: `linux/bpf.h`, `BPF_DEVCG_ACC_*`.
const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;

/// One rule; the last one that fits decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// `BPF_DEVCG_DEV_BLOCK` (1) or `BPF_DEVCG_DEV_CHAR` (2); `None` for both.
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

const CHARACTER: Option<u32> = Some(2);
const BLOCK: Option<u32> = Some(1);

/// What every container may use, whatever its rules say. Source: runc `specconv.AllowedDevices`.
const ALWAYS: [Rule; 11] = [
    Rule { allow: true, kind: CHARACTER, major: None, minor: None, access: MAKE },
    Rule { allow: true, kind: BLOCK, major: None, minor: None, access: MAKE },
    usable(1, Some(3)), // null
    usable(1, Some(5)), // zero
    usable(1, Some(7)), // full
    usable(1, Some(8)), // random
    usable(1, Some(9)), // urandom
    usable(5, Some(0)), // tty
    usable(5, Some(1)), // console
    usable(5, Some(2)), // ptmx
    usable(136, None),  // pts
];

const fn usable(major: u32, minor: Option<u32>) -> Rule {
    Rule { allow: true, kind: CHARACTER, major: Some(major), minor, access: MAKE | READ | WRITE }
}

impl Cgroup {
    /// Makes the rules hold, as far as libcontainer has not. When: the container's process waits to be started.
    pub fn restrict_devices(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let given = resources.devices().as_deref().unwrap_or_default();
        let Some(folder) = self.unified() else { return self.withdraw_tunnels(given) };
        let code = program(&decisive(given.iter().filter_map(rule).chain(ALWAYS)));
        let folder = File::open(folder).map_err(CgroupError::Devices)?;
        let attached = match PLAIN.get().filter(|plain| plain.code == code) {
            Some(plain) => device_program::attach(folder.as_fd(), plain.program.as_fd()),
            None => {
                device_program::load(&code).and_then(|program| device_program::attach(folder.as_fd(), program.as_fd()))
            }
        };
        attached.map_err(CgroupError::Devices)
    }

    /// Makes the rules of a container hold that asks for no device. When: version 2 only.
    pub fn restrict_devices_plainly(&self) -> Result<(), CgroupError> {
        let folder = self.unified().ok_or(CgroupError::Devices(io::ErrorKind::Unsupported.into()))?;
        let folder = File::open(folder).map_err(CgroupError::Devices)?;
        prepare().map_err(CgroupError::Devices)?;
        let plain = PLAIN.get().ok_or(CgroupError::Devices(io::ErrorKind::NotFound.into()))?;
        device_program::attach(folder.as_fd(), plain.program.as_fd()).map_err(CgroupError::Devices)
    }

    /// libcontainer allows /dev/net/tun to every container of version 1, as old runc did; nobody asked for it.
    fn withdraw_tunnels(&self, given: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
        let allows_tunnels = |rule: &Rule| {
            let is = |wanted: Option<u32>, number| wanted.is_none_or(|wanted| wanted == number);
            rule.allow
                && rule.access & (READ | WRITE) != 0
                && is(rule.kind, 2)
                && is(rule.major, 10)
                && is(rule.minor, 200)
        };
        match self.v1("devices") {
            Some(folder) if !given.iter().filter_map(rule).any(|rule| allows_tunnels(&rule)) => {
                write(&folder.join("devices.deny"), "c 10:200 rwm")
            }
            _ => Ok(()),
        }
    }
}

/// A program that was loaded ahead.
struct Loaded {
    code: Vec<u64>,
    program: OwnedFd,
}

/// The program of a container that asks for no device. Any number of cgroups can have it.
static PLAIN: OnceLock<Loaded> = OnceLock::new();

/// Loads the program of a container that asks for no device, so that none has to wait until the kernel has verified it.
/// Where there is no version 2 this is of no use and no harm.
///
/// # Errors
/// The kernel refuses it.
pub fn prepare() -> io::Result<()> {
    if PLAIN.get().is_some() {
        return Ok(());
    }
    let code = plain_program();
    let program = device_program::load(&code)?;
    // A second one is as good as the first.
    let _ = PLAIN.set(Loaded { code, program });
    Ok(())
}

fn plain_program() -> Vec<u64> {
    let deny_all = Rule { allow: false, kind: None, major: None, minor: None, access: MAKE | READ | WRITE };
    program(&decisive(std::iter::once(deny_all).chain(ALWAYS)))
}

/// Whether these are the rules of a container that asks for no device.
pub fn are_plain(given: &[LinuxDeviceCgroup]) -> bool {
    program(&decisive(given.iter().filter_map(rule).chain(ALWAYS))) == plain_program()
}

/// Leaves out what can never decide: a rule that stands once more behind itself, since the last one that fits decides.
fn decisive(rules: impl Iterator<Item = Rule>) -> Vec<Rule> {
    let mut kept: Vec<Rule> = Vec::new();
    for rule in rules {
        kept.retain(|earlier| *earlier != rule);
        kept.push(rule);
    }
    kept
}

/// `None` for a kind that is no device (a FIFO).
fn rule(given: &LinuxDeviceCgroup) -> Option<Rule> {
    let kind = match given.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => BLOCK,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => CHARACTER,
        Some(LinuxDeviceType::P) => return None,
    };
    // A negative number means any, as runc has it.
    let number = |given: Option<i64>| given.and_then(|number| u32::try_from(number).ok());
    let text = given.access().as_deref().unwrap_or("rwm");
    let bit = |letter: char, bit: u32| if text.contains(letter) { bit } else { 0 };
    let access = bit('m', MAKE) | bit('r', READ) | bit('w', WRITE);
    Some(Rule { allow: given.allow(), kind, major: number(given.major()), minor: number(given.minor()), access })
}

/// One BPF instruction. Source: `linux/bpf.h`, `struct bpf_insn`.
fn instruction(code: u8, destination: u8, source: u8, offset: u16, immediate: u32) -> u64 {
    let registers = u64::from(destination | source << 4);
    u64::from(code) | registers << 8 | u64::from(offset) << 16 | u64::from(immediate) << 32
}

const LOAD_WORD: u8 = 0x61;
const AND_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Registers: the context (free once it is read), then what is asked for.
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The program that answers 1 for "allowed". The rules are tried from the last to the first.
fn program(rules: &[Rule]) -> Vec<u64> {
    let mut code = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE, ACCESS, KIND, 0, 0),
        instruction(AND_32, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_32, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        code.extend(test(rule));
        if rule.kind.is_none() && rule.major.is_none() && rule.minor.is_none() && rule.access == MAKE | READ | WRITE {
            // It fits everything: what follows could never run, and the kernel refuses programs with dead code.
            return code;
        }
    }
    code.extend([instruction(MOVE_IMMEDIATE, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

fn test(rule: &Rule) -> Vec<u64> {
    // Each test jumps behind the rule; how far is known when the rule is complete.
    let mut tests: Vec<(Vec<u64>, u64)> = Vec::new();
    let all = MAKE | READ | WRITE;
    let unless_equal = |register, value| (Vec::new(), instruction(JUMP_IF_NOT_EQUAL, register, 0, 0, value));
    tests.extend(rule.kind.map(|kind| unless_equal(KIND, kind)));
    if rule.access != all {
        // An allowing rule must cover all that is asked for; a denying one any of it.
        let (mask, skip) = if rule.allow { (!rule.access, JUMP_IF_NOT_EQUAL) } else { (rule.access, JUMP_IF_EQUAL) };
        let masked = vec![instruction(MOVE, CONTEXT, ACCESS, 0, 0), instruction(AND_32, CONTEXT, 0, 0, mask)];
        tests.push((masked, instruction(skip, CONTEXT, 0, 0, 0)));
    }
    tests.extend(rule.major.map(|major| unless_equal(MAJOR, major)));
    tests.extend(rule.minor.map(|minor| unless_equal(MINOR, minor)));
    let mut code = vec![instruction(MOVE_IMMEDIATE, 0, 0, 0, u32::from(rule.allow)), instruction(EXIT, 0, 0, 0, 0)];
    for (before, jump) in tests.into_iter().rev() {
        let distance = u64::try_from(code.len()).unwrap_or(0);
        code.insert(0, jump | distance << 16);
        code.splice(0..0, before);
    }
    code
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;
    use proptest::prelude::*;

    use super::*;

    /// Runs a program as the kernel would.
    fn run(code: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let mut registers = [0_u64; 11];
        let mut at = 0;
        for _ in 0..code.len() {
            let word = code[at];
            let (operation, offset) = (u8::try_from(word & 0xff).unwrap(), (word >> 16 & 0xffff) as usize);
            let (destination, source) = ((word >> 8 & 0xf) as usize, (word >> 12 & 0xf) as usize);
            let immediate = word >> 32;
            at += 1;
            match operation {
                LOAD_WORD => {
                    let words = [access << 16 | kind, major, minor];
                    registers[destination] = u64::from(words[offset / 4]);
                }
                AND_32 => registers[destination] = registers[destination] & immediate & 0xffff_ffff,
                SHIFT_RIGHT_32 => registers[destination] >>= immediate,
                MOVE => registers[destination] = registers[source],
                MOVE_IMMEDIATE => registers[destination] = immediate,
                JUMP_IF_EQUAL if registers[destination] == immediate => at += offset,
                JUMP_IF_NOT_EQUAL if registers[destination] != immediate => at += offset,
                JUMP_IF_EQUAL | JUMP_IF_NOT_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
        panic!("the program does not end")
    }

    /// What the rules mean.
    fn decide(rules: &[Rule], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let fits = |rule: &&Rule| {
            let covered = if rule.allow { access & !rule.access == 0 } else { access & rule.access != 0 };
            covered
                && rule.kind.is_none_or(|wanted| wanted == kind)
                && rule.major.is_none_or(|wanted| wanted == major)
                && rule.minor.is_none_or(|wanted| wanted == minor)
        };
        rules.iter().rev().find(fits).is_some_and(|rule| rule.allow)
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let number = || prop::option::of(0..4_u32);
        (any::<bool>(), prop::option::of(1..3_u32), number(), number(), 1..8_u32)
            .prop_map(|(allow, kind, major, minor, access)| Rule { allow, kind, major, minor, access })
    }

    proptest! {
        #[test]
        fn the_program_says_what_the_rules_say(
            rules in prop::collection::vec(any_rule(), 0..8),
            kind in 1..3_u32, access in 1..8_u32, major in 0..4_u32, minor in 0..4_u32,
        ) {
            // Some of them twice.
            let rules: Vec<Rule> = rules.iter().chain(rules.iter().step_by(2)).copied().collect();
            let code = program(&decisive(rules.iter().copied()));
            prop_assert_eq!(run(&code, kind, access, major, minor), decide(&rules, kind, access, major, minor));
        }
    }

    #[test]
    fn rules_are_read() {
        let mut given = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::C)
            .major(1)
            .minor(-1)
            .access("rw")
            .build()
            .unwrap();
        let expected = Rule { allow: true, kind: CHARACTER, major: Some(1), minor: None, access: READ | WRITE };
        assert_eq!(rule(&given), Some(expected));
        given.set_typ(Some(LinuxDeviceType::P));
        assert_eq!(rule(&given), None);
    }
}
