//! What a fuzzer calls: one function for each thing that reads what a guest, or a file, says. Whatever the bytes are, each comes to an
//! end, without a panic. Ordinary tests call them, too, with bytes made by chance.
//!
//! Only for `fuzz/` (feature `fuzzing`) and for tests.

pub use crate::boot::fuzzing::loader;
pub use crate::machine::fuzzing::{bus, state};
pub use crate::virtio::fuzzing::{balloon, block, console, entropy, file_system, network, socket};

use crate::protocol::{Reply, Request};

/// What `uvm` and a VMM say to each other.
pub fn control(data: &[u8]) {
    // What is no message is an error, and what is one is the same when it is said again.
    if let Ok(request) = postcard::from_bytes::<Request>(data) {
        let said = postcard::to_stdvec(&request).unwrap_or_default();
        assert!(postcard::from_bytes::<Request>(&said).is_ok_and(|again| again == request));
    }
    if let Ok(reply) = postcard::from_bytes::<Reply>(data) {
        let said = postcard::to_stdvec(&reply).unwrap_or_default();
        assert!(postcard::from_bytes::<Reply>(&said).is_ok_and(|again| again == reply));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::Random;

    /// A name, what is called, and how often.
    type Target = (&'static str, fn(&[u8]), u32);

    #[test]
    fn whatever_is_said_comes_to_an_end() {
        let targets: [Target; 11] = [
            ("balloon", balloon, 60),
            ("file_system", file_system, 60),
            ("socket", socket, 60),
            ("block", block, 60),
            ("console", console, 60),
            ("entropy", entropy, 60),
            ("network", network, 60),
            ("bus", bus, 30),
            ("state", state, 20),
            ("loader", loader, 30),
            ("control", control, 300),
        ];
        for (name, target, rounds) in targets {
            for round in 0..rounds {
                let mut random = Random(u64::from(round));
                let length = usize::try_from(random.below(600)).unwrap();
                let data: Vec<u8> = (0..length).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
                target(&data);
                if let Err(panic) = std::panic::catch_unwind(|| target(&data)) {
                    panic!("{name} {round}: {panic:?}");
                }
            }
        }
    }
}
