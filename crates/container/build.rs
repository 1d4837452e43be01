//! Builds the first process of containers with `--init` (`docker-init/main.rs`): one static program without a library, which
//! the crate carries in itself.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=docker-init");
    let variable = |name: &str| std::env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"));
    let program = PathBuf::from(variable("OUT_DIR")).join("docker-init");
    let status = Command::new(variable("RUSTC"))
        .args(["--edition", "2024", "--crate-name", "docker_init", "--crate-type", "bin"])
        .arg("--target")
        .arg(variable("TARGET"))
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "strip=symbols", "-C", "relocation-model=static"])
        // What the host's program is built for is not for every image: no C library, no loader, no start files.
        .args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-nostartfiles", "-C", "link-arg=-static"])
        .args(["-C", "link-arg=-Wl,--build-id=none", "-C", "link-arg=-Wl,-z,noexecstack"])
        .arg("-o")
        .arg(&program)
        .arg("docker-init/main.rs")
        .env_remove("RUSTFLAGS")
        .status();
    match status {
        Ok(status) if status.success() => {}
        other => panic!("docker-init does not build: {other:?}"),
    }
}
