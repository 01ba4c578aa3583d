//! Reading `messages` and `tools` from a request's JSON; every error names the field. What a field holds is a slice of the request until it is kept.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use serde_json::value::RawValue;

use super::{Call, Caller, Message, MessageError, Named, Results, Text, Tool};
use crate::json::{self, Field, cut};

const CONTENT: &str = "a string or a list of {\"type\": \"text\", \"text\": ..}";
const ASSISTANT_CONTENT: &str = "a string or a list of {\"type\": \"text\", \"text\": ..}; null is allowed beside tool_calls";
const ROLES: &str = "one of system, developer, user, assistant, tool";
const TEXT: &str = "a string";
const NAME: &str = "a string of at least one character";
const OBJECT: &str = "an object";
const LIST: &str = "a list of at least one message";
const TOOLS: &str = "a list of {\"type\": \"function\", \"function\": {..}}";
/// Bytes of tools in which a doubled field is resolved; it takes a tree of them, some thirty times as large.
const MOST_DOUBLED: usize = 16 * 1024;

/// Where something stands: said only in errors, so written only for them.
#[derive(Clone, Copy)]
struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step,
}

#[derive(Clone, Copy)]
enum Step {
    Field(&'static str),
    Place(usize),
}

impl<'a> At<'a> {
    const fn root(name: &'static str) -> Self {
        At { parent: None, step: Step::Field(name) }
    }

    fn field(&'a self, name: &'static str) -> At<'a> {
        At { parent: Some(self), step: Step::Field(name) }
    }

    fn place(&'a self, place: usize) -> At<'a> {
        At { parent: Some(self), step: Step::Place(place) }
    }

    fn missing(&self, allowed: &'static str) -> MessageError {
        MessageError::Missing { field: self.to_string(), allowed }
    }

    fn invalid(&self, given: &RawValue, allowed: &'static str) -> MessageError {
        MessageError::Invalid { field: self.to_string(), given: shown(given), allowed }
    }

    fn malformed(&self, error: &serde_json::Error) -> MessageError {
        let said = error.to_string();
        // The place is the field's own, not the body's.
        let message = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what);
        MessageError::Malformed { field: self.to_string(), message: cut(message, 120) }
    }
}

impl Display for At<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(out)?;
        }
        match (self.step, self.parent) {
            (Step::Field(name), None) => out.write_str(name),
            (Step::Field(name), Some(_)) => write!(out, ".{name}"),
            (Step::Place(place), _) => write!(out, "[{place}]"),
        }
    }
}

/// An object of the request.
struct Object<'a>(Vec<Field<'a>>);

