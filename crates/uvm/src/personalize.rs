//! The first message to a fork. Until it is answered, rightly and in time, a fork is a copy of its siblings: same random
//! generator, same clock, no name. So no container process exists before, and any other outcome destroys the fork.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::gcs::wire::{Network, PersonalizeRequest, PersonalizeResponse, SyncClockRequest};
use proto::{ErrorKind, gcs};

use crate::connection::{GuestConnection, GuestError};

/// Bytes of entropy for each fork, credited in full.
const ENTROPY_BYTES: usize = 64;
/// How far the guest's clock may be off.
const CLOCK_TOLERANCE_NS: i64 = 50_000_000;
/// How often, at least, the clock is set again when a round trip was too slow to prove it right.
const CLOCK_ATTEMPTS: u32 = 8;

/// Why a fork was not personalized and had to be destroyed.
#[derive(Debug, thiserror::Error)]
pub enum PersonalizeError {
    /// It did not answer in time.
    #[error("the utility VM did not personalize within {} s and was destroyed", .0.as_secs_f32())]
    Silent(Duration),
    /// It answered with an error, or not in the protocol.
    #[error("the utility VM could not be personalized and was destroyed")]
    Call(#[source] GuestError),
    /// It speaks another version.
    #[error(
        "the utility VM speaks version {found} of the protocol instead of {}, and was destroyed: install guest image and programs from one \
         build (`make build` makes both)",
        gcs::VERSION
    )]
    Version {
        /// What it speaks.
        found: u32,
    },
    /// It says, or shows, that it is not what it was told to be.
    #[error("the utility VM was destroyed: {0}")]
    Refuted(&'static str),
    /// The host's own entropy or clock failed.
    #[error("cannot prepare the utility VM's identity")]
    Host(#[source] std::io::Error),
}

impl PersonalizeError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Silent(_) => ErrorKind::DeadlineExceeded,
            Self::Version { .. } => ErrorKind::FailedPrecondition,
            Self::Call(_) | Self::Refuted(_) => ErrorKind::Unavailable,
            Self::Host(_) => ErrorKind::Internal,
        }
    }
}

/// What a fork is told to be.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) hostname: String,
    pub(crate) domainname: String,
    pub(crate) machine_id: String,
    /// The container to come is nobody's.
    pub(crate) rehearsal: bool,
    pub(crate) network: Network,
}

/// What a fork proved to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Personalized {
    pub(crate) boot_id: String,
    /// 64 hexadecimal digits.
    pub(crate) fingerprint: String,
    pub(crate) clock_error_us: i64,
}

/// Personalizes the guest within `limit` and checks each part of the answer. When: once, first of all.
pub(crate) async fn personalize(
    guest: &GuestConnection,
    identity: &Identity,
    limit: Duration,
) -> Result<Personalized, PersonalizeError> {
    match tokio::time::timeout(limit, exchange(guest, identity, limit)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(PersonalizeError::Silent(limit)),
    }
}

async fn exchange(
    guest: &GuestConnection,
    identity: &Identity,
    limit: Duration,
) -> Result<Personalized, PersonalizeError> {
    let mut entropy = vec![0; ENTROPY_BYTES];
    fill_random(&mut entropy).map_err(PersonalizeError::Host)?;
    let sent_ns = now_ns()?;
    let request = PersonalizeRequest {
        version: gcs::VERSION,
        entropy,
        wall_clock_ns: sent_ns,
        hostname: identity.hostname.clone(),
        domainname: identity.domainname.clone(),
        machine_id: identity.machine_id.clone(),
        rehearsal: identity.rehearsal,
        network: Some(identity.network.clone()).into(),
        ..Default::default()
    };
    let response = guest.personalize(&request, limit).await.map_err(|error| classify(error, limit))?;
    let reading = ClockReading { sent_ns, guest_ns: response.wall_clock_ns, received_ns: now_ns()? };
    check(&response, identity)?;
    tracing::debug!(round_trip_us = (reading.received_ns - sent_ns) / 1000, "the guest has personalized");
    let clock_error_us = settle_clock(guest, reading, limit).await?;
    Ok(Personalized { boot_id: response.boot_id, fingerprint: hex::encode(response.fingerprint), clock_error_us })
}

