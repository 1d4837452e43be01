//! Docker beside us drops whatever it does not forward itself, and keeps the chain `DOCKER-USER` for exceptions. Whether its
//! rules are nftables' or the older kind only `iptables` knows, so that is asked here, and changes only where the chain exists.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

const CHAIN: &str = "DOCKER-USER";

/// Lets exactly these bridges through in Docker's chain, if there is one. Rules of ours are known by their comment.
pub(super) fn let_through<'a>(owner: &str, bridges: impl Iterator<Item = &'a String>) {
    let wanted: BTreeSet<String> =
        bridges.flat_map(|bridge| [rule(owner, "-i", bridge), rule(owner, "-o", bridge)]).collect();
    for program in ["iptables", "ip6tables"] {
        // No such program, or no such chain: no Docker is there.
        let Some(listing) = said(program, &["-S", CHAIN]) else { continue };
        let present: BTreeSet<String> = ours(&listing, owner).collect();
        for rule in wanted.difference(&present) {
            change(program, "-I", rule);
        }
        for rule in present.difference(&wanted) {
            change(program, "-D", rule);
        }
    }
}

/// As `iptables -S` prints it, without the verb and the chain.
fn rule(owner: &str, direction: &str, bridge: &str) -> String {
    format!("{direction} {bridge} -m comment --comment {owner} -j ACCEPT")
}

fn ours(listing: &str, owner: &str) -> impl Iterator<Item = String> {
    let begin = format!("-A {CHAIN} ");
    let comment = format!("--comment {owner} ");
    let quoted = format!("--comment \"{owner}\" ");
    let lines =
        listing.lines().filter_map(move |line| line.strip_prefix(&begin).map(|rule| rule.replace(&quoted, &comment)));
    let mark = format!("--comment {owner} ");
    lines.filter(move |rule| rule.contains(&mark)).collect::<Vec<_>>().into_iter()
}

fn change(program: &str, verb: &str, rule: &str) {
    let mut args = vec![verb, CHAIN];
    args.extend(rule.split(' '));
    if said(program, &args).is_none() {
        tracing::warn!(rule, verb, "cannot change Docker's chain for exceptions; it may drop what our containers send");
    }
}

/// What the program printed, if it was content.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .arg("-w")
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_this_engine_are_known_again() {
        let listing = "-N DOCKER-USER\n-A DOCKER-USER -i bh0 -m comment --comment bh_a -j ACCEPT\n\
                       -A DOCKER-USER -o bh1 -m comment --comment \"bh_a\" -j ACCEPT\n\
                       -A DOCKER-USER -i bh2 -m comment --comment bh_b -j ACCEPT\n-A DOCKER-USER -j RETURN\n";
        let found: Vec<String> = ours(listing, "bh_a").collect();
        assert_eq!(found, [rule("bh_a", "-i", "bh0"), rule("bh_a", "-o", "bh1")]);
    }
}
