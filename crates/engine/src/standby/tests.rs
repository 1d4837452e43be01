//! Facts about when a standby is made, given away and dropped. Time is paused: nothing here waits for a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::JoinHandle;

use super::*;

/// How long a fake preparation takes.
const TAKES: Duration = Duration::from_secs(2);

struct Fake {
    number: usize,
    alive: Arc<AtomicBool>,
}

impl Vm for Fake {
    fn is_alive(&self) -> bool {
        self.alive.load(Ordering::SeqCst)
    }
}

#[derive(Default)]
struct Seen {
    begun: AtomicUsize,
    discarded: Mutex<Vec<(usize, Option<String>)>>,
    /// What was begun.
    kinds: Mutex<Vec<Kind>>,
    /// Preparations fail from now on.
    failing: AtomicBool,
    /// Preparations do not end from now on.
    hanging: AtomicBool,
    /// The newest VM lives.
    alive: Mutex<Arc<AtomicBool>>,
}

struct FakePreparer(Arc<Seen>);

impl Prepare for FakePreparer {
    type Vm = Fake;

    async fn begin(&self, kind: Kind) -> Result<Fake, String> {
        self.0.kinds.lock().unwrap().push(kind);
        let number = self.0.begun.fetch_add(1, Ordering::SeqCst);
        let alive = Arc::new(AtomicBool::new(true));
        *self.0.alive.lock().unwrap() = Arc::clone(&alive);
        Ok(Fake { number, alive })
    }

    async fn ready(&self, _vm: &Fake) -> Result<(), String> {
        tokio::time::sleep(TAKES).await;
        if self.0.hanging.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.0.failing.load(Ordering::SeqCst) { Err("no".to_owned()) } else { Ok(()) }
    }

    async fn discard(&self, vm: Fake, fault: Option<String>) {
        self.0.discarded.lock().unwrap().push((vm.number, fault));
    }
}

struct Kept {
    standby: Arc<Standby<Fake>>,
    seen: Arc<Seen>,
    stopping: CancellationToken,
    task: JoinHandle<()>,
}

impl Kept {
    fn new(kept: bool) -> Self {
        let (standby, seen) = (Arc::new(Standby::new(kept)), Arc::new(Seen::default()));
        let stopping = CancellationToken::new();
        let (place, preparer, stop) = (Arc::clone(&standby), FakePreparer(Arc::clone(&seen)), stopping.clone());
        let task = tokio::spawn(async move { place.keep(&preparer, &stop).await });
        Self { standby, seen, stopping, task }
    }

    fn start_container(&self) {
        self.standby.note_start().succeeded(Kind::Vm);
    }

    fn begun(&self) -> usize {
        self.seen.begun.load(Ordering::SeqCst)
    }

    fn discarded(&self) -> Vec<(usize, Option<String>)> {
        self.seen.discarded.lock().unwrap().clone()
    }

    fn take(&self) -> Option<usize> {
        self.standby.take(|_| true).map(|vm| vm.number)
    }

    /// One is ready, made after a container's start.
    async fn ready() -> Self {
        let kept = Self::new(true);
        kept.start_container();
        after(QUIET + TAKES).await;
        assert_eq!(kept.standby.word(), "ready");
        kept
    }
}