fn classify(error: GuestError, limit: Duration) -> PersonalizeError {
    match error {
        GuestError::Deadline { .. } => PersonalizeError::Silent(limit),
        other => PersonalizeError::Call(other),
    }
}

fn check(response: &PersonalizeResponse, identity: &Identity) -> Result<(), PersonalizeError> {
    if response.version != gcs::VERSION {
        return Err(PersonalizeError::Version { found: response.version });
    }
    let claims = [
        (response.reseeded, "it did not reseed its random generator"),
        (response.hostname == identity.hostname, "it did not take its host name"),
        (response.machine_id == identity.machine_id, "it did not take its machine id"),
        (is_uuid(&response.boot_id), "its boot id is no boot id"),
        (response.fingerprint.len() == 32, "its entropy fingerprint has not 32 bytes"),
    ];
    match claims.into_iter().find(|(holds, _)| !holds) {
        Some((_, refuted)) => Err(PersonalizeError::Refuted(refuted)),
        None => Ok(()),
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// The guest's clock between two readings of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ClockReading {
    sent_ns: i64,
    guest_ns: i64,
    received_ns: i64,
}

/// What a reading says of the guest's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClockVerdict {
    /// Off by at most the tolerance, for certain; the error at the middle of the round trip.
    Right { error_ns: i64 },
    /// The round trip was too long to tell.
    Unproven,
    /// Off by more than the tolerance, for certain.
    Wrong,
}

impl ClockReading {
    /// The guest read its clock at some moment between sending and receiving.
    fn judge(self) -> ClockVerdict {
        let ahead_of_latest = self.guest_ns.saturating_sub(self.received_ns);
        let ahead_of_earliest = self.guest_ns.saturating_sub(self.sent_ns);
        if ahead_of_latest > CLOCK_TOLERANCE_NS || ahead_of_earliest < -CLOCK_TOLERANCE_NS {
            return ClockVerdict::Wrong;
        }
        if ahead_of_latest >= -CLOCK_TOLERANCE_NS && ahead_of_earliest <= CLOCK_TOLERANCE_NS {
            return ClockVerdict::Right { error_ns: ahead_of_latest / 2 + ahead_of_earliest / 2 };
        }
        ClockVerdict::Unproven
    }
}

/// The first round trip runs code that the emulator has not translated yet; later ones are quick enough to be sure.
async fn settle_clock(guest: &GuestConnection, first: ClockReading, limit: Duration) -> Result<i64, PersonalizeError> {
    let began = Instant::now();
    let mut reading = first;
    let mut attempts = 0;
    loop {
        match reading.judge() {
            ClockVerdict::Right { error_ns } => return Ok(error_ns / 1000),
            ClockVerdict::Wrong => return Err(PersonalizeError::Refuted("its clock is off by more than 50 ms")),
            ClockVerdict::Unproven if may_try_again(attempts, began.elapsed(), limit) => attempts += 1,
            ClockVerdict::Unproven => {
                return Err(PersonalizeError::Refuted("its clock could not be proved right within 50 ms"));
            }
        }
        let sent_ns = now_ns()?;
        let request = SyncClockRequest { wall_clock_ns: sent_ns, ..Default::default() };
        let response = guest.sync_clock(&request, limit).await.map_err(|error| classify(error, limit))?;
        reading = ClockReading { sent_ns, guest_ns: response.wall_clock_ns, received_ns: now_ns()? };
    }
}

/// On a host that is slow or busy a round trip may be short enough only now and then, so who allows much time to
/// personalize gets more attempts; half of it is left for the rest.
fn may_try_again(attempts: u32, elapsed: Duration, limit: Duration) -> bool {
    attempts < CLOCK_ATTEMPTS || elapsed < limit / 2
}

fn now_ns() -> Result<i64, PersonalizeError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_err(std::io::Error::other);
    since
        .and_then(|since| i64::try_from(since.as_nanos()).map_err(std::io::Error::other))
        .map_err(PersonalizeError::Host)
}

fn fill_random(mut buffer: &mut [u8]) -> std::io::Result<()> {
    while !buffer.is_empty() {
        let length = rustix::rand::getrandom(&mut *buffer, rustix::rand::GetRandomFlags::empty())?;
        buffer = &mut buffer[length..];
    }
    Ok(())
}

#[cfg(test)]
mod tests;
