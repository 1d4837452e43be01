//! The files that are sent for a build: a folder without what `.dockerignore` leaves out, or standard input.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use proto::ignore::IgnoreList;
use tar::{Builder, EntryType, Header, HeaderMode};
use tokio::sync::mpsc;

use crate::args::build::BuildArgs;
use crate::client::body::RequestBody;
use crate::error::{CliError, CliResult};

/// Bytes of one piece, and pieces on their way.
const PIECE_BYTES: usize = 128 << 10;
const PIECES: usize = 8;
/// What a Dockerfile from elsewhere is called among the files.
const FOREIGN: &str = ".dockerfile.bulkhead";
const IGNORE: &str = ".dockerignore";

/// What is sent.
pub(super) struct Context {
    /// A tar stream.
    pub body: RequestBody,
    /// Path of the Dockerfile in it; empty for the usual one.
    pub dockerfile: String,
    /// Where the engine fetches it, if nothing is sent.
    pub remote: Option<String>,
}

impl Context {
    /// Finds out what is to be sent.
    ///
    /// # Errors
    /// The folder, the Dockerfile or `.dockerignore` cannot be read.
    pub fn open(args: &BuildArgs) -> CliResult<Self> {
        if args.context == "-" {
            return from_stdin(args);
        }
        if is_remote(&args.context) {
            let dockerfile = args.file.as_ref().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
            return Ok(Self { body: RequestBody::empty(), dockerfile, remote: Some(args.context.clone()) });
        }
        let root = PathBuf::from(&args.context);
        if !root.is_dir() {
            let text =
                format!("the build context {:?} is no folder: give one, a URL, or - for an archive", args.context);
            return Err(CliError::Usage(text).with_code(1));
        }
        let (dockerfile, foreign) = dockerfile(&root, args.file.as_deref())?;
        let ignore = match fs::read_to_string(root.join(IGNORE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(CliError::file(&root.join(IGNORE))(error)),
        };
        let ignore =
            IgnoreList::parse(&ignore).map_err(|error| CliError::Usage(format!("{IGNORE}: {error}")).with_code(1))?;
        let sent = if dockerfile.is_empty() { "Dockerfile".to_owned() } else { dockerfile.clone() };
        let folder = Folder { root, ignore, always: [IGNORE.to_owned(), sent] };
        Ok(Self { body: streamed(move |to| folder.pack(to, foreign.as_deref())), dockerfile, remote: None })
    }
}

/// Whether a context is elsewhere, as dockerd tells them: a URL, or a repository.
fn is_remote(context: &str) -> bool {
    let is_there = Path::new(context).is_dir();
    !is_there
        && ["http://", "https://", "git://", "git@", "github.com/"].iter().any(|prefix| context.starts_with(prefix))
}

/// Where the Dockerfile is among the files, and its content if it is not among them.
fn dockerfile(root: &Path, file: Option<&Path>) -> CliResult<(String, Option<Vec<u8>>)> {
    let Some(file) = file else { return Ok((String::new(), None)) };
    let whole = |path: &Path| fs::canonicalize(path).map_err(CliError::file(path));
    // As dockerd's CLI: from the working folder, or else from the context.
    let path = if file.exists() { file.to_owned() } else { root.join(file) };
    match whole(&path)?.strip_prefix(whole(root)?) {
        Ok(below) => Ok((below.to_string_lossy().into_owned(), None)),
        Err(_) => Ok((FOREIGN.to_owned(), Some(fs::read(&path).map_err(CliError::file(&path))?))),
    }
}

/// An archive, or a Dockerfile alone.
fn from_stdin(args: &BuildArgs) -> CliResult<Context> {
    let mut head = Vec::new();
    let read = io::stdin().lock().take(512).read_to_end(&mut head);
    read.map_err(CliError::local("cannot read standard input"))?;
    let compressed: [&[u8]; 4] = [&[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd], b"\xfd7zXZ\0", b"BZh"];
    let is_archive = compressed.iter().any(|magic| head.starts_with(magic))
        || head.get(257..262).is_some_and(|magic| magic == b"ustar");
    let mut rest = io::Cursor::new(head).chain(io::stdin());
    if is_archive {
        let dockerfile = args.file.as_ref().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
        let body = streamed(move |mut to| io::copy(&mut rest, &mut to).map(drop));
        return Ok(Context { body, dockerfile, remote: None });
    }
    let mut text = Vec::new();
    rest.read_to_end(&mut text).map_err(CliError::local("cannot read standard input"))?;
    let body = streamed(move |to| {
        let mut tar = Builder::new(to);
        append(&mut tar, "Dockerfile", &text)?;
        tar.into_inner()?.flush()
    });
    Ok(Context { body, dockerfile: String::new(), remote: None })
}

fn append(tar: &mut Builder<impl Write>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content)
}

