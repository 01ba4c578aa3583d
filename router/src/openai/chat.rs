//! `/v1/chat/completions`: a conversation in, a message out.

mod answer;

use std::sync::Arc;

use hyper::Response;

use crate::App;
use crate::error::ApiError;
use crate::generation::Generation;
use crate::http::body::Given;
use crate::http::reply::text;
use crate::http::{Call, Reply};
use crate::metrics::Meter;
use crate::requests::chat::read;
use crate::server::Phase;
use crate::sse::respond;

use super::chunks::Header;
use answer::{Answer, whole};

/// Answers a request.
///
/// # Errors
/// Whatever is wrong with the request, the queue or the worker before the answer begins.
pub async fn answer(app: &Arc<App>, call: Call, body: Given, id: String, mut meter: Meter) -> Result<Response<Reply>, ApiError> {
    let header = Header { id: id.clone(), created: crate::now_seconds(), model: app.model.name.as_str().into() };
    let read = app.reading(body, move |context, body| read(context, body, id)).await.inspect_err(|error| meter.failed(error))?;
    let answer = Answer::new(header, Arc::clone(&app.model), read.streaming.usage, read.order.logprobs.is_some());
    let generation = Generation::start(app, read.order, read.reading, meter, call.link.backlog());
    if read.streaming.on {
        return respond(generation, answer, app.config.pace, &call.link).await;
    }
    call.link.enter(Phase::Whole);
    let (all, end) = generation.whole().await?;
    let body = app.writing(all.marks.len(), move || whole(&answer, all, &end)).await?;
    Ok(text("application/json", body))
}
