//! Finding and executing a container's command, from inside the container.

use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use oci_spec::runtime::Process;

use crate::failure::CommandError;
use crate::sys;

/// Where commands are looked for when the process has no `PATH`. Source: moby `oci/defaults`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds the process' executable.
///
/// When: in the container, as the container's user, in its working directory; relative folders of `PATH` mean that one.
///
/// # Errors
/// [`CommandError`] in the words of Go's `exec.LookPath`, which Docker's clients know.
pub fn find(process: &Process) -> Result<PathBuf, CommandError> {
    let name = process.args().as_ref().and_then(|args| args.first()).filter(|name| !name.is_empty());
    let name = name.ok_or(CommandError::Empty)?.clone();
    if name.contains('/') {
        return match check(Path::new(&name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(Errno::EISDIR) => Err(CommandError::Directory { name }),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG) => {
                Err(CommandError::Missing { name })
            }
            Err(_) => Err(CommandError::Denied { name }),
        };
    }
    let path = process.env().iter().flatten().rev().find_map(|entry| entry.strip_prefix("PATH="));
    path.unwrap_or(DEFAULT_PATH)
        .split(':')
        .map(|folder| Path::new(if folder.is_empty() { "." } else { folder }).join(&name))
        .find(|candidate| check(candidate).is_ok())
        .ok_or(CommandError::NotInPath { name })
}

/// Whether this is a file that somebody may execute.
fn check(path: &Path) -> Result<(), Errno> {
    let metadata = path.metadata().map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    if metadata.is_dir() {
        Err(Errno::EISDIR)
    } else if metadata.permissions().mode() & 0o111 == 0 {
        Err(Errno::EACCES)
    } else {
        Ok(())
    }
}

/// Replaces this program by the process' command; returns only with the reason why not.
pub fn execute(process: &Process) -> CommandError {
    let path = match find(process) {
        Ok(path) => path,
        Err(error) => return error,
    };
    let shown = path.display().to_string();
    let refused = |errno| CommandError::Refused { path: shown.clone(), errno };
    let to_c = |text: &String| CString::new(text.as_bytes());
    let arguments: Result<Vec<CString>, _> = process.args().iter().flatten().map(to_c).collect();
    let environment: Result<Vec<CString>, _> = process.env().iter().flatten().map(to_c).collect();
    let file = CString::new(path.into_os_string().into_encoded_bytes());
    let (Ok(arguments), Ok(environment), Ok(file)) = (arguments, environment, file) else {
        return refused(libc::EINVAL);
    };
    sys::reset_signals();
    match nix::unistd::execve(&file, &arguments, &environment) {
        Ok(never) => match never {},
        Err(errno) => refused(errno as i32),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use oci_spec::runtime::ProcessBuilder;

    use super::*;

    fn process(command: &str, path: &str) -> Process {
        let env = vec!["PATH=/nowhere".to_owned(), format!("PATH={path}")];
        ProcessBuilder::default().args(vec![command.to_owned()]).env(env).build().unwrap()
    }

    #[test]
    fn commands_are_found_as_go_finds_them() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        for (name, mode) in [("tool", 0o755), ("text", 0o644)] {
            fs::write(at(name), "x").unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(at("dir")).unwrap();
        let path = format!("/nowhere:{}", folder.path().display());
        let find = |name: &str| super::find(&process(name, &path));

        assert_eq!(find("tool").unwrap(), folder.path().join("tool"));
        assert_eq!(find(&at("tool")).unwrap(), folder.path().join("tool"));
        assert!(matches!(find("text"), Err(CommandError::NotInPath { .. })));
        assert!(matches!(find("dir"), Err(CommandError::NotInPath { .. })));
        assert!(matches!(find(&at("text")), Err(CommandError::Denied { .. })));
        assert!(matches!(find(&at("dir")), Err(CommandError::Directory { .. })));
        assert!(matches!(find(&at("none")), Err(CommandError::Missing { .. })));
        assert!(matches!(find(""), Err(CommandError::Empty)));
    }
}
