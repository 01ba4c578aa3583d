//! A JSON object read field by field, from text that stays where it is: a field that nobody asks for is skipped, one that is asked for is a slice until it
//! is read. Every wrong type or bound is an error that names the field with its path; `null` is the same as absent; of a doubled key the last one counts.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use m1_text::json::{self, Field};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::ApiError;

use super::echo::{broken, invalid, malformed, shown};

/// Levels that arrays and objects may be nested in each other, as serde_json has it.
pub const MOST_LEVELS: usize = 128;
/// Bytes of a value that may be looked at as a whole; whatever is longer asks for something.
const SMALL: usize = 256;

/// The known fields of an object and where it stands in the body.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    path: String,
    entries: Vec<Field<'a>>,
}

/// Opens a body that must be one JSON object with perhaps some of the `known` fields.
///
/// # Errors
/// Not UTF-8 (with the offset), not JSON or nested too deep (with line and column), not an object.
pub fn open<'a>(body: &'a [u8], known: &'static [&'static str]) -> Result<Fields<'a>, ApiError> {
    let text = std::str::from_utf8(body)
        .map_err(|error| ApiError::Malformed(format!("the body is not UTF-8: byte {} is wrong", error.valid_up_to())))?;
    check_levels(text)?;
    if text.trim_ascii_start().starts_with('{') {
        let entries = json::fields(text, known).map_err(|error| malformed(&error))?;
        return Ok(Fields { path: String::new(), entries });
    }
    let whole: &RawValue = serde_json::from_str(text).map_err(|error| malformed(&error))?;
    Err(invalid("body", whole, "a JSON object"))
}

impl<'a> Fields<'a> {
    /// The `known` fields of the object at `path`.
    ///
    /// # Errors
    /// Where it is no object.
    pub fn of(path: String, object: &'a RawValue, known: &'static [&'static str]) -> Result<Self, ApiError> {
        if !object.get().starts_with('{') {
            return Err(invalid(path, object, "an object"));
        }
        let entries = json::fields(object.get(), known).map_err(|error| broken(&path, &error))?;
        Ok(Self { path, entries })
    }

    /// A field's full name.
    pub fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// A field's JSON; none where absent or null.
    pub fn get(&self, field: &str) -> Option<&'a RawValue> {
        let entry = self.entries.iter().find(|(name, _)| *name == field);
        entry.map(|(_, value)| *value).filter(|value| value.get() != "null")
    }

    /// A text.
    ///
    /// # Errors
    /// Another type.
    pub fn text(&self, field: &str) -> Result<Option<Cow<'a, str>>, ApiError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        text(&self.name(field), value)?.map(Some).ok_or_else(|| invalid(self.name(field), value, "a string"))
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// Absent, or another type.
    pub fn needed_text(&self, field: &str) -> Result<Cow<'a, str>, ApiError> {
        self.text(field)?.ok_or_else(|| ApiError::missing(self.name(field), "a string"))
    }

    /// True or false.
    ///
    /// # Errors
    /// Another type.
    pub fn flag(&self, field: &str) -> Result<Option<bool>, ApiError> {
        self.typed(field, "true or false", |given| given.parse().ok())
    }

    /// An object's `known` fields.
    ///
    /// # Errors
    /// Another type.
    pub fn object(&self, field: &str, known: &'static [&'static str]) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(field).map(|value| Fields::of(self.name(field), value, known)).transpose()
    }

    /// A whole number within bounds, also written as 30.0.
    ///
    /// # Errors
    /// Another type, a fraction, out of bounds.
    pub fn integer(&self, field: &str, bounds: RangeInclusive<u32>) -> Result<Option<u32>, ApiError> {
        let allowed = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        let read = |given: &str| whole(given).and_then(|n| u32::try_from(n).ok()).filter(|n| bounds.contains(n));
        self.typed(field, &allowed, read)
    }

    /// A number for which `fits`.
    ///
    /// # Errors
    /// Another type, or it does not fit.
    pub fn number(&self, field: &str, allowed: &str, fits: impl Fn(f64) -> bool) -> Result<Option<f64>, ApiError> {
        self.typed(field, allowed, |given| number(given).filter(|n| fits(*n)))
    }

    /// Any 64-bit whole number; a negative one is taken by its bits.
    ///
    /// # Errors
    /// Another type, a fraction, beyond 64 bits.
    pub fn seed(&self, field: &str) -> Result<Option<u64>, ApiError> {
        let bits = |n: i128| u64::try_from(n).ok().or_else(|| i64::try_from(n).ok().map(i64::cast_unsigned));
        self.typed(field, "a whole number of 64 bits", |given| whole(given).and_then(bits))
    }

    /// Refuses a field that is not served, unless its value asks for nothing.
    ///
    /// # Errors
    /// The field is there and `harmless` does not hold.
    pub fn refuse(&self, field: &str, allowed: &'static str, harmless: impl Fn(&Value) -> bool) -> Result<(), ApiError> {
        let Some(value) = self.get(field) else { return Ok(()) };
        if small(value).is_some_and(|value| harmless(&value)) { Ok(()) } else { Err(self.unsupported(field, value, allowed)) }
    }

    /// The error of a known field that is not served.
    pub fn unsupported(&self, field: &str, value: &RawValue, allowed: &'static str) -> ApiError {
        ApiError::Unsupported { param: self.name(field), given: shown(value), allowed }
    }

    fn typed<T>(&self, field: &str, allowed: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        read(value.get()).map(Some).ok_or_else(|| invalid(self.name(field), value, allowed))
    }
}

