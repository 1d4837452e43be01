//! One Rust file, read for what the checks ask.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::visit::Visit;

/// A file without its tests.
pub struct SourceFile {
    pub path: PathBuf,
    /// Path relative to the workspace.
    pub shown: String,
    /// The crate's top-level module it belongs to; none for the crate's root.
    pub module: Option<String>,
    /// Names used behind `crate::`, first component only.
    pub used: BTreeSet<String>,
    /// For the crate's root: which module each re-exported name comes from.
    pub reexports: BTreeMap<String, String>,
    /// Lines without test items.
    pub lines: usize,
    pub functions: Vec<Function>,
    pub unsafe_lines: Vec<usize>,
}

/// A function with a body.
pub struct Function {
    pub name: String,
    pub line: usize,
    /// Lines of its body that are neither blank nor comment.
    pub lines: usize,
}

impl SourceFile {
    /// Reads a file's text. Shape: `folder` is the crate's `src`, `path` is below it, `root` is the workspace.
    pub fn parse(root: &Path, folder: &Path, path: &Path, text: &str) -> anyhow::Result<Self> {
        let mut syntax = syn::parse_file(text).with_context(|| format!("cannot parse {}", path.display()))?;
        let mut test_lines = 0;
        syntax.items.retain(|item| {
            let is_test = is_test_item(item);
            if is_test {
                test_lines += item.span().end().line - item.span().start().line + 1;
            }
            !is_test
        });
        let inside = path.strip_prefix(folder).context("a file outside its crate")?;
        let names = module_path(inside);
        let mut tokens = TokenScan { depth: names.len(), used: BTreeSet::new(), unsafe_lines: Vec::new() };
        tokens.scan(syntax.to_token_stream(), 0);
        let mut functions = FunctionScan { lines: text.lines().collect(), found: Vec::new() };
        functions.visit_file(&syntax);
        Ok(Self {
            path: path.to_path_buf(),
            shown: path.strip_prefix(root).unwrap_or(path).display().to_string(),
            module: names.first().cloned(),
            used: tokens.used,
            reexports: if names.is_empty() { reexports(&syntax) } else { BTreeMap::new() },
            lines: text.lines().count() - test_lines,
            functions: functions.found,
            unsafe_lines: tokens.unsafe_lines,
        })
    }
}

/// The modules from the crate's root to a file: none for `lib.rs` and `main.rs`.
fn module_path(inside: &Path) -> Vec<String> {
    let mut names: Vec<String> = inside.with_extension("").iter().map(|n| n.to_string_lossy().into_owned()).collect();
    if names.last().is_some_and(|last| last == "mod") || names == ["lib"] || names == ["main"] {
        names.pop();
    }
    names
}

fn is_test_item(item: &syn::Item) -> bool {
    let attributes = match item {
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        _ => return false,
    };
    attributes.iter().any(|attribute| {
        let text = attribute.meta.to_token_stream().to_string().replace(' ', "");
        text == "test" || text == "cfg(test)" || text.starts_with("cfg(all(test")
    })
}

fn reexports(syntax: &syn::File) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for item in &syntax.items {
        let syn::Item::Use(item) = item else { continue };
        let syn::UseTree::Path(path) = &item.tree else { continue };
        let (module, rest) = match (path.ident.to_string().as_str(), &*path.tree) {
            ("crate" | "self", syn::UseTree::Path(inner)) => (inner.ident.to_string(), &*inner.tree),
            (module, rest) => (module.to_owned(), rest),
        };
        collect_names(rest, &module, &mut found);
    }
    found
}

fn collect_names(tree: &syn::UseTree, module: &str, found: &mut BTreeMap<String, String>) {
    match tree {
        syn::UseTree::Path(path) => collect_names(&path.tree, module, found),
        syn::UseTree::Name(name) => drop(found.insert(name.ident.to_string(), module.to_owned())),
        syn::UseTree::Rename(name) => drop(found.insert(name.rename.to_string(), module.to_owned())),
        syn::UseTree::Group(group) => group.items.iter().for_each(|item| collect_names(item, module, found)),
        syn::UseTree::Glob(_) => {}
    }
}