impl<'a> Object<'a> {
    fn read(at: &At<'_>, value: &'a RawValue, known: &'static [&'static str]) -> Result<Self, MessageError> {
        if !value.get().starts_with('{') {
            return Err(at.invalid(value, OBJECT));
        }
        json::fields(value.get(), known).map(Self).map_err(|error| at.malformed(&error))
    }

    /// As given, be it null.
    fn given(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// None where absent or null.
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.given(name).filter(|value| !is_null(value))
    }

    fn needed(&self, at: &At<'_>, name: &'static str, allowed: &'static str) -> Result<&'a RawValue, MessageError> {
        self.given(name).ok_or_else(|| at.field(name).missing(allowed))
    }

    fn text(&self, at: &At<'_>, name: &'static str, allowed: &'static str) -> Result<Cow<'a, str>, MessageError> {
        text(&at.field(name), self.needed(at, name, allowed)?, allowed)
    }

    fn name(&self, at: &At<'_>) -> Result<Text, MessageError> {
        self.named(at, "name")
    }

    fn named(&self, at: &At<'_>, field: &'static str) -> Result<Text, MessageError> {
        let given = self.needed(at, field, NAME)?;
        let name = text(&at.field(field), given, NAME)?;
        if name.is_empty() { Err(at.field(field).invalid(given, NAME)) } else { Ok(kept(name)) }
    }

    /// `type`, which can only be `function`.
    fn function_type(&self, at: &At<'_>, must: bool) -> Result<(), MessageError> {
        let at = at.field("type");
        match self.given("type") {
            None if must => Err(at.missing("function")),
            None => Ok(()),
            Some(given) if json::text(given).is_ok_and(|kind| kind.as_deref() == Some("function")) => Ok(()),
            Some(given) => Err(at.invalid(given, "function")),
        }
    }
}

/// Checks `messages`.
pub(super) fn messages(list: &str, cancelled: &AtomicBool) -> Result<Vec<Message>, MessageError> {
    let at = At::root("messages");
    let mut calls: HashMap<Text, Text> = HashMap::new();
    let mut messages = Vec::new();
    items(&at, list, LIST, cancelled, |at, item| {
        let read = message(at, item, &calls)?;
        if let Message::Caller(caller) = &read {
            calls.extend(caller.calls.iter().map(|call| (Arc::clone(&call.id), Arc::clone(&call.name))));
        }
        messages.push(read);
        Ok(())
    })?;
    if messages.is_empty() {
        return Err(MessageError::Invalid { field: at.to_string(), given: "a list of 0".to_owned(), allowed: LIST });
    }
    Ok(messages)
}

/// Checks `tools`; an absent, null or empty list is none.
pub(super) fn tools(list: Option<&str>, cancelled: &AtomicBool) -> Result<Option<Arc<str>>, MessageError> {
    let Some(list) = list.filter(|list| *list != "null") else { return Ok(None) };
    let at = At::root("tools");
    let mut some = false;
    items(&at, list, TOOLS, cancelled, |at, item| {
        some = true;
        tool(at, item)
    })?;
    if !some {
        return Ok(None);
    }
    let mut look = Look { cancelled, since: 0 };
    let doubled = json::survey(list, &mut |text| look.take(text.len())).map_err(|error| at.malformed(&error))?;
    look.check()?;
    match doubled {
        false => Ok(Some(list.into())),
        true if list.len() <= MOST_DOUBLED => {
            let tree: Value = serde_json::from_str(list).map_err(|error| at.malformed(&error))?;
            Ok(Some(tree.to_string().into()))
        }
        true => {
            let given = "a list in which an object has a field twice".to_owned();
            Err(MessageError::Invalid { field: at.to_string(), given, allowed: TOOLS })
        }
    }
}

fn tool(at: &At<'_>, item: &RawValue) -> Result<(), MessageError> {
    let tool = Object::read(at, item, &["type", "function"])?;
    tool.function_type(at, true)?;
    let given = tool.needed(at, "function", OBJECT)?;
    let at = at.field("function");
    let function = Object::read(&at, given, &["name", "description", "parameters"])?;
    function.name(&at)?;
    if let Some(given) = function.get("description").filter(|given| !given.get().starts_with('"')) {
        return Err(at.field("description").invalid(given, TEXT));
    }
    match function.get("parameters").filter(|given| !given.get().starts_with('{')) {
        Some(given) => Err(at.field("parameters").invalid(given, "a JSON schema object")),
        None => Ok(()),
    }
}

/// Gives every element of a list to `take`.
fn items<'a>(
    at: &At<'_>,
    list: &'a str,
    allowed: &'static str,
    cancelled: &AtomicBool,
    mut take: impl FnMut(&At<'_>, &'a RawValue) -> Result<(), MessageError>,
) -> Result<(), MessageError> {
    if !list.starts_with('[') {
        let given: &RawValue = serde_json::from_str(list).map_err(|error| at.malformed(&error))?;
        return Err(at.invalid(given, allowed));
    }
    let mut look = Look { cancelled, since: 0 };
    let one = |place, item: &'a RawValue| {
        look.take(item.get().len());
        look.check()?;
        take(&at.place(place), item)
    };
    json::each(list, one).map_err(|error| at.malformed(&error))?
}

