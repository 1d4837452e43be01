//! containerd's Task service: decodes each request once, and lets the task answer it.
//!
//! ttrpc drops a request's future when its caller goes away. Nothing here may be half-done for that reason, so what changes
//! something runs as a task of its own.
//!
//! Source: containerd api/runtime/task/v3/shim.proto (v2 has the same messages under another service name).

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Task as TaskApi, create_task};
use containerd_shim_protos::types::task::{ProcessInfo, Status as ApiStatus};
use proto::network::NetworkUpdate;
use proto::{ErrorKind, ExecId, ProcessDetails, Status};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use ttrpc::asynchronous::{Service, TtrpcContext};

use crate::clock;
use crate::compute::{ExecRequest, Update};
use crate::metrics::Form;
use crate::shim::Shim;
use crate::stdio::StdioPaths;
use crate::task::{Task, TaskError};

/// The Task service of one shim.
pub struct TaskService {
    shim: Arc<Shim>,
}

/// Both names of the service, with the same methods.
#[must_use]
pub fn services(shim: &Arc<Shim>) -> HashMap<String, Service> {
    let create = || create_task(Arc::new(TaskService { shim: Arc::clone(shim) }));
    let v2 = create()
        .into_iter()
        .map(|(name, service)| (name.replace("containerd.task.v3.", "containerd.task.v2."), service));
    create().into_iter().chain(v2).collect()
}

impl From<TaskError> for Status {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::System(status) => status,
            other => Self::from_error(other.kind(), &other),
        }
    }
}

fn invalid(what: impl Into<String>) -> Status {
    Status::new(ErrorKind::InvalidArgument, what)
}

/// Runs a request to its end, whether its caller waits for it or not.
async fn to_the_end<T: Send + 'static>(
    request: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> ttrpc::Result<T> {
    let done = tokio::spawn(request).await;
    let done = done.unwrap_or_else(|error| Err(Status::new(ErrorKind::Internal, format!("request failed: {error}"))));
    answer(done)
}

fn answer<T>(done: Result<T, Status>) -> ttrpc::Result<T> {
    done.map_err(|status| {
        tracing::info!(kind = ?status.kind, %status, "refused");
        status.to_ttrpc()
    })
}

fn api_status(word: &str) -> ApiStatus {
    match word {
        "added" | "created" => ApiStatus::CREATED,
        "running" => ApiStatus::RUNNING,
        "paused" => ApiStatus::PAUSED,
        "stopped" => ApiStatus::STOPPED,
        _ => ApiStatus::UNKNOWN,
    }
}

/// The OCI object that a request carries as JSON.
fn json_in<T: for<'de> serde::Deserialize<'de>>(any: Option<&Any>, what: &str) -> Result<T, Status> {
    let any = any.ok_or_else(|| invalid(format!("no {what} in the request")))?;
    serde_json::from_slice(&any.value).map_err(|error| invalid(format!("malformed {what}: {error}")))
}

/// Our engine's `top` wants the details; containerd's own clients fail on a type that they do not know.
fn process_info(details: &ProcessDetails, with_details: bool) -> ProcessInfo {
    let info = with_details.then(|| serde_json::to_vec(details).ok()).flatten();
    let info = info.map(|value| Any { type_url: ProcessDetails::TYPE_URL.to_owned(), value, ..Any::default() });
    ProcessInfo { pid: details.pid, info: info.into(), ..ProcessInfo::default() }
}

/// How long a guest may take to list its processes before one of them stands for all. A containerd that starts again waits 5 s.
const LISTING: Duration = Duration::from_secs(2);

