//! `--init`: a first process of ours in front of the container's command.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use oci_spec::runtime::{Mount, MountBuilder, Spec};

use crate::spec::INIT_ANNOTATION;

/// The program, built by `build.rs`.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/docker-init"));
/// Where the container sees it, as in Docker.
const IN_CONTAINER: &str = "/sbin/docker-init";
/// Name of its file among what is kept of the container.
const FILE: &str = "docker-init";

/// Puts the first process in front of the command, if the specification asks for it. `folder` takes its file.
pub fn add(spec: &mut Spec, folder: &Path) -> io::Result<()> {
    if !spec.annotations().as_ref().is_some_and(|all| all.contains_key(INIT_ANNOTATION)) {
        return Ok(());
    }
    let file = folder.join(FILE);
    OpenOptions::new().write(true).create_new(true).mode(0o755).open(&file)?.write_all(PROGRAM)?;
    // The caller's umask is no business of the container's user.
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.push(mount(&file)?);
    spec.set_mounts(Some(mounts));
    if let Some(process) = spec.process_mut() {
        let command = process.args().clone().unwrap_or_default();
        let first = [IN_CONTAINER, "--"].map(ToOwned::to_owned);
        process.set_args(Some(first.into_iter().chain(command).collect()));
    }
    Ok(())
}

fn mount(file: &Path) -> io::Result<Mount> {
    let options = ["bind", "ro", "nosuid", "nodev"].map(ToOwned::to_owned);
    MountBuilder::default()
        .destination(IN_CONTAINER)
        .typ("bind")
        .source(file)
        .options(options)
        .build()
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::process::Command;

    use oci_spec::runtime::SpecBuilder;

    use super::*;

    #[test]
    fn the_program_ends_as_its_command_does_and_passes_signals_on() {
        let folder = tempfile::tempdir().unwrap();
        let annotations = HashMap::from([(INIT_ANNOTATION.to_owned(), String::new())]);
        let mut spec = SpecBuilder::default().annotations(annotations).build().unwrap();
        let command = spec.process().as_ref().unwrap().args().clone().unwrap();
        add(&mut spec, folder.path()).unwrap();
        let mount = spec.mounts().as_ref().unwrap().last().unwrap().clone();
        assert_eq!(mount.destination(), Path::new(IN_CONTAINER));
        let arguments = spec.process().as_ref().unwrap().args().clone().unwrap();
        assert_eq!((&arguments[..2], &arguments[2..]), (&[IN_CONTAINER.to_owned(), "--".to_owned()][..], &command[..]));
        let run = |script: &str| {
            let mut command = Command::new(mount.source().as_ref().unwrap());
            command.args(["--", "sh", "-c", script]).status().unwrap().code()
        };
        assert_eq!(run("exit 7"), Some(7));
        assert_eq!(run("kill -9 $$"), Some(137));
        // Its parent is the first process, to which the signal is sent.
        assert_eq!(run("trap 'exit 3' TERM; kill -TERM $PPID; while :; do sleep 0.01; done"), Some(3));
        let nothing = Command::new(mount.source().as_ref().unwrap()).args(["--", "no-such-command"]).output().unwrap();
        assert_eq!(nothing.status.code(), Some(127));
    }

    #[test]
    fn nothing_is_added_unless_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = SpecBuilder::default().build().unwrap();
        let before = spec.clone();
        add(&mut spec, folder.path()).unwrap();
        assert_eq!((spec, fs::read_dir(folder.path()).unwrap().count()), (before, 0));
    }
}
