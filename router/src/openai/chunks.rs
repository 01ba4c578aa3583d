//! A streamed answer's chunks, as both of OpenAI's generating endpoints write them; they differ in what a choice says.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use crate::generation::End;
use crate::sse::Frames;

use super::usage;

/// What an answer's chunks, or its one body, say of it.
#[derive(Clone, Debug)]
pub struct Header {
    /// The answer's id.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: Arc<str>,
}

/// Writes the chunks of one answer.
pub struct Chunks {
    /// The beginning of every chunk, up to the value of `choices`: the same for a whole answer, so written once.
    opening: String,
    /// A last chunk with usage is wanted, and then every other says that it has none.
    usage: bool,
}

impl Chunks {
    /// Of an `object`, as OpenAI calls it.
    pub fn new(header: &Header, object: &str, usage: bool) -> Self {
        let (id, model) = (Value::from(header.id.as_str()), Value::from(&*header.model));
        let created = header.created;
        let opening = format!("data: {{\"id\":{id},\"object\":\"{object}\",\"created\":{created},\"model\":{model},\"choices\":");
        Self { opening, usage }
    }

    /// A chunk with one choice; `said` writes the field that says something.
    pub fn choice(&self, out: &mut Frames, said: impl FnOnce(&mut Frames), logprobs: &impl Serialize, finish: Option<&str>) {
        out.text(&self.opening);
        out.text("[{\"index\":0,");
        said(out);
        out.text(",\"logprobs\":");
        out.json(logprobs);
        out.text(",\"finish_reason\":");
        out.json(&finish);
        out.text("}]");
        self.close(out, &Value::Null);
    }

    /// What follows the last choice.
    pub fn end(&self, end: &End, out: &mut Frames) {
        if self.usage {
            out.text(&self.opening);
            out.text("[]");
            self.close(out, &usage(end));
        }
        out.done();
    }

    fn close(&self, out: &mut Frames, usage: &Value) {
        if self.usage {
            out.text(",\"usage\":");
            out.json(usage);
        }
        out.text("}\n\n");
    }
}
