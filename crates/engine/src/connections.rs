//! How many connections of clients are open at once, and which of them goes when there are too many.
//!
//! A client that connects and says nothing, or never ends the head of its request, holds a place. So that such clients cannot keep
//! the others out, one more connection than may be open takes the place of the one that has been without a request for
//! longest. Connections with a request under way, and those that carry a process' streams, are never closed; if all are such,
//! the new one is refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Most at once, however many descriptors there are: each takes some memory, too.
const MOST: usize = 8192;
/// Descriptors of this process for each connection that may be open: it takes two, and the rest is for containers.
const DESCRIPTORS_EACH: u64 = 4;
/// At least.
const FEWEST: usize = 64;

/// The open connections.
pub struct Connections {
    most: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    open: usize,
    /// Those without a request, by the order in which they have been since.
    idle: BTreeMap<u64, CancellationToken>,
    next: u64,
}

impl Table {
    fn add_idle(&mut self, unwanted: &CancellationToken) -> u64 {
        self.next += 1;
        self.idle.insert(self.next, unwanted.clone());
        self.next
    }
}

impl Connections {
    /// For a process that may open so many descriptors; none is without limit.
    #[must_use]
    pub fn new(descriptors: Option<u64>) -> Arc<Self> {
        let share = descriptors.map_or(MOST, |limit| usize::try_from(limit / DESCRIPTORS_EACH).unwrap_or(MOST));
        Arc::new(Self { most: share.clamp(FEWEST, MOST), table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection; none when there are too many that are all in use.
    #[must_use]
    pub fn admit(self: &Arc<Self>) -> Option<Arc<Place>> {
        let mut table = self.table();
        if table.open >= self.most {
            let (_, unwanted) = table.idle.pop_first()?;
            unwanted.cancel();
        }
        table.open += 1;
        let unwanted = CancellationToken::new();
        let state = State { requests: 0, asked: false, idle: Some(table.add_idle(&unwanted)) };
        drop(table);
        Some(Arc::new(Place { connections: Arc::clone(self), unwanted, state: Mutex::new(state) }))
    }
}

/// The place of one connection, until it is dropped.
pub struct Place {
    connections: Arc<Connections>,
    unwanted: CancellationToken,
    /// Never taken while the table is.
    state: Mutex<State>,
}

struct State {
    requests: usize,
    asked: bool,
    /// Its number among those without a request.
    idle: Option<u64>,
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another connection needs the place.
    pub async fn unwanted(&self) {
        self.unwanted.cancelled().await;
    }

    /// A request has come by this connection.
    #[must_use]
    pub fn has_asked(&self) -> bool {
        self.state().asked
    }

    /// A request is under way until what is returned is dropped.
    #[must_use]
    pub fn busy(self: &Arc<Self>) -> Busy {
        let mut state = self.state();
        state.asked = true;
        state.requests += 1;
        if let Some(number) = state.idle.take() {
            self.connections.table().idle.remove(&number);
        }
        drop(state);
        Busy(Arc::clone(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let idle = self.state().idle.take();
        let mut table = self.connections.table();
        table.open -= 1;
        if let Some(number) = idle {
            table.idle.remove(&number);
        }
    }
}

/// A request that is under way.
pub struct Busy(Arc<Place>);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.requests -= 1;
        if state.requests == 0 && !self.0.unwanted.is_cancelled() {
            state.idle = Some(self.0.connections.table().add_idle(&self.0.unwanted));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(connections: &Arc<Connections>, count: usize) -> Vec<Arc<Place>> {
        (0..count).map(|_| connections.admit().unwrap()).collect()
    }

    #[test]
    fn the_longest_idle_connection_makes_room() {
        let connections = Connections::new(Some(0));
        let places = places(&connections, FEWEST);
        let busy = places[0].busy();
        drop(places[1].busy());
        let more = connections.admit().unwrap();
        // The first is in use, and the second was a moment ago.
        let unwanted: Vec<bool> = places.iter().map(|place| place.unwanted.is_cancelled()).collect();
        assert_eq!(unwanted.iter().position(|unwanted| *unwanted), Some(2));
        assert_eq!(unwanted.iter().filter(|unwanted| **unwanted).count(), 1);
        assert!(places[0].has_asked() && places[1].has_asked() && !places[2].has_asked());
        drop((busy, more, places));
        let table = connections.table();
        assert_eq!((table.open, table.idle.len()), (0, 0));
    }

    #[test]
    fn connections_in_use_keep_their_places() {
        let connections = Connections::new(Some(0));
        let places = places(&connections, FEWEST);
        let busy: Vec<Busy> = places.iter().map(Place::busy).collect();
        assert!(connections.admit().is_none());
        assert!(places.iter().all(|place| !place.unwanted.is_cancelled()));
        drop(busy);
        assert!(connections.admit().is_some());
    }

    #[test]
    fn a_share_of_the_descriptors_is_for_clients() {
        let most = |limit| Connections::new(limit).most;
        assert_eq!((most(Some(1024)), most(Some(20_000)), most(Some(1 << 20)), most(None)), (256, 5000, MOST, MOST));
    }
}
