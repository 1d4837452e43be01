use std::sync::Mutex as SyncMutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::*;
use crate::compute::Update;
use crate::metrics::Usage;

/// A process that ends when it is told to.
struct FakeProcess {
    pid: u32,
    end: Notify,
    code: AtomicU32,
    drained: Notify,
    drains_at_once: bool,
    signals: SyncMutex<Vec<i32>>,
}

impl FakeProcess {
    fn new(pid: u32, drains_at_once: bool) -> Arc<Self> {
        let signals = SyncMutex::default();
        let code = AtomicU32::new(0);
        Arc::new(Self { pid, end: Notify::new(), code, drained: Notify::new(), drains_at_once, signals })
    }

    fn end(&self, code: u32) {
        self.code.store(code, Ordering::SeqCst);
        self.end.notify_one();
    }
}

#[async_trait]
impl Process for FakeProcess {
    fn pid(&self) -> u32 {
        self.pid
    }

    async fn signal(&self, signal: i32) -> Result<(), Status> {
        self.signals.lock().unwrap().push(signal);
        if signal == libc::SIGKILL {
            self.end(137);
        }
        Ok(())
    }

    async fn resize(&self, _: u32, _: u32) -> Result<(), Status> {
        Err(Status::new(ErrorKind::FailedPrecondition, "no terminal"))
    }

    fn close_stdin(&self) {}

    async fn exited(&self) -> Exit {
        self.end.notified().await;
        Exit { code: self.code.load(Ordering::SeqCst), at_ns: 5, oom_kills: 0, error: None }
    }

    async fn output_complete(&self) {
        if !self.drains_at_once {
            self.drained.notified().await;
        }
    }
}

/// A compute system of [`FakeProcess`]es.
struct FakeSystem {
    init: Arc<FakeProcess>,
    exec: Result<Arc<FakeProcess>, Status>,
    frozen: Arc<AtomicBool>,
    /// What the kernel has killed, until nobody can tell any more.
    kills: watch::Receiver<u64>,
}

#[async_trait]
impl ComputeSystem for FakeSystem {
    fn init(&self) -> Arc<dyn Process> {
        Arc::clone(&self.init) as Arc<dyn Process>
    }
    async fn start(&self) -> Result<(), Status> {
        Ok(())
    }
    async fn exec(&self, _: ExecRequest) -> Result<Arc<dyn Process>, Status> {
        self.exec.clone().map(|process| process as Arc<dyn Process>)
    }
    async fn signal_all(&self, signal: i32) -> Result<(), Status> {
        self.init.signal(signal).await
    }
    async fn pause(&self) -> Result<(), Status> {
        self.frozen.store(true, Ordering::SeqCst);
        Ok(())
    }
    async fn resume(&self) -> Result<(), Status> {
        self.frozen.store(false, Ordering::SeqCst);
        Ok(())
    }
    async fn processes(&self) -> Result<Vec<ProcessDetails>, Status> {
        Ok(Vec::new())
    }
    async fn stats(&self) -> Result<Usage, Status> {
        Ok(Usage::Host(Box::default()))
    }
    async fn update(&self, _: Update) -> Result<(), Status> {
        Ok(())
    }
    async fn oom_kills_after(&self, seen: u64) -> Option<u64> {
        self.kills.clone().wait_for(|kills| *kills > seen).await.ok().map(|kills| *kills)
    }
    async fn delete(&self, _: Changes) -> Result<(), Status> {
        Ok(())
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    init: Arc<FakeProcess>,
    exec: Arc<FakeProcess>,
    frozen: Arc<AtomicBool>,
    kills: watch::Sender<u64>,
    task: Arc<Task>,
}

fn fixture(drains_at_once: bool, exec_error: Option<Status>) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let (init, exec) = (FakeProcess::new(11, drains_at_once), FakeProcess::new(12, true));
    let (frozen, kills) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(0));
    let system = FakeSystem {
        init: Arc::clone(&init),
        exec: exec_error.map_or_else(|| Ok(Arc::clone(&exec)), Err),
        frozen: Arc::clone(&frozen),
        kills: kills.subscribe(),
    };
    let bundle = Bundle::at(folder.path().to_owned());
    let publisher = Publisher::new(None, "test");
    let task = Task::new("c1".parse().unwrap(), bundle, Box::new(system), StdioPaths::default(), publisher);
    Fixture { folder, init, exec, frozen, kills, task }
}

fn an_exec() -> ExecRequest {
    ExecRequest { process: Box::default(), stdio: StdioPaths::default() }
}

#[tokio::test]
async fn a_container_runs_from_create_to_delete() {
    let Fixture { folder, init, task, .. } = fixture(true, None);
    assert_eq!(task.snapshot("").await.unwrap().state, "created");
    assert_eq!(task.start("").await.unwrap(), 11);
    let refused = task.delete(Changes::Kept).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "a running container is not deleted");
    assert_eq!(task.start("").await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    init.end(3);
    assert_eq!(task.wait("").await.unwrap().code, 3);
    assert_eq!(task.wait("").await.unwrap().code, 3, "a second wait is answered too");
    let report = Bundle::at(folder.path().to_owned()).exit_report().unwrap().unwrap();
    assert_eq!((report.exit_code, report.exited_at_ns), (3, 5));
    assert_eq!(task.kill("", 15, false).await.unwrap_err().kind(), ErrorKind::NotFound);
    let (pid, exit) = task.delete(Changes::Kept).await.unwrap();
    assert_eq!((pid, exit.code), (11, 3));
}

