//! What passes over the socket beside the control socket, between the socket device of a machine and whoever made that: streams, as
//! descriptors beside messages. The device may not connect or accept; who made it does.

use serde::{Deserialize, Serialize};

/// What the host says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDevice {
    /// A program of the host wants to speak to who listens on this port in the guest. Descriptor: its stream, on which the device says
    /// `OK <port>\n` when the guest has answered; closed, it was refused.
    Connect {
        /// The guest's port.
        port: u32,
    },
    /// The answer to [`FromDevice::Wanted`]. Descriptor: the stream to who listens; none when nobody does.
    Answer {
        /// The question's number.
        number: u32,
    },
}

/// What the device says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromDevice {
    /// A program of the guest wants to speak to who listens on this port of the host.
    Wanted {
        /// The host's port.
        port: u32,
        /// What the answer is to have.
        number: u32,
    },
}
