//! `/v1/completions`: raw text in, raw text out.

use std::sync::Arc;

use hyper::Response;
use m1_text::Delta;
use serde::Serialize;

use crate::App;
use crate::error::ApiError;
use crate::generation::{End, Generation, Piece, Reading};
use crate::http::body::Given;
use crate::http::reply::text;
use crate::http::{Call, Reply};
use crate::metrics::Meter;
use crate::model::Model;
use crate::requests::completions::read;
use crate::server::Phase;
use crate::sse::{Dialect, Frames, respond};

use super::chunks::{Chunks, Header};
use super::{Body, TextLogprobs};

/// As OpenAI calls it, whole and in chunks.
const OBJECT: &str = "text_completion";

/// Answers a request.
///
/// # Errors
/// Whatever is wrong with the request, the queue or the worker before the answer begins.
pub async fn answer(app: &Arc<App>, call: Call, body: Given, id: String, mut meter: Meter) -> Result<Response<Reply>, ApiError> {
    let header = Header { id: id.clone(), created: crate::now_seconds(), model: app.model.name.as_str().into() };
    let read = app.reading(body, move |context, body| read(context, body, id)).await.inspect_err(|error| meter.failed(error))?;
    let chunks = Chunks::new(&header, OBJECT, read.streaming.usage);
    let answer = Answer { header, model: Arc::clone(&app.model), logprobs: read.order.logprobs.is_some(), chunks };
    let generation = Generation::start(app, read.order, Reading::Raw, meter, call.link.backlog());
    if read.streaming.on {
        return respond(generation, answer, app.config.pace, &call.link).await;
    }
    call.link.enter(Phase::Whole);
    let (all, end) = generation.whole().await?;
    let body = app.writing(all.marks.len(), move || {
        let logprobs = answer.logprobs.then(|| TextLogprobs::of(&answer.model, &all.marks));
        let choice = Choice { index: 0, text: &all.content, logprobs, finish_reason: end.finish.as_str() };
        Body::write(&answer.header, OBJECT, choice, &end)
    });
    Ok(text("application/json", body.await?))
}

struct Answer {
    header: Header,
    model: Arc<Model>,
    logprobs: bool,
    chunks: Chunks,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    text: &'a str,
    logprobs: Option<TextLogprobs<'a>>,
    finish_reason: &'static str,
}

impl Answer {
    fn choice(&self, out: &mut Frames, text: &str, logprobs: &Option<TextLogprobs<'_>>, finish: Option<&str>) {
        let said = |out: &mut Frames| {
            out.text("\"text\":");
            out.json(text);
        };
        self.chunks.choice(out, said, logprobs, finish);
    }
}

impl Dialect for Answer {
    fn piece(&mut self, piece: Piece, out: &mut Frames) {
        let texts = piece.deltas.iter().filter_map(|delta| match delta {
            Delta::Content(text) => Some(text.as_str()),
            Delta::Reasoning(_) | Delta::ToolCall { .. } => None,
        });
        let logprobs = (self.logprobs && !piece.marks.is_empty()).then(|| TextLogprobs::of(&self.model, &piece.marks));
        self.choice(out, &texts.collect::<String>(), &logprobs, None);
    }

    fn end(&mut self, end: End, out: &mut Frames) -> Result<(), ApiError> {
        self.choice(out, "", &None, Some(end.finish.as_str()));
        self.chunks.end(&end, out);
        Ok(())
    }
}
