//! One transfer for all who want the same at the same time.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use proto::Digest;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::error::{LocalError, RegistryError};

/// How far a transfer is. Later phases follow earlier ones; those in between may be missed by whoever looks seldom.
#[derive(Debug, Clone)]
pub(super) enum Phase<T> {
    Waiting,
    /// Bytes that came.
    Downloading(u64),
    /// All came, and their digest is right.
    Downloaded,
    /// Bytes of the blob that were converted.
    Extracting(u64),
    Ended(Result<T, Arc<RegistryError>>),
}

impl<T> Phase<T> {
    fn rank(&self) -> u8 {
        match self {
            Self::Waiting => 0,
            Self::Downloading(_) => 1,
            Self::Downloaded => 2,
            Self::Extracting(_) => 3,
            Self::Ended(_) => 4,
        }
    }
}

/// Where a transfer tells how far it is.
pub(super) struct Teller<T>(watch::Sender<Phase<T>>);

impl<T> Clone for Teller<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Teller<T> {
    /// Tells a phase; one that is behind what was told is kept to oneself.
    pub fn tell(&self, phase: Phase<T>) {
        self.0.send_if_modified(|current| {
            let newer = phase.rank() >= current.rank();
            if newer {
                *current = phase;
            }
            newer
        });
    }
}

/// A transfer under way or ended. When the last who wants it lets go of it, it is ended.
pub(super) struct Flight<T> {
    phase: watch::Receiver<Phase<T>>,
    task: AbortHandle,
}

impl<T> Drop for Flight<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T: Clone> Flight<T> {
    /// Waits for its end, telling `watch` of every phase seen.
    pub async fn result(&self, mut seen: impl FnMut(&Phase<T>)) -> Result<T, RegistryError> {
        let mut phases = self.phase.clone();
        loop {
            let phase = phases.borrow_and_update().clone();
            seen(&phase);
            if let Phase::Ended(outcome) = phase {
                return outcome.map_err(RegistryError::Shared);
            }
            if phases.changed().await.is_err() {
                return Err(LocalError::GivenUp { why: "its worker ended early".to_owned() }.into());
            }
        }
    }

    fn has_failed(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Ended(Err(_)))
    }
}

/// The transfers under way, by digest.
pub(super) struct Flights<T>(Mutex<HashMap<Digest, Weak<Flight<T>>>>);

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Joins the transfer of `digest`, or begins it. One that failed is begun anew.
    pub fn join<F>(&self, digest: &Digest, begin: impl FnOnce(Teller<T>) -> F) -> Arc<Flight<T>>
    where
        F: Future<Output = Result<T, RegistryError>> + Send + 'static,
    {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(digest).and_then(Weak::upgrade).filter(|flight| !flight.has_failed()) {
            return flight;
        }
        let (sender, phase) = watch::channel(Phase::Waiting);
        let teller = Teller(sender);
        let work = begin(teller.clone());
        let task = tokio::spawn(async move {
            let outcome = work.await.map_err(Arc::new);
            teller.tell(Phase::Ended(outcome));
        });
        let flight = Arc::new(Flight { phase, task: task.abort_handle() });
        flights.retain(|_, flight| flight.strong_count() > 0);
        flights.insert(digest.clone(), Arc::downgrade(&flight));
        flight
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::compression::digest_of;

    #[tokio::test]
    async fn all_who_want_the_same_share_one_transfer() {
        let flights = Flights::<u32>::default();
        let begun = Arc::new(AtomicUsize::new(0));
        let join = || {
            let begun = Arc::clone(&begun);
            flights.join(&digest_of(b"x"), |_| async move {
                begun.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(7)
            })
        };
        let all: Vec<_> = (0..50).map(|_| join()).collect();
        for flight in &all {
            assert_eq!(flight.result(|_| {}).await.unwrap(), 7);
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        drop(all);
        assert_eq!(join().result(|_| {}).await.unwrap(), 7);
        assert_eq!(begun.load(Ordering::SeqCst), 2, "nobody held the first any more");
    }

    #[tokio::test]
    async fn nobody_left_ends_it_and_a_failure_is_not_kept() {
        let flights = Flights::<u32>::default();
        let (alive, ended) = tokio::sync::oneshot::channel::<()>();
        let flight = flights.join(&digest_of(b"x"), |_| async move {
            let _alive = alive;
            std::future::pending().await
        });
        drop(flight);
        assert!(tokio::time::timeout(Duration::from_secs(5), ended).await.unwrap().is_err());

        let failing = flights.join(&digest_of(b"y"), |_| async { Err(RegistryError::refused("it", "no")) });
        assert!(failing.result(|_| {}).await.is_err());
        let again = flights.join(&digest_of(b"y"), |_| async { Ok(1) });
        assert_eq!(again.result(|_| {}).await.unwrap(), 1);
    }
}
