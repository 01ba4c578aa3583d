//! The checkpoint's chat template: a conversation to the text that the model was trained to continue.
//!
//! Templates are Jinja as Hugging Face runs it: blocks trimmed, Python's methods on strings and dicts, `tojson` as `json.dumps`,
//! `raise_exception`. Two things differ between M1's templates, so they are tried when one is opened: whether `content` may be a string
//! (the official one wants a list of parts) and whether it writes past tool calls itself (the official one does not; they are then put
//! into the content, in the form that the model writes).
//!
//! The assistant's `reasoning_content` is not rendered: M1's templates have no place for it, and it would only fill the window.

mod context;
mod environment;
mod json;
mod prompt;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::Environment;
use serde_json::Value;

use crate::control::ControlTokens;
use crate::conversation::{Conversation, MessageError};
use crate::encode::{Bounds, EncodeError};
use crate::json::cut;
use crate::tokenizer::Tokenizer;

use context::{ContentForm, Context, Marking};
pub use prompt::Prompt;
use prompt::Writer;

const NAME: &str = "chat_template";
/// Characters of a template's or Jinja's words that an error passes on: they may quote the request.
const QUOTED: usize = 120;

/// Why a checkpoint has no usable chat template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file is missing or unreadable.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// `tokenizer_config.json` is not JSON.
    #[error("cannot parse {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// There is no template.
    #[error("{}: chat_template is missing; it must be a template, or a list with one named default", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The template is not valid Jinja.
    #[error("the chat template does not compile")]
    Compile(#[source] minijinja::Error),
    /// The template does not show a user's text, be it given as a string or as a list of parts.
    #[error("the chat template does not render a user's message")]
    Unusable(#[source] Option<minijinja::Error>),
}

impl TemplateError {
    /// One word for logs and conditions.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "TemplateUnreadable",
            Self::Parse { .. } => "TokenizerConfigInvalid",
            Self::Missing { .. } => "TemplateMissing",
            Self::Compile(_) => "TemplateInvalid",
            Self::Unusable(_) => "TemplateUnusable",
        }
    }
}

/// Why a conversation cannot be rendered. Every variant is the request's fault.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// A message or tool has the wrong shape.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The template itself refuses the conversation (`raise_exception`).
    #[error("messages: the chat template refuses them: {0}")]
    Refused(String),
    /// The template fails on this conversation.
    #[error("messages: the chat template cannot render them: {}", cut(&.0.to_string(), QUOTED))]
    Render(#[source] minijinja::Error),
    /// The prompt cannot fit, or nobody waits for it any more.
    #[error(transparent)]
    Bounds(#[from] EncodeError),
    /// The texts use every control character of U+0080 to U+009F and every noncharacter of U+FDD0 to U+FDEF, and also spell a control token.
    #[error("messages: no character of U+0080..U+009F and U+FDD0..U+FDEF is left to keep control tokens in the texts apart")]
    NoMark,
}

impl RenderError {
    /// One word for logs and answers.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Message(error) => error.reason(),
            Self::Refused(_) => "TemplateRefused",
            Self::Render(_) => "TemplateFailed",
            Self::Bounds(error) => error.reason(),
            Self::NoMark => "NoMarkLeft",
        }
    }

    /// The request's field at fault, such as `messages[2].content`.
    #[must_use]
    pub fn field(&self) -> &str {
        match self {
            Self::Message(error) => error.field(),
            Self::Refused(_) | Self::Render(_) | Self::Bounds(_) | Self::NoMark => "messages",
        }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    control: Arc<ControlTokens>,
    /// Bytes of the tokenizer's longest token.
    longest: usize,
    form: ContentForm,
}

impl ChatTemplate {
    /// Opens the template of a checkpoint directory: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (a text,
    /// or a list of named ones, of which `default` is taken).
    ///
    /// # Errors
    /// [`TemplateError`], naming the file.
    pub fn open(dir: &Path, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        Self::from_source(read_source(dir)?, tokenizer)
    }

    /// Compiles a template's text.
    ///
    /// # Errors
    /// [`TemplateError::Compile`] and [`TemplateError::Unusable`].
    pub fn from_source(source: String, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let environment = environment::compile(NAME, source).map_err(TemplateError::Compile)?;
        let control = Arc::new(tokenizer.control().clone());
        let form = probe(&environment, &control)?;
        Ok(Self { environment, control, longest: tokenizer.longest(), form })
    }

