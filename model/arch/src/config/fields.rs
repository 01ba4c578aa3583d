//! Typed access to the fields of a JSON object. `null` counts as absent, as Python's writers use it.

use std::fmt::Display;

use serde_json::{Map, Value};

use super::error::ConfigError;

/// Longest value that a message repeats; more would hide the message.
const LONGEST_GIVEN: usize = 80;

/// A JSON object, with the path that leads to it.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn of(value: &'a Value) -> Result<Self, ConfigError> {
        let map = value.as_object().ok_or_else(|| invalid("(the whole file)", value, "an object"))?;
        Ok(Fields { map, path: "" })
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// An object inside this one. Its own fields are named `name.field` in messages.
    pub(super) fn nested(&self, name: &'static str) -> Result<Option<Fields<'a>>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| invalid(name, value, "an object"))?;
        Ok(Some(Fields { map, path: name }))
    }

    /// A whole number from 1 to `most`.
    pub(super) fn count(&self, names: &[&'static str], most: usize) -> Result<usize, ConfigError> {
        let allowed = format!("a whole number from 1 to {most}");
        let (name, value) = self.required(names, &allowed)?;
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        count.filter(|count| (1..=most).contains(count)).ok_or_else(|| invalid(self.full(name), value, allowed))
    }

    /// A number above 0.
    pub(super) fn positive(&self, names: &[&'static str]) -> Result<f64, ConfigError> {
        let (name, value) = self.required(names, ABOVE_ZERO)?;
        self.above_zero(name, value)
    }

    pub(super) fn optional_positive(&self, name: &'static str) -> Result<Option<f64>, ConfigError> {
        self.get(name).map(|value| self.above_zero(name, value)).transpose()
    }

    pub(super) fn flag(&self, name: &'static str) -> Result<Option<bool>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| invalid(self.full(name), value, "true or false"))
    }

    /// A list whose items all mean something.
    pub(super) fn list<T>(
        &self,
        name: &'static str,
        allowed: &str,
        meaning: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let items = value.as_array().ok_or_else(|| invalid(name, value, format!("a list of {allowed}")))?;
        let of = |(index, item): (usize, &Value)| meaning(item).ok_or_else(|| invalid(format!("{name}[{index}]"), item, allowed));
        items.iter().enumerate().map(of).collect::<Result<_, _>>().map(Some)
    }

    /// The field under whichever of its names the file has; where it has several, they must agree.
    fn required(&self, names: &[&'static str], allowed: &str) -> Result<(&'static str, &'a Value), ConfigError> {
        let mut present = names.iter().filter_map(|name| Some((*name, self.get(name)?)));
        let lacking = || missing(names.first().map(|name| self.full(name)).unwrap_or_default(), allowed);
        let (name, value) = present.next().ok_or_else(lacking)?;
        match present.find(|(_, other)| !same(value, other)) {
            Some((other, given)) => {
                Err(invalid(self.full(other), given, format!("the same as {name} = {value}, or one of the two alone")))
            }
            None => Ok((name, value)),
        }
    }

    fn above_zero(&self, name: &str, value: &Value) -> Result<f64, ConfigError> {
        let number = value.as_f64().filter(|number| *number > 0.0);
        number.ok_or_else(|| invalid(self.full(name), value, ABOVE_ZERO))
    }

    fn full(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

const ABOVE_ZERO: &str = "a number above 0";

/// Equal, 1 and 1.0 included.
fn same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

pub(super) fn missing(field: impl Into<String>, allowed: impl Into<String>) -> ConfigError {
    ConfigError::Missing { field: field.into(), allowed: allowed.into() }
}

pub(super) fn invalid(field: impl Into<String>, given: impl Display, allowed: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { field: field.into(), given: shortened(given), allowed: allowed.into() }
}

pub(super) fn not_supported(field: impl Into<String>, given: impl Display, allowed: impl Into<String>) -> ConfigError {
    ConfigError::NotSupported { field: field.into(), given: shortened(given), allowed: allowed.into() }
}

fn shortened(given: impl Display) -> String {
    let text = given.to_string();
    match text.char_indices().nth(LONGEST_GIVEN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
