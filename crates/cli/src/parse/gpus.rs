//! `--gpus`: `all`, a number, or `device=0,driver=nvidia,…`.

use std::collections::HashMap;

use bollard::models::DeviceRequest;

use super::fields::fields;
use crate::error::{CliError, CliResult};

/// What the engine reads as all that there are.
const ALL: i64 = -1;

/// Reads every flag. One GPU is asked for where neither a number nor devices are said. Source: docker/cli `opts/gpus.go`.
///
/// # Errors
/// [`CliError::Usage`].
pub fn requests(list: &[String]) -> CliResult<Option<Vec<DeviceRequest>>> {
    (!list.is_empty()).then(|| list.iter().map(|text| request(text)).collect()).transpose()
}

fn request(text: &str) -> CliResult<DeviceRequest> {
    let invalid = |what: String| CliError::Usage(format!("invalid argument {text:?} for --gpus: {what}"));
    let mut request = DeviceRequest { options: Some(HashMap::new()), ..DeviceRequest::default() };
    let mut seen = Vec::new();
    for field in fields(text).map_err(invalid)? {
        let (key, value) = field.split_once('=').unwrap_or(("count", &field));
        if seen.iter().any(|one| one == key) {
            return Err(invalid(format!("{key:?} stands there twice")));
        }
        seen.push(key.to_owned());
        let list = || value.split(',').map(str::to_owned).collect::<Vec<_>>();
        match key {
            "driver" => request.driver = Some(value.to_owned()),
            "count" => request.count = Some(count(value).map_err(invalid)?),
            "device" => request.device_ids = Some(list()),
            "capabilities" => request.capabilities = Some(vec![[list(), vec!["gpu".into()]].concat()]),
            "options" => request.options = Some(options(value).map_err(invalid)?),
            _ => return Err(invalid(format!("{key:?} is none of driver, count, device, capabilities, options"))),
        }
    }
    if request.count.is_none() && request.device_ids.is_none() {
        request.count = Some(1);
    }
    request.capabilities.get_or_insert_with(|| vec![vec!["gpu".into()]]);
    Ok(request)
}

fn count(text: &str) -> Result<i64, String> {
    match text {
        "all" => Ok(ALL),
        _ => text.parse().map_err(|_| format!("count {text:?} is neither a number nor \"all\"")),
    }
}

fn options(text: &str) -> Result<HashMap<String, String>, String> {
    let pair = |field: String| match field.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (field, String::new()),
    };
    Ok(fields(text)?.into_iter().map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read() {
        let read = |text: &str| request(text).unwrap();
        for (text, count) in [("all", Some(-1)), ("2", Some(2)), ("count=3", Some(3)), ("driver=nvidia", Some(1))] {
            assert_eq!(read(text).count, count, "{text}");
        }
        let devices = read("\"device=0,GPU-3a\",driver=nvidia,\"capabilities=compute,utility\",\"options=a=b,c\"");
        assert_eq!((devices.count, devices.driver.as_deref()), (None, Some("nvidia")));
        assert_eq!(devices.device_ids.unwrap(), ["0", "GPU-3a"]);
        assert_eq!(devices.capabilities.unwrap(), [["compute", "utility", "gpu"]]);
        assert_eq!(devices.options.unwrap(), HashMap::from([("a".into(), "b".into()), ("c".into(), String::new())]));
        assert_eq!(read("all").capabilities.unwrap(), [["gpu"]]);
    }

    #[test]
    fn slips_are_told() {
        for (text, told) in [
            ("many", "neither a number"),
            ("all,count=2", "\"count\" stands there twice"),
            ("gpu=1", "\"gpu\" is none of"),
            ("driver=a,driver=b", "\"driver\" stands there twice"),
        ] {
            let error = request(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
