//! `--restart`.

use bollard::models::{RestartPolicy, RestartPolicyNameEnum};

use crate::error::{CliError, CliResult};

/// Reads `no`, `always`, `unless-stopped` or `on-failure[:N]`.
///
/// # Errors
/// [`CliError::Usage`].
pub fn policy(text: &str) -> CliResult<RestartPolicy> {
    let invalid = |why: &str| CliError::Usage(format!("invalid restart policy {text:?}: {why}"));
    let (name, count) = text.split_once(':').map_or((text, None), |(name, count)| (name, Some(count)));
    let count = count.map(|count| count.parse::<i64>().map_err(|_| invalid("the count is no number"))).transpose()?;
    let name = match name {
        "" | "no" => RestartPolicyNameEnum::NO,
        "always" => RestartPolicyNameEnum::ALWAYS,
        "unless-stopped" => RestartPolicyNameEnum::UNLESS_STOPPED,
        "on-failure" => RestartPolicyNameEnum::ON_FAILURE,
        _ => return Err(invalid("choose no, on-failure[:N], always or unless-stopped")),
    };
    if count.is_some() && name != RestartPolicyNameEnum::ON_FAILURE {
        return Err(invalid("only on-failure has a count"));
    }
    Ok(RestartPolicy { name: Some(name), maximum_retry_count: count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_are_counted() {
        assert_eq!(policy("on-failure:3").unwrap().maximum_retry_count, Some(3));
        assert_eq!(policy("always").unwrap().name, Some(RestartPolicyNameEnum::ALWAYS));
        for bad in ["sometimes", "always:3", "on-failure:x"] {
            assert!(policy(bad).is_err(), "{bad}");
        }
    }
}
