//! `--sysctl`: only those settings that a namespace of the container's own holds.

use std::collections::HashMap;

use super::SpecError;

/// Settings of the IPC namespace. Source: runc `libcontainer/configs/validate/validator.go`.
const IPC: [&str; 11] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "fs.mqueue.msg_max",
    "fs.mqueue.queues_max",
    "fs.mqueue.msgsize_max",
];

/// Which namespaces a container has to itself, as far as sysctls are concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnNamespaces {
    pub(super) ipc: bool,
    pub(super) network: bool,
}

/// Checks every setting and writes names with dots.
pub(super) fn check(
    settings: &HashMap<String, String>,
    own: OwnNamespaces,
) -> Result<HashMap<String, String>, SpecError> {
    settings.iter().map(|(name, value)| Ok((check_name(name, own)?, value.clone()))).collect()
}

fn check_name(name: &str, own: OwnNamespaces) -> Result<String, SpecError> {
    let dotted = dotted(name);
    let refuse = |why: String| Err(SpecError::Sysctl { name: dotted.clone(), why });
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
    if dotted.is_empty() || !dotted.bytes().all(plain) || dotted.contains("..") {
        return refuse("is not the name of a setting".into());
    }
    if IPC.contains(&dotted.as_str()) || (dotted.starts_with("fs.mqueue.") && !dotted.contains('/')) {
        return if own.ipc { Ok(dotted) } else { refuse("is not allowed in the host's ipc namespace".into()) };
    }
    if dotted.starts_with("net.") {
        return if own.network { Ok(dotted) } else { refuse("not allowed in host network namespace".into()) };
    }
    if dotted == "kernel.domainname" {
        return Ok(dotted);
    }
    if dotted == "kernel.hostname" {
        return refuse("is not allowed: use --hostname".into());
    }
    refuse("is not in a separate kernel namespace".into())
}

/// Turns `net/ipv4/conf/eth0.1/x` into sysctl's dotted form, where a dot in a name is written as a slash.
fn dotted(name: &str) -> String {
    match (name.find('/'), name.find('.')) {
        (Some(slash), dot) if dot.is_none_or(|dot| slash < dot) => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: OwnNamespaces = OwnNamespaces { ipc: true, network: true };

    #[test]
    fn only_namespaced_settings_pass() {
        for good in ["net.ipv4.ip_forward", "net/ipv4/ip_forward", "kernel.shmmax", "fs.mqueue.msg_max", "kernel.sem"] {
            assert!(check_name(good, OWN).is_ok(), "{good}");
        }
        let bad = [
            "kernel.core_pattern",
            "kernel/core_pattern",
            "vm.overcommit_memory",
            "fs.suid_dumpable",
            "kernel.hostname",
            "",
            "net..ipv4",
            "net.ipv4.x y",
            "fs.mqueue./../../kernel/core_pattern",
        ];
        for bad in bad {
            assert!(check_name(bad, OWN).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_shared_namespaces_settings_are_the_hosts() {
        let shared = OwnNamespaces { ipc: false, network: true };
        assert!(check_name("kernel.shmmax", shared).is_err());
        assert_eq!(
            check_name("kernel.core_pattern", OWN).unwrap_err().to_string(),
            "sysctl \"kernel.core_pattern\" is not in a separate kernel namespace"
        );
    }

    #[test]
    fn a_dotted_interface_name_keeps_its_dot() {
        assert_eq!(dotted("net/ipv4/conf/eth0.1/forwarding"), "net.ipv4.conf.eth0/1.forwarding");
    }
}
