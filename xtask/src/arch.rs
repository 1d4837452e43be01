//! `cargo xtask arch`: what the compiler does not check about the shape of this workspace.
//!
//! Crate arrows point down, modules form no cycles, ARCHITECTURE.md names only paths that exist, no file has over 600
//! lines and no function over 60 (tests aside), and `unsafe` stands only in files named `sys.rs`. What is over a limit
//! for a good reason stands in `arch-exceptions.txt` with its measure; an entry that is no longer needed, or larger than
//! needed, is an error too, so that the list only shrinks.

mod arrows;
mod cycles;
mod exceptions;
mod map;
mod source;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::workspace;
use exceptions::Exceptions;
use source::SourceFile;

/// Lines of a file that are not tests.
const MAX_FILE_LINES: usize = 600;
/// Lines of a function's body that are neither blank nor comment, as clippy counts them.
const MAX_FUNCTION_LINES: usize = 60;

pub fn run() -> anyhow::Result<()> {
    let root = workspace::root();
    let mut exceptions = Exceptions::read(&root.join("xtask/arch-exceptions.txt"))?;
    let mut problems = Vec::new();

    let packages = arrows::packages()?;
    problems.extend(arrows::check(&packages));
    let mut files = 0;
    let mut functions = 0;
    for package in &packages {
        let sources = read_sources(&root, &package.folder.join("src"))?;
        files += sources.len();
        functions += sources.iter().map(|source| source.functions.len()).sum::<usize>();
        for source in &sources {
            problems.extend(check_sizes(source, &mut exceptions));
            problems.extend(check_unsafe(source));
        }
        for cycle in cycles::find(&sources) {
            let key = format!("cycle {} {}", package.name, cycle.join(","));
            if !exceptions.allows(&key, cycle.len()) {
                problems.push(format!(
                    "{}: modules use each other in a circle: {}; move what they share below them",
                    package.name,
                    cycle.join(", ")
                ));
            }
        }
    }
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("cannot read ARCHITECTURE.md")?;
    problems.extend(map::check(&text, &|path| root.join(path).exists()));
    problems.extend(exceptions.unused());

    if !problems.is_empty() {
        for problem in &problems {
            println!("arch: {problem}");
        }
        bail!("{} problems of architecture", problems.len());
    }
    println!(
        "arch: {} crates, {files} files, {functions} functions: arrows, cycles, sizes, unsafe, map: good",
        packages.len()
    );
    Ok(())
}

fn check_sizes(source: &SourceFile, exceptions: &mut Exceptions) -> Vec<String> {
    let mut problems = Vec::new();
    if source.lines > MAX_FILE_LINES && !exceptions.allows(&format!("file {}", source.shown), source.lines) {
        problems.push(format!("{}: {} lines without tests, over {MAX_FILE_LINES}", source.shown, source.lines));
    }
    for function in &source.functions {
        let key = format!("function {} {}", source.shown, function.name);
        if function.lines > MAX_FUNCTION_LINES && !exceptions.allows(&key, function.lines) {
            problems.push(format!(
                "{}:{}: function {} has {} lines, over {MAX_FUNCTION_LINES}",
                source.shown, function.line, function.name, function.lines
            ));
        }
    }
    problems
}

fn check_unsafe(source: &SourceFile) -> Vec<String> {
    if source.path.file_name().is_some_and(|name| name == "sys.rs") {
        return Vec::new();
    }
    source
        .unsafe_lines
        .iter()
        .map(|line| format!("{}:{line}: unsafe outside a file named sys.rs", source.shown))
        .collect()
}

/// Reads every Rust file below a folder that is not a test.
fn read_sources(root: &Path, folder: &Path) -> anyhow::Result<Vec<SourceFile>> {
    let mut sources = Vec::new();
    for path in rust_files(folder)? {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        sources.push(SourceFile::parse(root, folder, &path, &text)?);
    }
    Ok(sources)
}

fn rust_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "tests" {
                open.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") && name != "tests.rs" {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