/// A task's processes, or its first where there are no others to name: the task has ended, is a VM, or its guest does not answer.
///
/// containerd 2 takes a shim that lists none when it starts for one that never had a task, and ends it; how the task ended is
/// lost with it, as it is over runc's shim.
async fn processes_or_first(task: &Task) -> Result<Vec<ProcessDetails>, Status> {
    let listed = tokio::time::timeout(LISTING, task.processes()).await;
    match listed {
        Ok(Ok(listed)) if !listed.is_empty() => return Ok(listed),
        Ok(Err(error)) if !matches!(error, TaskError::WrongState(_)) => return Err(error.into()),
        Ok(_) => {}
        Err(_) => tracing::warn!("the container does not list its processes in time; its first stands for all"),
    }
    let first = task.snapshot("").await?;
    Ok(vec![ProcessDetails { pid: first.pid, ..ProcessDetails::default() }])
}

impl TaskService {
    async fn task(&self, id: &str) -> Result<Arc<Task>, Status> {
        self.shim.task(id).await
    }
}

#[async_trait]
impl TaskApi for TaskService {
    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        let state = async {
            let task = self.task(&request.id).await?;
            let snapshot = task.snapshot(&request.exec_id).await?;
            let mut response = api::StateResponse {
                id: task.id().to_string(),
                bundle: task.bundle().path().to_string_lossy().into_owned(),
                pid: snapshot.pid,
                status: api_status(snapshot.state).into(),
                stdin: snapshot.stdio.stdin,
                stdout: snapshot.stdio.stdout,
                stderr: snapshot.stdio.stderr,
                terminal: snapshot.stdio.terminal,
                exec_id: request.exec_id,
                ..api::StateResponse::default()
            };
            if let Some(exit) = snapshot.exit {
                response.exit_status = exit.code;
                response.exited_at = clock::timestamp(exit.at_ns);
            }
            Ok(response)
        };
        answer(state.await)
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let shim = Arc::clone(&self.shim);
        to_the_end(async move {
            let pid = shim.create(request).await?;
            Ok(api::CreateTaskResponse { pid, ..Default::default() })
        })
        .await
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        let shim = Arc::clone(&self.shim);
        to_the_end(async move {
            let pid = shim.start(&request.id, &request.exec_id).await?;
            Ok(api::StartResponse { pid, ..Default::default() })
        })
        .await
    }

    async fn delete(&self, _: &TtrpcContext, request: api::DeleteRequest) -> ttrpc::Result<api::DeleteResponse> {
        let shim = Arc::clone(&self.shim);
        to_the_end(async move {
            let (pid, exit) = if request.exec_id.is_empty() {
                shim.delete(&request.id).await?
            } else {
                shim.task(&request.id).await?.delete_exec(&request.exec_id).await?
            };
            let exited_at = clock::timestamp(exit.at_ns);
            Ok(api::DeleteResponse { pid, exit_status: exit.code, exited_at, ..Default::default() })
        })
        .await
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        let pids = async {
            let task = self.task(&request.id).await?;
            let with_details = self.shim.is_engines();
            let processes = if with_details { task.processes().await? } else { processes_or_first(&task).await? };
            let processes = processes.iter().map(|details| process_info(details, with_details)).collect();
            Ok(api::PidsResponse { processes, ..Default::default() })
        };
        answer(pids.await)
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.shim);
        to_the_end(async move {
            shim.task(&request.id).await?.pause().await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.shim);
        to_the_end(async move {
            shim.task(&request.id).await?.resume().await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        answer(Err(Status::new(ErrorKind::NotImplemented, "checkpoints are not supported")))
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.shim);
        to_the_end(async move {
            let signal = i32::try_from(request.signal).ok().filter(|signal| (0..=64).contains(signal));
            let signal = signal.ok_or_else(|| invalid(format!("{} is no signal", request.signal)))?;
            shim.task(&request.id).await?.kill(&request.exec_id, signal, request.all).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.shim);
        to_the_end(async move {
            let task = shim.task(&request.id).await?;
            let exec_id: ExecId = request.exec_id.parse().map_err(|error| invalid(format!("{error}")))?;
            let mut process: oci_spec::runtime::Process = json_in(request.spec.as_ref(), "process")?;
            process.set_terminal(Some(request.terminal));
            let stdio = StdioPaths {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
                stdin_end: shim.stdin_end(),
                owner: shim.owner(&request.id),
            };
            task.add_exec(exec_id, ExecRequest { process: Box::new(process), stdio }).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: api::ResizePtyRequest) -> ttrpc::Result<Empty> {
        let resized = async {
            let task = self.task(&request.id).await?;
            match task.resize(&request.exec_id, request.width, request.height).await.map_err(Status::from) {
                // containerd's clients ask for it once more after the end, and take a refusal for a fault.
                Err(status) if status.kind == ErrorKind::FailedPrecondition && !self.shim.is_engines() => {}
                resized => resized?,
            }
            Ok(Empty::new())
        };
        answer(resized.await)
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> ttrpc::Result<Empty> {
        let closed = async {
            let task = self.task(&request.id).await?;
            if request.stdin {
                task.close_stdin(&request.exec_id).await?;
            }
            Ok(Empty::new())
        };
        answer(closed.await)
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.shim);
        to_the_end(async move {
            let task = shim.task(&request.id).await?;
            let any = request.resources.as_ref();
            let update = match any.map(|any| any.type_url.as_str()) {
                Some(NetworkUpdate::TYPE_URL) => Update::Network(json_in(any, "network")?),
                _ => Update::Limits(json_in(any, "resources")?),
            };
            task.live_system("update").await?.update(update).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        let waited = async {
            let exit = self.task(&request.id).await?.wait(&request.exec_id).await?;
            let exited_at = clock::timestamp(exit.at_ns);
            Ok(api::WaitResponse { exit_status: exit.code, exited_at, ..Default::default() })
        };
        answer(waited.await)
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        let stats = async {
            let task = self.task(&request.id).await?;
            let usage = task.live_system("measure").await?.stats().await?;
            let form = if self.shim.is_engines() { Form::V1 } else { Form::of_this_host() };
            let any = usage.to_any(form).map_err(|error| Status::from_error(ErrorKind::Internal, &error))?;
            Ok(api::StatsResponse { stats: Some(any).into(), ..Default::default() })
        };
        answer(stats.await)
    }

    async fn connect(&self, _: &TtrpcContext, request: api::ConnectRequest) -> ttrpc::Result<api::ConnectResponse> {
        let task_pid = match self.task(&request.id).await {
            Ok(task) => task.pid().await,
            Err(_) => 0,
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(api::ConnectResponse { shim_pid: std::process::id(), task_pid, version, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: api::ShutdownRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.shim);
        to_the_end(async move {
            shim.shut_down(request.now).await;
            Ok(Empty::new())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_containerds_word() {
        for (word, status) in [
            ("added", ApiStatus::CREATED),
            ("created", ApiStatus::CREATED),
            ("running", ApiStatus::RUNNING),
            ("paused", ApiStatus::PAUSED),
            ("stopped", ApiStatus::STOPPED),
        ] {
            assert_eq!(api_status(word), status);
        }
    }

    #[test]
    fn details_are_for_our_engine_only() {
        let details = ProcessDetails {
            pid: 7,
            parent: 1,
            user_id: 0,
            terminal: "?".into(),
            started_at_ns: 5,
            cpu_ms: 1,
            command: "sleep 1".into(),
        };
        assert!(process_info(&details, false).info.is_none());
        let info = process_info(&details, true).info.into_option().unwrap();
        assert_eq!(info.type_url, ProcessDetails::TYPE_URL);
        assert_eq!(serde_json::from_slice::<ProcessDetails>(&info.value).unwrap(), details);
    }

    #[test]
    fn a_process_that_is_no_process_is_refused() {
        let any = Any { value: b"{\"args\":7}".to_vec(), ..Any::default() };
        let refused = json_in::<oci_spec::runtime::Process>(Some(&any), "process").unwrap_err();
        assert_eq!(refused.kind, ErrorKind::InvalidArgument);
        assert!(json_in::<oci_spec::runtime::Process>(None, "process").is_err());
    }
}
