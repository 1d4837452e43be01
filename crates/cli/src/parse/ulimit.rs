//! `--ulimit`. Source: docker/go-units, `ParseUlimit`.

use bollard::models::ResourcesUlimits;

use crate::error::{CliError, CliResult};

/// Reads `name=soft[:hard]`; -1 is none.
///
/// # Errors
/// [`CliError::Usage`].
pub fn ulimit(text: &str) -> CliResult<ResourcesUlimits> {
    let invalid = || CliError::Usage(format!("invalid ulimit argument: {text}"));
    let (name, values) = text.split_once('=').ok_or_else(invalid)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |text: &str| text.parse::<i64>().ok().filter(|value| *value >= -1).ok_or_else(invalid);
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        let words = "ulimit soft limit must be less than or equal to hard limit";
        return Err(CliError::Usage(format!("{words}: {soft} > {hard}")));
    }
    if name.is_empty() {
        return Err(invalid());
    }
    Ok(ResourcesUlimits { name: Some(name.into()), soft: Some(soft), hard: Some(hard) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn soft_is_at_most_hard() {
        let limit = super::ulimit("nofile=5:10").unwrap();
        assert_eq!((limit.soft, limit.hard), (Some(5), Some(10)));
        assert_eq!(super::ulimit("nofile=5").unwrap().hard, Some(5));
        assert_eq!(super::ulimit("core=0:-1").unwrap().hard, Some(-1));
        for bad in ["nofile", "nofile=", "=1", "nofile=10:5", "nofile=a", "nofile=-2", "nofile=-1:5"] {
            assert!(super::ulimit(bad).is_err(), "{bad}");
        }
    }
}