/// A folder that is packed.
struct Folder {
    root: PathBuf,
    ignore: IgnoreList,
    /// What the engine needs, even if it is ignored; it takes these away itself.
    always: [String; 2],
}

impl Folder {
    fn pack(&self, to: impl Write, foreign: Option<&[u8]>) -> io::Result<()> {
        let mut tar = Builder::new(to);
        self.folder(&mut tar, Path::new(""))?;
        if let Some(content) = foreign {
            append(&mut tar, FOREIGN, content)?;
        }
        tar.into_inner()?.flush()
    }

    fn folder(&self, tar: &mut Builder<impl Write>, below: &Path) -> io::Result<()> {
        let entries: Result<Vec<_>, _> = fs::read_dir(self.root.join(below))?.collect();
        let mut names: Vec<_> = entries?.into_iter().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names {
            let path = below.join(&name);
            let metadata = fs::symlink_metadata(self.root.join(&path))?;
            let text = path.to_string_lossy();
            let excluded = self.ignore.excludes(&text) && !self.is_needed(&text);
            if !excluded {
                self.entry(tar, &path, &metadata)?;
            }
            // What is in a folder that is left out may be taken back.
            if metadata.is_dir() && (!excluded || self.ignore.takes_back()) {
                self.folder(tar, &path)?;
            }
        }
        Ok(())
    }

    fn is_needed(&self, path: &str) -> bool {
        self.always.iter().any(|needed| needed == path || needed.starts_with(&format!("{path}/")))
    }

    /// Owners are left out, as they are of this host and not of the image.
    fn entry(&self, tar: &mut Builder<impl Write>, path: &Path, metadata: &fs::Metadata) -> io::Result<()> {
        let whole = self.root.join(path);
        let mut header = Header::new_gnu();
        header.set_metadata_in_mode(metadata, HeaderMode::Complete);
        header.set_uid(0);
        header.set_gid(0);
        if metadata.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            let target = fs::read_link(whole)?;
            return tar.append_link(
                &mut header,
                path,
                Path::new(std::ffi::OsStr::from_bytes(target.as_os_str().as_bytes())),
            );
        }
        if metadata.is_dir() {
            header.set_size(0);
            return tar.append_data(&mut header, path, io::empty());
        }
        if !metadata.is_file() {
            // Sockets, devices and pipes are nothing that could be sent.
            return Ok(());
        }
        // As long as it was when it was looked at, however long it is by now.
        let content = fs::File::open(whole)?.take(metadata.len());
        let missing = io::repeat(0).take(metadata.len());
        tar.append_data(&mut header, path, Exactly { content, missing, left: metadata.len() })
    }
}

/// A file that may become shorter while it is read: the rest is zeros, since the header was sent.
struct Exactly {
    content: io::Take<fs::File>,
    missing: io::Take<io::Repeat>,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = match self.content.read(&mut buffer[..wanted])? {
            0 => self.missing.read(&mut buffer[..wanted])?,
            count => count,
        };
        self.left -= count as u64;
        Ok(count)
    }
}

/// What a thread writes, as a body.
fn streamed(write: impl FnOnce(Box<dyn Write + Send>) -> io::Result<()> + Send + 'static) -> RequestBody {
    let (pieces, body) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let sender = Sender(pieces.clone());
        if let Err(error) = write(Box::new(io::BufWriter::with_capacity(PIECE_BYTES, sender))) {
            // Nobody is there when the engine has ended the connection, and then its answer tells.
            let _ = pieces.blocking_send(Err(error));
        }
    });
    RequestBody::stream(futures_util::stream::unfold(body, async |mut body| Some((body.recv().await?, body))))
}

struct Sender(mpsc::Sender<io::Result<Bytes>>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_not_sent() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("sub/deep")).unwrap();
        for name in ["Dockerfile", ".dockerignore", "a.o", "keep.o", "sub/x", "sub/deep/kept"] {
            fs::write(root.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        let ignore = IgnoreList::parse("*\n!keep.o\n!sub/deep/kept\n!link").unwrap();
        let folder = Folder { root: root.to_owned(), ignore, always: [IGNORE.into(), "Dockerfile".into()] };
        let mut tar = Vec::new();
        folder.pack(&mut tar, Some(b"FROM x")).unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let paths: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(paths, [".dockerignore", "Dockerfile", "keep.o", "link", "sub/deep/kept", FOREIGN]);
    }
}
