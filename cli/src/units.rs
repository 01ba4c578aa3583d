//! Quantities on the command line: `300us`, `25Gbit`, `80GB`. Each parser names what it was given and what it allows.

use std::time::Duration;

/// A quantity that does not parse.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{given:?} given, allowed: {allowed}")]
pub struct UnitError {
    given: String,
    allowed: &'static str,
}

/// Units of [`bits_per_second`], each a power of ten as network gear counts.
const BITS: [(&str, f64); 4] = [("Tbit", 1e12), ("Gbit", 1e9), ("Mbit", 1e6), ("kbit", 1e3)];
/// Units of [`bytes`]: decimal as in data sheets, binary as in Kubernetes.
const BYTES: [(&str, f64); 9] = [
    ("TiB", 1_099_511_627_776.0),
    ("GiB", 1_073_741_824.0),
    ("MiB", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Mi", 1_048_576.0),
    ("TB", 1e12),
    ("GB", 1e9),
    ("MB", 1e6),
    ("kB", 1e3),
];

/// A time such as `300us`, `2ms` or `1m 30s`.
///
/// # Errors
/// The text is not such a time.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    humantime::parse_duration(text)
        .map_err(|_| UnitError { given: text.to_owned(), allowed: "a number with us, ms, s or m, such as 300us" })
}

/// A line rate such as `25Gbit`, in bits per second.
///
/// # Errors
/// The text is not such a rate or is not above 0.
pub fn bits_per_second(text: &str) -> Result<f64, UnitError> {
    scaled(text, &BITS).ok_or_else(|| UnitError {
        given: text.to_owned(),
        allowed: "a number above 0 with kbit, Mbit, Gbit or Tbit, such as 25Gbit",
    })
}

/// A size such as `80GB` or `80GiB`, in bytes.
///
/// # Errors
/// The text is not such a size or is not above 0.
pub fn bytes(text: &str) -> Result<u64, UnitError> {
    scaled(text, &BYTES).map(|value| value as u64).ok_or_else(|| UnitError {
        given: text.to_owned(),
        allowed: "a number above 0 with MB, GB, TB, MiB, GiB or TiB, such as 80GB",
    })
}

fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (number, factor) = units.iter().find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, factor)))?;
    let value = number.trim().parse::<f64>().ok()? * factor;
    (value.is_finite() && value > 0.0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_parse() {
        assert_eq!(duration("300us"), Ok(Duration::from_micros(300)));
        assert_eq!(bits_per_second("25Gbit"), Ok(25e9));
        assert_eq!(bytes("80GB"), Ok(80_000_000_000));
        assert_eq!(bytes("1.5GiB"), Ok(1_610_612_736));
        assert_eq!(bytes("80Gi"), Ok(85_899_345_920));
    }

    #[test]
    fn what_does_not_parse_is_shown_with_what_would() {
        assert_eq!(
            bits_per_second("25").unwrap_err().to_string(),
            "\"25\" given, allowed: a number above 0 with kbit, Mbit, Gbit or Tbit, such as 25Gbit"
        );
        for bad in ["-1GB", "0GB", "GB", "infGB", "NaNGB", "80"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert!(duration("fast").is_err());
    }
}
