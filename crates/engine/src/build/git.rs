//! Contexts out of git repositories: fetched by the host's program `git`, and never checked out.
//!
//! The repository is a stranger's. Its newest state goes into a bare repository that is gone with the build; the files are
//! read out of it as a tar stream and taken in as any other context, so no link and no name of it meets a file of the host, and
//! neither hooks nor filters are run. Git sees nothing of the engine's environment but proxies.
//! Source: moby 20.10, builder/remotecontext/git.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use image::limits::MAX_LAYER_BYTES;
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::copy::spool_failed;
use super::submodules::Submodule;
use crate::containers::random_id;
use crate::error::{ApiError, ApiResult};

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes of one file that git may write: a pack, first of all.
const MAX_FILE_BYTES: u64 = 8 << 30;
/// Bytes of what git says, as they are shown.
const MAX_SAID: u64 = 4096;
/// Repositories in repositories, and repositories in all.
const MAX_DEPTH: usize = 8;
const MAX_REPOSITORIES: usize = 100;
/// Environment that git needs where the network is reached by a proxy, or by authorities of its own.
const KEPT: [&str; 10] = [
    "PATH",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "GIT_SSL_CAINFO",
];
/// Files are as a checkout would have them, whatever the repository wants archives to be like.
const ATTRIBUTES: &str = "* -export-ignore -export-subst\n";

/// A repository, and what of it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitUrl {
    /// As git takes it.
    pub remote: String,
    /// A branch, a tag or a commit; `HEAD` is what the repository itself begins with.
    pub reference: String,
    /// A folder in it; empty for all of it.
    pub folder: String,
}

impl GitUrl {
    /// Whether a text means a repository. Source: moby 20.10, pkg/urlutil.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        let path = text.split('#').next().unwrap_or_default();
        crate::fetch::is_url(text) && path.ends_with(".git")
            || ["git://", "github.com/", "git@"].iter().any(|prefix| text.starts_with(prefix))
    }

    /// Reads `REPOSITORY[#[REFERENCE][:FOLDER]]`.
    ///
    /// # Errors
    /// 400 for a reference that git would take for an option.
    pub fn parse(text: &str) -> ApiResult<Self> {
        let (remote, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (reference, folder) = fragment.split_once(':').unwrap_or((fragment, ""));
        if reference.starts_with('-') {
            return Err(ApiError::invalid(format!("invalid refspec: {reference}")));
        }
        let remote = if remote.starts_with("github.com/") { format!("https://{remote}") } else { remote.to_owned() };
        let reference = if reference.is_empty() { "HEAD" } else { reference };
        Ok(Self { remote, reference: reference.to_owned(), folder: folder.to_owned() })
    }
}

/// Fetches a repository with its submodules. Shape: `folder` is where it may keep files meanwhile. When: in a thread that may wait.
///
/// # Errors
/// Git is not there, or says no; the folder is not in it; it is too large, or takes too long.
pub fn context(folder: &Path, url: &GitUrl, cancelled: &CancellationToken) -> ApiResult<Context> {
    let mut context = Context::empty(folder).map_err(|error| spool_failed(&error))?;
    let mut fetching = Fetching {
        folder,
        cancelled,
        deadline: Instant::now() + PATIENCE,
        left: MAX_REPOSITORIES,
        context: &mut context,
    };
    fetching.repository(&url.remote, &url.reference, "", 0)?;
    if url.folder.is_empty() {
        return Ok(context);
    }
    let missing = || ApiError::invalid(format!("error setting git context, not a directory: {}", url.folder));
    context.narrowed(&url.folder).ok_or_else(missing)
}

/// A context that is filled from repositories.
struct Fetching<'a> {
    folder: &'a Path,
    cancelled: &'a CancellationToken,
    deadline: Instant,
    left: usize,
    context: &'a mut Context,
}

