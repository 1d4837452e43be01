//! Real containers. Needs root; each test that cannot run is counted as ignored, with the reason on stderr
//! (`BULKHEAD_TEST_REQUIRE=1`: it is an error).
//!
//! This program starts itself as the containers' helper, so it has no ordinary test harness: see `harness = false`.
#![allow(clippy::unwrap_used)] // This program is a test.

mod commands;
mod execs;
mod fixture;
mod isolation;
mod lifecycle;
mod limits;
mod roots;
mod terminals;
mod unified;

use libtest_mimic::{Arguments, Trial};

/// A test by its name.
pub type Case = (&'static str, fn());

fn main() {
    bulkhead_container::serve_if_helper();
    lifecycle::act_as_creator();
    let missing = fixture::missing();
    if let Some(reason) = missing {
        eprintln!("ALL CONTAINER TESTS ARE SKIPPED: {reason}");
        assert!(std::env::var_os("BULKHEAD_TEST_REQUIRE").is_none(), "nothing may be missing here");
    }
    let modules: [(&str, &[Case]); 8] = [
        ("commands", commands::CASES),
        ("execs", execs::CASES),
        ("isolation", isolation::CASES),
        ("lifecycle", lifecycle::CASES),
        ("limits", limits::CASES),
        ("roots", roots::CASES),
        ("terminals", terminals::CASES),
        ("unified", unified::CASES),
    ];
    let trials = modules.into_iter().flat_map(|(module, cases)| {
        cases.iter().map(move |(name, run)| {
            let run = *run;
            Trial::test(format!("{module}::{name}"), move || {
                run();
                Ok(())
            })
            .with_ignored_flag(missing.is_some())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
