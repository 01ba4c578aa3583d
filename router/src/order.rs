//! A checked request for tokens, whatever API it came by, and how it reads on the wire.

use m1_proto::worker::{GenerateRequest, Priority, Sampling, ThinkingBudget};
use m1_text::StopStrings;
use serde_json::Value;

use crate::error::ApiError;
use crate::model::Model;
use crate::requests::params::Drawing;

/// One sequence to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Of the request; ids of answers begin with it.
    pub id: String,
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// At least 1; prompt and output fit the window.
    pub max_tokens: u32,
    /// 0 is greedy.
    pub temperature: f64,
    /// (0, 1].
    pub top_p: f64,
    /// Of the draws.
    pub seed: u64,
    /// Texts that end it.
    pub stops: StopStrings,
    /// None, or how many of the most likely tokens to name beside the chosen one.
    pub logprobs: Option<u32>,
    /// (0.5, 1]; 1 is exact.
    pub expert_threshold: f64,
    /// Tokens after which the reasoning is closed.
    pub thinking_budget: Option<u32>,
    /// Its last event brings what every expert did.
    pub want_routing: bool,
    /// What earlier attempts generated; it follows the prompt.
    pub said: Vec<u32>,
    /// It goes behind those that somebody waits for.
    pub batch: bool,
}

impl Order {
    /// A sequence without anything special about it: exact, ended by the model alone, and told without log-probabilities.
    pub fn new(id: String, prompt: Vec<u32>, max_tokens: u32, drawing: Drawing, random: &dyn Fn() -> u64) -> Self {
        Self {
            id,
            prompt,
            max_tokens,
            temperature: drawing.temperature,
            top_p: drawing.top_p,
            seed: drawing.seed.unwrap_or_else(random),
            stops: StopStrings::default(),
            logprobs: None,
            expert_threshold: 1.0,
            thinking_budget: None,
            want_routing: false,
            said: Vec::new(),
            batch: false,
        }
    }

    /// As the worker takes it from `router`, whose status stream counts its experts.
    pub fn to_wire(&self, model: &Model, attempt: u32, router: &str) -> GenerateRequest {
        GenerateRequest {
            request_id: self.id.clone(),
            attempt,
            prompt: self.prompt.clone(),
            max_tokens: self.max_tokens,
            sampling: Some(Sampling {
                temperature: self.temperature as f32,
                // On the wire 0 means 1: the least positive number stays the least.
                top_p: (self.top_p as f32).max(f32::MIN_POSITIVE),
                seed: self.seed,
            }),
            stop_ids: model.tokenizer.eos_ids().to_vec(),
            stop_strings: self.stops.texts().to_vec(),
            // Rounding to f32 must not reach 0.5, which is not allowed.
            expert_threshold: (self.expert_threshold as f32).max(0.5 + f32::EPSILON),
            thinking: self.thinking_budget.map(|tokens| ThinkingBudget { tokens, close_ids: model.close_ids.clone() }),
            logprobs: self.logprobs.map_or(0, |top| top.saturating_add(1)),
            prefill_chunk: 0,
            said: self.said.clone(),
            omit_routing: !self.want_routing,
            router: router.to_owned(),
            priority: if self.batch { Priority::Batch } else { Priority::Interactive }.into(),
            ..GenerateRequest::default()
        }
    }
}

/// What one request may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of prompt and output together.
    pub window: u32,
    /// Tokens of an output, where the server bounds them.
    pub output: Option<u32>,
}

impl Limits {
    /// Refuses an output longer than the server gives.
    ///
    /// # Errors
    /// The field, with the bound.
    pub fn check_output(&self, asked: Option<(&str, u32)>) -> Result<(), ApiError> {
        match (asked, self.output) {
            (Some((field, asked)), Some(most)) if asked > most => {
                Err(ApiError::invalid(field, &Value::from(asked), &format!("at most {most}, this server's limit")))
            }
            _ => Ok(()),
        }
    }

    /// How many tokens may be generated: what was asked for, else what the window and the server's limit leave.
    ///
    /// # Errors
    /// The prompt is empty, does not fit with its output, or the output is longer than the server gives.
    pub fn room(&self, param: &'static str, prompt: usize, asked: Option<(&str, u32)>) -> Result<u32, ApiError> {
        self.check_output(asked)?;
        let room = room(param, prompt, asked, self.window)?;
        Ok(room.min(self.output.unwrap_or(u32::MAX)))
    }
}

/// How many tokens fit: what was asked for, else what the window leaves.
fn room(param: &'static str, prompt: usize, asked: Option<(&str, u32)>, window: u32) -> Result<u32, ApiError> {
    if prompt == 0 {
        return Err(ApiError::missing(param, "at least one token"));
    }
    let left = u32::try_from(prompt).ok().and_then(|prompt| window.checked_sub(prompt)).filter(|left| *left > 0);
    let tokens = |count: u64| if count == 1 { "1 token".to_owned() } else { format!("{count} tokens") };
    let window = tokens(u64::from(window));
    let shown = tokens(prompt as u64);
    match (left, asked) {
        (None, _) => {
            let message = format!("{param}: the prompt has {shown}, the window holds {window} of prompt and output together");
            Err(ApiError::ContextLength { param, message })
        }
        (Some(left), Some((field, asked))) if asked > left => {
            let all = tokens(prompt as u64 + u64::from(asked));
            let message = format!(
                "{param}: the prompt has {shown} and {field} is {asked}: {all}, the window holds {window}; allowed for {field}: at most {left}"
            );
            Err(ApiError::ContextLength { param, message })
        }
        (Some(left), None) => Ok(left),
        (Some(_), Some((_, asked))) => Ok(asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_bounds_the_output() {
        let limits = Limits { window: 16, output: Some(4) };
        assert_eq!(limits.room("prompt", 10, None), Ok(4));
        assert_eq!(limits.room("prompt", 14, None), Ok(2));
        assert_eq!(limits.room("prompt", 10, Some(("max_tokens", 4))), Ok(4));
        let error = limits.room("prompt", 10, Some(("max_tokens", 5))).unwrap_err();
        assert_eq!(error.to_string(), "max_tokens: given 5, allowed: at most 4, this server's limit");
        assert_eq!(error.reason(), "invalid_value");
        assert_eq!(Limits { output: None, ..limits }.room("prompt", 10, None), Ok(6));
    }

    #[test]
    fn the_window_bounds_prompt_and_output() {
        assert_eq!(room("prompt", 10, None, 16), Ok(6));
        assert_eq!(room("prompt", 10, Some(("max_tokens", 6)), 16), Ok(6));
        let error = room("prompt", 10, Some(("max_tokens", 7)), 16).unwrap_err();
        assert_eq!(error.reason(), "context_length_exceeded");
        assert_eq!(
            error.to_string(),
            "prompt: the prompt has 10 tokens and max_tokens is 7: 17 tokens, the window holds 16 tokens; allowed for max_tokens: at most 6"
        );
        assert_eq!(room("prompt", 16, None, 16).unwrap_err().reason(), "context_length_exceeded");
        assert_eq!(room("prompt", 0, None, 16).unwrap_err().reason(), "invalid_value");
    }
}