impl Fetching<'_> {
    /// Takes a repository in, at a path of the context, and then those that it has in it.
    fn repository(&mut self, remote: &str, reference: &str, at: &str, depth: usize) -> ApiResult<()> {
        self.left = self.left.checked_sub(1).filter(|_| depth < MAX_DEPTH).ok_or_else(|| {
            ApiError::invalid(format!(
                "the repository has too many submodules: {MAX_REPOSITORIES}, or {MAX_DEPTH} deep"
            ))
        })?;
        let repository = Repository::make(self.folder, self.cancelled, self.deadline)?;
        let commit = repository.fetch(remote, reference)?;
        let context = &mut *self.context;
        repository.run(&["archive", "--format=tar", &commit], "error reading the repository", |tar| {
            context.take_in(tar, MAX_LAYER_BYTES, (0, at)).map_err(|error| spool_failed(&error))
        })?;
        for Submodule { path, url, commit } in repository.submodules(&commit, remote)? {
            let at = if at.is_empty() { path } else { format!("{at}/{path}") };
            let failed = |error: ApiError| error.context(format!("error initializing submodules: {at}"));
            self.repository(&url, &commit, &at, depth + 1).map_err(failed)?;
        }
        Ok(())
    }
}

/// A bare repository, until it is dropped.
pub(super) struct Repository<'a> {
    path: PathBuf,
    cancelled: &'a CancellationToken,
    deadline: Instant,
}

impl Drop for Repository<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, "a build's repository stays until the next start: {}", self.path.display());
        }
    }
}

impl<'a> Repository<'a> {
    fn make(folder: &Path, cancelled: &'a CancellationToken, deadline: Instant) -> ApiResult<Self> {
        let path = folder.join(format!("git-{}", &random_id()?[..16]));
        let failed = |error: io::Error| ApiError::caused("cannot make a repository", &error);
        fs::create_dir(&path).map_err(failed)?;
        let made = Self { path, cancelled, deadline };
        made.run(&["init", "--quiet", "--bare", "--template="], "failed to init repo", |_| Ok(()))?;
        fs::create_dir_all(made.path.join("info")).map_err(failed)?;
        fs::write(made.path.join("info/attributes"), ATTRIBUTES).map_err(failed)?;
        Ok(made)
    }

    /// Fetches a reference; gives what git calls it then.
    fn fetch(&self, remote: &str, reference: &str) -> ApiResult<String> {
        let fetch = |options: &[&str]| {
            let words = [&["fetch", "--quiet", "--no-tags", "--no-recurse-submodules"], options].concat();
            self.run(&words, "error fetching", |_| Ok(()))
        };
        let shallow = fetch(&["--depth=1", "--", remote, reference]);
        let Err(error) = shallow else { return Ok("FETCH_HEAD".to_owned()) };
        if error.message.contains("shallow") {
            // Plain file servers have whole histories only.
            fetch(&["--", remote, reference])?;
            return Ok("FETCH_HEAD".to_owned());
        }
        let is_commit = reference.len() >= 40 && reference.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_commit {
            return Err(error);
        }
        // Some servers give commits only as part of a branch.
        fetch(&["--", remote, "+refs/heads/*:refs/heads/*"]).map_err(|_| error)?;
        Ok(reference.to_owned())
    }