#[tokio::test]
async fn wait_answers_after_the_output_and_the_state_before_it() {
    let Fixture { init, task, folder, .. } = fixture(false, None);
    task.start("").await.unwrap();
    init.end(0);
    let waiting = tokio::spawn({
        let task = Arc::clone(&task);
        async move { task.wait("").await.unwrap().code }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(task.snapshot("").await.unwrap().state, "stopped");
    assert!(!waiting.is_finished(), "the output is not complete");
    assert!(Bundle::at(folder.path().to_owned()).exit_report().unwrap().is_some());
    init.drained.notify_one();
    assert_eq!(waiting.await.unwrap(), 0);
}

#[tokio::test]
async fn a_created_container_can_be_deleted() {
    let Fixture { init, task, .. } = fixture(true, None);
    let (_, exit) = task.delete(Changes::Kept).await.unwrap();
    assert_eq!(exit.code, 137);
    assert_eq!(*init.signals.lock().unwrap(), [libc::SIGKILL]);
}

#[tokio::test]
async fn an_exec_has_a_life_of_its_own() {
    let Fixture { exec, task, .. } = fixture(true, None);
    let early = task.add_exec("e1".parse().unwrap(), an_exec()).await.unwrap_err();
    assert_eq!(early.kind(), ErrorKind::FailedPrecondition, "the container does not run yet");
    task.start("").await.unwrap();
    task.add_exec("e1".parse().unwrap(), an_exec()).await.unwrap();
    assert_eq!(task.add_exec("e1".parse().unwrap(), an_exec()).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!((task.snapshot("e1").await.unwrap().state, task.snapshot("e1").await.unwrap().pid), ("added", 0));
    assert_eq!(task.start("e1").await.unwrap(), 12);
    assert_eq!(task.delete_exec("e1").await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    exec.end(7);
    assert_eq!(task.wait("e1").await.unwrap().code, 7);
    assert_eq!(task.snapshot("").await.unwrap().state, "running");
    assert_eq!(task.delete_exec("e1").await.unwrap().1.code, 7);
    assert_eq!(task.wait("e1").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_exec_that_cannot_run_ends_as_a_shell_says() {
    for (kind, code) in [(ErrorKind::NotFound, 127), (ErrorKind::PermissionDenied, 126), (ErrorKind::Internal, 255)] {
        let Fixture { task, .. } = fixture(true, Some(Status::new(kind, "exec: \"foo\": refused")));
        task.start("").await.unwrap();
        task.add_exec("e1".parse().unwrap(), an_exec()).await.unwrap();
        let error = task.start("e1").await.unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, "exec: \"foo\": refused"));
        assert_eq!(task.wait("e1").await.unwrap().code, code);
        task.delete_exec("e1").await.unwrap();
    }
}

#[tokio::test]
async fn a_paused_container_dies_when_it_is_killed() {
    let Fixture { task, frozen, .. } = fixture(true, None);
    assert_eq!(task.pause().await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    task.start("").await.unwrap();
    task.pause().await.unwrap();
    assert_eq!(task.snapshot("").await.unwrap().state, "paused");
    task.add_exec("e1".parse().unwrap(), an_exec()).await.unwrap_err();
    task.kill("", 15, false).await.unwrap();
    assert!(frozen.load(Ordering::SeqCst), "only SIGKILL thaws");
    task.kill("", libc::SIGKILL, false).await.unwrap();
    assert_eq!(task.wait("").await.unwrap().code, 137);
    assert!(!frozen.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_kill_for_want_of_memory_is_told_while_the_container_goes_on() {
    let Fixture { init, task, kills, .. } = fixture(true, None);
    task.start("").await.unwrap();
    let wait = |seen| {
        let task = Arc::clone(&task);
        tokio::spawn(async move { task.oom_kills_after(seen).await })
    };
    let told = wait(0);
    kills.send_replace(1);
    assert_eq!(told.await.unwrap(), 1);
    assert_eq!(task.snapshot("").await.unwrap().state, "running");
    assert_eq!(task.oom_kills_after(0).await, 1, "who asks later hears what there was");
    let next = wait(1);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!next.is_finished());
    init.end(0);
    assert_eq!(next.await.unwrap(), 1, "the end is no kill");
    kills.send_replace(7);
    assert_eq!(task.oom_kills_after(0).await, 1, "nothing is told after the end");
}

#[tokio::test]
async fn who_cannot_tell_of_kills_does_not_keep_the_end_from_those_who_wait() {
    let Fixture { init, task, kills, .. } = fixture(true, None);
    drop(kills);
    task.start("").await.unwrap();
    let task_waits = Arc::clone(&task);
    let waits = tokio::spawn(async move { task_waits.oom_kills_after(0).await });
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    init.end(1);
    assert_eq!(waits.await.unwrap(), 0);
}
