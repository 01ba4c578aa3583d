//! What a double does for a sequence: a [`Reply`] to the call, then acts one after another. Scripts are Rust ([`Script`]), or text ([`Fixed`]) for whoever cannot
//! link this crate.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use m1_proto::worker::{FinishReason, GenerateEvent, GenerateRequest};
use tonic::{Code, Status};

/// Ids that the demo model's tokenizer decodes to plain words, none of them a stop id.
pub const WORDS: [u32; 6] = [313, 317, 334, 354, 359, 340];

/// One thing that is done for a sequence.
#[derive(Clone, Debug)]
pub enum Act {
    /// These ids in one `Tokens`; none: progress. A stop id among them, or the last token allowed, ends the sequence as a worker would.
    Say(Vec<u32>),
    /// Time passes, counted from when the last wait should have ended.
    Wait(Duration),
    /// Nothing, until the double is released.
    Hold,
    /// An event as it is, whatever a worker may send. It is not counted.
    Event(Box<GenerateEvent>),
    /// `Finished` with a reason, and the end of the stream.
    Finish(FinishReason),
    /// `Finished` with an error's word, and the end of the stream.
    Fail(String),
    /// `Finished` with counts that do not add up, and the end of the stream.
    Miscount,
    /// `Finished`, and the script goes on.
    Early,
    /// The stream breaks with a status.
    Break(Code),
    /// The stream ends, with no `Finished`.
    End,
    /// The process ends, as by `kill -9`.
    Die,
}

/// The acts of one sequence. After the last one it is finished with `FINISH_STOP`.
pub type Acts = Box<dyn Iterator<Item = Act> + Send>;

/// The answer to a call of `Generate`.
pub enum Reply {
    /// The worker has taken it: headers at once, then these acts.
    Play(Acts),
    /// A status instead of a stream.
    Refuse(Status),
    /// Never an answer; the call waits until its caller goes.
    Silence,
    /// The process ends before it answers.
    Die,
}

/// Decides what is done for each call. `nth` counts calls from 0.
pub trait Script: Send + Sync + 'static {
    /// The answer to one call.
    fn reply(&self, request: &GenerateRequest, nth: u64) -> Reply;
}

impl<F: Fn(&GenerateRequest, u64) -> Reply + Send + Sync + 'static> Script for F {
    fn reply(&self, request: &GenerateRequest, nth: u64) -> Reply {
        self(request, nth)
    }
}

/// A healthy worker: the first token after `first`, then one every `gap`, each an event of its own, as many as the request allows.
#[derive(Clone, Debug)]
pub struct Steady {
    /// Until the first token.
    pub first: Duration,
    /// Between two tokens.
    pub gap: Duration,
    /// What is said, over and over.
    pub ids: Arc<[u32]>,
    /// Tokens after which it waits until the double is released.
    pub hold_after: Option<u32>,
}

impl Default for Steady {
    fn default() -> Self {
        Self { first: Duration::ZERO, gap: Duration::from_millis(5), ids: WORDS.into(), hold_after: None }
    }
}

impl Script for Steady {
    fn reply(&self, _: &GenerateRequest, _: u64) -> Reply {
        Reply::Play(Box::new(Telling { steady: self.clone(), said: 0, paused: false, held: false }))
    }
}

/// [`Steady`]'s acts: said and paused in turn, without end; the request's bound ends them.
struct Telling {
    steady: Steady,
    said: u32,
    paused: bool,
    held: bool,
}

impl Iterator for Telling {
    type Item = Act;

    fn next(&mut self) -> Option<Act> {
        if self.steady.hold_after == Some(self.said) && !self.held {
            self.held = true;
            return Some(Act::Hold);
        }
        self.paused = !self.paused;
        if self.paused {
            return Some(Act::Wait(if self.said == 0 { self.steady.first } else { self.steady.gap }));
        }
        let id = self.steady.ids.get(self.said as usize % self.steady.ids.len().max(1)).copied()?;
        self.said += 1;
        Some(Act::Say(vec![id]))
    }
}

/// A text that is no script.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "script: given {given:?}, allowed: acts, comma separated: say N, ids ID.ID.., wait MS, hold, finish stop|length, fail WORD, miscount, early, break CODE, end, die; or one of refuse CODE, silence, die-first"
)]
pub struct ScriptError {
    given: String,
}

