//! Alters what would be valid: values of other types and sizes, keys that are missing, strange or there twice.

use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::schema::Kind;

/// Texts that have hurt somebody.
const TEXTS: &[&str] = &[
    "",
    " ",
    "/",
    "..",
    "../../etc/passwd",
    "/proc/self/mem",
    "a\nb",
    "a\u{0}b",
    "\u{202e}\u{fffd}",
    "%2f%00%zz",
    "{}",
    "null",
    "-1",
    "0x10",
    "1e400",
    "true",
    "9223372036854775808",
    "sha256:",
    "sha256:zz",
    "box:",
    "box@sha256:0",
    "localhost:1/x",
    "host",
    "container:z1",
    "container:",
    "hyperv",
    "bogus",
    "z1",
    "z2:ro:rw:z",
    "/:/x",
    "v1:/",
    "v2:../x",
    "/tmp/none:/x:shared,slave",
    "kernel.core_pattern",
    "c *:* rwm",
    "apparmor=x",
    "seccomp={",
    "boundary=required",
    "size=1z,mode=9",
    "80/sctp",
    "70000",
    "1-",
    "4294967296:4294967296",
    "ünïcode",
    "fe80::1%eth0",
    "10.0.0.0/33",
    "00:00:00:00:00:00:00",
];

/// A value of any kind.
fn scalar(rng: &mut Rng) -> Value {
    match rng.u8(..12) {
        0 => Value::Null,
        1 => json!(rng.bool()),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(i64::MIN),
        5 => json!(u64::MAX),
        6 => json!(1.5e300),
        7 => json!(rng.i64(-70_000..70_000)),
        8 => json!([]),
        9 => json!({}),
        10 => json!("x".repeat(rng.usize(..5000))),
        _ => json!(*rng.choice(TEXTS).unwrap_or(&"")),
    }
}

/// Any text.
pub fn text(rng: &mut Rng) -> String {
    match rng.u8(..10) {
        0 => "n".repeat(rng.usize(..3000)),
        1 => (0..rng.usize(..20)).map(|_| rng.char(..)).collect(),
        2 | 3 => format!("z{}", rng.u8(..8)),
        _ => (*rng.choice(TEXTS).unwrap_or(&"")).to_owned(),
    }
}

/// A value for a parameter: mostly of its kind.
pub fn parameter(rng: &mut Rng, kind: Kind) -> String {
    if rng.u8(..5) == 0 {
        return text(rng);
    }
    match kind {
        Kind::Flag => (*rng.choice(&["0", "1", "true", "False", ""]).unwrap_or(&"")).to_owned(),
        Kind::Number => {
            (*rng.choice(&["0", "1", "24", "-1", "2147483648", "all", "18446744073709551616"]).unwrap_or(&""))
                .to_owned()
        }
        Kind::Moment => (*rng
            .choice(&["0", "1700000000", "1700000000.5", "2026-01-01T00:00:00Z", "-5", "1e9", "10m", "99999999999999"])
            .unwrap_or(&""))
        .to_owned(),
        Kind::Text => text(rng),
        Kind::Path => {
            (*rng.choice(&["/", "/bin", "/bin/sh", "bin/../..", "/proc/1/root", "", "/etc/passwd/x"]).unwrap_or(&""))
                .to_owned()
        }
        Kind::Image => {
            (*rng.choice(&["box", "box:latest", "localhost:1/none", "Upper/Case", "a//b", "x:y:z"]).unwrap_or(&""))
                .to_owned()
        }
        Kind::Word(words) => (*rng.choice(words).unwrap_or(&"")).to_owned(),
        Kind::Filters => filters(rng),
    }
}

fn filters(rng: &mut Rng) -> String {
    let keys = [
        "label", "status", "name", "id", "until", "since", "before", "health", "ancestor", "exited", "type",
        "dangling", "driver", "x",
    ];
    let mut map = Map::new();
    for _ in 0..rng.usize(..3) {
        let key = *rng.choice(&keys).unwrap_or(&"x");
        let value = text(rng);
        map.insert(key.to_owned(), if rng.bool() { json!({ value: true }) } else { json!([value]) });
    }
    let mut value = Value::Object(map);
    if rng.u8(..4) == 0 {
        alter(rng, &mut value);
    }
    value.to_string()
}

/// Alters one place of a document, at a random depth.
pub fn alter(rng: &mut Rng, node: &mut Value) {
    match node {
        Value::Object(map) if !map.is_empty() && rng.u8(..8) != 0 => {
            let key = map.keys().nth(rng.usize(..map.len())).cloned().unwrap_or_default();
            if rng.u8(..24) == 0 {
                map.remove(&key);
            } else if let Some(value) = map.get_mut(&key) {
                alter(rng, value);
            }
        }
        Value::Array(list) if !list.is_empty() && rng.bool() => {
            let chosen = rng.usize(..list.len());
            alter(rng, &mut list[chosen]);
        }
        other => replace(rng, other),
    }
}

fn replace(rng: &mut Rng, node: &mut Value) {
    match (rng.u8(..8), &mut *node) {
        (0, Value::Array(list)) => {
            let value = scalar(rng);
            list.extend(std::iter::repeat_n(value, rng.usize(..300)));
        }
        (0, Value::Object(map)) => {
            for number in 0..rng.usize(..300) {
                map.insert(format!("k{number}"), scalar(rng));
            }
        }
        (1, Value::Object(map)) => drop(map.insert(text(rng), scalar(rng))),
        (2, _) => *node = json!([node.take()]),
        (3, _) => *node = (0..rng.usize(..100)).fold(Value::Null, |inner, _| json!([inner])),
        _ => *node = scalar(rng),
    }
}

/// A body: the example, its places altered, its text too.
pub fn body(rng: &mut Rng, example: &str) -> Vec<u8> {
    let mut bytes = match serde_json::from_str::<Value>(example) {
        Ok(mut document) => {
            for _ in 0..*rng.choice(&[0, 0, 1, 1, 1, 2, 5]).unwrap_or(&0) {
                alter(rng, &mut document);
            }
            document.to_string().into_bytes()
        }
        Err(_) => example.as_bytes().to_vec(),
    };
    match rng.u8(..40) {
        0 => bytes.truncate(rng.usize(..=bytes.len())),
        1 if !bytes.is_empty() => {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        // A key that is there twice, a number that no type holds, nesting without end.
        2 if bytes.first() == Some(&b'{') => drop(bytes.splice(1..1, *b"\"Image\":1,")),
        3 if bytes.first() == Some(&b'{') => drop(bytes.splice(1..1, *b"\"HostConfig\":{\"Memory\":1e400},")),
        4 => bytes = b"[".repeat(10_000),
        5 => bytes.clear(),
        _ => {}
    }
    bytes
}
