//! Tokens to text: what a client is told of a sequence while it runs. Streamed and whole answers are made of the same pieces, so they are equal.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use m1_proto::worker::TokenLogprobs;
use m1_router_core::Counts;
use m1_text::{Calls, Delta, OutputParser, Phase, TextStream, opened_reasoning};

use crate::App;
use crate::error::ApiError;
use crate::metrics::Meter;
use crate::model::Model;
use crate::order::Order;
use crate::server::Backlog;
use crate::session::{Finished, News, Place, Session};

/// How text is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As it comes.
    Raw,
    /// Told apart into reasoning, content and, perhaps, tool calls.
    Parsed {
        /// What a block of tool calls is.
        calls: Calls,
        /// What the prompt says inside of reasoning that it has opened.
        opened: Option<String>,
    },
}

impl Reading {
    /// Of the answer to a prompt. Takes a moment for a long one without any turn in it.
    pub fn parsed(model: &Model, calls: Calls, prompt: &[u32]) -> Self {
        Self::Parsed { calls, opened: opened_reasoning(&model.tokenizer, prompt) }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model, or a stop string, ended it.
    Stop,
    /// It ran out of tokens.
    Length,
    /// It calls tools.
    ToolCalls,
}

impl Finish {
    /// As OpenAI writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// One token of the answer and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// The token.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The most likely tokens.
    pub top: Vec<(u32, f32)>,
    /// Characters of the answer before it.
    pub offset: usize,
    bytes: std::ops::Range<usize>,
}

/// A part of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Text and calls.
    pub deltas: Vec<Delta>,
    /// Tokens, where log-probabilities were asked for.
    pub marks: Vec<Mark>,
}

/// The end of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// Why.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated, with the one that ended the answer.
    pub output_tokens: u32,
    /// Tokens until the reasoning closed.
    pub reasoning_tokens: u32,
    /// What the experts did, or why that is not known.
    pub routing: Result<Counts, String>,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerPart {
    /// More.
    Piece(Piece),
    /// The last one.
    End(End),
}

/// An answer under way: a reader of a session's log.
pub struct Generation {
    session: Session,
    reader: Reader,
    place: Place,
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    end: Option<End>,
}

impl Generation {
    /// Starts, for a client for whom so much is kept already.
    pub fn start(app: &Arc<App>, order: Order, reading: Reading, meter: Meter, backlog: &Arc<Backlog>) -> Self {
        let reader = Reader::new(Arc::clone(&app.model), reading, &order);
        let session = Session::start(app, order, meter, backlog);
        Self { session, reader, place: Place::default(), ids: Vec::new(), logprobs: Vec::new(), end: None }
    }

    /// The session behind it.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The next part; nothing follows [`AnswerPart::End`] or an error.
    ///
    /// # Errors
    /// Nobody could serve it, or the worker was lost, broke its contract, or said that it failed.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<AnswerPart, ApiError>> {
        if let Some(end) = self.end.take() {
            return Poll::Ready(Ok(AnswerPart::End(end)));
        }
        loop {
            let news = ready!(self.session.log().poll(&mut self.place, &mut self.ids, &mut self.logprobs, cx));
            let piece = match news {
                News::Tokens => self.reader.take(&self.ids, &mut self.logprobs),
                News::End(Err(error)) => return Poll::Ready(Err(error)),
                News::End(Ok(finished)) => {
                    let (piece, end) = self.reader.finish(finished);
                    if piece == Piece::default() {
                        return Poll::Ready(Ok(AnswerPart::End(end)));
                    }
                    self.end = Some(end);
                    piece
                }
            };
            if piece != Piece::default() {
                return Poll::Ready(Ok(AnswerPart::Piece(piece)));
            }
        }
    }

    /// The whole answer.
    ///
    /// # Errors
    /// As [`Self::poll_next`].
    pub async fn whole(mut self) -> Result<(Whole, End), ApiError> {
        let mut whole = Whole::default();
        loop {
            match std::future::poll_fn(|cx| self.poll_next(cx)).await? {
                AnswerPart::Piece(piece) => whole.add(piece),
                AnswerPart::End(end) => return Ok((whole, end)),
            }
            // All of a long answer may be there already; others want their turn too.
            tokio::task::consume_budget().await;
        }
    }
}

/// An answer put together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Whole {
    /// Text inside `<think>`.
    pub reasoning: String,
    /// Text after it.
    pub content: String,
    /// Name and arguments of each call.
    pub calls: Vec<(String, String)>,
    /// Tokens.
    pub marks: Vec<Mark>,
}

impl Whole {
    fn add(&mut self, piece: Piece) {
        for delta in piece.deltas {
            match delta {
                Delta::Reasoning(text) => self.reasoning.push_str(&text),
                Delta::Content(text) => self.content.push_str(&text),
                Delta::ToolCall { name, arguments, .. } => self.calls.push((name, arguments)),
            }
        }
        self.marks.extend(piece.marks);
    }
}

