//! Plain containers: what all of them have, and what tells one from another.

pub mod layout;
mod specialization;

pub(crate) use specialization::Tmpfs;
pub use specialization::{BoundFile, Specialization};
