//! Which crate may use which. Source: ARCHITECTURE.md, "Arrows".

use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::workspace;

/// Prefix of the package names of everything that is shipped.
const PREFIX: &str = "bulkhead-";

/// Every crate with its level and what it may use. Development crates stand above everything that is shipped.
const ALLOWED: &[(&str, u8, &[&str])] = &[
    ("proto", 0, &[]),
    ("jail", 0, &[]),
    ("container", 1, &["proto"]),
    ("image", 1, &["jail", "proto"]),
    ("network", 1, &["proto"]),
    ("vmm", 1, &["jail", "proto"]),
    ("uvm", 2, &["vmm", "proto"]),
    ("guest", 3, &["container", "network", "proto"]),
    ("shim", 3, &["uvm", "container", "image", "network", "proto"]),
    ("engine", 3, &["image", "network", "proto"]),
    ("cli", 3, &["proto"]),
    ("e2e", 4, &["proto"]),
    ("bench", 5, &["proto", "container", "vmm", "uvm", "e2e"]),
    ("xtask", 5, &["proto", "e2e"]),
];

/// A crate of the workspace.
pub struct Package {
    /// Name without the prefix.
    pub name: String,
    pub folder: PathBuf,
    /// Names of the workspace's crates it depends on, in whatever way, without the prefix.
    pub uses: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<MetadataDependency>,
}

#[derive(Deserialize)]
struct MetadataDependency {
    name: String,
    path: Option<PathBuf>,
}

/// Asks cargo for the workspace's crates.
pub fn packages() -> anyhow::Result<Vec<Package>> {
    let output = workspace::cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    parse(&output.stdout)
}

fn parse(json: &[u8]) -> anyhow::Result<Vec<Package>> {
    let metadata: Metadata = serde_json::from_slice(json).context("cargo metadata printed no metadata")?;
    Ok(metadata
        .packages
        .into_iter()
        .map(|package| Package {
            name: short(&package.name),
            folder: package.manifest_path.parent().map(PathBuf::from).unwrap_or_default(),
            uses: package.dependencies.iter().filter(|d| d.path.is_some()).map(|d| short(&d.name)).collect(),
        })
        .collect())
}

fn short(name: &str) -> String {
    name.strip_prefix(PREFIX).unwrap_or(name).to_owned()
}

/// One line for each arrow that is not allowed, and for each crate that has no place.
pub fn check(packages: &[Package]) -> Vec<String> {
    let mut problems = Vec::new();
    for package in packages {
        let Some((_, _, allowed)) = ALLOWED.iter().find(|(name, ..)| *name == package.name) else {
            problems
                .push(format!("{}: this crate has no place in the layers of xtask/src/arch/arrows.rs", package.name));
            continue;
        };
        for used in package.uses.iter().filter(|used| !allowed.contains(&used.as_str())) {
            problems.push(format!("{} -> {used}: this arrow is not allowed", package.name));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, uses: &[&str]) -> Package {
        Package { name: name.into(), folder: PathBuf::new(), uses: uses.iter().map(|&u| u.to_owned()).collect() }
    }

    #[test]
    fn every_allowed_arrow_points_to_a_lower_level() {
        let level = |name: &str| ALLOWED.iter().find(|(n, ..)| *n == name).map(|(_, level, _)| *level);
        for (name, own, uses) in ALLOWED {
            for used in *uses {
                let below = level(used).unwrap_or(u8::MAX);
                assert!(below < *own, "{name} -> {used}");
            }
        }
    }

    #[test]
    fn an_arrow_up_sideways_or_from_nowhere_is_a_problem() {
        assert!(check(&[package("shim", &["uvm", "proto"])]).is_empty());
        for (name, used) in [("proto", "engine"), ("image", "container"), ("engine", "shim"), ("surprise", "proto")] {
            assert_eq!(check(&[package(name, &[used])]).len(), 1, "{name} -> {used}");
        }
    }

    #[test]
    fn cargo_metadata_is_understood() {
        let json =
            br#"{"packages":[{"name":"bulkhead-shim","manifest_path":"/w/crates/shim/Cargo.toml","dependencies":[
            {"name":"bulkhead-uvm","path":"/w/crates/uvm"},{"name":"serde"}]}]}"#;
        let packages = parse(json).unwrap();
        assert_eq!((packages[0].name.as_str(), packages[0].uses.as_slice()), ("shim", &["uvm".to_owned()][..]));
        assert_eq!(packages[0].folder, PathBuf::from("/w/crates/shim"));
    }
}
