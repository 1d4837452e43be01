//! Containers that a build makes on its way: created, run, read and removed as a client would, without one.

use std::io::Read;
use std::sync::Arc;

use proto::Isolation;
use proto::files::{FilesRequest, PathStat};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::config::Requested;
use super::files::{Operation, own_paths, received};
use super::kill::Sender;
use super::{create, remove, start, stop};
use crate::container::{Container, Progress};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::output::Wanted;
use crate::streams::Attachment;

/// One such container. Who has it removes it by [`Intermediate::remove`]; one that is dropped stays, as any container does.
#[derive(Clone)]
pub struct Intermediate {
    engine: Arc<Engine>,
    container: Arc<Container>,
}

impl Intermediate {
    /// Creates it. Shape: `body` is that of `POST /containers/create`; its image is given by its id. From when `cancelled` is, which
    /// means that it will be removed, no list has it.
    ///
    /// # Errors
    /// As creating a container.
    pub async fn create(
        engine: &Arc<Engine>,
        body: Value,
        isolation: Isolation,
        cancelled: CancellationToken,
    ) -> ApiResult<Self> {
        let requested = Requested::read(body, isolation, &engine.settings.container_defaults)?;
        let maker = Arc::clone(engine);
        let container = tokio::task::spawn_blocking(move || create::make(&maker, requested, None)).await??;
        container.work_for(Some(cancelled));
        container.emit(&engine.events, "create", &[]);
        Ok(Self { engine: Arc::clone(engine), container })
    }

    /// Its id, 64 digits.
    #[must_use]
    pub fn id(&self) -> &str {
        self.container.id.as_str()
    }

    /// All that it will write, from its start to its end. When: before it is started.
    #[must_use]
    pub fn output(&self) -> Attachment {
        self.container.streams.attach(Wanted { stdout: true, stderr: true })
    }

    /// Starts it.
    ///
    /// # Errors
    /// As starting a container.
    pub async fn start(&self) -> ApiResult<()> {
        start::begin(&self.engine, &self.container).await
    }

    /// Waits for its end, and tells how it was.
    pub async fn ended(&self) -> Progress {
        let mut progress = self.container.progress();
        let ended = progress.wait_for(|now| now.exits > 0 || now.removed).await.map(|now| now.clone());
        ended.unwrap_or_default()
    }

    /// Works on what it has changed, as a layer's tar stream. Shape: in one that `has_run`, what the engine made for
    /// the run is left out; `work` reads in a thread that may wait.
    ///
    /// # Errors
    /// Of the stream, and of `work`.
    pub async fn with_layer<T: Send + 'static>(
        &self,
        has_run: bool,
        work: impl FnOnce(&mut dyn Read) -> ApiResult<T> + Send + 'static,
    ) -> ApiResult<T> {
        let own = if has_run { own_paths(&self.engine, &self.container)? } else { Vec::new() };
        let operation =
            Operation::begin(&self.engine, &self.container, FilesRequest::Layer { own, freeze: false }).await?;
        let done = tokio::task::spawn_blocking(move || {
            let mut receiver = operation.receiver()?;
            let done = work(&mut receiver)?;
            operation.finish()?;
            Ok(done)
        });
        done.await?
    }

    /// What is at a path, and the path's content as a tar stream for `work`, which runs in a thread that may wait.
    ///
    /// # Errors
    /// 404 when nothing is there; of the stream, and of `work`.
    pub async fn with_files<T: Send + 'static>(
        &self,
        path: &str,
        work: impl FnOnce(&PathStat, &mut dyn Read) -> ApiResult<T> + Send + 'static,
    ) -> ApiResult<T> {
        let request = FilesRequest::Read { path: path.to_owned(), mounts: Vec::new() };
        let operation = Operation::begin(&self.engine, &self.container, request).await?;
        let done = tokio::task::spawn_blocking(move || {
            let mut receiver = operation.receiver()?;
            let stat: PathStat = received(receiver.message())?;
            let done = work(&stat, &mut receiver)?;
            received(std::io::copy(&mut receiver, &mut std::io::sink()))?;
            operation.finish()?;
            Ok(done)
        });
        done.await?
    }

    /// Places a tar stream in it.
    ///
    /// # Errors
    /// As [`Operation::send`].
    pub async fn place(&self, request: FilesRequest, stream: impl Read + Send + 'static) -> ApiResult<()> {
        let operation = Operation::begin(&self.engine, &self.container, request).await?;
        let done = tokio::task::spawn_blocking(move || {
            operation.send(stream)?;
            operation.finish()
        });
        done.await?
    }

    /// What is at a path; `None` if nothing is.
    ///
    /// # Errors
    /// Of the operation.
    pub async fn stat(&self, path: &str) -> ApiResult<Option<PathStat>> {
        let request = FilesRequest::Stat { path: path.to_owned(), mounts: Vec::new() };
        let operation = Operation::begin(&self.engine, &self.container, request).await?;
        let done = tokio::task::spawn_blocking(move || {
            let mut receiver = operation.receiver()?;
            let stat: PathStat = received(receiver.message())?;
            received(std::io::copy(&mut receiver, &mut std::io::sink()))?;
            operation.finish()?;
            Ok(stat)
        });
        match done.await? {
            Ok(stat) => Ok(Some(stat)),
            Err(ApiError { kind: proto::ErrorKind::NotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Leaves it as any other container.
    pub fn keep(self) {
        self.container.work_for(None);
    }

    /// Ends it, if it runs, and removes it with everything that it has changed.
    ///
    /// # Errors
    /// As removing a container by force.
    pub async fn remove(self) -> ApiResult<()> {
        let container = Arc::clone(&self.container);
        let done = tokio::spawn(async move {
            if self.container.running().is_ok() {
                stop::force(&self.engine, &self.container, Sender::Client).await?;
            }
            let wanted = remove::Removal { force: true, volumes: true, version: crate::version::MAX };
            remove::take_down(&self.engine, &self.container, wanted).await
        });
        let removed = done.await?;
        if removed.is_err() {
            // It is to be seen, so that somebody may try again.
            container.work_for(None);
        }
        removed
    }
}
