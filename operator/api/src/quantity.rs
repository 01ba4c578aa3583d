//! Amounts as people write them: Kubernetes quantities and intervals.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

/// A Kubernetes quantity as it was written: `80G`, `80Gi`, `500m`, `16`. Whether it parses is a matter of [`Quantity::amount`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

/// Why a text is no amount.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QuantityError {
    /// No quantity.
    #[error("a number with one of the suffixes m, k, M, G, T, P, Ki, Mi, Gi, Ti, Pi or none, such as 80G or 80Gi")]
    Quantity,
    /// No interval.
    #[error("numbers with the units ms, s, m, h, such as 30s, 5m or 1h30m")]
    Interval,
}

impl QuantityError {
    /// The word used in logs and conditions.
    pub fn reason(&self) -> &'static str {
        "InvalidQuantity"
    }
}

/// Suffixes and what they multiply by; two-letter ones first, because `k` would match nothing of `Ki` but `m` and `M` differ by case only.
const SUFFIXES: [(&str, f64); 11] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
];

impl Quantity {
    /// The amount as a number: `500m` is 0.5, `1Gi` is 1073741824.
    pub fn amount(&self) -> Result<f64, QuantityError> {
        let (number, factor) = SUFFIXES
            .iter()
            .find_map(|(suffix, factor)| self.0.strip_suffix(suffix).map(|number| (number, *factor)))
            .unwrap_or((self.0.as_str(), 1.0));
        let plain = !number.is_empty()
            && number.chars().all(|c| c.is_ascii_digit() || c == '.')
            && number.starts_with(|c: char| c.is_ascii_digit())
            && number.ends_with(|c: char| c.is_ascii_digit());
        let amount = number.parse::<f64>().map_err(|_| QuantityError::Quantity)? * factor;
        if plain && amount.is_finite() { Ok(amount) } else { Err(QuantityError::Quantity) }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        /// Both forms that manifests use.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Text(String),
            Number(serde_json::Number),
        }
        Ok(match Written::deserialize(input)? {
            Written::Text(text) => Quantity(text),
            Written::Number(number) => Quantity(number.to_string()),
        })
    }
}

impl JsonSchema for Quantity {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "pattern": r"^[0-9]+([.][0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
        })
    }
}

/// Reads an interval such as `30s`, `5m` or `1h30m`.
pub fn parse_interval(text: &str) -> Result<Duration, QuantityError> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if digits > 6 {
            return Err(QuantityError::Interval);
        }
        let number: u64 = rest[..digits].parse().map_err(|_| QuantityError::Interval)?;
        rest = &rest[digits..];
        let (unit, length) = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)]
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))
            .ok_or(QuantityError::Interval)?;
        total = total.saturating_add(Duration::from_millis(number.saturating_mul(length)));
        rest = &rest[unit.len()..];
    }
    if text.is_empty() { Err(QuantityError::Interval) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, amount) in [("80G", 80e9), ("80Gi", 80.0 * 1_073_741_824.0), ("500m", 0.5), ("16", 16.0), ("1.5Ki", 1536.0)] {
            assert_eq!(Quantity(text.into()).amount(), Ok(amount), "{text}");
        }
        for text in ["", "G", "80GB", "-1", "1e3", ".5", "5.", "1.2.3", "80 G", "inf"] {
            assert_eq!(Quantity(text.into()).amount(), Err(QuantityError::Quantity), "{text}");
        }
    }

    #[test]
    fn a_number_is_a_quantity_too() {
        assert_eq!(serde_json::from_str::<Quantity>("16").unwrap(), Quantity("16".into()));
    }

    #[test]
    fn intervals() {
        for (text, seconds) in [("30s", 30), ("5m", 300), ("1h30m", 5400)] {
            assert_eq!(parse_interval(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse_interval("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "5", "m", "5 m", "5d", "-5s", "1234567s", "1.5h", "5mh"] {
            assert_eq!(parse_interval(text), Err(QuantityError::Interval), "{text}");
        }
    }
}
