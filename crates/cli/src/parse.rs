//! Values on the command line: sizes, environment files, mounts, limits.

pub mod block;
pub mod duration;
pub mod environment;
pub mod fields;
pub mod gpus;
pub mod isolation;
pub mod mount;
pub mod ports;
pub mod restart;
pub mod size;
pub mod ulimit;
