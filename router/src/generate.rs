//! `/v1/minimax-m1/generate`: M1's own endpoint, with its routing log.

use std::sync::Arc;

use http::StatusCode;
use hyper::Response;
use m1_router_core::Counts;
use m1_text::Delta;
use serde_json::{Value, json};

use crate::App;
use crate::error::ApiError;
use crate::generation::{End, Generation, Piece};
use crate::http::body::Given;
use crate::http::{Call, Reply, json_reply};
use crate::metrics::Meter;
use crate::requests::generate::read;
use crate::server::Phase;
use crate::sse::{Dialect, Frames, respond};

/// Answers a request.
///
/// # Errors
/// Whatever is wrong with the request, the queue or the worker before the answer begins.
pub async fn answer(app: &Arc<App>, call: Call, body: Given, id: String, mut meter: Meter) -> Result<Response<Reply>, ApiError> {
    let (model, answer_id) = (app.model.name.clone(), id.clone());
    let read = app.reading(body, move |context, body| read(context, body, id)).await.inspect_err(|error| meter.failed(error))?;
    let generation = Generation::start(app, read.order, read.reading, meter, call.link.backlog());
    if read.streamed {
        return respond(generation, Telling { id: answer_id, model }, app.config.pace, &call.link).await;
    }
    call.link.enter(Phase::Whole);
    let (all, end) = generation.whole().await?;
    let routing = routing(&end)?;
    let body = json!({
        "id": answer_id,
        "model": model,
        "text": all.content,
        "reasoning": all.reasoning,
        "finish_reason": end.finish.as_str(),
        "usage": usage(&end),
        "routing": routing,
    });
    Ok(json_reply(StatusCode::OK, &body))
}

fn usage(end: &End) -> Value {
    json!({
        "input_tokens": end.prompt_tokens,
        "output_tokens": end.output_tokens,
        "reasoning_tokens": end.reasoning_tokens,
        "total_tokens": u64::from(end.prompt_tokens) + u64::from(end.output_tokens),
    })
}

fn routing(end: &End) -> Result<Value, ApiError> {
    match &end.routing {
        Ok(counts) => Ok(log(counts)),
        Err(message) => Err(ApiError::Engine { reason: "RoutingCounts".to_owned(), message: message.clone() }),
    }
}

fn log(counts: &Counts) -> Value {
    let shape = counts.geometry;
    let layer = |layer: usize| {
        json!({
            "layer": layer,
            "tokens": counts.layer(&counts.expert_tokens, layer),
            "mean_weight": counts.mean_weight(layer),
            "skipped": counts.layer(&counts.expert_skipped, layer),
        })
    };
    json!({
        "tokens": counts.tokens,
        "layers": shape.layers,
        "experts": shape.experts,
        "top_k": shape.top_k,
        "executed": counts.executed,
        "skipped": counts.skipped,
        "lost": counts.lost,
        "by_layer": (0..shape.layers).map(layer).collect::<Vec<_>>(),
    })
}

struct Telling {
    id: String,
    model: String,
}

impl Dialect for Telling {
    fn piece(&mut self, piece: Piece, out: &mut Frames) {
        for delta in piece.deltas {
            match delta {
                Delta::Reasoning(text) => out.event("text", &json!({"reasoning": text})),
                Delta::Content(text) => out.event("text", &json!({"text": text})),
                // Calls are kept as text here.
                Delta::ToolCall { .. } => {}
            }
        }
    }

    fn end(&mut self, end: End, out: &mut Frames) -> Result<(), ApiError> {
        let routing = routing(&end)?;
        out.event("usage", &usage(&end));
        out.event("routing", &routing);
        out.event("done", &json!({"id": self.id, "model": self.model, "finish_reason": end.finish.as_str()}));
        Ok(())
    }
}
