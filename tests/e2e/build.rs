//! Compiles the program that containers run in the tests of the vsock. A test holds it, so that it needs no compiler where it runs.

use std::path::Path;
use std::process::Command;

fn main() {
    let source = "vsock_peer.c";
    println!("cargo:rerun-if-changed={source}");
    let program = Path::new(&std::env::var_os("OUT_DIR").expect("cargo says where")).join("vsock-peer");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(compiler)
        .args(["-static", "-s", "-O1", "-Wall", "-Werror", "-o"])
        .arg(program)
        .arg(source)
        .status();
    assert!(status.expect("a C compiler").success(), "{source} does not compile");
}
