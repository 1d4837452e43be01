//! Fields between commas, of which one that has commas itself stands in quotes, as in `type=bind,"source=/a,b",target=/c`.

/// Takes the fields apart. Source: docker/cli `opts/mount.go` and `opts/network.go`, which read them as one line of CSV (RFC
/// 4180).
///
/// # Errors
/// What is wrong with the text.
pub fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut records = reader.records();
    let record = records.next().transpose().map_err(|error| error.to_string())?.unwrap_or_default();
    if records.next().is_some() {
        return Err("it has more than one line".into());
    }
    // The reader takes a quote within a field as it is; here it is a slip.
    match record.iter().find(|field| field.contains('"')) {
        Some(field) => Err(format!("a quote within {field:?}")),
        None => Ok(record.iter().map(str::to_owned).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_with_commas_stands_in_quotes() {
        for (text, expected) in [
            ("a=b,c", Ok(vec!["a=b", "c"])),
            ("type=bind,\"source=/a,b\",target=/c", Ok(vec!["type=bind", "source=/a,b", "target=/c"])),
            ("a,,b", Ok(vec!["a", "", "b"])),
            ("", Ok(vec![])),
            ("a=\"b\"", Err(())),
            ("a\nb", Err(())),
        ] {
            let expected = expected.map(|fields| fields.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(fields(text).map_err(drop), expected, "{text:?}");
        }
    }
}
