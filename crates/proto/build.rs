//! Generates the ttrpc code of the guest compute service from `proto/gcs.proto`, and of what the engine asks a shim from
//! `proto/notices.proto` (pure Rust, no protoc).

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> io::Result<()> {
    let sources = ["gcs", "notices"].map(|name| PathBuf::from(format!("proto/{name}.proto")));
    sources.iter().for_each(|source| println!("cargo::rerun-if-changed={}", source.display()));
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set by cargo"))?);
    Codegen::new()
        .out_dir(&out)
        .inputs(sources)
        .include("proto")
        .rust_protobuf()
        .customize(Customize { async_all: true, ..Default::default() })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    for file in ["gcs.rs", "gcs_ttrpc.rs", "notices.rs", "notices_ttrpc.rs"] {
        without_inner_attributes(&out.join(file))?;
    }
    Ok(())
}

/// `include!` accepts no inner attributes or inner docs, and the generators write some at the top.
fn without_inner_attributes(path: &Path) -> io::Result<()> {
    let text = fs::read_to_string(path)?;
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("#![") && !line.starts_with("//!")).collect();
    fs::write(path, kept.join("\n"))
}
