//! The client against registries in this process, most of them hostile: cases F32 to F44, each test named after its case.

mod auth;
mod content;
mod elsewhere;
mod fixture;
mod slow;
mod together;
mod trust;