/// The text of a JSON string, in place where it has no escapes; none where `value` is no string.
///
/// # Errors
/// An escape that is no character.
pub fn text<'a>(path: &str, value: &'a RawValue) -> Result<Option<Cow<'a, str>>, ApiError> {
    json::text(value).map_err(|error| broken(path, &error))
}

/// A short value as a whole.
pub fn small(value: &RawValue) -> Option<Value> {
    if value.get().len() > SMALL { None } else { serde_json::from_str(value.get()).ok() }
}

fn number(given: &str) -> Option<f64> {
    // What JSON calls a number, Rust reads; it also reads words, which a JSON number never is.
    if given.starts_with(|c: char| c == '-' || c.is_ascii_digit()) { given.parse().ok() } else { None }
}

fn whole(given: &str) -> Option<i128> {
    given.parse().ok().or_else(|| {
        // 2^64 and all below in size: beyond, a float is no longer one number.
        let value = number(given).filter(|n| n.fract() == 0.0 && n.abs() <= 18_446_744_073_709_551_616.0)?;
        Some(value as i128)
    })
}

/// Refuses what is nested deeper than anybody needs, before anything recurses into it.
fn check_levels(text: &str) -> Result<(), ApiError> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > MOST_LEVELS {
                    let before = text.get(..at).unwrap_or("");
                    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
                    let column = at - before.rfind('\n').map_or(0, |end| end + 1) + 1;
                    let message = format!("the body is nested deeper than {MOST_LEVELS} levels at line {line} column {column}");
                    return Err(ApiError::Malformed(message));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["a", "b", "c", "d", "e"];

    fn message<T: std::fmt::Debug>(result: Result<T, ApiError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn bodies_that_are_no_json_say_where() {
        assert_eq!(message(open(b"{\"a\": \xff}", KNOWN)), "the body is not UTF-8: byte 6 is wrong");
        let broken = message(open(b"{\n \"a\": }", KNOWN));
        assert!(broken.ends_with("at line 2 column 7"), "{broken}");
        assert_eq!(message(open(b"[1]", KNOWN)), "body: given [1], allowed: a JSON object");
        assert!(message(open(b"", KNOWN)).contains("line 1 column 0"));
        assert!(message(open(b"{} x", KNOWN)).contains("line 1 column 4"));
        assert!(message(open(br#"{"a": "\ud800"}"#, KNOWN).unwrap().text("a")).starts_with("the body is not JSON: a: "));
    }

    #[test]
    fn null_is_absent_the_last_counts_and_wrong_types_are_named() {
        let body = br#"{"a": null, "z": [1e400, 99999999999999999999], "b": 1, "b": {"c": 1.5, "d": -1, "e": "x"}}"#;
        let fields = open(body, KNOWN).unwrap();
        assert_eq!(fields.text("a"), Ok(None));
        let inner = fields.object("b", KNOWN).unwrap().unwrap();
        assert_eq!(message(inner.integer("c", 1..=4)), "b.c: given 1.5, allowed: a whole number from 1 to 4");
        assert_eq!(inner.seed("d"), Ok(Some(u64::MAX)));
        assert!(inner.seed("c").is_err() && inner.integer("d", 0..=4).is_err() && inner.flag("e").is_err());
    }

    #[test]
    fn whole_numbers_may_be_written_as_floats() {
        for (given, expected) in [("30.0", Some(30)), ("3e1", Some(30)), ("30", Some(30)), ("30.5", None), ("1e400", None)] {
            let body = format!("{{\"a\": {given}}}");
            let fields = open(body.as_bytes(), KNOWN).unwrap();
            assert_eq!(fields.integer("a", 1..=40).ok().flatten(), expected, "{given}");
            assert_eq!(fields.seed("a").ok().flatten(), expected.map(u64::from), "{given}");
        }
        let fields = open(b"{\"a\": 18446744073709551615, \"b\": 18446744073709551616}", KNOWN).unwrap();
        assert_eq!(fields.seed("a"), Ok(Some(u64::MAX)));
        assert!(message(fields.seed("b")).starts_with("b: given 1844674407370955"));
        assert_eq!(
            message(open(b"{\"a\": 1e400}", KNOWN).unwrap().number("a", "a number", f64::is_finite)),
            "a: given 1e400, allowed: a number"
        );
    }

    #[test]
    fn levels_are_bounded_everywhere() {
        let nested = |levels: usize, field: &str| format!("{{\"{field}\": {}{}}}", "[".repeat(levels), "]".repeat(levels));
        for field in ["a", "unknown"] {
            assert!(open(nested(MOST_LEVELS - 1, field).as_bytes(), KNOWN).is_ok());
            let error = message(open(nested(MOST_LEVELS, field).as_bytes(), KNOWN));
            assert!(error.starts_with("the body is nested deeper than 128 levels at line 1 column "), "{error}");
        }
        let text = format!("{{\"a\": \"{}\\\"{{\"}}", "[".repeat(300));
        assert!(open(text.as_bytes(), KNOWN).is_ok(), "brackets in a text are text");
    }

    #[test]
    fn long_values_are_cut() {
        let body = format!("{{\"a\": \"{}\"}}", "x".repeat(100_000));
        let error = message(open(body.as_bytes(), KNOWN).unwrap().flag("a"));
        assert!(error.len() < 120 && error.ends_with("x.., allowed: true or false"), "{error}");
    }
}
