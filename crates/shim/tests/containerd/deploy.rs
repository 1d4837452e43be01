//! What `deploy` puts onto a node. (Its handler's lines are those that every test with CRI runs.)

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::daemon::{HANDLER, can_run};
use crate::support::{SHIM, run};

fn install(files: &Path, host: &Path, restart: &Path) -> std::process::Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/installer/install");
    let restart = format!("touch {}", restart.display());
    Command::new(script).args([files, host]).env("RESTART", restart).output().unwrap()
}

#[test]
fn the_installer_adds_the_handler_once_and_restarts_for_it_only() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (files, host, restarted) = (at("files"), at("host"), at("restarted"));
    fs::create_dir(&files).unwrap();
    fs::write(files.join("containerd.toml"), HANDLER).unwrap();
    fs::copy(SHIM, files.join("containerd-shim-bulkhead-v2")).unwrap();
    fs::create_dir(&host).unwrap();
    assert!(!install(&files, &host, &restarted).status.success(), "a node without containerd");
    let config = host.join("etc/containerd/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    fs::write(&config, "version = 1\n").unwrap();
    assert!(!install(&files, &host, &restarted).status.success(), "an old configuration");
    assert!(!restarted.exists());
    fs::write(
        &config,
        "version = 2\nroot = \"/kept\"\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"mine\"\n",
    )
    .unwrap();
    for is_restarted in [true, false] {
        let said = install(&files, &host, &restarted);
        assert!(said.status.success(), "{said:?}");
        assert_eq!(restarted.exists(), is_restarted);
        let _ = fs::remove_file(&restarted);
    }
    run(Command::new(host.join("usr/local/bin/containerd-shim-bulkhead-v2")).arg("-v"));
    // As containerd itself understands it.
    let dump = Command::new("containerd").arg("--config").arg(&config).args(["config", "dump"]).output().unwrap();
    let dump = String::from_utf8(dump.stdout).unwrap();
    for words in ["root = \"/kept\"", "sandbox_image = \"mine\"", "runtime_type = \"io.containerd.bulkhead.v2\""] {
        assert_eq!(dump.matches(words).count(), 1, "{words} in {dump}");
    }
}
