//! What of this workspace runs in the lab: the release binaries, the guest image, and the tests' programs.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::suite::BINARIES;
use crate::workspace;

/// The packages whose tests run in the lab, and the names of their test programs.
const TESTS: [(&str, &str); 6] = [
    ("bulkhead-container", "container"),
    ("bulkhead-uvm", "contract"),
    ("bulkhead-uvm", "container"),
    ("bulkhead-shim", "process"),
    ("bulkhead-shim", "containerd"),
    ("bulkhead-e2e", "e2e"),
];
const GUEST_IMAGE: [&str; 3] = ["boot/vmlinux", "boot/initramfs.cpio", "boot/manifest.json"];

/// Where the benchmark's program is in the target folder.
pub const BENCH: &str = "release/bulkhead-bench";

/// What is built for a run.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The binaries, and the benchmark; else both are taken as they are.
    pub binaries: bool,
    /// The tests' programs.
    pub tests: bool,
    /// The benchmark.
    pub bench: bool,
}

/// One test program.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TestProgram {
    package: String,
    name: String,
    path: PathBuf,
}

/// Everything that was built, as absolute paths below the target folder.
#[derive(Debug)]
pub struct Builds {
    files: Vec<PathBuf>,
    tests: Vec<TestProgram>,
}

impl Builds {
    /// Builds what is wanted in the release profile.
    ///
    /// # Errors
    /// When cargo fails, or there is no guest image.
    pub fn make(target: &Path, wanted: Wanted) -> Result<Self> {
        let guest_image = GUEST_IMAGE.map(|name| target.join(name));
        ensure!(
            guest_image.iter().all(|file| file.exists()),
            "there is no guest image in {}: make boot",
            target.display()
        );
        if wanted.binaries {
            let mut build = workspace::cargo();
            build.args(["build", "--release"]).args(BINARIES.iter().flat_map(|package| ["-p", package]));
            build.args(if wanted.bench { &["-p", "bulkhead-bench"][..] } else { &[] });
            workspace::run_checked(&mut build)?;
        }
        let names = ["bulkheadd", "bulkhead", "containerd-shim-bulkhead-v2", "bulkhead-vmm"];
        let mut files: Vec<PathBuf> = names.map(|name| target.join("release").join(name)).into();
        files.extend(guest_image);
        files.extend(wanted.bench.then(|| target.join(BENCH)));
        let tests = if wanted.tests { test_programs()? } else { Vec::new() };
        Ok(Self { files, tests })
    }

    /// Path of a test program.
    ///
    /// # Errors
    /// When cargo did not build it.
    pub fn test(&self, package: &str, name: &str) -> Result<&Path> {
        let found = self.tests.iter().find(|test| test.package == package && test.name == name);
        found.map(|test| test.path.as_path()).with_context(|| format!("cargo built no test {name} of {package}"))
    }

    /// Every file that the lab needs.
    pub fn files(&self) -> Vec<PathBuf> {
        self.files.iter().cloned().chain(self.tests.iter().map(|test| test.path.clone())).collect()
    }
}

/// Builds the tests of the workspace, all of them, so that it is the same build as that of `cargo xtask test`.
fn test_programs() -> Result<Vec<TestProgram>> {
    let mut command = workspace::cargo();
    command.args(["test", "--release", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    println!("+ {}", workspace::shown(&command));
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "the tests do not build ({})", output.status);
    let programs = parse(&String::from_utf8_lossy(&output.stdout));
    let wanted = |program: &TestProgram| TESTS.contains(&(program.package.as_str(), program.name.as_str()));
    Ok(programs.into_iter().filter(wanted).collect())
}

/// Reads cargo's messages, one JSON object a line. Source: The Cargo Book, "External tools", artifact messages.
fn parse(messages: &str) -> Vec<TestProgram> {
    let program = |line: &str| -> Option<TestProgram> {
        let message: Value = serde_json::from_str(line).ok()?;
        let kinds = message["target"]["kind"].as_array()?;
        if !kinds.iter().any(|kind| kind == "test") {
            return None;
        }
        // Such as `path+file:///folder/crates/uvm#bulkhead-uvm@0.1.0`.
        let (_, package) = message["package_id"].as_str()?.rsplit_once('#')?;
        Some(TestProgram {
            package: package.split('@').next()?.to_owned(),
            name: message["target"]["name"].as_str()?.to_owned(),
            path: message["executable"].as_str()?.into(),
        })
    };
    messages.lines().filter_map(program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_among_cargos_messages() {
        let message = |kind: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///w/crates/uvm#bulkhead-uvm@0.1.0",
                "target":{{"kind":["{kind}"],"name":"contract"}},"executable":{executable}}}"#
            )
            .replace('\n', "")
        };
        let text = [
            message("lib", r#""/w/target/release/deps/lib-1""#),
            message("test", "null"),
            "text of a build script".to_owned(),
            message("test", r#""/w/target/release/deps/contract-2""#),
        ];
        let expected = TestProgram {
            package: "bulkhead-uvm".into(),
            name: "contract".into(),
            path: "/w/target/release/deps/contract-2".into(),
        };
        assert_eq!(parse(&text.join("\n")), [expected]);
    }
}
