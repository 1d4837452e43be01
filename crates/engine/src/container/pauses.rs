//! How long the engine pauses before it starts a container again.

use std::time::Duration;

/// The first pause before a restart; each further one is twice as long. Source: moby `restartmanager`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A container that ran this long begins with the first pause again.
const HEALTHY_AFTER_NS: i64 = 10_000_000_000;

/// What is remembered between restarts. Shape: one pause at most is under way; a new one ends the one before.
#[derive(Debug, Default)]
pub struct Pauses {
    /// How long the last one was; none after a client's start.
    last: Option<Duration>,
    /// Which one is under way.
    turn: u64,
}

impl Pauses {
    /// A client has started it: the next pause is the first one again, and none is under way.
    pub fn reset(&mut self) {
        *self = Self { last: None, turn: self.turn + 1 };
    }

    /// The next pause after a run that took so long, and its turn.
    pub fn next(&mut self, ran_ns: i64) -> (Duration, u64) {
        let last = self.last.filter(|_| ran_ns < HEALTHY_AFTER_NS);
        let pause = last.map_or(FIRST_PAUSE, |last| last.saturating_mul(2).min(LONGEST_PAUSE));
        *self = Self { last: Some(pause), turn: self.turn + 1 };
        (pause, self.turn)
    }

    /// The pause of this turn is still the one that is under way.
    #[must_use]
    pub fn is_turn(&self, turn: u64) -> bool {
        self.turn == turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_begin_again() {
        let mut pauses = Pauses::default();
        let lengths: Vec<_> = (0..12).map(|_| pauses.next(5).0.as_millis()).collect();
        assert_eq!(lengths, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]);
        // After a long run the next short one pauses for twice the first time only.
        assert_eq!(pauses.next(HEALTHY_AFTER_NS).0, FIRST_PAUSE);
        let (pause, turn) = pauses.next(5);
        assert_eq!((pause, turn), (FIRST_PAUSE * 2, 14));
        pauses.reset();
        assert_eq!(pauses.next(5), (FIRST_PAUSE, 16));
    }
}