    /// Renders a conversation with the opening of the assistant's turn at its end. `messages` and `tools` are the fields of an OpenAI
    /// chat request.
    ///
    /// # Errors
    /// [`RenderError`], naming the field.
    pub fn render(&self, messages: &Value, tools: Option<&Value>) -> Result<Prompt, RenderError> {
        self.render_within(Conversation::read(messages, tools)?, &Bounds::NONE)
    }

    /// Renders one user turn.
    ///
    /// # Errors
    /// [`RenderError`].
    pub fn render_user(&self, text: &str) -> Result<Prompt, RenderError> {
        self.render_within(Conversation::of_user(text), &Bounds::NONE)
    }

    /// Renders a conversation, and ends as soon as the prompt has more bytes than so many tokens can hold, or nobody waits for it any more.
    ///
    /// # Errors
    /// [`RenderError`].
    pub fn render_within(&self, mut conversation: Conversation, bounds: &Bounds<'_>) -> Result<Prompt, RenderError> {
        bounds.check()?;
        if self.form.inline_calls {
            conversation.inline_calls();
        }
        let marking = Marking::of(&self.control, &mut conversation).map_err(|()| RenderError::NoMark)?;
        let mark = marking.mark;
        let mut writer = Writer::new(bounds, self.longest);
        let rendered = run(&self.environment, Context::new(conversation, self.form, marking), &mut writer);
        let text = writer.finish()?;
        rendered.map_err(|error| match environment::refusal(&error) {
            Some(words) => RenderError::Refused(cut(words, QUOTED)),
            None => RenderError::Render(error),
        })?;
        Ok(Prompt { marked: text, mark })
    }
}

fn run(environment: &Environment<'static>, context: Context, out: &mut Writer<'_>) -> Result<(), minijinja::Error> {
    let context = minijinja::Value::from_object(context);
    environment.get_template(NAME)?.render_captured_to(context, out).map(drop)
}

fn read_source(dir: &Path) -> Result<String, TemplateError> {
    let path = dir.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(source) => return Ok(source),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(TemplateError::Read { path, source }),
    }
    let path = dir.join("tokenizer_config.json");
    let text = std::fs::read_to_string(&path).map_err(|source| TemplateError::Read { path: path.clone(), source })?;
    let config: Value = serde_json::from_str(&text).map_err(|source| TemplateError::Parse { path: path.clone(), source })?;
    let named = |templates: &Vec<Value>| templates.iter().find(|entry| entry["name"] == "default").cloned();
    let source = match &config["chat_template"] {
        Value::String(source) => Some(source.clone()),
        Value::Array(templates) => named(templates).and_then(|entry| entry["template"].as_str().map(str::to_owned)),
        _ => None,
    };
    source.ok_or(TemplateError::Missing { path })
}

/// Finds out what the template wants, by rendering two small conversations with texts that no template holds.
fn probe(environment: &Environment<'static>, control: &Arc<ControlTokens>) -> Result<ContentForm, TemplateError> {
    const TEXT: &str = "probe-5d1c";
    const CALL: &str = "probe_call_5d1c";
    let forms = [ContentForm { parts: false, inline_calls: false }, ContentForm { parts: true, inline_calls: false }];
    let shows = |conversation: Conversation, form, text: &str| {
        let marking = Marking { control: Arc::clone(control), mark: None };
        let mut writer = Writer::new(&Bounds::NONE, 1);
        run(environment, Context::new(conversation, form, marking), &mut writer)?;
        Ok::<bool, minijinja::Error>(writer.finish().is_ok_and(|out| out.contains(text)))
    };
    let (mut form, mut cause) = (None, None);
    for candidate in forms {
        match shows(Conversation::of_user(TEXT), candidate, TEXT) {
            Ok(true) => {
                form = Some(candidate);
                break;
            }
            Ok(false) => {}
            Err(error) => cause = Some(error),
        }
    }
    let form = form.ok_or(TemplateError::Unusable(cause))?;
    let writes_calls = shows(Conversation::of_call(TEXT, CALL), form, CALL).unwrap_or(false);
    Ok(ContentForm { inline_calls: !writes_calls, ..form })
}

#[cfg(test)]
pub(crate) mod tests;
