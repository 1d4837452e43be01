//! COPY and ADD: files from the context, a stage or an image, placed in the image.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread::JoinHandle;

use bollard::models::ContainerConfig;
use image::limits::MAX_LAYER_BYTES;
use proto::files::FilesRequest;
use proto::ignore::Pattern;
use sha2::{Digest, Sha256};

use super::builder::{BUILDKIT, Builder};
use super::context::{self, Context, Selected, SpoolError};
use super::dockerfile::CopyFiles;
use super::output::Failure;
use super::state::State;
use crate::containers::Intermediate;
use crate::error::{ApiError, ApiResult, chain};
use crate::fetch;

/// What a source names: in a context, by a pattern, or everything of a context of its own, which was fetched.
struct Source {
    context: Arc<Context>,
    pattern: Option<String>,
}

/// Files of one context.
struct Group {
    context: Arc<Context>,
    files: Vec<Selected>,
    /// By ADD, from a URL: such archives are not unpacked.
    fetched: bool,
}

/// One placing: what, from where.
struct Placing {
    folder: bool,
    files: Vec<Selected>,
    /// The one file is an archive, whose content is placed.
    unpack: bool,
}

impl Builder {
    pub(super) async fn copy(
        &mut self,
        state: &mut State,
        files: &CopyFiles,
        name: &'static str,
    ) -> Result<(), Failure> {
        if files.chmod.is_some() {
            return Err(ApiError::invalid(format!("the --chmod option requires BuildKit. {BUILDKIT}")).into());
        }
        let is_add = name == "ADD";
        let sources = match &files.from {
            Some(from) => self.read_image(from, files).await?,
            None => self.own_sources(files, is_add).await?,
        };
        let (groups, hash) = tokio::task::spawn_blocking({
            let from_context = files.from.is_none();
            move || choose(sources, name, from_context)
        })
        .await
        .map_err(ApiError::from)??;
        let count: usize = groups.iter().map(|group| group.files.len()).sum();
        if count > 1 && !files.destination.ends_with('/') {
            let rule = "with more than one source file, the destination must be a directory and end with a /";
            return Err(ApiError::invalid(format!("When using {name} {rule}")).into());
        }
        let destination = absolute(state.config.working_dir.as_deref().unwrap_or_default(), &files.destination);
        let chown = files.chown.as_ref().map(|owner| format!("--chown={owner}")).unwrap_or_default();
        let noted = state.noted(&[&format!("#(nop) {name} {chown}{hash} in {destination} ")]);
        if self.probe(state, &noted).await? {
            return Ok(());
        }
        let container = self.create_idle(state).await?;
        let keep_owners = files.from.is_some();
        let mut outcome = Ok(());
        for group in groups {
            let request = (&destination[..], files.chown.clone(), keep_owners);
            outcome = place_all(&container, group, is_add, request).await;
            if outcome.is_err() {
                break;
            }
        }
        let outcome = match outcome {
            Ok(()) => self.commit_changes(state, &noted, Some((&container, false))).await,
            Err(error) => Err(error.into()),
        };
        container.remove().await?;
        outcome
    }

    /// Makes the folder of WORKDIR, as a layer if it was not there.
    pub(super) async fn make_folder(
        &mut self,
        state: &mut State,
        noted: &ContainerConfig,
        path: &str,
    ) -> Result<(), Failure> {
        let container = self.create_idle(state).await?;
        self.output.say(format!(" ---> Running in {}\n", &container.id()[..12])).await;
        let request = FilesRequest::Place { path: path.to_owned(), folder: true, owner: None };
        let outcome = match container.place(request, io::Cursor::new(vec![0; 1024])).await {
            Ok(()) => self.commit_changes(state, noted, Some((&container, false))).await,
            Err(error) => Err(error.into()),
        };
        self.clear(container, outcome.is_ok()).await?;
        outcome
    }

    /// Sources that are no image's: of the context, and fetched ones, in their order.
    async fn own_sources(&self, files: &CopyFiles, is_add: bool) -> Result<Vec<Source>, Failure> {
        let mut sources = Vec::new();
        for source in &files.sources {
            if !fetch::is_url(source) {
                sources.push(Source { context: Arc::clone(&self.context), pattern: Some(source.clone()) });
                continue;
            }
            if !is_add {
                return Err(ApiError::invalid("COPY failed: source can't be a URL for COPY").into());
            }
            let context = self.download(source, &files.destination).await;
            let context = context.map_err(|error| error.context("ADD failed"))?;
            sources.push(Source { context: Arc::new(context), pattern: None });
        }
        Ok(sources)
    }

