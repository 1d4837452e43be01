//! The shim under a plain containerd, beside runc's own.
#![allow(clippy::unwrap_used, reason = "this is test code, which clippy knows only of functions marked as tests")]

#[path = "../support/mod.rs"]
mod support;

mod crashes;
mod cri;
mod daemon;
mod deploy;
mod isolation;
mod kills;
mod side_by_side;
mod standby;
mod systemd;