    /// Runs git, and reads what it writes. Shape: `what` is said before git's own complaint.
    pub(super) fn run<T>(
        &self,
        words: &[&str],
        what: &str,
        read: impl FnOnce(&mut dyn Read) -> ApiResult<T>,
    ) -> ApiResult<T> {
        let failed = |error: io::Error| ApiError::caused(what, &error);
        let said = super::context::nameless(&self.path).map_err(failed)?;
        let mut command = self.command(words);
        let errors = said.try_clone().map_err(failed)?;
        let mut child = command.stderr(errors).stdout(Stdio::piped()).spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ApiError::internal("git contexts need the program git on the host: install git"),
            _ => failed(error),
        })?;
        let pid = Pid::from_child(&child);
        let stdout = child.stdout.take();
        let (outcome, in_time) = std::thread::scope(|scope| {
            // Dropped by whatever ends the reading.
            let (ended, watched) = std::sync::mpsc::channel::<()>();
            let watch = scope.spawn(move || self.watch(pid, &watched));
            let outcome = match stdout {
                Some(mut stdout) => read(&mut stdout),
                None => Err(ApiError::internal("git has no output")),
            };
            if outcome.is_err() {
                end(pid);
            }
            // Not reaped before nobody would end it any more: its number could be another's.
            let waited = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            drop(ended);
            (waited.map_err(|error| failed(error.into())).and(outcome), watch.join().unwrap_or(false))
        });
        let status = child.wait().map_err(failed)?;
        if !in_time {
            let why = if self.cancelled.is_cancelled() { "cancelled" } else { "it took too long" };
            return Err(ApiError::internal(format!("{what}: {why}")));
        }
        if outcome.is_ok() && !status.success() {
            return Err(ApiError::internal(format!("{what}: {}", complaint(said))));
        }
        outcome
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.env_clear().envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        for (name, value) in [
            ("LC_ALL", "C"),
            ("HOME", "/nonexistent"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ALLOW_PROTOCOL", "http:https:git:ssh"),
            ("GIT_SSH_COMMAND", "ssh -o BatchMode=yes"),
        ] {
            command.env(name, value);
        }
        for setting in [
            "core.hooksPath=/dev/null",
            "core.attributesFile=/dev/null",
            "gc.auto=0",
            "maintenance.auto=false",
            // Objects stay in one file, however few they are.
            "fetch.unpackLimit=1",
            "tar.umask=0022",
        ] {
            command.args(["-c", setting]);
        }
        command.arg("--git-dir").arg(&self.path).args(words);
        command.current_dir(&self.path).stdin(Stdio::null()).process_group(0);
        command
    }

    /// Ends git when it takes too long, or nobody wants it any more; then false. Returns when `ended` is closed.
    fn watch(&self, pid: Pid, ended: &std::sync::mpsc::Receiver<()>) -> bool {
        let limit = Rlimit { current: Some(MAX_FILE_BYTES), maximum: Some(MAX_FILE_BYTES) };
        if let Err(error) = rustix::process::prlimit(Some(pid), Resource::Fsize, limit) {
            tracing::debug!(%error, "git ended before it was bounded");
        }
        let mut in_time = true;
        while ended.recv_timeout(Duration::from_millis(50)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            if in_time && (self.cancelled.is_cancelled() || Instant::now() > self.deadline) {
                in_time = false;
                end(pid);
            }
        }
        in_time
    }
}

/// Ends git and what it has started. When: it was not waited for yet.
fn end(pid: Pid) {
    if let Err(error) = rustix::process::kill_process_group(pid, Signal::KILL) {
        tracing::debug!(%error, "git has ended by itself");
    }
}

/// What git complained of, without control characters.
fn complaint(said: File) -> String {
    let mut text = Vec::new();
    let read = rustix::fs::seek(said.as_fd(), rustix::fs::SeekFrom::Start(0)).map_err(io::Error::from);
    if let Err(error) = read.and_then(|_| said.take(MAX_SAID).read_to_end(&mut text)) {
        return format!("what git said cannot be read: {error}");
    }
    let text = String::from_utf8_lossy(&text);
    text.trim().chars().filter(|character| *character == '\n' || !character.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_known_and_cut() {
        for (text, remote, reference, folder) in [
            ("https://h/r.git", "https://h/r.git", "HEAD", ""),
            ("https://h/r.git#v1:a/b", "https://h/r.git", "v1", "a/b"),
            ("github.com/o/r#:a", "https://github.com/o/r", "HEAD", "a"),
            ("git@h:o/r.git#main", "git@h:o/r.git", "main", ""),
            ("git://h/r#x:", "git://h/r", "x", ""),
        ] {
            assert!(GitUrl::is_meant(text), "{text}");
            let expected = GitUrl { remote: remote.into(), reference: reference.into(), folder: folder.into() };
            assert_eq!(GitUrl::parse(text).unwrap(), expected);
        }
        for text in ["https://h/r.tar", "https://h/r#x.git", "ssh://h/r.git", "/r.git", "file:///r.git"] {
            assert!(!GitUrl::is_meant(text), "{text}");
        }
        assert_eq!(GitUrl::parse("git://h/r#--upload-pack=x").unwrap_err().http_status(), 400);
    }

    #[test]
    fn files_of_the_host_are_no_repositories() {
        let folder = tempfile::tempdir().unwrap();
        let url =
            GitUrl { remote: folder.path().display().to_string(), reference: "HEAD".into(), folder: String::new() };
        let error = context(folder.path(), &url, &CancellationToken::new()).unwrap_err();
        assert!(
            error.message.contains("transport 'file' not allowed") || error.message.contains("install git"),
            "{error}"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
