//! The functions of templates. Source: docker/cli `templates/templates.go`; Go, `text/template`.

use std::cmp::Ordering;

use serde_json::Value;

use super::{TemplateError, is_true, show};

/// Applies a function.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, TemplateError> {
    let wrong = || TemplateError::Value(format!("wrong arguments for {name}"));
    let text = |text: String| Ok(Value::String(text));
    match (name, arguments) {
        ("json", [value]) => text(value.to_string()),
        ("upper", [value]) => text(show(value).to_uppercase()),
        ("lower", [value]) => text(show(value).to_lowercase()),
        ("title", [value]) => {
            let shown = show(value);
            let mut letters = shown.chars();
            text(letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect()))
        }
        ("println", [value]) => text(show(value) + "\n"),
        ("print", values) => text(values.iter().map(show).collect()),
        ("len", [value]) => match value {
            Value::Array(items) => Ok(items.len().into()),
            Value::Object(fields) => Ok(fields.len().into()),
            Value::String(text) => Ok(text.len().into()),
            Value::Null => Ok(0.into()),
            _ => Err(wrong()),
        },
        ("join", [Value::Array(items), Value::String(between)]) => {
            text(items.iter().map(show).collect::<Vec<_>>().join(between))
        }
        ("split", [Value::String(whole), Value::String(at)]) => Ok(whole.split(at.as_str()).map(Value::from).collect()),
        ("printf", [Value::String(format), values @ ..]) => text(printf(format, values)?),
        ("slice", [value, bounds @ ..]) if bounds.len() <= 2 => slice(value, bounds).ok_or_else(wrong),
        ("truncate", [value, Value::Number(length)]) => {
            let length = length.as_u64().and_then(|length| usize::try_from(length).ok()).ok_or_else(wrong)?;
            text(show(value).chars().take(length).collect())
        }
        ("pad", [value, Value::Number(before), Value::Number(after)]) => {
            let blanks =
                |count: &serde_json::Number| count.as_u64().map(|count| " ".repeat(count.min(MAX_BLANKS) as usize));
            let (before, after) = blanks(before).zip(blanks(after)).ok_or_else(wrong)?;
            let shown = show(value);
            text(if shown.is_empty() { shown } else { format!("{before}{shown}{after}") })
        }
        ("index", [value, keys @ ..]) => keys.iter().try_fold(value.clone(), |value, key| index(&value, key)),
        ("not", [value]) => Ok(Value::Bool(!is_true(value))),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => Ok(Value::Bool(rest.contains(first))),
        ("ne", [first, second]) => Ok(Value::Bool(first != second)),
        ("and", [.., last]) => Ok(arguments.iter().find(|value| !is_true(value)).unwrap_or(last).clone()),
        ("or", [.., last]) => Ok(arguments.iter().find(|value| is_true(value)).unwrap_or(last).clone()),
        ("lt" | "le" | "gt" | "ge", [first, second]) => {
            let order = compare(first, second).ok_or_else(wrong)?;
            Ok(Value::Bool(match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            }))
        }
        _ => Err(wrong()),
    }
}

/// Most blanks that `pad` makes.
const MAX_BLANKS: u64 = 1000;

fn compare(one: &Value, other: &Value) -> Option<Ordering> {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64()?.partial_cmp(&other.as_f64()?),
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        _ => None,
    }
}

/// A part of a text or a list.
fn slice(value: &Value, bounds: &[Value]) -> Option<Value> {
    let bound = |at: usize| bounds.get(at).map(|value| usize::try_from(value.as_u64()?).ok());
    let from = bound(0).unwrap_or(Some(0))?;
    match value {
        Value::String(text) => Some(Value::from(text.get(from..bound(1).unwrap_or(Some(text.len()))?)?)),
        Value::Array(items) => Some(Value::from(items.get(from..bound(1).unwrap_or(Some(items.len()))?)?)),
        _ => None,
    }
}

/// The verbs that people use: `%s`, `%v`, `%d`, `%q`, `%%`.
fn printf(format: &str, values: &[Value]) -> Result<String, TemplateError> {
    let wrong = |what: &str| TemplateError::Value(format!("printf {format:?}: {what}"));
    let (mut out, mut letters, mut values) = (String::new(), format.chars(), values.iter());
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let verb = letters.next().ok_or_else(|| wrong("it ends with %"))?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let value = values.next().ok_or_else(|| wrong("there are fewer values than verbs"))?;
        match verb {
            's' | 'v' | 'd' => out.push_str(&show(value)),
            'q' => out.push_str(&format!("{:?}", show(value))),
            other => return Err(wrong(&format!("the verb %{other} is not known"))),
        }
    }
    Ok(out)
}

fn index(value: &Value, key: &Value) -> Result<Value, TemplateError> {
    match (value, key) {
        (Value::Object(fields), Value::String(key)) => Ok(fields.get(key).cloned().unwrap_or_else(|| {
            // Go's zero: of a map of texts, such as labels, an empty one.
            if fields.values().all(Value::is_string) { Value::from("") } else { Value::Null }
        })),
        (Value::Null, Value::String(_)) => Ok(Value::from("")),
        (Value::Array(items), Value::Number(number)) => {
            let at = number.as_u64().and_then(|number| usize::try_from(number).ok());
            at.and_then(|at| items.get(at))
                .cloned()
                .ok_or_else(|| TemplateError::Value(format!("index out of range: {number}")))
        }
        (Value::Null, _) => Ok(Value::Null),
        _ => Err(TemplateError::Value("can't index this value".into())),
    }
}
