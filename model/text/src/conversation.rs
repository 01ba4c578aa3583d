//! A chat request's `messages` and `tools`, checked to OpenAI's shape, and what a template is given of them.
//!
//! Roles: `system`, `developer` (read as system), `user`, `assistant`, `tool`. Content: a string, or a list of
//! `{"type": "text", "text": ..}`, whose texts are joined; `null` for an assistant that called tools. A tool message without `name` takes
//! the name of the call that its `tool_call_id` names. M1's own form of tool results, parts with a `name` each, is kept. Fields that
//! M1's templates have no use for (`reasoning_content`, a user's `name`, ..) are dropped.

mod read;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::Value;

/// A message or tool that is not what a chat request may hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// A field is absent.
    #[error("{field} is missing; expected {allowed}")]
    Missing {
        /// Such as `messages[2].content`.
        field: String,
        /// What may stand there.
        allowed: &'static str,
    },
    /// A field is of another kind, or has a value that is not allowed.
    #[error("{field} is {given}; expected {allowed}")]
    Invalid {
        /// Such as `messages[2].content`.
        field: String,
        /// What stands there, shortened.
        given: String,
        /// What may stand there.
        allowed: &'static str,
    },
    /// A tool's result names a call that no earlier assistant message made.
    #[error("{field} is {given:?}; expected the id of a tool call of an earlier assistant message")]
    UnknownCall {
        /// Such as `messages[3].tool_call_id`.
        field: String,
        /// The id, shortened.
        given: String,
    },
    /// Text that only showed to be no JSON when it was read.
    #[error("{field}: {message}")]
    Malformed {
        /// Such as `messages[2].content`.
        field: String,
        /// The parser's words.
        message: String,
    },
    /// Nobody waits for it any more.
    #[error("messages: nobody waits for them any more")]
    Cancelled,
}

impl MessageError {
    /// The field at fault.
    #[must_use]
    pub fn field(&self) -> &str {
        match self {
            Self::Missing { field, .. }
            | Self::Invalid { field, .. }
            | Self::UnknownCall { field, .. }
            | Self::Malformed { field, .. } => field,
            Self::Cancelled => "messages",
        }
    }

    /// One word for logs and answers.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "FieldMissing",
            Self::Invalid { .. } => "FieldInvalid",
            Self::UnknownCall { .. } => "ToolCallUnknown",
            Self::Malformed { .. } => "FieldMalformed",
            Self::Cancelled => "Cancelled",
        }
    }
}

/// A text, shared with the template that shows it.
type Text = Arc<str>;

/// A checked conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    pub(crate) messages: Vec<Message>,
    /// As given; none when the list was absent or empty.
    pub(crate) tools: Option<Arc<str>>,
}

/// Small, because a body may hold a million of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    System(Text),
    User(Text),
    Assistant(Text),
    /// An assistant that called tools.
    Caller(Box<Caller>),
    Tool(Box<Tool>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) content: Text,
    pub(crate) calls: Vec<Call>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) id: Text,
    pub(crate) name: Text,
    /// JSON, as given.
    pub(crate) arguments: Text,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tool {
    /// The call's, if given.
    pub(crate) id: Option<Text>,
    pub(crate) results: Results,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Results {
    One(Named),
    /// M1's own form: several results in one turn, each with its tool's name.
    Several(Vec<Named>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: Text,
    pub(crate) text: Text,
}

impl Conversation {
    /// Checks the fields of a chat request, given as JSON.
    ///
    /// # Errors
    /// [`MessageError`], naming the field, such as `messages[2].content`; or `cancelled` was set.
    pub fn parse(messages: &str, tools: Option<&str>, cancelled: &AtomicBool) -> Result<Self, MessageError> {
        Ok(Self { messages: read::messages(messages, cancelled)?, tools: read::tools(tools, cancelled)? })
    }

    /// The same of values.
    ///
    /// # Errors
    /// [`MessageError`], naming the field.
    pub fn read(messages: &Value, tools: Option<&Value>) -> Result<Self, MessageError> {
        Self::parse(&messages.to_string(), tools.map(Value::to_string).as_deref(), &AtomicBool::new(false))
    }

    /// One user turn.
    pub fn of_user(text: impl Into<Arc<str>>) -> Self {
        Self { messages: vec![Message::User(text.into())], tools: None }
    }

    /// Whether tools were offered; if not, a tool call block in the answer is no call.
    #[must_use]
    pub fn has_tools(&self) -> bool {
        self.tools.is_some()
    }

    /// The same conversation without tools, for `tool_choice: none`.
    #[must_use]
    pub fn without_tools(self) -> Self {
        Self { tools: None, ..self }
    }

    pub(crate) fn of_call(text: &str, name: &str) -> Self {
        let call = Call { id: "call".into(), name: name.into(), arguments: "{}".into() };
        let called = Message::Caller(Box::new(Caller { content: Text::default(), calls: vec![call] }));
        Self { messages: vec![Message::User(text.into()), called], tools: None }
    }

    /// Writes past calls into the content, for a template that does not show them.
    pub(crate) fn inline_calls(&mut self) {
        for message in &mut self.messages {
            if let Message::Caller(caller) = message {
                *message = Message::Assistant(with_calls(caller).into());
            }
        }
    }

    /// Every text of the messages, to look at or to replace.
    pub(crate) fn texts_mut(&mut self) -> impl Iterator<Item = &mut Text> {
        self.messages.iter_mut().flat_map(Message::texts_mut)
    }
}

impl Message {
    fn texts_mut(&mut self) -> Box<dyn Iterator<Item = &mut Text> + '_> {
        match self {
            Self::System(text) | Self::User(text) | Self::Assistant(text) => Box::new(std::iter::once(text)),
            Self::Caller(caller) => {
                let calls = caller.calls.iter_mut().flat_map(|call| [&mut call.id, &mut call.name, &mut call.arguments]);
                Box::new(std::iter::once(&mut caller.content).chain(calls))
            }
            Self::Tool(tool) => {
                let results = match &mut tool.results {
                    Results::One(result) => std::slice::from_mut(result),
                    Results::Several(results) => results.as_mut_slice(),
                };
                Box::new(tool.id.iter_mut().chain(results.iter_mut().flat_map(|result| [&mut result.name, &mut result.text])))
            }
        }
    }
}

/// Calls in the form that the model writes them in.
fn with_calls(caller: &Caller) -> String {
    let mut out = caller.content.to_string();
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out.push_str("<tool_calls>\n");
    for call in &caller.calls {
        // Writing to a text cannot fail.
        let _ = writeln!(out, "{{\"name\": {}, \"arguments\": {}}}", Value::from(&*call.name), call.arguments);
    }
    out.push_str("</tool_calls>");
    out
}

#[cfg(test)]
mod tests;
