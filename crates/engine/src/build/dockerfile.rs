//! The language of Dockerfiles, without anything that carries it out: [`lines`] joins lines, [`instruction`] reads each of them,
//! [`stages`] puts them into stages, [`words`] puts variables in. The errors are dockerd's, word for word.
//!
//! Source: moby 20.10, buildkit's `frontend/dockerfile/{parser,instructions,shell}`; docs/design/0013-build.md says why no crate.

mod duration;
mod flags;
mod instruction;
mod lines;
mod stages;
mod words;

pub use instruction::{Command, CopyFiles, HealthCheck, Pair, Shelled};
pub use stages::{Dockerfile, Stage, Step, trigger};
pub use words::Substitution;
