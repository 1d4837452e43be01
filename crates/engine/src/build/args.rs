//! Build arguments: which are known, what they are worth, which were never asked for.
//!
//! Source: moby 20.10, builder/dockerfile/buildargs.go.

use std::collections::{BTreeMap, BTreeSet};

/// Names that a client may set without an ARG. They are no part of the cache unless there is one.
const BUILT_IN: [&str; 8] =
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "FTP_PROXY", "ftp_proxy", "NO_PROXY", "no_proxy"];

/// The arguments of a build, at one place of its Dockerfile.
#[derive(Debug, Clone, Default)]
pub struct BuildArgs {
    /// What the client says; no value is a name that it did not have in its environment.
    given: BTreeMap<String, Option<String>>,
    /// Before the first FROM.
    global: BTreeMap<String, Option<String>>,
    /// Of this stage.
    allowed: BTreeMap<String, Option<String>>,
    referenced: BTreeSet<String>,
}

impl BuildArgs {
    /// With what a client gives.
    #[must_use]
    pub fn new(given: BTreeMap<String, Option<String>>) -> Self {
        Self { given, ..Self::default() }
    }

    /// An ARG before the first FROM.
    pub fn add_global(&mut self, name: &str, default: Option<String>) {
        self.referenced.insert(name.to_owned());
        self.global.insert(name.to_owned(), default);
    }

    /// An ARG of a stage.
    pub fn add(&mut self, name: &str, default: Option<String>) {
        self.referenced.insert(name.to_owned());
        self.allowed.insert(name.to_owned(), default);
    }

    /// A stage begins.
    pub fn reset(&mut self) {
        self.allowed.clear();
    }

    /// What FROM can use, `NAME=value`.
    #[must_use]
    pub fn global(&self) -> Vec<String> {
        self.all(&self.global)
    }

    /// What RUN and substitutions can use beside the environment, which goes before it. Shape: sorted.
    #[must_use]
    pub fn beside(&self, environment: &[String]) -> Vec<String> {
        let known = |entry: &String| {
            let name = entry.split('=').next().unwrap_or_default();
            environment.iter().any(|known| known.split('=').next() == Some(name))
        };
        self.all(&self.allowed).into_iter().filter(|entry| !known(entry)).collect()
    }

    /// Whether a value counts for the cache.
    #[must_use]
    pub fn counts(&self, entry: &str) -> bool {
        let name = entry.split('=').next().unwrap_or_default();
        self.referenced.contains(name) || !BUILT_IN.contains(&name)
    }

    /// What the client gave and no ARG asked for. Shape: sorted.
    #[must_use]
    pub fn unused(&self) -> Vec<&str> {
        let unused = |name: &&str| !self.referenced.contains(*name) && !BUILT_IN.contains(name);
        self.given.keys().map(String::as_str).filter(unused).collect()
    }

    fn all(&self, from: &BTreeMap<String, Option<String>>) -> Vec<String> {
        let names: BTreeSet<&str> = from.keys().map(String::as_str).chain(BUILT_IN).collect();
        names.into_iter().filter_map(|name| Some(format!("{name}={}", self.value(name, from)?))).collect()
    }

    fn value(&self, name: &str, from: &BTreeMap<String, Option<String>>) -> Option<String> {
        let set = |map: &BTreeMap<String, Option<String>>| map.get(name).cloned().flatten();
        set(&self.given).or_else(|| set(from)).or_else(|| from.get(name).and_then(|_| set(&self.global)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_known_where_they_are_declared() {
        let given = [("Y", "2"), ("Z", "3"), ("HTTP_PROXY", "p")].map(|(k, v)| (k.to_owned(), Some(v.to_owned())));
        let mut args = BuildArgs::new(given.into());
        args.add_global("V", Some("box".into()));
        assert_eq!(args.global(), ["HTTP_PROXY=p", "V=box"]);
        args.add("X", Some("1".into()));
        args.add("Y", None);
        args.add("V", None);
        args.add("NONE", None);
        assert_eq!(args.beside(&[]), ["HTTP_PROXY=p", "V=box", "X=1", "Y=2"]);
        assert_eq!(args.beside(&["X=env".into(), "Y".into()]), ["HTTP_PROXY=p", "V=box"]);
        assert!(args.counts("X=1") && !args.counts("HTTP_PROXY=p"));
        args.reset();
        assert_eq!(args.beside(&[]), ["HTTP_PROXY=p"]);
        assert_eq!(args.unused(), ["Z"]);
    }
}
