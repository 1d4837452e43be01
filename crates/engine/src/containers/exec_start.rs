//! `POST /exec/{id}/start`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Extension, Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use proto::Status;
use serde::Deserialize;
use tokio::task::JoinHandle;

use super::exec;
use super::{bundle, launch};
use crate::body;
use crate::container::Container;
use crate::container::exec::Exec;
use crate::container::record::CODE_UNKNOWN;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::output::{Chunk, Source, Wanted};
use crate::spec;
use crate::streams::fifo::{self, FifoSet};
use crate::streams::hijack::{Connection, Hijack, Input, SessionEnd};
use crate::streams::input::{DEFAULT_DETACH_KEYS, parse_detach_keys};
use crate::streams::mux::Framing;
use crate::streams::plain;
use crate::streams::{self, Attachment};
use crate::task::{StdioPaths, Task};
use crate::version::ApiVersion;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StartRequest {
    detach: bool,
    tty: bool,
    console_size: Option<Vec<u32>>,
}

/// Starts a further process, and carries its streams unless the client detaches.
///
/// # Errors
/// 404; 409 when it was started before or the container does not run; the command's fault, for a detached client.
pub async fn start(
    State(engine): State<Arc<Engine>>,
    Path(id): Path<String>,
    Extension(version): Extension<ApiVersion>,
    mut request: Request,
) -> ApiResult<Response> {
    let hijack = Hijack::of(&mut request);
    let asked: StartRequest = body::optional_json(request).await?.unwrap_or_default();
    let (container, exec) = exec::find(&engine, &id)?;
    let running = container.running()?;
    if container.record().phase.is_paused() {
        return Err(ApiError::conflict(format!(
            "Container {} is paused, unpause the container before exec",
            container.id
        )));
    }
    exec.begin()?;
    let size = asked.console_size.as_deref().and_then(|size| Some((*size.get(1)?, *size.first()?)));
    let starter = Starter { engine, container, exec, task: running.task, size, keeps_output: true };
    if asked.detach {
        tokio::spawn(async move { starter.start(None).await.map(drop) }).await??;
        return Ok(StatusCode::OK.into_response());
    }
    // As dockerd does it: the one who starts it says how it is to be framed, whatever the process has.
    let framing = Framing::of_terminal(asked.tty);
    let content_type = framing.content_type(version);
    Ok(match hijack {
        Some(hijack) => hijack.answer(content_type, move |connection| starter.run(connection, framing)),
        None => plain::answer(content_type, starter.run_plainly(framing)),
    })
}

/// Starts a further process and watches over it.
pub struct Starter {
    /// The engine.
    pub engine: Arc<Engine>,
    /// Where it is to run.
    pub container: Arc<Container>,
    /// The process.
    pub exec: Arc<Exec>,
    /// The container's shim.
    pub task: Task,
    /// First size of its terminal: columns and rows.
    pub size: Option<(u32, u32)>,
    /// What processes that it leaves behind write is still taken after its end.
    pub keeps_output: bool,
}

impl Starter {
    fn attach(&self) -> Attachment {
        let config = &self.exec.config;
        let wanted = Wanted {
            stdout: config.attach_stdout.unwrap_or_default(),
            stderr: config.attach_stderr.unwrap_or_default(),
        };
        self.exec.streams.attach(wanted)
    }