/// A little later than this, everything that was due has happened.
async fn after(time: Duration) {
    tokio::time::sleep(time + Duration::from_millis(20)).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_before_a_container_has_started() {
    let kept = Kept::new(true);
    drop(kept.standby.note_start());
    after(UNUSED * 2).await;
    assert_eq!((kept.standby.word(), kept.begun()), ("none", 0));
    kept.start_container();
    after(QUIET).await;
    assert_eq!(kept.standby.word(), "preparing");
    after(TAKES).await;
    assert_eq!((kept.standby.word(), kept.begun()), ("ready", 1));
}

#[tokio::test(start_paused = true)]
async fn it_is_what_the_last_start_pays_for() {
    let kept = Kept::new(true);
    for kind in [Kind::Process, Kind::Vm] {
        kept.standby.note_start().succeeded(kind);
        after(QUIET + TAKES).await;
        assert!(kept.take().is_some());
    }
    assert_eq!(*kept.seen.kinds.lock().unwrap(), [Kind::Process, Kind::Vm]);
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_starts_is_not_disturbed() {
    let kept = Kept::new(true);
    for _ in 0..10 {
        kept.start_container();
        after(QUIET / 2).await;
    }
    let slow = kept.standby.note_start();
    after(QUIET * 4).await;
    assert_eq!(kept.begun(), 0);
    drop(slow);
    after(QUIET).await;
    assert_eq!((kept.standby.word(), kept.begun()), ("preparing", 1));
}

#[tokio::test(start_paused = true)]
async fn one_container_gets_it_and_the_next_is_made_once_that_runs() {
    let kept = Kept::ready().await;
    assert!(kept.standby.take(|_| false).is_none());
    let start = kept.standby.note_start();
    assert_eq!((kept.take(), kept.take()), (Some(0), None));
    after(UNUSED * 2).await;
    assert_eq!(kept.begun(), 1);
    start.succeeded(Kind::Vm);
    after(QUIET + TAKES).await;
    assert_eq!((kept.standby.word(), kept.take()), ("ready", Some(1)));
}

#[tokio::test(start_paused = true)]
async fn one_that_nobody_uses_goes() {
    let kept = Kept::ready().await;
    after(UNUSED / 2).await;
    kept.start_container();
    after(UNUSED - Duration::from_secs(1)).await;
    assert_eq!((kept.standby.word(), kept.begun()), ("ready", 1));
    after(Duration::from_secs(2)).await;
    assert_eq!((kept.standby.word(), kept.discarded()), ("none", vec![(0, None)]));
    kept.start_container();
    after(QUIET + TAKES).await;
    assert_eq!((kept.standby.word(), kept.begun()), ("ready", 2));
}

#[tokio::test(start_paused = true)]
async fn a_preparation_that_fails_is_not_tried_again_before_the_next_start() {
    for (failing, wait, fault) in [(true, TAKES, "no"), (false, PATIENCE, "it is not ready after 60 s")] {
        let kept = Kept::new(true);
        kept.seen.failing.store(failing, Ordering::SeqCst);
        kept.seen.hanging.store(!failing, Ordering::SeqCst);
        kept.start_container();
        after(QUIET + wait).await;
        assert_eq!((kept.standby.word(), kept.discarded()), ("none", vec![(0, Some(fault.to_owned()))]));
        drop(kept.standby.note_start());
        after(UNUSED * 2).await;
        assert_eq!(kept.begun(), 1);
        kept.seen.failing.store(false, Ordering::SeqCst);
        kept.seen.hanging.store(false, Ordering::SeqCst);
        kept.start_container();
        after(QUIET + TAKES).await;
        assert_eq!((kept.standby.word(), kept.begun()), ("ready", 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_one_is_replaced_after_the_next_start() {
    let kept = Kept::ready().await;
    kept.seen.alive.lock().unwrap().store(false, Ordering::SeqCst);
    assert_eq!(kept.standby.word(), "none");
    kept.start_container();
    after(QUIET + TAKES).await;
    assert_eq!(kept.standby.word(), "ready");
    assert_eq!(kept.discarded(), [(0, Some("it ended by itself".to_owned()))]);
}

#[tokio::test(start_paused = true)]
async fn it_goes_with_the_engine_ready_or_not() {
    for wait in [QUIET + TAKES, QUIET] {
        let kept = Kept::new(true);
        kept.start_container();
        after(wait).await;
        kept.stopping.cancel();
        after(Duration::ZERO).await;
        assert_eq!((kept.standby.word(), kept.discarded()), ("off", vec![(0, None)]));
        assert!(kept.take().is_none() && kept.task.is_finished());
    }
}

#[tokio::test(start_paused = true)]
async fn none_is_kept_if_none_is_wanted() {
    let kept = Kept::new(false);
    kept.start_container();
    after(UNUSED).await;
    assert_eq!((kept.standby.word(), kept.begun()), ("off", 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_for_nothing_stands_by_again_where_there_is_room() {
    let kept = Kept::ready().await;
    let vm = kept.standby.take(|_| true).unwrap();
    assert_eq!(kept.take(), None);
    kept.standby.put_back(vm).unwrap_or_else(|_| panic!("the place is empty"));
    assert_eq!(kept.standby.word(), "ready");
    let vm = kept.standby.take(|_| true).unwrap();
    kept.stopping.cancel();
    after(QUIET).await;
    assert!(kept.standby.put_back(vm).is_err(), "the engine ends");
}
