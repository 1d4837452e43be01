//! The version of the protocol that the guest's program speaks: what its manifest says, and what a host compares before it boots the image.
//!
//! It is read from the source, so that xtask need not build the protocol.

use anyhow::{Context, Result, bail, ensure};
use syn::{Expr, Item, Lit};

/// Where the constant stands, below the workspace's root.
pub const SOURCE: &str = "crates/proto/src/gcs.rs";
const NAME: &str = "VERSION";

/// The value of the constant in the text of [`SOURCE`].
///
/// # Errors
/// It is not there, or no plain number.
pub fn version(source: &str) -> Result<u32> {
    let file = syn::parse_file(source).with_context(|| format!("cannot read {SOURCE}"))?;
    let constant = file.items.iter().find_map(|item| match item {
        Item::Const(constant) if constant.ident == NAME => Some(&constant.expr),
        _ => None,
    });
    let Some(Expr::Lit(literal)) = constant.map(AsRef::as_ref) else {
        bail!("{SOURCE} has no constant {NAME} that is a number");
    };
    let Lit::Int(number) = &literal.lit else { bail!("{NAME} in {SOURCE} is no number") };
    let version = number.base10_parse().with_context(|| format!("{NAME} in {SOURCE}"))?;
    ensure!(version > 0, "{NAME} in {SOURCE} is 0, which is what a guest says that says nothing");
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constant_is_read_where_it_stands() {
        assert!(version(include_str!("../../../crates/proto/src/gcs.rs")).is_ok_and(|version| version >= 5));
        assert_eq!(version("/// Text.\npub const VERSION: u32 = 12;").unwrap(), 12);
        for text in
            ["", "pub const VERSION: u32 = 1 + 2;", "pub const VERSION: &str = \"5\";", "const VERSION: u32 = 0;"]
        {
            assert!(version(text).is_err(), "{text}");
        }
    }
}
