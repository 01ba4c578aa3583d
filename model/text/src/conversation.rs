//! A chat request's `messages` and `tools`, checked to OpenAI's shape, and what a template is given of them.
//!
//! Roles: `system`, `developer` (read as system), `user`, `assistant`, `tool`. Content: a string, or a list of
//! `{"type": "text", "text": ..}`, whose texts are joined; `null` for an assistant that called tools. A tool message without `name` takes
//! the name of the call that its `tool_call_id` names. M1's own form of tool results, parts with a `name` each, is kept. Fields that
//! M1's templates have no use for (`reasoning_content`, a user's `name`, ..) are dropped.

mod read;

use serde_json::{Value, json};

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
        /// The id.
        given: String,
    },
}

impl MessageError {
    /// The field at fault.
    #[must_use]
    pub fn field(&self) -> &str {
        match self {
            Self::Missing { field, .. } | Self::Invalid { field, .. } | Self::UnknownCall { field, .. } => field,
        }
    }

    /// One word for logs and answers.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "FieldMissing",
            Self::Invalid { .. } => "FieldInvalid",
            Self::UnknownCall { .. } => "ToolCallUnknown",
        }
    }
}

/// A checked conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    messages: Vec<Message>,
    /// As given; none when the list was absent or empty.
    tools: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Message {
    System(String),
    User(String),
    Assistant {
        content: String,
        calls: Vec<Call>,
    },
    /// `id` is the call's, if given.
    Tool {
        id: Option<String>,
        results: Results,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    id: String,
    name: String,
    /// JSON, as given.
    arguments: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Results {
    One {
        name: String,
        text: String,
    },
    /// M1's own form: several results in one turn, each with its tool's name.
    Named(Vec<(String, String)>),
}

/// What a template can work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContentForm {
    /// Content must be a list of parts.
    pub(crate) parts: bool,
    /// Past tool calls must be written into the content.
    pub(crate) inline_calls: bool,
}

impl Conversation {
    /// Checks the fields of a chat request.
    ///
    /// # Errors
    /// [`MessageError`], naming the field, such as `messages[2].content`.
    pub fn read(messages: &Value, tools: Option<&Value>) -> Result<Self, MessageError> {
        Ok(Self { messages: read::messages(messages)?, tools: read::tools(tools)? })
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

    pub(crate) fn of_user(text: &str) -> Self {
        Self { messages: vec![Message::User(text.to_owned())], tools: None }
    }

    pub(crate) fn of_call(text: &str, name: &str) -> Self {
        let call = Call { id: "call".to_owned(), name: name.to_owned(), arguments: "{}".to_owned() };
        let called = Message::Assistant { content: String::new(), calls: vec![call] };
        Self { messages: vec![Message::User(text.to_owned()), called], tools: None }
    }

    /// The template's variables.
    pub(crate) fn to_context(&self, form: ContentForm) -> Value {
        let messages: Vec<Value> = self.messages.iter().map(|message| message.to_value(form)).collect();
        let mut context = json!({"messages": messages, "add_generation_prompt": true});
        if let Some(tools) = &self.tools {
            context["tools"] = tools.clone();
        }
        context
    }
}

impl Message {
    fn to_value(&self, form: ContentForm) -> Value {
        match self {
            Self::System(text) => json!({"role": "system", "content": content(text, form)}),
            Self::User(text) => json!({"role": "user", "content": content(text, form)}),
            Self::Assistant { content: text, calls } if calls.is_empty() => {
                json!({"role": "assistant", "content": content(text, form)})
            }
            Self::Assistant { content: text, calls } if form.inline_calls => {
                json!({"role": "assistant", "content": content(&with_calls(text, calls), form)})
            }
            Self::Assistant { content: text, calls } => {
                let calls: Vec<Value> = calls.iter().map(Call::to_value).collect();
                json!({"role": "assistant", "content": content(text, form), "tool_calls": calls})
            }
            Self::Tool { id, results } => {
                let mut message = results.to_value(form);
                if let Some(id) = id {
                    message["tool_call_id"] = json!(id);
                }
                message
            }
        }
    }
}

impl Call {
    fn to_value(&self) -> Value {
        json!({"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}})
    }
}

impl Results {
    fn to_value(&self, form: ContentForm) -> Value {
        let part = |name: &str, text: &str| json!({"name": name, "type": "text", "text": text});
        match self {
            Self::One { name, text } if form.parts => json!({"role": "tool", "name": name, "content": [part(name, text)]}),
            Self::One { name, text } => json!({"role": "tool", "name": name, "content": text}),
            Self::Named(results) => {
                let parts: Vec<Value> = results.iter().map(|(name, text)| part(name, text)).collect();
                json!({"role": "tool", "content": parts})
            }
        }
    }
}

fn content(text: &str, form: ContentForm) -> Value {
    if form.parts { json!([{"type": "text", "text": text}]) } else { json!(text) }
}

/// Calls in the form that the model writes them in.
fn with_calls(text: &str, calls: &[Call]) -> String {
    let name = |call: &Call| Value::from(call.name.as_str()).to_string();
    let lines: String =
        calls.iter().map(|call| format!("{{\"name\": {}, \"arguments\": {}}}\n", name(call), call.arguments)).collect();
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{gap}<tool_calls>\n{lines}</tool_calls>")
}

#[cfg(test)]
mod tests;