/// Looks at the flag every so many bytes: some milliseconds of reading.
struct Look<'a> {
    cancelled: &'a AtomicBool,
    since: usize,
}

impl Look<'_> {
    fn take(&mut self, bytes: usize) {
        self.since += bytes + 1;
    }

    fn check(&mut self) -> Result<(), MessageError> {
        if self.since < 65_536 {
            return Ok(());
        }
        self.since = 0;
        if self.cancelled.load(Ordering::Relaxed) { Err(MessageError::Cancelled) } else { Ok(()) }
    }
}

fn message(at: &At<'_>, value: &RawValue, calls: &HashMap<Text, Text>) -> Result<Message, MessageError> {
    let message = Object::read(at, value, &["role", "content", "tool_calls", "tool_call_id", "name"])?;
    let given = message.needed(at, "role", ROLES)?;
    let role = json::text(given).map_err(|error| at.field("role").malformed(&error))?;
    match role.as_deref() {
        Some("system" | "developer") => content(at, &message).map(Message::System),
        Some("user") => content(at, &message).map(Message::User),
        Some("assistant") => assistant(at, &message),
        Some("tool") => tool_message(at, &message, calls),
        _ => Err(at.field("role").invalid(given, ROLES)),
    }
}

fn assistant(at: &At<'_>, message: &Object<'_>) -> Result<Message, MessageError> {
    let mut calls = Vec::new();
    if let Some(given) = message.get("tool_calls") {
        let at = at.field("tool_calls");
        if !given.get().starts_with('[') {
            return Err(at.invalid(given, "a list of tool calls"));
        }
        let one = |place, item| {
            calls.push(call(&at.place(place), item)?);
            Ok(())
        };
        json::each(given.get(), one).map_err(|error| at.malformed(&error))??;
    }
    let at = at.field("content");
    let content = match message.given("content") {
        given if !calls.is_empty() && given.is_none_or(is_null) => Text::default(),
        None => return Err(at.missing(ASSISTANT_CONTENT)),
        Some(value) => parts(&at, value, ASSISTANT_CONTENT)?.text(),
    };
    if calls.is_empty() {
        return Ok(Message::Assistant(content));
    }
    Ok(Message::Caller(Box::new(Caller { content, calls })))
}

fn call(at: &At<'_>, value: &RawValue) -> Result<Call, MessageError> {
    let call = Object::read(at, value, &["type", "id", "function"])?;
    call.function_type(at, false)?;
    let id = call.named(at, "id")?;
    let given = call.needed(at, "function", OBJECT)?;
    let at = at.field("function");
    let function = Object::read(&at, given, &["arguments", "name"])?;
    let arguments = function.text(&at, "arguments", "a string that holds a JSON object")?;
    // A call without arguments is often sent back as an empty text, which is no JSON.
    let arguments = if arguments.trim().is_empty() { Cow::Borrowed("{}") } else { arguments };
    Ok(Call { id, name: function.name(&at)?, arguments: kept(arguments) })
}

fn tool_message(at: &At<'_>, message: &Object<'_>, calls: &HashMap<Text, Text>) -> Result<Message, MessageError> {
    let id_at = at.field("tool_call_id");
    let id = message.get("tool_call_id").map(|id| text(&id_at, id, TEXT)).transpose()?.map(kept);
    let given = message.get("name").map(|_| message.name(at)).transpose()?;
    let called = given.or_else(|| id.as_ref().and_then(|id| calls.get(id).cloned()));
    let content = parts(&at.field("content"), message.needed(at, "content", CONTENT)?, CONTENT)?;
    let results = match (content, called, &id) {
        (Parts::Named(results), _, _) => Results::Several(results),
        (Parts::Text(text), Some(name), _) => Results::One(Named { name, text }),
        (Parts::Text(_), None, Some(given)) => {
            return Err(MessageError::UnknownCall { field: id_at.to_string(), given: cut(given, SHOWN) });
        }
        (Parts::Text(_), None, None) => return Err(id_at.missing("the id of a tool call of an earlier assistant message")),
    };
    Ok(Message::Tool(Box::new(Tool { id, results })))
}

