//! JSON objects in which every name occurs once.
//!
//! RFC 7519 §4 lets a reader keep the last of two equal names. Then two readers can see two different tokens
//! behind one signature; here such a token is refused.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses an object; the error says what is wrong, without quoting the input.
pub(super) fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(bytes) {
        Ok(Unique(Value::Object(object))) => Ok(object),
        Ok(_) => Err("not a JSON object".to_owned()),
        Err(error) if error.is_data() => Err("a JSON object with a name twice".to_owned()),
        Err(_) => Err("not JSON".to_owned()),
    }
}

struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without repeated names")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Unique(entry)) = entries.next_element()? {
            array.push(entry);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Unique(value))) = members.next_entry::<String, Unique>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a name occurs twice"));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects() {
        for (text, expected) in [
            (r#"{"a":[1,-2,0.5,"x",null,true,{"b":{}}]}"#, Ok(())),
            (r#"{"a":1,"a":1}"#, Err("a JSON object with a name twice")),
            (
                r#"{"a":1,"\u0061":1}"#,
                Err("a JSON object with a name twice"),
            ),
            (
                r#"{"a":[{"b":1,"b":2}]}"#,
                Err("a JSON object with a name twice"),
            ),
            ("[]", Err("not a JSON object")),
            ("\"x\"", Err("not a JSON object")),
            ("", Err("not JSON")),
            ("{}x", Err("not JSON")),
            (r#"{"a":1e999}"#, Err("not JSON")),
        ] {
            let parsed = parse_object(text.as_bytes());
            assert_eq!(
                parsed.as_ref().map(|_| ()).map_err(String::as_str),
                expected,
                "{text}"
            );
            if let Ok(object) = parsed {
                assert_eq!(Value::Object(object).to_string(), text);
            }
        }
        let deep = "[".repeat(100_000);
        assert_eq!(parse_object(deep.as_bytes()).unwrap_err(), "not JSON");
    }
}
