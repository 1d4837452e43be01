//! Layers converted by real, jailed workers.
//!
//! This program starts itself as the worker, so it has no ordinary test harness: see `harness = false`.
#![allow(clippy::unwrap_used)] // This program is a test.

mod archives;
mod conversions;
mod deaths;
mod jail;
mod probes;
mod sys;

use libtest_mimic::{Arguments, Trial};

/// A test by its name.
pub type Case = (&'static str, fn());

fn main() {
    bulkhead_image::serve_if_converter();
    probes::act_as_probe();
    deaths::act_as_engine();
    let modules: [(&str, &[Case]); 3] =
        [("conversions", conversions::CASES), ("deaths", deaths::CASES), ("jail", jail::CASES)];
    let trials = modules.into_iter().flat_map(|(module, cases)| {
        cases.iter().map(move |(name, run)| {
            let run = *run;
            Trial::test(format!("{module}::{name}"), move || {
                run();
                Ok(())
            })
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
