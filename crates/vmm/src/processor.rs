//! One virtual processor: how it begins, its thread, and what is frozen of it.

pub(crate) mod cpuid;
pub(crate) mod gate;
pub(crate) mod registers;
pub(crate) mod thread;