/// The same for every call. As text: `say 3, wait 20, say 1, break UNAVAILABLE`; `say N` says N words, one an event; `refuse CODE`, `silence` and `die-first` stand alone.
#[derive(Clone, Debug)]
pub enum Fixed {
    /// These acts.
    Play(Vec<Act>),
    /// A status with this code.
    Refuse(Code),
    /// No answer.
    Silence,
    /// The process ends.
    Die,
}

impl Script for Fixed {
    fn reply(&self, _: &GenerateRequest, _: u64) -> Reply {
        match self {
            Self::Play(acts) => Reply::Play(Box::new(acts.clone().into_iter())),
            Self::Refuse(code) => Reply::Refuse(Status::new(*code, "scripted")),
            Self::Silence => Reply::Silence,
            Self::Die => Reply::Die,
        }
    }
}

impl FromStr for Fixed {
    type Err = ScriptError;

    fn from_str(text: &str) -> Result<Self, ScriptError> {
        let wrong = || ScriptError { given: text.chars().take(120).collect() };
        match text.trim().split_once(' ').unwrap_or((text.trim(), "")) {
            ("refuse", code) => return Ok(Self::Refuse(read_code(code).ok_or_else(wrong)?)),
            ("silence", "") => return Ok(Self::Silence),
            ("die-first", "") => return Ok(Self::Die),
            _ => {}
        }
        let mut acts = Vec::new();
        for part in text.split(',') {
            acts.extend(read_acts(part.trim()).ok_or_else(wrong)?);
        }
        Ok(Self::Play(acts))
    }
}

fn read_acts(part: &str) -> Option<Vec<Act>> {
    let (verb, object) = part.split_once(' ').unwrap_or((part, ""));
    let act = match (verb, object) {
        ("say", count) => {
            let count = count.parse::<usize>().ok()?;
            return Some(WORDS.iter().cycle().take(count).map(|id| Act::Say(vec![*id])).collect());
        }
        ("ids", "") => Act::Say(Vec::new()),
        ("ids", ids) => Act::Say(ids.split('.').map(|id| id.parse().ok()).collect::<Option<_>>()?),
        ("wait", ms) => Act::Wait(Duration::from_millis(ms.parse().ok()?)),
        ("hold", "") => Act::Hold,
        ("finish", "stop") => Act::Finish(FinishReason::FinishStop),
        ("finish", "length") => Act::Finish(FinishReason::FinishLength),
        ("fail", word) => Act::Fail(word.to_owned()),
        ("miscount", "") => Act::Miscount,
        ("early", "") => Act::Early,
        ("break", code) => Act::Break(read_code(code)?),
        ("end", "") => Act::End,
        ("die", "") => Act::Die,
        _ => return None,
    };
    Some(vec![act])
}

/// A gRPC code by its name or number.
fn read_code(text: &str) -> Option<Code> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let text = text.trim();
    let number =
        NAMES.iter().position(|name| *name == text).or_else(|| text.parse().ok().filter(|number| *number < NAMES.len()))?;
    Some(Code::from_i32(i32::try_from(number).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acts(text: &str) -> Vec<String> {
        match text.parse() {
            Ok(Fixed::Play(acts)) => acts.iter().map(|act| format!("{act:?}")).collect(),
            other => vec![format!("{other:?}")],
        }
    }

    #[test]
    fn a_text_is_a_script() {
        assert_eq!(acts("say 2, wait 20,break UNAVAILABLE"), ["Say([313])", "Say([317])", "Wait(20ms)", "Break(Unavailable)"]);
        assert_eq!(acts("ids 1.2, ids, finish length"), ["Say([1, 2])", "Say([])", "Finish(FinishLength)"]);
        assert_eq!(acts("refuse 8"), ["Ok(Refuse(ResourceExhausted))"]);
        for bad in ["", "say", "say x", "wait", "refuse NOPE", "refuse 17", "silence 1", "finish", "say 1, silence"] {
            assert!(bad.parse::<Fixed>().is_err(), "{bad}");
        }
    }

    #[test]
    fn steady_waits_and_says_in_turn() {
        let steady = Steady { hold_after: Some(1), ..Steady::default() };
        let Reply::Play(acts) = steady.reply(&GenerateRequest::default(), 0) else { panic!("it plays") };
        let acts: Vec<String> = acts.take(5).map(|act| format!("{act:?}")).collect();
        assert_eq!(acts, ["Wait(0ns)", "Say([313])", "Hold", "Wait(5ms)", "Say([317])"]);
    }
}