struct Reader {
    model: Arc<Model>,
    text: TextStream,
    parser: Option<OutputParser>,
    tokens: u32,
    reasoning_tokens: u32,
    reasons: bool,
    /// None unless log-probabilities are wanted; else the tokens whose text is not out yet.
    marks: Option<VecDeque<Mark>>,
    bytes_in: usize,
    chars_in: usize,
    bytes_out: usize,
}

impl Reader {
    fn new(model: Arc<Model>, reading: Reading, order: &Order) -> Self {
        let text = TextStream::new(&model.tokenizer, order.stops.clone());
        let parser = match reading {
            Reading::Raw => None,
            Reading::Parsed { calls, opened: Some(opened) } => Some(OutputParser::within(calls, &opened)),
            Reading::Parsed { calls, opened: None } => Some(OutputParser::new(calls)),
        };
        let marks = order.logprobs.is_some().then(VecDeque::new);
        Self { model, text, parser, tokens: 0, reasoning_tokens: 0, reasons: false, marks, bytes_in: 0, chars_in: 0, bytes_out: 0 }
    }

    fn take(&mut self, ids: &[u32], logprobs: &mut Vec<TokenLogprobs>) -> Piece {
        let mut piece = Piece::default();
        let mut logprobs = logprobs.drain(..);
        for id in ids {
            self.tokens = self.tokens.saturating_add(1);
            self.mark(*id, logprobs.next());
            let text = self.text.push(*id);
            self.read(&text, &mut piece);
        }
        let out = self.bytes_out;
        if let Some(marks) = &mut self.marks {
            while marks.front().is_some_and(|mark| mark.bytes.end <= out) {
                piece.marks.extend(marks.pop_front());
            }
        }
        piece
    }

    fn finish(&mut self, finished: Finished) -> (Piece, End) {
        let mut piece = Piece::default();
        let text = self.text.finish();
        self.read(&text, &mut piece);
        let rest = self.parser.as_mut().map(OutputParser::finish).unwrap_or_default();
        rest.into_iter().for_each(|delta| join(&mut piece.deltas, delta));
        // A stop string cuts the text; tokens wholly behind the cut are no part of the answer.
        let cut = if self.text.stopped().is_some() { self.bytes_out } else { usize::MAX };
        piece.marks.extend(self.marks.take().unwrap_or_default().into_iter().filter(|mark| mark.bytes.start < cut));
        let calls = self.parser.as_ref().is_some_and(|parser| parser.tool_calls() > 0);
        let end = End {
            finish: match (finished.by_length && self.text.stopped().is_none(), calls) {
                (true, _) => Finish::Length,
                (false, true) => Finish::ToolCalls,
                (false, false) => Finish::Stop,
            },
            prompt_tokens: finished.prompt_tokens,
            output_tokens: finished.output_tokens,
            reasoning_tokens: self.reasoning_tokens,
            routing: finished.routing,
        };
        (piece, end)
    }

    fn read(&mut self, text: &str, piece: &mut Piece) {
        self.bytes_out += text.len();
        let Some(parser) = &mut self.parser else {
            if !text.is_empty() {
                join(&mut piece.deltas, Delta::Content(text.to_owned()));
            }
            return;
        };
        let deltas = parser.push(text);
        let open = parser.phase() == Phase::Reasoning;
        if self.reasons || open || deltas.iter().any(|delta| matches!(delta, Delta::Reasoning(_))) {
            // Still open, or closed by this very token.
            self.reasoning_tokens = self.tokens;
        }
        self.reasons = open;
        deltas.into_iter().for_each(|delta| join(&mut piece.deltas, delta));
    }

    fn mark(&mut self, id: u32, logprobs: Option<TokenLogprobs>) {
        let Some(marks) = &mut self.marks else { return };
        if self.text.stopped().is_some() || self.model.tokenizer.is_control(id) {
            return;
        }
        let bytes = self.model.tokenizer.token_bytes(id).unwrap_or_default();
        let start = self.bytes_in;
        let offset = self.chars_in;
        self.bytes_in += bytes.len();
        // Every character has one byte that is no continuation.
        self.chars_in += bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count();
        let logprobs = logprobs.unwrap_or_default();
        let top = logprobs.top().collect();
        marks.push_back(Mark { id, logprob: logprobs.logprob, top, offset, bytes: start..self.bytes_in });
    }
}

/// Appends a delta; neighbours of one kind become one.
fn join(deltas: &mut Vec<Delta>, delta: Delta) {
    match (deltas.last_mut(), delta) {
        (Some(Delta::Content(last)), Delta::Content(text)) | (Some(Delta::Reasoning(last)), Delta::Reasoning(text)) => {
            last.push_str(&text)
        }
        (_, delta) => deltas.push(delta),
    }
}