fn content(at: &At<'_>, message: &Object<'_>) -> Result<Text, MessageError> {
    Ok(parts(&at.field("content"), message.needed(at, "content", CONTENT)?, CONTENT)?.text())
}

/// Content, read.
enum Parts {
    Text(Text),
    /// Each with a name: M1's own form of results.
    Named(Vec<Named>),
}

impl Parts {
    fn text(self) -> Text {
        match self {
            Self::Text(text) => text,
            Self::Named(parts) => joined(&parts).into(),
        }
    }
}

fn joined(parts: &[Named]) -> String {
    let mut all = String::with_capacity(parts.iter().map(|part| part.text.len()).sum());
    parts.iter().for_each(|part| all.push_str(&part.text));
    all
}

fn parts(at: &At<'_>, value: &RawValue, allowed: &'static str) -> Result<Parts, MessageError> {
    if value.get().starts_with('"') {
        return text(at, value, allowed).map(kept).map(Parts::Text);
    }
    if !value.get().starts_with('[') {
        return Err(at.invalid(value, allowed));
    }
    // Names are kept as long as every part has one.
    let (mut named, mut all): (Vec<Named>, Option<String>) = (Vec::new(), None);
    let one = |place, item| {
        let (name, text) = part(&at.place(place), item)?;
        match (name, &mut all) {
            (Some(name), None) => named.push(Named { name, text: kept(text) }),
            (_, Some(all)) => all.push_str(&text),
            (None, None) => {
                let mut start = joined(&std::mem::take(&mut named));
                start.push_str(&text);
                all = Some(start);
            }
        }
        Ok(())
    };
    json::each(value.get(), one).map_err(|error| at.malformed(&error))??;
    Ok(match all {
        Some(all) => Parts::Text(all.into()),
        None if named.is_empty() => Parts::Text(Text::default()),
        None => Parts::Named(named),
    })
}

fn part<'a>(at: &At<'_>, value: &'a RawValue) -> Result<(Option<Text>, Cow<'a, str>), MessageError> {
    let part = Object::read(at, value, &["type", "name", "text"])?;
    let given = part.needed(at, "type", "text")?;
    if !json::text(given).is_ok_and(|kind| kind.as_deref() == Some("text")) {
        return Err(at.field("type").invalid(given, "text, as this model reads nothing else"));
    }
    let name = part.get("name").map(|_| part.name(at)).transpose()?;
    Ok((name, part.text(at, "text", TEXT)?))
}

fn text<'a>(at: &At<'_>, value: &'a RawValue, allowed: &'static str) -> Result<Cow<'a, str>, MessageError> {
    json::text(value).map_err(|error| at.malformed(&error))?.ok_or_else(|| at.invalid(value, allowed))
}

/// An empty text takes no memory.
fn kept(text: Cow<'_, str>) -> Text {
    if text.is_empty() { Text::default() } else { text.into() }
}

fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// Texts are shown up to this many characters: enough to recognise, too few to fill a log.
const SHOWN: usize = 40;

fn shown(given: &RawValue) -> String {
    let raw = given.get();
    match raw.as_bytes().first() {
        Some(b'[') => {
            let mut count = 0usize;
            // A list that was read before is one still.
            let _counted = json::each(raw, |_, _| {
                count += 1;
                Ok::<(), ()>(())
            });
            format!("a list of {count}")
        }
        Some(b'{') => "an object".to_owned(),
        Some(b'"') => match json::text(given) {
            Ok(Some(text)) => match text.char_indices().nth(SHOWN) {
                Some((end, _)) => format!("{:?}..", text.get(..end).unwrap_or("")),
                None => Value::from(text.as_ref()).to_string(),
            },
            _ => "a string that is none".to_owned(),
        },
        _ => cut(raw, SHOWN),
    }
}