    /// Its output for a client that has no connection to send it anything: its input ends at once.
    fn run_plainly(self, framing: Framing) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        let (attachment, exec) = (self.attach(), Arc::clone(&self.exec));
        // It runs whether the client stays or not.
        let started = tokio::spawn(async move {
            let started = self.start(Some(attachment)).await;
            exec.streams.close_stdin();
            started
        });
        stream::once(started).flat_map(move |started| {
            match started.unwrap_or_else(|error| Err(ApiError::caused("starting broke off", &error))) {
                Ok(attachment) => {
                    stream::iter(attachment).flat_map(move |attachment| plain::chunks(attachment, framing)).boxed()
                }
                Err(error) => {
                    let bytes = Bytes::from(format!("{error}\r\n"));
                    let text = framing.encode(&Chunk { source: Source::Stdout, bytes });
                    stream::iter([Ok(text)]).boxed()
                }
            }
        })
    }

    async fn run(self, connection: Connection, framing: Framing) {
        let attachment = self.attach();
        let input = self.input();
        let (engine, container, exec) = (Arc::clone(&self.engine), Arc::clone(&self.container), Arc::clone(&self.exec));
        match self.start(Some(attachment)).await {
            Ok(attachment) => {
                let Some(attachment) = attachment else { return };
                if connection.carry(attachment, framing, input).await == SessionEnd::Detached {
                    container.emit(&engine.events, "exec_detach", &[("execID", exec.id.clone())]);
                }
            }
            Err(error) => connection.write_text(framing, &format!("{error}\r\n")).await,
        }
    }

    fn input(&self) -> Option<Input> {
        let config = &self.exec.config;
        if !config.attach_stdin.unwrap_or_default() {
            return None;
        }
        let keys = config.detach_keys.as_deref().filter(|keys| !keys.is_empty()).unwrap_or(DEFAULT_DETACH_KEYS);
        let keys = parse_detach_keys(keys).unwrap_or_default();
        let terminal = self.exec.terminal();
        Some(Input { ends_stdin: !terminal, detach_keys: if terminal { keys } else { Vec::new() } })
    }

    fn paths(&self) -> StdioPaths {
        let fifos = FifoSet {
            stdin: self.exec.config.attach_stdin.unwrap_or_default(),
            stdout: self.exec.config.attach_stdout.unwrap_or_default(),
            stderr: self.exec.config.attach_stderr.unwrap_or_default() && !self.exec.terminal(),
            terminal: self.exec.terminal(),
        };
        let name = self.exec.id.get(..16).unwrap_or(&self.exec.id);
        fifos.paths(&self.engine.bundle(&self.container.id), &format!("{name}-"))
    }

    /// Removes the fifos that a process of this name has left behind. When: no such process runs.
    pub fn remove_fifos(&self) {
        fifo::remove(&self.paths());
    }

    /// Starts the process and watches over it in the background; its output ends with it.
    ///
    /// # Errors
    /// 400 for the command's fault; the shim's. The process counts as ended then.
    pub async fn start(self, attachment: Option<Attachment>) -> ApiResult<Option<Attachment>> {
        let paths = self.paths();
        let started = self.try_start(&paths).await;
        match started {
            Ok(copying) => {
                tokio::spawn(self.watch(copying, paths));
                Ok(attachment)
            }
            Err(error) => {
                fifo::remove(&paths);
                let fault = launch::is_command_fault(&error);
                let code = if fault { launch::fault_code(&error) } else { launch::NOT_STARTED };
                self.exec.ended(code);
                self.exec.streams.close_stdin();
                let message = format!("OCI runtime exec failed: exec failed: {}", error.message);
                if fault { Err(ApiError::invalid(message)) } else { Err(error) }
            }
        }
    }

    async fn try_start(&self, paths: &StdioPaths) -> ApiResult<JoinHandle<()>> {
        let process = self.process().await?;
        fifo::make(paths).map_err(|error| ApiError::caused("cannot make the fifos of an exec", &error))?;
        let ends = fifo::open(paths).map_err(|error| ApiError::caused("cannot open the fifos of an exec", &error))?;
        let id = self.exec.id.as_str();
        self.task.exec(id, paths, process).await?;
        self.exec.streams.open_stdin(ends.stdin);
        let (streams, stopping) = (Arc::clone(&self.exec.streams), self.engine.stopping.clone());
        let copying = tokio::spawn(async move { streams::pump(ends.outputs, &streams, None, &stopping, false).await });
        match self.task.start(id).await {
            Ok(pid) => self.exec.started(pid),
            Err(error) => {
                copying.abort();
                self.forget().await;
                return Err(error.into());
            }
        }
        if let Some((width, height)) = self.size.filter(|(width, height)| *width > 0 && *height > 0)
            && self.exec.terminal()
            && let Err(error) = self.task.resize(id, width, height).await
        {
            tracing::debug!(%error, "an exec's terminal has no first size");
        }
        let action = format!("exec_start: {}", self.exec.command_line());
        self.container.emit(&self.engine.events, action, &[("execID", self.exec.id.clone())]);
        Ok(copying)
    }

    /// OCI's process object.
    async fn process(&self) -> ApiResult<Vec<u8>> {
        let (engine, container, exec) = (Arc::clone(&self.engine), Arc::clone(&self.container), Arc::clone(&self.exec));
        tokio::task::spawn_blocking(move || {
            let spec = bundle::build_spec(&engine, &container)?;
            let process = spec::build_exec_process(&spec, &exec.config)
                .map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
            serde_json::to_vec(&process).map_err(|error| ApiError::caused("cannot write the process", &error))
        })
        .await?
    }

    async fn watch(self, mut copying: JoinHandle<()>, paths: StdioPaths) {
        let exit = self.exit_or_input_end().await;
        let code = match exit {
            Ok(exit) => exit.code,
            // With its shim the container ends, and so did this process.
            Err(_) => CODE_UNKNOWN,
        };
        // A process that it left behind may hold the output open.
        if tokio::time::timeout(super::supervise::DRAIN, &mut copying).await.is_err() {
            tracing::debug!("an exec's output is still open");
            if !self.keeps_output {
                copying.abort();
            }
        }
        self.forget().await;
        fifo::remove(&paths);
        self.exec.ended(code);
        self.exec.streams.end_run().await;
        let extra = [("execID", self.exec.id.clone()), ("exitCode", code.to_string())];
        self.container.emit(&self.engine.events, "exec_die", &extra);
    }

    async fn exit_or_input_end(&self) -> Result<crate::task::ProcessExit, Status> {
        let id = self.exec.id.as_str();
        let wait = self.task.wait(id);
        tokio::pin!(wait);
        let has_stdin = self.exec.config.attach_stdin.unwrap_or_default();
        tokio::select! {
            exit = wait.as_mut() => exit,
            () = self.exec.streams.stdin_closed(), if has_stdin => {
                if let Err(error) = self.task.close_stdin(id).await {
                    tracing::debug!(%error, "the end of an exec's input came too late");
                }
                wait.await
            }
        }
    }

    async fn forget(&self) {
        if let Err(error) = self.task.delete(&self.exec.id).await {
            tracing::debug!(%error, "the shim has forgotten the exec already");
        }
    }
}
