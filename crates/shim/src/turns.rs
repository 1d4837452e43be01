//! Whose turn it is to start a further process: a few at a time, in the order in which they were asked for.
//!
//! Every start costs the container's kernel a helper process, and a utility VM has one processor and little memory. Many
//! starts at once are no quicker than one after another.

use std::sync::atomic::{AtomicUsize, Ordering};

use proto::{ErrorKind, Status};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Starts under way at a time: enough that the next request is there when the one before is done.
const AT_ONCE: usize = 4;
/// Starts that may wait behind them.
const MOST_WAITING: usize = 1000;

/// The queue of one container.
#[derive(Debug)]
pub struct Turns {
    free: Semaphore,
    waiting: AtomicUsize,
}

/// A start under way; dropping it lets the next one begin.
#[derive(Debug)]
pub struct Turn<'a> {
    _permit: SemaphorePermit<'a>,
}

/// Counts one that waits, until it is dropped: whoever waits may be dropped, too.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self { free: Semaphore::new(AT_ONCE), waiting: AtomicUsize::new(0) }
    }
}

impl Turns {
    /// Waits for its turn.
    ///
    /// # Errors
    /// `ResourceExhausted` when too many wait.
    pub async fn take(&self) -> Result<Turn<'_>, Status> {
        if let Ok(permit) = self.free.try_acquire() {
            return Ok(Turn { _permit: permit });
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= MOST_WAITING {
            let what = format!("{MOST_WAITING} execs wait to be started in this container, which is the most");
            return Err(Status::new(ErrorKind::ResourceExhausted, what));
        }
        // Nobody closes it.
        let permit = self.free.acquire().await.map_err(|error| Status::from_error(ErrorKind::Internal, &error))?;
        Ok(Turn { _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn starts_come_in_order_and_a_full_queue_says_so() {
        let (turns, order) = (Arc::new(Turns::default()), Arc::new(Mutex::new(Vec::new())));
        let held: Vec<_> = futures_util::future::try_join_all((0..AT_ONCE).map(|_| turns.take())).await.unwrap();
        let waiting: Vec<_> = (0..MOST_WAITING)
            .map(|number| {
                let (turns, order) = (Arc::clone(&turns), Arc::clone(&order));
                tokio::spawn(async move {
                    let _turn = turns.take().await.unwrap();
                    order.lock().unwrap().push(number);
                })
            })
            .collect();
        let wait_for = async |count| {
            while turns.waiting.load(Ordering::Relaxed) != count {
                tokio::task::yield_now().await;
            }
        };
        wait_for(MOST_WAITING).await;
        let refused = turns.take().await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::ResourceExhausted);
        assert!(refused.message.starts_with("1000 execs wait"), "{refused}");
        // One that gives up makes room.
        waiting[7].abort();
        wait_for(MOST_WAITING - 1).await;
        let late = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { turns.take().await.map(drop) }
        });
        drop(held);
        late.await.unwrap().unwrap();
        for task in waiting {
            let _ = task.await;
        }
        let expected: Vec<_> = (0..MOST_WAITING).filter(|number| *number != 7).collect();
        assert_eq!(*order.lock().unwrap(), expected);
    }
}
