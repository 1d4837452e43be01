//! What is known of volumes: their records, their content's folders, what is mounted on them. What clients do with volumes is
//! in [`crate::volumes`].

mod options;
mod store;

pub use store::{ANONYMOUS_LABEL, Volume, VolumeLease, VolumeStore, Wanted};
