//! What an answer repeats of a request: never more than a few words, whatever stood there.

use m1_text::json::cut;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{ApiError, shown as shown_value};

use super::body::small;

/// Characters of a value that an error shows: enough to recognise, too few to fill a log.
const SHOWN: usize = 64;
/// Characters of anybody else's words (a parser's, a template's) that an error passes on: they may quote the request.
pub const QUOTED: usize = 120;

/// JSON as a message shows it.
pub fn shown(value: &RawValue) -> String {
    let is_number = value.get().starts_with(|c: char| c == '-' || c.is_ascii_digit());
    match small(value) {
        // Digits as they were given: read as a number they may be others.
        Some(_) if is_number => cut(value.get(), SHOWN),
        Some(value) => shown_value(&value),
        None => {
            let start: String = value.get().chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
            if start.len() < value.get().len() { start + ".." } else { start }
        }
    }
}

/// A field that is not as it should be.
pub fn invalid(param: impl Into<String>, given: &RawValue, allowed: &str) -> ApiError {
    let param = param.into();
    let message = format!("{param}: given {}, allowed: {allowed}", shown(given));
    ApiError::Invalid { param, message }
}

/// A field that is not as it should be, known as a value.
pub fn wrong(param: impl Into<String>, given: &Value, allowed: &str) -> ApiError {
    ApiError::invalid(param, given, allowed)
}

/// A body that is no JSON.
pub fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::Malformed(format!("the body is not JSON: {}", cut(&error.to_string(), QUOTED)))
}

/// A field whose text is no JSON, which shows only when it is read.
pub fn broken(path: &str, error: &serde_json::Error) -> ApiError {
    let said = error.to_string();
    // The place is the field's own, not the body's.
    let what = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what);
    ApiError::Malformed(format!("the body is not JSON: {path}: {}", cut(what, QUOTED)))
}
