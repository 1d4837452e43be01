//! A build from its begin to its end: stages, and what all instructions need.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bollard::models::ContainerConfig;
use image::limits::MAX_ARCHIVE_BYTES;
use image::{BuildStep, Image, ImageHold};
use proto::Isolation;
use proto::ignore::IgnoreList;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::args::BuildArgs;
use super::cache;
use super::context::Context;
use super::copy::spool_failed;
use super::dockerfile::{Command, Dockerfile, Stage, Step, Substitution, trigger};
use super::options::Options;
use super::output::{Failure, Output};
use super::state::State;
use crate::containers::Intermediate;
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult, chain};
use crate::images::Logins;
use crate::reader::BodyReader;

/// Where a user finds what the classic builder lacks; dockerd's words.
pub(super) const BUILDKIT: &str =
    "Refer to https://docs.docker.com/go/buildkit/ to learn how to build images with BuildKit enabled";
/// Bytes of a Dockerfile.
pub(super) const MAX_DOCKERFILE: u64 = 4 << 20;

/// A stage that is over.
pub(super) struct Done {
    pub name: Option<String>,
    pub image: Option<Image>,
    _hold: Option<ImageHold>,
}

/// A build under way.
pub(super) struct Builder {
    pub engine: Arc<Engine>,
    pub options: Options,
    pub logins: Logins,
    pub output: Output,
    pub cancelled: CancellationToken,
    pub context: Arc<Context>,
    pub args: BuildArgs,
    pub done: Vec<Done>,
    /// What takes the meaning of characters away.
    pub escape: char,
    /// Something was made anew in this stage: nothing after it can be in the cache.
    missed: bool,
    shown: usize,
    total: usize,
}

/// Builds an image.
///
/// # Errors
/// What a client is to be told; what was begun is cleaned up.
pub async fn run(
    engine: Arc<Engine>,
    options: Options,
    logins: Logins,
    body: BodyReader,
    output: Output,
    cancelled: CancellationToken,
) -> Result<(), Failure> {
    let folder = super::folder(&engine)?;
    let (named, remote) = (options.dockerfile.clone(), options.remote.clone());
    let (told, token) = (output.clone(), cancelled.clone());
    let taking = tokio::task::spawn_blocking(move || match remote {
        Some(remote) => remote.context(&folder, &named, &told, &token),
        None => find_dockerfile(spooled(&folder, body, MAX_ARCHIVE_BYTES)?, &named),
    });
    let (context, text) = taking.await.map_err(ApiError::from)??;
    let mut file = Dockerfile::parse(&text).map_err(|error| ApiError::invalid(error.to_string()))?;
    if !options.target.is_empty() {
        file.end_at(&options.target).map_err(|error| ApiError::invalid(error.to_string()))?;
    }
    if let Some(last) = file.stages.last_mut() {
        last.steps.extend(options.labels.iter().map(|(name, value)| label_step(name, value)));
    }
    let mut builder = Builder {
        args: BuildArgs::new(options.args.clone()),
        context: Arc::new(context),
        done: Vec::new(),
        escape: file.escape,
        missed: false,
        shown: 0,
        total: file.step_count(),
        engine,
        options,
        logins,
        output,
        cancelled,
    };
    let image = builder.all(&file).await?;
    builder.finish(&image).await
}

/// The label that a client wants, as the last instruction of the file. Quotes are put where they have to be.
fn label_step(name: &str, value: &str) -> Step {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$"));
    Step { text: format!("LABEL {name}={value}"), command: Command::Label(vec![(quoted(name), quoted(value))]) }
}

/// Takes a context in that is an archive.
pub(super) fn spooled(folder: &Path, archive: impl Read, max_bytes: u64) -> ApiResult<Context> {
    let tar = image::decompressed(archive)
        .map_err(|error| ApiError::invalid(format!("cannot read the build context: {}", chain(&error))))?;
    Context::spool(folder, tar, max_bytes, (0, "")).map_err(|error| spool_failed(&error))
}

