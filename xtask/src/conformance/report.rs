//! The table of counts, and what differs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;

use super::exceptions::Exceptions;
use super::results::{self, Case, Cases, Outcome};
use super::side::Side;
use super::{Folders, Suite};

/// What there is to say about a suite against our engine.
#[derive(Debug, Default, PartialEq, Eq)]
struct Comparison {
    /// Cases that dockerd passes and ours does not, and that no exception names.
    different: Vec<String>,
    /// Cases that an exception names, with its reason.
    excepted: Vec<(String, String)>,
    /// Exceptions that no case needs.
    unneeded: Vec<String>,
    /// Cases that ours passes and dockerd does not.
    better: Vec<String>,
}

/// Prints everything; gives the number of things that are wrong.
pub fn print(folders: &Folders, suites: &[Suite], exceptions: &Exceptions, names: &[String]) -> anyhow::Result<usize> {
    println!(
        "\n{:<12}{:<10}{:>8}{:>8}{:>8}{:>10}{:>12}",
        "suite", "against", "passed", "failed", "skipped", "differ", "exceptions"
    );
    let mut wrong = 0;
    let mut notes = Vec::new();
    for suite in suites {
        let load = |side| results::load(&results::file(&folders.results(), *suite, side));
        let mut references = Vec::new();
        for side in Side::REFERENCES {
            if let Some(cases) = load(side)? {
                row(*suite, side, &cases, None);
                references.push(cases);
            }
        }
        if references.is_empty() {
            bail!("no results of {} against dockerd: run it with --against dockerd", suite.word());
        }
        let exceptions = exceptions.clone().beside(references.len() == Side::REFERENCES.len());
        for side in Side::OURS {
            let Some(own) = load(side)? else { continue };
            let mut comparison = compare(*suite, side, &references, &own, &exceptions);
            comparison
                .different
                .retain(|case| names.is_empty() || names.iter().any(|name| case.contains(name.as_str())));
            row(*suite, side, &own, Some(&comparison));
            wrong += comparison.different.len() + comparison.unneeded.len();
            notes.push(note(*suite, side, (&references, &own), &comparison));
        }
    }
    notes.iter().for_each(|note| print!("{note}"));
    Ok(wrong)
}

fn row(suite: Suite, side: Side, cases: &Cases, comparison: Option<&Comparison>) {
    let count = |outcome| cases.values().filter(|case| case.outcome == outcome).count();
    let (differ, excepted) = comparison.map_or_else(Default::default, |comparison| {
        (comparison.different.len().to_string(), comparison.excepted.len().to_string())
    });
    println!(
        "{:<12}{:<10}{:>8}{:>8}{:>8}{differ:>10}{excepted:>12}",
        suite.word(),
        side.word(),
        count(Outcome::Passed),
        count(Outcome::Failed),
        count(Outcome::Skipped)
    );
}

/// What one of the references does is right.
fn compare(suite: Suite, side: Side, references: &[Cases], own: &Cases, exceptions: &Exceptions) -> Comparison {
    let mut comparison = Comparison::default();
    let mut differing = Vec::new();
    let names: BTreeSet<&String> = references.iter().flat_map(BTreeMap::keys).collect();
    for name in names {
        let wanted = references.iter().filter_map(|cases| cases.get(name));
        let Some(seen) = own.get(name) else {
            differing.push(name.clone());
            continue;
        };
        if wanted.clone().all(|wanted| wanted.outcome == Outcome::Passed && !is_same(name, wanted, seen)) {
            differing.push(name.clone());
        } else if seen.outcome == Outcome::Passed && wanted.clone().all(|wanted| wanted.outcome == Outcome::Failed) {
            comparison.better.push(name.clone());
        }
    }
    comparison.unneeded = exceptions.unneeded(suite, side, &differing);
    for name in differing {
        match exceptions.allowing(suite, side, &name) {
            Some(exception) => comparison.excepted.push((name, exception.reason.clone())),
            None => comparison.different.push(name),
        }
    }
    comparison
}

/// A case named `shape ...` may show more than dockerd's: newer versions have more fields.
fn is_same(name: &str, wanted: &Case, seen: &Case) -> bool {
    let is_shown = match (&wanted.shown, &seen.shown) {
        (Some(wanted), Some(seen)) if name.starts_with("shape") => missing(wanted, seen).is_empty(),
        (wanted, seen) => wanted == seen,
    };
    seen.outcome == Outcome::Passed && is_shown
}

