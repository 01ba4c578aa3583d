//! Fields that several endpoints share, read and checked.

use m1_text::StopStrings;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::ApiError;

use super::body::{Fields, text};
use super::echo::invalid;
use super::ids::element;

/// M1's own sampling, which its evaluations used.
pub const TEMPERATURE: f64 = 1.0;
/// See [`TEMPERATURE`].
pub const TOP_P: f64 = 0.95;
/// OpenAI's bound.
const MOST_STOPS: usize = 4;
/// OpenAI's bound on `top_logprobs`.
pub const MOST_TOP_LOGPROBS: u32 = 20;

/// How to draw tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawing {
    /// 0 is greedy.
    pub temperature: f64,
    /// (0, 1].
    pub top_p: f64,
    /// None: any.
    pub seed: Option<u64>,
}

impl Drawing {
    /// `temperature`, `top_p`, `seed`.
    ///
    /// # Errors
    /// A wrong type or bound.
    pub fn read(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let temperature = fields.number("temperature", "a number from 0 to 2", |t| (0.0..=2.0).contains(&t))?;
        let top_p = fields.number("top_p", "a number above 0, at most 1", |p| p > 0.0 && p <= 1.0)?;
        Ok(Self { temperature: temperature.unwrap_or(TEMPERATURE), top_p: top_p.unwrap_or(TOP_P), seed: fields.seed("seed")? })
    }
}

/// Whether and how to stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streaming {
    /// As server-sent events.
    pub on: bool,
    /// With a last chunk of usage.
    pub usage: bool,
}

impl Streaming {
    /// `stream` and `stream_options`.
    ///
    /// # Errors
    /// A wrong type, or options without `stream`.
    pub fn read(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let on = fields.flag("stream")?.unwrap_or(false);
        let Some(options) = fields.object("stream_options", &["include_obfuscation", "include_usage"])? else {
            return Ok(Self { on, usage: false });
        };
        if let (false, Some(given)) = (on, fields.get("stream_options")) {
            return Err(invalid("stream_options", given, "nothing unless stream is true"));
        }
        options.refuse("include_obfuscation", "false", |value| value == &Value::Bool(false))?;
        Ok(Self { on, usage: options.flag("include_usage")?.unwrap_or(false) })
    }
}

/// Whether a request goes behind others: `service_tier` is "flex", as OpenAI calls it.
///
/// # Errors
/// Another type, or a tier that there is not.
pub fn flexible(fields: &Fields<'_>) -> Result<bool, ApiError> {
    one_of(fields, "service_tier", &[("auto", false), ("default", false), ("priority", false), ("flex", true)])
}

/// The same as M1's own endpoint calls it: `priority` is "batch".
///
/// # Errors
/// Another type, or a priority that there is not.
pub fn batch(fields: &Fields<'_>) -> Result<bool, ApiError> {
    one_of(fields, "priority", &[("interactive", false), ("batch", true)])
}

fn one_of(fields: &Fields<'_>, name: &str, words: &[(&str, bool)]) -> Result<bool, ApiError> {
    let (Some(given), Some(text)) = (fields.get(name), fields.text(name)?) else { return Ok(false) };
    let allowed = || words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(", ");
    let meant = words.iter().find(|(word, _)| *word == text).map(|(_, meant)| *meant);
    meant.ok_or_else(|| invalid(name, given, &allowed()))
}

/// `stop`: a text or up to four.
///
/// # Errors
/// Another type, an empty text, too many.
pub fn stops(fields: &Fields<'_>) -> Result<StopStrings, ApiError> {
    let Some(given) = fields.get("stop") else { return Ok(StopStrings::default()) };
    let texts = match text("stop", given)? {
        Some(text) => Some(vec![text.into_owned()]),
        None => several(given)?,
    };
    let stops = texts.and_then(|texts| StopStrings::new(texts).ok());
    stops.ok_or_else(|| invalid("stop", given, "a string, or a list of up to 4, each of 1 to 4096 bytes"))
}

/// The texts of a short list; none where it is longer, or no list of texts.
fn several(given: &RawValue) -> Result<Option<Vec<String>>, ApiError> {
    if !given.get().starts_with('[') {
        return Ok(None);
    }
    let mut texts = Vec::new();
    while let Some(item) = element(given, texts.len()) {
        match text("stop", item)? {
            Some(text) if texts.len() < MOST_STOPS => texts.push(text.into_owned()),
            _ => return Ok(None),
        }
    }
    Ok(Some(texts))
}

/// Refuses what OpenAI's two generating endpoints know and this server does not serve.
///
/// # Errors
/// The first such field that asks for something.
pub fn refuse_unserved(fields: &Fields<'_>) -> Result<(), ApiError> {
    let zero = |value: &Value| value.as_f64() == Some(0.0);
    fields.refuse("n", "1", |value| value.as_f64() == Some(1.0))?;
    fields.refuse("presence_penalty", "0", zero)?;
    fields.refuse("frequency_penalty", "0", zero)?;
    fields.refuse("logit_bias", "{}", |value| value.as_object().is_some_and(serde_json::Map::is_empty))
}