/// Finds the Dockerfile, and takes away what is ignored.
pub(super) fn find_dockerfile(mut context: Context, named: &str) -> ApiResult<(Context, String)> {
    let read = |path: &str| {
        let content = context.read(path, MAX_DOCKERFILE);
        content.map_err(|error| ApiError::caused("cannot read the build context", &error))
    };
    let candidates: &[&str] = if named.is_empty() { &["Dockerfile", "dockerfile"] } else { &[named] };
    let mut found = None;
    for name in candidates {
        if let Some(content) = read(name)? {
            found = Some((*name, content));
            break;
        }
    }
    let shown = candidates[0];
    let (name, content) =
        found.ok_or_else(|| ApiError::internal(format!("Cannot locate specified Dockerfile: {shown}")))?;
    if content.is_empty() {
        return Err(ApiError::invalid(format!("the Dockerfile ({name}) cannot be empty")));
    }
    let (name, text) = (name.to_owned(), String::from_utf8_lossy(&content).into_owned());
    // The client leaves out what is ignored, but for these two, which it has to send.
    if let Some(ignored) = read(".dockerignore")? {
        let list = IgnoreList::parse(&String::from_utf8_lossy(&ignored))
            .map_err(|error| ApiError::invalid(format!("error reading .dockerignore: {error}")))?;
        for file in [".dockerignore", &name] {
            if list.excludes(file) {
                context.remove(file);
            }
        }
    }
    Ok((context, text))
}

impl Builder {
    pub(super) fn cancelled_failure() -> Failure {
        ApiError::new(proto::ErrorKind::Cancelled, "Build cancelled").into()
    }

    async fn all(&mut self, file: &Dockerfile) -> Result<Image, Failure> {
        for warning in file.warnings.chunks(file.warnings.len().max(1)) {
            self.output.complain(&(warning.join("\n") + "\n")).await;
        }
        for line in &file.args {
            self.show(&line.text).await;
            for (name, default) in &line.args {
                let known = self.args.global();
                let word = |text: &str| Substitution { variables: &known, escape: self.escape }.word(text);
                let default = default.as_deref().map(word).transpose().map_err(ApiError::invalid)?;
                let name = word(name).map_err(ApiError::invalid)?;
                self.args.add_global(&name, default);
            }
        }
        let mut last = None;
        for stage in &file.stages {
            last = self.stage(stage).await?;
        }
        let unused = self.args.unused().join(" ");
        if !unused.is_empty() {
            self.output.say(format!("[Warning] One or more build-args [{unused}] were not consumed\n")).await;
        }
        let nothing = || ApiError::internal("No image was generated. Is your Dockerfile empty?");
        Ok(last.ok_or_else(nothing)?)
    }

    async fn stage(&mut self, stage: &Stage) -> Result<Option<Image>, Failure> {
        self.check_cancelled().await?;
        let taken = |done: &Done| stage.name.is_some() && done.name == stage.name;
        if let Some(name) = stage.name.as_ref().filter(|_| self.done.iter().any(taken)) {
            return Err(ApiError::internal(format!("{name} stage name already used")).into());
        }
        self.show(&stage.text).await;
        self.missed = false;
        self.args.reset();
        let mut state = self.begin(stage).await?;
        self.triggers(&mut state).await?;
        self.output.say(format!(" ---> {}\n", state.short_id())).await;
        for step in &stage.steps {
            self.check_cancelled().await?;
            self.show(&step.text).await;
            self.dispatch(&mut state, &step.command).await?;
            self.output.say(format!(" ---> {}\n", state.short_id())).await;
        }
        let image = (!state.is_scratch).then(|| state.image.clone());
        if let Some(image) = &image {
            self.output.line(&json!({ "aux": { "ID": image.id.as_str() } })).await;
        }
        let hold = image.as_ref().and_then(|image| self.engine.images.hold(&image.id));
        self.done.push(Done { name: stage.name.clone(), image: image.clone(), _hold: hold });
        Ok(image)
    }