/// Lines of one text that another has not.
fn missing<'a>(wanted: &'a str, seen: &str) -> Vec<&'a str> {
    let seen: Vec<&str> = seen.lines().collect();
    wanted.lines().filter(|line| !seen.contains(line)).collect()
}

/// Why a case differs.
fn why(name: &str, wanted: &Case, seen: Option<&Case>) -> String {
    let Some(seen) = seen else { return "was not run".to_owned() };
    match (&wanted.shown, &seen.shown) {
        (Some(wanted), Some(seen)) => {
            let more = if name.starts_with("shape") { Vec::new() } else { missing(seen, wanted) };
            format!("dockerd has {:?}, here is {more:?}", missing(wanted, seen)).chars().take(600).collect()
        }
        _ => short(&seen.detail),
    }
}

fn note(suite: Suite, side: Side, (references, own): (&[Cases], &Cases), comparison: &Comparison) -> String {
    let mut text = String::new();
    let mut line = |mark: &str, name: &str, rest: &str| {
        text += &format!(
            "{mark} {} {} {name}{}{rest}\n",
            suite.word(),
            side.word(),
            if rest.is_empty() { "" } else { ": " }
        );
    };
    for name in &comparison.different {
        let newest = references.iter().rev().find_map(|cases| cases.get(name));
        let why = newest.map(|wanted| why(name, wanted, own.get(name)));
        line("DIFFERS", name, &why.unwrap_or_default());
    }
    comparison.unneeded.iter().for_each(|pattern| line("UNNEEDED", pattern, "every such case passes now"));
    comparison.excepted.iter().for_each(|(name, reason)| line("excepted", name, reason));
    comparison.better.iter().for_each(|name| line("better", name, ""));
    text
}

/// The last line that says something, of at most 160 characters.
fn short(detail: &str) -> String {
    let line = detail.lines().rev().find(|line| line.starts_with("E  ") || line.contains("panicked at"));
    let line = line.or_else(|| detail.lines().rev().find(|line| !line.trim().is_empty())).unwrap_or_default();
    line.trim_start_matches("E  ").trim().chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    fn cases(list: &[(&str, Outcome, Option<&str>)]) -> Cases {
        let case = |outcome, shown: Option<&str>| Case {
            outcome,
            detail: String::new(),
            shown: shown.map(str::to_owned),
            seconds: 0.0,
        };
        list.iter().map(|(name, outcome, shown)| ((*name).to_owned(), case(*outcome, *shown))).collect()
    }

    #[test]
    fn what_dockerd_passes_must_pass_and_show_the_same() {
        use Outcome::{Failed, Passed, Skipped};
        let reference = cases(&[
            ("both", Passed, None),
            ("broken", Passed, None),
            ("allowed", Passed, None),
            ("gone", Passed, None),
            ("shows", Passed, Some("a")),
            ("docker's own fault", Failed, None),
            ("neither", Failed, None),
            ("not there", Skipped, None),
        ]);
        let own = cases(&[
            ("both", Passed, None),
            ("broken", Skipped, None),
            ("allowed", Failed, None),
            ("shows", Passed, Some("b")),
            ("docker's own fault", Passed, None),
            ("neither", Failed, None),
            ("not there", Failed, None),
        ]);
        let exceptions = Exceptions::parse("bollard both allowed  # why\nbollard process both  # why\n").unwrap();
        let seen = compare(Suite::Bollard, Side::Process, slice::from_ref(&reference), &own, &exceptions);
        assert_eq!(seen.different, ["broken", "gone", "shows"]);
        assert_eq!(seen.excepted, [("allowed".to_owned(), "why".to_owned())]);
        assert_eq!(seen.unneeded, ["process both"]);
        assert_eq!(seen.better, ["docker's own fault"]);
        // A newer one says and does otherwise.
        let newer =
            cases(&[("shows", Passed, Some("b")), ("broken", Failed, None), ("docker's own fault", Passed, None)]);
        let seen = compare(Suite::Bollard, Side::Process, &[reference, newer], &own, &exceptions);
        assert_eq!((seen.different, seen.better), (vec!["gone".to_owned()], Vec::new()));
    }
}