    /// Reads the sources out of an image, each into a context of its own.
    async fn read_image(&self, from: &str, files: &CopyFiles) -> Result<Vec<Source>, Failure> {
        let (image, _hold) = self.image_of_copy(from).await?;
        let config = ContainerConfig { image: Some(image.id.to_string()), ..ContainerConfig::default() };
        let container = self.create_of(&config).await?;
        let mut read = Vec::new();
        for source in &files.sources {
            match self.read_source(&container, source).await {
                Ok(context) => read.push(Source { context: Arc::new(context), pattern: Some(source.clone()) }),
                Err(error) => {
                    container.remove().await?;
                    return Err(error.into());
                }
            }
        }
        container.remove().await?;
        Ok(read)
    }

    /// The file or folder that a source names, or the folder that its pattern begins in.
    async fn read_source(&self, container: &Intermediate, source: &str) -> ApiResult<Context> {
        let failed = |reason: String| ApiError::invalid(format!("COPY failed: {reason}"));
        let path = context::clean(source).map_err(failed)?;
        let fixed: Vec<&str> = path.split('/').take_while(|name| !Pattern::has_wildcards(name)).collect();
        let path = fixed.join("/");
        let missing = || failed(format!("stat {path}: file does not exist"));
        let stat = container.stat(&format!("/{path}")).await?.ok_or_else(missing)?;
        let target = if stat.link_target.is_empty() { format!("/{path}") } else { stat.link_target };
        let folder = super::folder(&self.engine)?;
        let below = path.clone();
        let read = container.with_files(&target, move |stat, tar| {
            // What the stream calls itself is left out, since it may be the name behind a link.
            let top = usize::from(!matches!(stat.name.as_str(), "/" | "."));
            Context::spool(&folder, tar, MAX_LAYER_BYTES, (top, &below)).map_err(|error| spool_failed(&error))
        });
        read.await.map_err(|error| match error.kind {
            proto::ErrorKind::NotFound => missing(),
            _ => error,
        })
    }
}

pub(super) fn spool_failed(error: &SpoolError) -> ApiError {
    if error.is_clients() { ApiError::invalid(chain(error)) } else { ApiError::internal(chain(error)) }
}

/// What the sources name, and the hash of it all. Source: moby, builder/dockerfile/copy.go, `getSourceHashFromInfos`.
fn choose(sources: Vec<Source>, name: &str, from_context: bool) -> ApiResult<(Vec<Group>, String)> {
    let mut groups: Vec<Group> = Vec::new();
    for Source { context, pattern } in sources {
        let files = match &pattern {
            None => context.select_all(),
            Some(pattern) => context.select(pattern).map_err(|reason| {
                let hint = "file not found in build context or excluded by .dockerignore: ";
                let hint = if from_context && reason.starts_with("stat ") { hint } else { "" };
                ApiError::invalid(format!("{name} failed: {hint}{reason}"))
            })?,
        };
        match groups.last_mut() {
            Some(last) if Arc::ptr_eq(&last.context, &context) => last.files.extend(files),
            _ => groups.push(Group { context, files, fetched: pattern.is_none() }),
        }
    }
    let hashes: Vec<String> =
        groups.iter().flat_map(|group| group.files.iter().map(|file| file.hash.clone())).collect();
    let hash = match &hashes[..] {
        [] => return Err(ApiError::invalid(format!("{name} failed: no source files were specified"))),
        [one] => one.clone(),
        many => format!("multi:{}", hex::encode(Sha256::digest(many.join(",")))),
    };
    Ok((groups, hash))
}