    async fn begin(&mut self, stage: &Stage) -> Result<State, Failure> {
        let known = self.args.global();
        let word = |text: &str| {
            let word = Substitution { variables: &known, escape: self.escape }.word(text);
            word.map_err(ApiError::invalid)
        };
        if let Some(platform) = &stage.platform {
            crate::containers::check_platform(&word(platform)?)?;
        }
        let name = word(&stage.base)?;
        if name.is_empty() {
            return Err(ApiError::invalid(format!("base name ({}) should not be blank", stage.base)).into());
        }
        if let Some(done) = self.done.iter().find(|done| done.name.as_deref() == Some(&name.to_lowercase()[..])) {
            return match &done.image {
                Some(image) => Ok(self.state_of(image.clone(), false)?),
                None => self.begin_from_nothing().await,
            };
        }
        if name == "scratch" {
            return self.begin_from_nothing().await;
        }
        let (image, hold) = self.image_by_name(&name).await?;
        Ok(State::begin(image, hold, false)?)
    }

    async fn begin_from_nothing(&self) -> Result<State, Failure> {
        let store = Arc::clone(&self.engine.images);
        let image = tokio::task::spawn_blocking(move || store.nothing()).await.map_err(ApiError::from)?;
        let image = image.map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
        Ok(self.state_of(image, true)?)
    }

    fn state_of(&self, image: Image, is_scratch: bool) -> ApiResult<State> {
        let hold = self.hold(&image)?;
        State::begin(image, hold, is_scratch)
    }

    fn hold(&self, image: &Image) -> ApiResult<ImageHold> {
        let hold = self.engine.images.hold(&image.id);
        hold.ok_or_else(|| ApiError::not_found(format!("No such image: {}", image.id)))
    }

    /// Does what the base image wants to be done first.
    async fn triggers(&mut self, state: &mut State) -> Result<(), Failure> {
        let triggers = state.config.on_build.take().unwrap_or_default();
        if triggers.is_empty() {
            return Ok(());
        }
        self.output.say(format!("# Executing {} build trigger", triggers.len())).await;
        self.output.say(if triggers.len() > 1 { "s" } else { "" }).await;
        self.output.say("\n").await;
        for text in triggers {
            let command = trigger(&text).map_err(|error| ApiError::invalid(error.to_string()))?;
            self.dispatch(state, &command).await?;
        }
        Ok(())
    }

    async fn show(&mut self, text: &str) {
        self.shown += 1;
        self.output.say(format!("Step {}/{} : {text}", self.shown, self.total)).await;
        self.output.say("\n").await;
    }

    pub(super) async fn check_cancelled(&self) -> Result<(), Failure> {
        if !self.cancelled.is_cancelled() {
            return Ok(());
        }
        self.output.say("Build cancelled\n").await;
        Err(Self::cancelled_failure())
    }

    /// Goes on from the image that the cache has for this step, if it has one.
    pub(super) async fn probe(&mut self, state: &mut State, noted: &ContainerConfig) -> Result<bool, Failure> {
        if self.options.no_cache || self.missed {
            return Ok(false);
        }
        let wanted = as_json(noted)?;
        let store = Arc::clone(&self.engine.images);
        let (parent, trusted) = (state.image.id.clone(), self.options.cache_from.clone());
        let found = tokio::task::spawn_blocking(move || {
            let step = store.find_step(&parent, |known| cache::is_same(known, &wanted))?;
            // Of names that are none, nothing is trusted; only who names nobody trusts everything.
            let named: Vec<Image> = trusted.iter().filter_map(|name| store.resolve(name).ok()).collect();
            (trusted.is_empty() || cache::is_part_of(&step, &named)).then_some(step)
        })
        .await
        .map_err(ApiError::from)?;
        let Some((image, hold)) = found.and_then(|image| self.hold(&image).ok().map(|hold| (image, hold))) else {
            self.missed = true;
            return Ok(false);
        };
        self.output.say(" ---> Using cache\n").await;
        state.advance(image, hold);
        Ok(true)
    }

    /// A container of the image so far, with this configuration.
    pub(super) async fn create(&self, state: &State, config: &ContainerConfig) -> ApiResult<Intermediate> {
        let config = ContainerConfig { image: Some(state.image.id.to_string()), ..config.clone() };
        self.create_of(&config).await
    }

