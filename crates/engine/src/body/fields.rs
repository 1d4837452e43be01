//! Names of fields in any case, as Go's decoder takes them: `detachKeys` is `DetachKeys`.

use serde::de::{DeserializeOwned, Error, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};
use serde_json::Value;

/// Gives an object's keys the names that a type's fields have, where they differ in case only. Objects inside stay.
pub fn name_as_fields<T: DeserializeOwned>(document: &mut Value) {
    let Some(object) = document.as_object_mut() else { return };
    let fields = fields_of::<T>();
    let strange: Vec<String> = object.keys().filter(|key| !fields.contains(&key.as_str())).cloned().collect();
    for key in strange {
        let Some(field) = fields.iter().find(|field| field.eq_ignore_ascii_case(&key)) else { continue };
        if let Some(value) = object.remove(&key) {
            object.entry(*field).or_insert(value);
        }
    }
}

/// The names of a struct's fields; none of any other type.
fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // It always fails, and has seen the names by then.
    drop(T::deserialize(Asked(&mut fields)));
    fields
}

/// A document that is never there: it only notes which fields are asked for.
struct Asked<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Asked<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("no document"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq
        tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ExecConfig;
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_taken_in_any_case() {
        let mut document = json!({ "detachKeys": "ctrl-p", "CMD": ["x"], "Cmd": ["y"], "strange": 1 });
        name_as_fields::<ExecConfig>(&mut document);
        assert_eq!(document, json!({ "DetachKeys": "ctrl-p", "Cmd": ["y"], "strange": 1 }));
        let mut any = json!({ "a": 1 });
        name_as_fields::<Value>(&mut any);
        assert_eq!(any, json!({ "a": 1 }));
    }
}