/// Places what was chosen: archives one by one, everything else together.
async fn place_all(
    container: &Intermediate,
    Group { context, files, fetched }: Group,
    is_add: bool,
    (destination, owner, keep_owners): (&str, Option<String>, bool),
) -> ApiResult<()> {
    let mut placings: Vec<Placing> = Vec::new();
    for file in files {
        let unpack = is_add && !fetched && !file.is_folder && is_archive(&context, &file);
        let folder = unpack || file.is_folder || destination.ends_with('/');
        match placings.last_mut() {
            Some(last) if !unpack && !last.unpack && last.folder && folder => last.files.push(file),
            _ => placings.push(Placing { folder, files: vec![file], unpack }),
        }
    }
    for Placing { folder, files, unpack } in placings {
        let owner = owner.clone().filter(|_| !unpack);
        let request = FilesRequest::Place { path: destination.to_owned(), folder, owner };
        let context = Arc::clone(&context);
        let stream = Piped::start(move |mut to| match files.first() {
            Some(file) if unpack => {
                let content = context.content(file).ok_or(io::ErrorKind::NotFound)?;
                io::copy(&mut image::decompressed(content).map_err(io::Error::other)?, &mut to).map(drop)
            }
            _ => context.pack(&files, keep_owners, to),
        });
        let stream = stream.map_err(|error| ApiError::caused("cannot copy files", &error))?;
        container.place(request, stream).await.map_err(|error| match &error.message {
            // In dockerd's words without more.
            text if text.starts_with("unable to convert uid/gid") => error,
            _ => error.context("failed to copy files"),
        })?;
    }
    Ok(())
}

/// Whether ADD unpacks a file: it is a tar stream, compressed or not.
fn is_archive(context: &Context, file: &Selected) -> bool {
    let Some(content) = context.content(file) else { return false };
    let Ok(plain) = image::decompressed(content) else { return false };
    let mut block = Vec::new();
    // A stream that breaks is none; then it is copied as it is.
    plain.take(512).read_to_end(&mut block).is_ok() && is_tar_header(&block)
}

/// Whether a block's checksum is right. Source: POSIX.1-1988, ustar.
fn is_tar_header(block: &[u8]) -> bool {
    let Ok(block): Result<&[u8; 512], _> = block.try_into() else { return false };
    let header = tar::Header::from_byte_slice(block);
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    block.iter().any(|byte| *byte != 0) && header.cksum().is_ok_and(|known| known == sum)
}

/// A destination from the root; a slash at its end stays. Source: moby, `normalizeDest`.
pub(super) fn absolute(folder: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("/{folder}/{path}") };
    let mut names: Vec<&str> = Vec::new();
    for name in whole.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    let plain = format!("/{}", names.join("/"));
    if path.ends_with('/') && plain != "/" { plain + "/" } else { plain }
}

/// What a thread writes, to be read. Its failure is the end of the reading, and not the end of the stream.
struct Piped {
    reader: io::PipeReader,
    writing: Option<JoinHandle<io::Result<()>>>,
}

impl Piped {
    fn start(write: impl FnOnce(Box<dyn Write + Send>) -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let writing = std::thread::Builder::new()
            .name("build-copy".into())
            .spawn(move || write(Box::new(io::BufWriter::with_capacity(64 << 10, writer))))?;
        Ok(Self { reader, writing: Some(writing) })
    }
}

impl Read for Piped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        if count == 0
            && !buffer.is_empty()
            && let Some(writing) = self.writing.take()
        {
            writing.join().map_err(|_| io::Error::other("the copying thread panicked"))??;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_below_the_working_folder() {
        for (folder, path, expected) in [
            ("", "a", "/a"),
            ("/w", ".", "/w"),
            ("/w", "./", "/w/"),
            ("/w/", "b/../c/", "/w/c/"),
            ("/w", "/x//y", "/x/y"),
            ("", "/", "/"),
            ("/w", "../../..", "/"),
        ] {
            assert_eq!(absolute(folder, path), expected, "{folder} {path}");
        }
    }

    #[test]
    fn a_failed_writer_is_no_short_stream() {
        let mut piped = Piped::start(|mut to| {
            to.write_all(b"abc")?;
            to.flush()?;
            Err(io::Error::other("gone"))
        })
        .unwrap();
        assert_eq!(piped.read_to_end(&mut Vec::new()).unwrap_err().to_string(), "gone");
    }

    #[test]
    fn an_archive_is_known_by_its_checksum() {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_cksum();
        assert!(is_tar_header(header.as_bytes()));
        assert!(!is_tar_header(&[0; 512]) && !is_tar_header(&[b'a'; 512]) && !is_tar_header(b"short"));
    }
}
