//! What a worker does for one sequence: words with commas between them, each perhaps with numbers after colons. Done in order; what follows the last one
//! is the end of the stream without a word.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use tonic::Code;

/// How a request carries its script.
pub const PREFIX: &str = "@double ";

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// `ok`: what is left of a good answer, to its end.
    Ok,
    /// `tokens:N`: so many, one a message, with the usual gap.
    Tokens(u32),
    /// `flood:N`: the same without gaps.
    Flood(u32),
    /// `burst:N` or `burst:N:M`: so many in one message; M such messages.
    Burst(u32, u32),
    /// `wait:MS`
    Wait(Duration),
    /// `hold`: waits until the caller is gone.
    Hold,
    /// `break:CODE` or `break:CODE:LENGTH`: ends the stream, or refuses where it comes first, with a message of that length that names an address.
    Break(i32, usize),
    /// `end`: ends the stream without a word.
    End,
    /// `mute`: where it comes first, not even headers.
    Mute,
    /// `finish`: a good last event. The script goes on.
    Finish,
    /// `fail`: a last event with an error.
    Fail,
    /// `miscount`: a last event whose counts do not add up.
    Miscount,
    /// `empty`: an event without content.
    Empty,
    /// `logits`: raw logits, which nobody asked for.
    Logits,
    /// `badid`: a token that no vocabulary has.
    BadId,
    /// `exit`: the process dies.
    Exit,
    /// `garble:KIND`: bytes that are no good answer of gRPC; first and only.
    Garble(Garbage),
}

/// Bytes that are no good answer of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Garbage {
    /// A whole frame whose content is no message.
    Protobuf,
    /// A frame that says it has four gigabytes.
    Huge,
    /// A frame that ends before its length.
    Short,
    /// A frame that says it is compressed.
    Compressed,
    /// The right bytes and no trailers.
    NoTrailers,
    /// A page of HTML with status 200.
    Html,
    /// Status 500 and text.
    Status500,
}

impl FromStr for Garbage {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        Ok(match text {
            "protobuf" => Self::Protobuf,
            "huge" => Self::Huge,
            "short" => Self::Short,
            "compressed" => Self::Compressed,
            "no-trailers" => Self::NoTrailers,
            "html" => Self::Html,
            "500" => Self::Status500,
            other => bail!("{other:?} is no kind of garbage"),
        })
    }
}

/// All of them, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// As it was written; the name of the case in counts.
    pub text: String,
    /// What to do.
    pub steps: Vec<Step>,
}

impl FromStr for Script {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let steps = text.split(',').map(str::trim).map(step).collect::<anyhow::Result<_>>()?;
        Ok(Self { text: text.to_owned(), steps })
    }
}

fn step(text: &str) -> anyhow::Result<Step> {
    let mut parts = text.split(':');
    let word = parts.next().unwrap_or_default();
    let mut number = || parts.next().map(|part| part.parse::<u32>().with_context(|| format!("{text:?}: {part:?} is no number")));
    let needed = |number: Option<anyhow::Result<u32>>| number.with_context(|| format!("{text:?} needs a number"))?;
    Ok(match word {
        "ok" => Step::Ok,
        "tokens" => Step::Tokens(needed(number())?),
        "flood" => Step::Flood(needed(number())?),
        "burst" => Step::Burst(needed(number())?, number().transpose()?.unwrap_or(1)),
        "wait" => Step::Wait(Duration::from_millis(needed(number())?.into())),
        "hold" => Step::Hold,
        "break" => Step::Break(i32::try_from(needed(number())?)?, number().transpose()?.unwrap_or(40) as usize),
        "end" => Step::End,
        "mute" => Step::Mute,
        "finish" => Step::Finish,
        "fail" => Step::Fail,
        "miscount" => Step::Miscount,
        "empty" => Step::Empty,
        "logits" => Step::Logits,
        "badid" => Step::BadId,
        "exit" => Step::Exit,
        "garble" => Step::Garble(text.split_once(':').map_or("", |(_, kind)| kind).parse()?),
        other => bail!("{other:?} is no step"),
    })
}

/// The status of a `break`: it names an address, which no client may see.
pub fn status(code: i32, length: usize) -> tonic::Status {
    let mut message = "scripted by 10.98.76.54:7000 ".to_owned();
    message.extend(std::iter::repeat_n('x', length.saturating_sub(message.len())));
    tonic::Status::new(Code::from_i32(code), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_read_as_written() {
        let steps = |text: &str| text.parse::<Script>().map(|script| script.steps).map_err(|error| error.to_string());
        assert_eq!(steps("tokens:2, hold"), Ok(vec![Step::Tokens(2), Step::Hold]));
        assert_eq!(steps("break:14:9000"), Ok(vec![Step::Break(14, 9000)]));
        assert_eq!(steps("garble:html"), Ok(vec![Step::Garble(Garbage::Html)]));
        assert_eq!(steps("tokens"), Err("\"tokens\" needs a number".to_owned()));
        assert_eq!(steps("sing"), Err("\"sing\" is no step".to_owned()));
    }
}
