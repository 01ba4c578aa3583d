//! Text in and out of MiniMax-M1: tokenizer, chat template, detokeniser, and the parser of what the model writes.
//!
//! Pure: reads a checkpoint's tokenizer files once, then only computes. Knows nothing of HTTP, requests in flight or devices.
//!
//! The way in:  messages -> [`ChatTemplate::render`] -> [`Prompt`] -> [`Tokenizer::encode_prompt`] -> ids.
//! The way out: ids -> [`TextStream`] (whole characters, stop strings) -> [`OutputParser`] (reasoning, content, tool calls).
//!
//! Invariant: text that a caller wrote never becomes a control token of a chat prompt; see [`Prompt`].

mod control;
mod conversation;
mod encode;
mod hold;
pub mod json;
mod output;
mod pieces;
mod stream;
mod template;
mod tokenizer;

pub use conversation::{Conversation, MessageError};
pub use encode::{Bounds, EncodeError, grow};
pub use output::{Calls, Delta, OutputParser, Phase, opened_reasoning};
pub use stream::{StopError, StopStrings, TextStream};
pub use template::{ChatTemplate, Prompt, RenderError, TemplateError};
pub use tokenizer::{Tokenizer, TokenizerError};
