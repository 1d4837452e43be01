//! ARCHITECTURE.md names only what exists.

/// One line for each path in the text that does not exist. Shape: a path is a code span or the target of a link that
/// holds a `/` or ends in a known file ending; addresses, absolute paths, patterns and build results are not looked at.
pub fn check(text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut paths: Vec<&str> = code_spans(text).chain(link_targets(text)).filter(|span| is_path(span)).collect();
    paths.sort_unstable();
    paths.dedup();
    paths
        .into_iter()
        .filter(|path| !exists(path.trim_end_matches('/')))
        .map(|path| format!("ARCHITECTURE.md names {path}, which does not exist"))
        .collect()
}

fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn link_targets(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

fn is_path(span: &str) -> bool {
    let has_ending = [".rs", ".md", ".toml", ".proto", ".txt"].iter().any(|ending| span.ends_with(ending));
    let is_plain = span.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    (span.contains('/') || has_ending)
        && is_plain
        && !span.starts_with('/')
        && !span.starts_with("target/")
        && !span.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_paths_are_reported() {
        let text = "`crates/a/src/lib.rs` `crates/gone/` [x](docs/gone.md) [y](https://x.y/z) `make test` `/proc/1` \
                    `target/release` `a::b` `x/<id>` `README.md`";
        let exists = |path: &str| path == "crates/a/src/lib.rs" || path == "README.md";
        let problems = check(text, &exists);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("crates/gone/") && problems[1].contains("docs/gone.md"));
    }
}
