//! Circles among the top-level modules of a crate.

use std::collections::{BTreeMap, BTreeSet};

use super::source::SourceFile;

type Graph = BTreeMap<String, BTreeSet<String>>;

/// The sets of two or more top-level modules that use each other in a circle, each sorted.
pub fn find(sources: &[SourceFile]) -> Vec<Vec<String>> {
    let mut reexports = BTreeMap::new();
    for root in sources.iter().filter(|source| source.module.is_none()) {
        reexports.extend(root.reexports.clone());
    }
    let modules: BTreeSet<&String> = sources.iter().filter_map(|source| source.module.as_ref()).collect();
    let mut graph = Graph::new();
    for source in sources {
        let Some(module) = &source.module else { continue };
        let edges = graph.entry(module.clone()).or_default();
        for used in &source.used {
            let target = reexports.get(used).unwrap_or(used);
            if modules.contains(target) && target != module {
                edges.insert(target.clone());
            }
        }
    }
    components(&graph)
}

/// Two modules are in one circle when each can be reached from the other.
fn components(graph: &Graph) -> Vec<Vec<String>> {
    let reach: BTreeMap<&String, BTreeSet<&String>> = graph.keys().map(|from| (from, reachable(graph, from))).collect();
    let mut found: BTreeSet<Vec<String>> = BTreeSet::new();
    for from in graph.keys() {
        let circle: Vec<String> = graph
            .keys()
            .filter(|to| *to == from || (reach[from].contains(to) && reach[*to].contains(from)))
            .cloned()
            .collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

fn reachable<'g>(graph: &'g Graph, from: &String) -> BTreeSet<&'g String> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&String> = graph.get(from).into_iter().flatten().collect();
    while let Some(module) = open.pop() {
        if seen.insert(module) {
            open.extend(graph.get(module).into_iter().flatten());
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile::parse(Path::new("/w"), Path::new("/w/src"), &Path::new("/w/src").join(path), text).unwrap()
    }

    #[test]
    fn a_circle_over_three_modules_is_found_once() {
        let sources = [
            file("lib.rs", "mod a; mod b; mod c; mod d;"),
            file("a.rs", "use crate::b::X;"),
            file("b/deep.rs", "fn f() { crate::c::g() }"),
            file("c.rs", "use super::a;"),
            file("d.rs", "use crate::a;"),
        ];
        assert_eq!(find(&sources), [["a", "b", "c"]]);
    }

    #[test]
    fn reexports_of_the_root_groups_and_macros_are_followed() {
        let sources = [
            file("lib.rs", "mod a; mod b; pub use b::{Thing, other};"),
            file("a.rs", "use crate::{Thing};"),
            file("b.rs", "fn f() { log!(\"{}\", crate::a::ONE) }"),
        ];
        assert_eq!(find(&sources), [["a", "b"]]);
    }

    #[test]
    fn tests_and_inner_supers_make_no_arrows() {
        let sources = [
            file("lib.rs", "mod a; mod b;"),
            file("a.rs", "use crate::b; mod inner { use super::x; }"),
            file("b.rs", "#[cfg(test)] mod tests { use crate::a; }"),
        ];
        assert!(find(&sources).is_empty());
    }
}
