//! `cargo xtask conformance`: test suites of others against this engine, beside Docker's own daemon.
//!
//! Every suite runs against every side in a session of its own: a new mount, network and process namespace with a
//! registry and the daemon. What passes against dockerd has to pass against this engine, or is an exception with a reason
//! (`tests/conformance/exceptions.txt`). Results and logs stay in `target/conformance/results`.

mod bollard;
mod docker_py;
mod exceptions;
mod images;
mod newest;
mod report;
mod results;
mod script;
mod session;
mod side;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::{suite, workspace};
use exceptions::Exceptions;
use side::Side;

/// A test suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// The integration tests of Docker's SDK for Python.
    DockerPy,
    /// The tests of the Rust client that this engine's models come from.
    Bollard,
    /// A composition of three services, by docker-compose.
    Compose,
    /// The same composition by the second docker-compose.
    Compose2,
    /// The docker CLI's answers.
    Cli,
}

impl Suite {
    const ALL: [Self; 5] = [Self::DockerPy, Self::Bollard, Self::Compose, Self::Compose2, Self::Cli];

    /// The word on the command line, in files and in tables.
    fn word(self) -> &'static str {
        match self {
            Self::DockerPy => "docker-py",
            Self::Bollard => "bollard",
            Self::Compose => "compose",
            Self::Compose2 => "compose2",
            Self::Cli => "cli",
        }
    }
}

/// Which suites, against which daemons.
#[derive(clap::Args)]
pub struct ConformanceArgs {
    /// Suite to run (repeatable) [default: all]
    #[arg(long)]
    suite: Vec<Suite>,
    /// Daemon to run it against (repeatable) [default: all]
    #[arg(long)]
    against: Vec<Side>,
    /// Run nothing, compare the last results
    #[arg(long)]
    compare: bool,
    /// This process is the session of one suite against one daemon
    #[arg(long, hide = true)]
    in_session: bool,
    /// Parts of the names of the cases to run, all if none is given
    names: Vec<String>,
}

/// The folders of a run.
pub struct Folders {
    /// `target/conformance`.
    pub root: PathBuf,
    /// `tests/conformance`.
    pub data: PathBuf,
}

impl Folders {
    fn here() -> Self {
        Self { root: workspace::target_dir().join("conformance"), data: workspace::root().join("tests/conformance") }
    }

    pub fn results(&self) -> PathBuf {
        self.root.join("results")
    }

    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }
}

pub fn run(args: &ConformanceArgs) -> anyhow::Result<()> {
    let folders = Folders::here();
    let path = folders.data.join("exceptions.txt");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let exceptions = Exceptions::parse(&text).with_context(|| format!("in {}", path.display()))?;
    let mut suites = if args.suite.is_empty() { Suite::ALL.to_vec() } else { args.suite.clone() };
    let mut sides = if args.against.is_empty() { Side::ALL.to_vec() } else { args.against.clone() };
    if args.in_session {
        let ([suite], [side]) = (&suites[..], &sides[..]) else {
            bail!("a session is of one suite against one daemon")
        };
        return session::run(&folders, *suite, *side, &exceptions, &args.names);
    }
    if !args.compare {
        prepare(&folders, &mut suites, &mut sides)?;
        for suite in &suites {
            for side in &sides {
                session::start(&folders, *suite, *side, &args.names)?;
            }
        }
    }
    if report::print(&folders, &suites, &exceptions, &args.names)? > 0 {
        bail!("this engine differs from dockerd");
    }
    Ok(())
}

/// Makes whatever sessions need and no session can make: they have no network. What needs a newer Docker than can be had is
/// taken from the lists.
fn prepare(folders: &Folders, suites: &mut Vec<Suite>, sides: &mut Vec<Side>) -> anyhow::Result<()> {
    fs::create_dir_all(folders.results()).context("cannot make the folder of the results")?;
    if (suites.contains(&Suite::Compose2) || sides.contains(&Side::Dockerd28))
        && let Err(error) = newest::prepare(folders)
    {
        let before = suites.len() + sides.len();
        suites.retain(|suite| *suite != Suite::Compose2);
        sides.retain(|side| *side != Side::Dockerd28);
        let skipped = before - suites.len() - sides.len();
        println!("SKIPPED {skipped} of compose2 and dockerd28, the newest Docker cannot be had: {error:#}");
    }
    if sides.iter().any(|side| Side::OURS.contains(side)) {
        let mut build = workspace::cargo();
        build.args(["build", "--release"]).args(suite::BINARIES.iter().flat_map(|package| ["-p", package]));
        workspace::run_checked(&mut build)?;
    }
    images::make(&folders.images())?;
    for suite in suites {
        match suite {
            Suite::DockerPy => docker_py::prepare(folders)?,
            Suite::Bollard => bollard::prepare(folders)?,
            Suite::Compose | Suite::Compose2 | Suite::Cli => {}
        }
    }
    Ok(())
}
