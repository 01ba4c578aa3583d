//! A JSON object read field by field. Every wrong type or bound is an error that names the field with its path; `null` is the same as absent; fields
//! that nobody asks for are ignored.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

/// An object and where it stands in the body.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

/// Parses a body that must be one JSON object.
///
/// # Errors
/// Not UTF-8 (with the offset), not JSON (with line and column), not an object.
pub fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(body)
        .map_err(|error| ApiError::Malformed(format!("the body is not UTF-8: byte {} is wrong", error.valid_up_to())))?;
    let value: Value = serde_json::from_str(text).map_err(|error| ApiError::Malformed(format!("the body is not JSON: {error}")))?;
    match value {
        Value::Object(_) => Ok(value),
        other => Err(ApiError::invalid("body", &other, "a JSON object")),
    }
}

impl<'a> Fields<'a> {
    /// The fields of the body itself.
    ///
    /// # Errors
    /// Where it is no object.
    pub fn of_body(value: &'a Value) -> Result<Self, ApiError> {
        Self::of(String::new(), value)
    }

    /// The fields of an object at `path`.
    ///
    /// # Errors
    /// Where it is no object.
    pub fn of(path: String, value: &'a Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => Err(ApiError::invalid(path, other, "an object")),
        }
    }

    /// A field's full name.
    pub fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// A field's value; none where absent or null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// A text.
    ///
    /// # Errors
    /// Another type.
    pub fn text(&self, field: &str) -> Result<Option<&'a str>, ApiError> {
        self.typed(field, "a string", Value::as_str)
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// Absent, or another type.
    pub fn needed_text(&self, field: &str) -> Result<&'a str, ApiError> {
        self.text(field)?.ok_or_else(|| ApiError::missing(self.name(field), "a string"))
    }

    /// True or false.
    ///
    /// # Errors
    /// Another type.
    pub fn flag(&self, field: &str) -> Result<Option<bool>, ApiError> {
        self.typed(field, "true or false", Value::as_bool)
    }

    /// An array.
    ///
    /// # Errors
    /// Another type.
    pub fn array(&self, field: &str) -> Result<Option<&'a Vec<Value>>, ApiError> {
        self.typed(field, "an array", Value::as_array)
    }

    /// An object's fields.
    ///
    /// # Errors
    /// Another type.
    pub fn object(&self, field: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(field).map(|value| Fields::of(self.name(field), value)).transpose()
    }

    /// A whole number within bounds.
    ///
    /// # Errors
    /// Another type, a fraction, out of bounds.
    pub fn integer(&self, field: &str, bounds: RangeInclusive<u32>) -> Result<Option<u32>, ApiError> {
        let allowed = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        self.typed(field, &allowed, |value| value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| bounds.contains(n)))
    }

    /// A number for which `fits`.
    ///
    /// # Errors
    /// Another type, or it does not fit.
    pub fn number(&self, field: &str, allowed: &str, fits: impl Fn(f64) -> bool) -> Result<Option<f64>, ApiError> {
        self.typed(field, allowed, |value| value.as_f64().filter(|n| fits(*n)))
    }

    /// Any 64-bit whole number; a negative one is taken by its bits.
    ///
    /// # Errors
    /// Another type, a fraction, beyond 64 bits.
    pub fn seed(&self, field: &str) -> Result<Option<u64>, ApiError> {
        self.typed(field, "a whole number of 64 bits", |value| value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned)))
    }

    /// Refuses a field that is not served, unless its value asks for nothing.
    ///
    /// # Errors
    /// The field is there and `harmless` does not hold.
    pub fn refuse(&self, field: &str, allowed: &'static str, harmless: impl Fn(&Value) -> bool) -> Result<(), ApiError> {
        match self.get(field) {
            Some(value) if !harmless(value) => Err(ApiError::unsupported(self.name(field), value, allowed)),
            _ => Ok(()),
        }
    }

    fn typed<T: 'a>(&self, field: &str, allowed: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, ApiError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| ApiError::invalid(self.name(field), value, allowed)),
        }
    }
}

/// Token ids of an array, each below `vocab`.
///
/// # Errors
/// An element that is no such id, by its place.
pub fn ids(path: &str, items: &[Value], vocab: u32) -> Result<Vec<u32>, ApiError> {
    let one = |(place, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < vocab);
        id.ok_or_else(|| {
            ApiError::invalid(format!("{path}[{place}]"), value, &format!("a token id from 0 to {}", vocab.saturating_sub(1)))
        })
    };
    items.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bodies_that_are_no_json_say_where() {
        let message = |body: &[u8]| parse(body).unwrap_err().to_string();
        assert_eq!(message(b"{\"a\": \xff}"), "the body is not UTF-8: byte 6 is wrong");
        assert!(message(b"{\n \"a\": }").ends_with("at line 2 column 7"), "{}", message(b"{\n \"a\": }"));
        assert_eq!(message(b"[1]"), "body: given [1], allowed: a JSON object");
        assert!(message(b"").contains("line 1 column 0"));
    }

    #[test]
    fn null_is_absent_and_wrong_types_are_named() {
        let body = json!({"a": null, "b": {"c": 1.5, "d": -1, "e": "x"}});
        let fields = Fields::of_body(&body).unwrap();
        assert_eq!(fields.text("a"), Ok(None));
        let inner = fields.object("b").unwrap().unwrap();
        assert_eq!(inner.integer("c", 1..=4).unwrap_err().to_string(), "b.c: given 1.5, allowed: a whole number from 1 to 4");
        assert_eq!(inner.seed("d"), Ok(Some(u64::MAX)));
        assert!(inner.seed("c").is_err() && inner.integer("d", 0..=4).is_err() && inner.flag("e").is_err());
    }

    #[test]
    fn ids_are_held_against_the_vocabulary() {
        assert_eq!(ids("input.ids", &[json!(0), json!(9)], 10), Ok(vec![0, 9]));
        let error = ids("input.ids", &[json!(0), json!(10)], 10).unwrap_err();
        assert_eq!(error.to_string(), "input.ids[1]: given 10, allowed: a token id from 0 to 9");
    }
}