    /// One that only its files are wanted of.
    pub(super) async fn create_idle(&self, state: &State) -> ApiResult<Intermediate> {
        let config = ContainerConfig { image: Some(state.image.id.to_string()), ..ContainerConfig::default() };
        self.create_of(&config).await
    }

    pub(super) async fn create_of(&self, config: &ContainerConfig) -> ApiResult<Intermediate> {
        // The client may have gone while the cache was searched: nothing is made then that would only be taken away again.
        self.check_cancelled().await.map_err(|failure| failure.error)?;
        let mut body = as_json(config)?;
        if body["Cmd"].is_null() && body["Entrypoint"].is_null() {
            // It is never started, and no container is without a command.
            body["Cmd"] = json!(["/bin/sh"]);
        }
        // The image's are enough.
        body["Volumes"] = Value::Null;
        body["HostConfig"] = self.options.host.clone();
        let isolation: Isolation = self.options.isolation;
        Intermediate::create(&self.engine, body, isolation, self.cancelled.clone()).await
    }

    /// Removes a step's container, if the client wants that.
    pub(super) async fn clear(&self, container: Intermediate, went_well: bool) -> ApiResult<()> {
        let cancelled = self.cancelled.is_cancelled();
        if !(self.options.force_remove || cancelled || self.options.remove && went_well) {
            container.keep();
            return Ok(());
        }
        let id = container.id()[..12].to_owned();
        container.remove().await?;
        self.output.say(format!("Removing intermediate container {id}\n")).await;
        Ok(())
    }

    /// Makes the step's image of what a container has changed, if there was one, and goes on from it. Shape: the flag says that
    /// the container has run.
    pub(super) async fn commit_changes(
        &mut self,
        state: &mut State,
        noted: &ContainerConfig,
        container: Option<(&Intermediate, bool)>,
    ) -> Result<(), Failure> {
        let mut config = state.config.clone();
        config.image = Some(state.image.id.to_string());
        let step = BuildStep {
            config: as_json(&config)?,
            container_config: as_json(noted)?,
            container: container.map(|(container, _)| container.id().to_owned()),
            author: state.maintainer.clone(),
            created: SystemTime::now(),
        };
        let (store, base) = (Arc::clone(&self.engine.images), state.image.clone());
        let failed = |error: image::CommitError| ApiError::new(error.kind(), chain(&error));
        let id = match container {
            None => tokio::task::spawn_blocking(move || store.add_step(&base, None::<&[u8]>, &step))
                .await
                .map_err(ApiError::from)?
                .map_err(failed)?,
            Some((container, has_run)) => {
                let work = move |tar: &mut dyn std::io::Read| store.add_step(&base, Some(tar), &step).map_err(failed);
                container.with_layer(has_run, work).await?
            }
        };
        let image = self.engine.images.image(&id).ok_or_else(|| ApiError::internal("the step's image is gone"))?;
        let hold = self.hold(&image)?;
        state.advance(image, hold);
        Ok(())
    }

    async fn finish(&self, image: &Image) -> Result<(), Failure> {
        self.check_cancelled().await?;
        if self.options.quiet {
            self.output.result(&format!("{}\n", image.id)).await;
        }
        self.output.say(format!("Successfully built {}\n", &image.id.hex()[..12])).await;
        for tag in &self.options.tags {
            let (store, id, name) = (Arc::clone(&self.engine.images), image.id.clone(), tag.clone());
            let tagged = tokio::task::spawn_blocking(move || store.tag(id.as_str(), &name)).await;
            tagged.map_err(ApiError::from)?.map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
            let attributes = [("name".to_owned(), tag.familiar())].into();
            self.engine.events.publish("image", "tag", image.id.as_str(), attributes);
            self.output.say(format!("Successfully tagged {}\n", tag.familiar())).await;
        }
        Ok(())
    }
}

pub(super) fn as_json(config: &ContainerConfig) -> ApiResult<Value> {
    serde_json::to_value(config).map_err(|error| ApiError::caused("cannot write the configuration", &error))
}
