//! How links are written: `--link NAME:ALIAS`.

use proto::ContainerId;
use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ApiResult};

/// A container that another one knows by a name of its own on the default bridge, where names do not resolve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The name.
    pub alias: String,
    /// The container that is meant.
    pub target: ContainerId,
}

/// Reads `NAME`, `NAME:ALIAS`, or what `inspect` shows: `/NAME:/OWNER/ALIAS`. Source: moby `opts.ParseLink`.
///
/// # Errors
/// 400 in dockerd's words.
pub fn parse_link(text: &str) -> ApiResult<(&str, &str)> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [""] => Err(ApiError::invalid("empty string specified for links")),
        [name] => Ok((name, name)),
        [name, alias] => Ok(match name.strip_prefix('/') {
            Some(name) => (name, alias.rsplit('/').next().unwrap_or(alias)),
            None => (name, alias),
        }),
        _ => Err(ApiError::invalid(format!("bad format for links: {text}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_in_all_their_forms() {
        for (text, parsed) in [("db", ("db", "db")), ("db:x", ("db", "x")), ("/db:/web/x", ("db", "x"))] {
            assert_eq!(parse_link(text).unwrap(), parsed);
        }
        for bad in ["", "a:b:c"] {
            assert_eq!(parse_link(bad).unwrap_err().http_status(), 400);
        }
    }
}