/// Walks all tokens, those inside of macros too.
struct TokenScan {
    /// How many `super::` lead to the crate's root, outside of inline modules.
    depth: usize,
    used: BTreeSet<String>,
    unsafe_lines: Vec<usize>,
}

impl TokenScan {
    /// `inline` counts the inline modules around these tokens.
    fn scan(&mut self, stream: TokenStream, inline: usize) {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        let mut supers = 0;
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Ident(word) if word == "unsafe" => self.unsafe_lines.push(word.span().start().line),
                TokenTree::Ident(word) if word == "crate" => self.take_path(&tokens[at + 1..]),
                TokenTree::Ident(word) if word == "super" => {
                    supers = if at >= 3 && is_ident(&tokens[at - 3], "super") { supers + 1 } else { 1 };
                    if supers == self.depth + inline {
                        self.take_path(&tokens[at + 1..]);
                    }
                }
                TokenTree::Group(group) => {
                    let is_module = at >= 2 && is_ident(&tokens[at - 2], "mod");
                    self.scan(group.stream(), inline + usize::from(is_module));
                }
                _ => {}
            }
        }
    }

    /// Takes the first names behind `crate`, such as `::a::B` or `::{a, b::C}`.
    fn take_path(&mut self, rest: &[TokenTree]) {
        if !matches!(rest, [TokenTree::Punct(a), TokenTree::Punct(b), ..] if a.as_char() == ':' && b.as_char() == ':') {
            return;
        }
        match rest.get(2) {
            Some(TokenTree::Ident(name)) => drop(self.used.insert(name.to_string())),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let mut is_first = true;
                for token in group.stream() {
                    match token {
                        TokenTree::Ident(name) if is_first => {
                            self.used.insert(name.to_string());
                            is_first = false;
                        }
                        TokenTree::Punct(mark) if mark.as_char() == ',' => is_first = true,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

fn is_ident(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == word)
}

struct FunctionScan<'t> {
    lines: Vec<&'t str>,
    found: Vec<Function>,
}

impl FunctionScan<'_> {
    fn add(&mut self, name: &syn::Ident, body: &syn::Block) {
        let (first, last) = (body.span().start().line, body.span().end().line);
        let lines = self.lines.get(first..last.saturating_sub(1)).unwrap_or_default();
        let counted = lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty() && !line.starts_with("//"));
        self.found.push(Function { name: name.to_string(), line: first, lines: counted.count() });
    }
}

impl<'ast> Visit<'ast> for FunctionScan<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.add(&item.sig.ident, &item.block);
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add(&item.sig.ident, &item.block);
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.add(&item.sig.ident, body);
        }
        syn::visit::visit_trait_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str, text: &str) -> SourceFile {
        SourceFile::parse(Path::new("/w"), Path::new("/w/src"), &Path::new("/w/src").join(path), text).unwrap()
    }

    #[test]
    fn functions_are_counted_without_blank_lines_comments_and_tests() {
        let text =
            "fn a() {\n    // why\n\n    one();\n    two();\n}\n#[cfg(test)]\nmod tests {\n    fn t() {\n    }\n}\n";
        let file = parse("a.rs", text);
        assert_eq!(file.functions.len(), 1);
        assert_eq!((file.functions[0].name.as_str(), file.functions[0].lines, file.lines), ("a", 2, 6));
    }

    #[test]
    fn unsafe_is_found_in_blocks_functions_and_macros_but_not_in_words() {
        let text =
            "#![forbid(unsafe_code)]\nfn f() { unsafe { g() } }\nunsafe fn h() {}\nm! { unsafe {} }\n// unsafe\n";
        assert_eq!(parse("a.rs", text).unsafe_lines, [2, 3, 4]);
    }

    #[test]
    fn modules_come_from_paths() {
        for (path, module) in
            [("lib.rs", None), ("main.rs", None), ("a.rs", Some("a")), ("a/mod.rs", Some("a")), ("a/b.rs", Some("a"))]
        {
            assert_eq!(parse(path, "").module.as_deref(), module, "{path}");
        }
    }
}
