//! How Bulkhead behaves, seen through the unmodified docker CLI: one module a feature.
#![forbid(unsafe_code)]
// The lint's exception for tests covers test functions only, not the functions they share.
#![allow(clippy::unwrap_used)]

/// Makes two tests of each function, one for each wall: `NAME::process` and `NAME::hyperv`. With `own:` before them they are
/// about what only our engine has.
macro_rules! behind_both_walls {
    (own: $($tests:tt)+) => { behind_both_walls! { @start_own $($tests)+ } };
    (@$start:ident $($(#[doc = $doc:literal])* fn $name:ident($host:ident) $body:block)+) => { $(
        $(#[doc = $doc])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn check($host: &mut bulkhead_e2e::TestHost) $body

            #[test]
            fn process() {
                if let Some(mut host) = bulkhead_e2e::TestHost::$start(bulkhead_e2e::Wall::Process) {
                    check(&mut host);
                }
            }

            #[test]
            fn hyperv() {
                if let Some(mut host) = bulkhead_e2e::TestHost::$start(bulkhead_e2e::Wall::Hyperv) {
                    check(&mut host);
                }
            }
        }
    )+ };
    ($($tests:tt)+) => { behind_both_walls! { @start $($tests)+ } };
}

mod api_cases;
mod applications;
mod bad_input;
mod build;
mod build_remote;
mod clients;
mod commit;
mod configuration;
mod copy;
mod copy_mounts;
mod crashes;
mod defaults;
mod dies_at;
mod events;
mod exec;
mod exit_codes;
mod forks;
mod fuzz;
mod health;
mod image_verbs;
mod images;
mod info;
mod isolation;
mod lifecycle;
mod live_restore;
mod logs;
mod network_faults;
mod network_floods;
mod network_rates;
mod network_steps;
mod network_walls;
mod networks;
mod options;
mod own_cli;
mod port_faults;
mod registry;
mod restarts;
mod scratch;
mod signals;
mod standby;
mod standby_networks;
mod stdio;
mod store;
mod templates;
mod terminal;
mod volumes;
mod vsock;
mod zygotes;
