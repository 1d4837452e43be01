//! The build cache: images that steps have made, known by the image that they were made from and what was done.
//!
//! Source: moby 20.10, image/cache.

use image::Image;
use serde_json::Value;

/// What has to be the same of two configurations. The rest shows in the command.
const COMPARED: [&str; 7] = ["User", "Cmd", "Env", "Labels", "Entrypoint", "ExposedPorts", "Volumes"];

/// Whether two steps were made in containers that were configured alike.
#[must_use]
pub fn is_same(one: &Value, other: &Value) -> bool {
    one.is_object() && other.is_object() && COMPARED.iter().all(|name| filled(&one[*name]) == filled(&other[*name]))
}

/// Nothing is nothing, however it is written.
fn filled(value: &Value) -> Option<&Value> {
    match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::Array(list) if list.is_empty() => None,
        Value::Object(map) if map.is_empty() => None,
        value => Some(value),
    }
}

/// Whether an image may serve for a build that trusts some images only: it is one of them, or a part of one.
#[must_use]
pub fn is_part_of(step: &Image, trusted: &[Image]) -> bool {
    let history = |image: &Image| {
        let steps = image.config.history().clone().unwrap_or_default();
        steps.into_iter().map(|step| step.created_by().clone()).collect::<Vec<_>>()
    };
    let own = history(step);
    trusted.iter().any(|image| {
        image.id == step.id || image.diff_ids.starts_with(&step.diff_ids) && history(image).starts_with(&own)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_done_is_compared_and_where_is_not() {
        let step = json!({"Cmd": ["sh", "-c", "x"], "Env": ["A=1"], "Labels": null, "User": "", "Hostname": "a"});
        assert!(is_same(&step, &json!({"Cmd": ["sh", "-c", "x"], "Env": ["A=1"], "Labels": {}, "Hostname": "b"})));
        for other in [
            json!({"Cmd": ["sh", "-c", "y"], "Env": ["A=1"]}),
            json!({"Cmd": ["sh", "-c", "x"], "Env": ["A=2"]}),
            json!({"Cmd": ["sh", "-c", "x"], "Env": ["A=1"], "User": "web"}),
            json!({"Cmd": ["sh", "-c", "x"], "Env": ["A=1"], "Volumes": {"/v": {}}}),
            json!(null),
        ] {
            assert!(!is_same(&step, &other), "{other}");
        }
    }
}
