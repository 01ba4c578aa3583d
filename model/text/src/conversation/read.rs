//! Reading `messages` and `tools` from a request's JSON; every error names the field.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{Call, Message, MessageError, Results};

const CONTENT: &str = "a string or a list of {\"type\": \"text\", \"text\": ..}";
const ASSISTANT_CONTENT: &str = "a string or a list of {\"type\": \"text\", \"text\": ..}; null is allowed beside tool_calls";
const ROLES: &str = "one of system, developer, user, assistant, tool";
const TEXT: &str = "a string";
const NAME: &str = "a string of at least one character";

type Object = Map<String, Value>;

/// A part of a content list.
struct Part {
    name: Option<String>,
    text: String,
}

/// Checks `messages`.
pub(super) fn messages(value: &Value) -> Result<Vec<Message>, MessageError> {
    let items = match value {
        Value::Array(items) if !items.is_empty() => items,
        other => return Err(invalid("messages", other, "a list of at least one message")),
    };
    let mut calls = HashMap::new();
    let mut messages = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let read = message(&format!("messages[{at}]"), item, &calls)?;
        if let Message::Assistant { calls: made, .. } = &read {
            calls.extend(made.iter().map(|call| (call.id.clone(), call.name.clone())));
        }
        messages.push(read);
    }
    Ok(messages)
}

/// Checks `tools`; an absent, null or empty list is none.
pub(super) fn tools(value: Option<&Value>) -> Result<Option<Value>, MessageError> {
    let items = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(invalid("tools", other, "a list of {\"type\": \"function\", \"function\": {..}}")),
    };
    for (at, item) in items.iter().enumerate() {
        let field = format!("tools[{at}]");
        let tool = object(&field, item)?;
        function_type(&field, tool, true)?;
        let field = format!("{field}.function");
        let function = object(&field, required(&field, tool.get("function"), "an object")?)?;
        name(&format!("{field}.name"), function.get("name"))?;
        optional(&format!("{field}.description"), function.get("description"), Value::is_string, TEXT)?;
        optional(&format!("{field}.parameters"), function.get("parameters"), Value::is_object, "a JSON schema object")?;
    }
    Ok(Some(Value::Array(items.clone())).filter(|_| !items.is_empty()))
}

fn message(field: &str, value: &Value, calls: &HashMap<String, String>) -> Result<Message, MessageError> {
    let message = object(field, value)?;
    let role = format!("{field}.role");
    let content = format!("{field}.content");
    match required(&role, message.get("role"), ROLES)?.as_str() {
        Some("system" | "developer") => text(&content, message).map(Message::System),
        Some("user") => text(&content, message).map(Message::User),
        Some("assistant") => assistant(field, message),
        Some("tool") => tool(field, message, calls),
        _ => Err(invalid(&role, &message["role"], ROLES)),
    }
}

fn assistant(field: &str, message: &Object) -> Result<Message, MessageError> {
    let calls = match message.get("tool_calls") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => {
            let call = |(at, item)| call(&format!("{field}.tool_calls[{at}]"), item);
            items.iter().enumerate().map(call).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(invalid(&format!("{field}.tool_calls"), other, "a list of tool calls")),
    };
    let field = format!("{field}.content");
    let content = match message.get("content") {
        None | Some(Value::Null) if !calls.is_empty() => String::new(),
        None => return Err(MessageError::Missing { field, allowed: ASSISTANT_CONTENT }),
        Some(value) => join(parts(&field, value, ASSISTANT_CONTENT)?),
    };
    Ok(Message::Assistant { content, calls })
}

fn call(field: &str, value: &Value) -> Result<Call, MessageError> {
    let call = object(field, value)?;
    function_type(field, call, false)?;
    let id = name(&format!("{field}.id"), call.get("id"))?;
    let field = format!("{field}.function");
    let function = object(&field, required(&field, call.get("function"), "an object")?)?;
    let arguments = string(&format!("{field}.arguments"), function.get("arguments"), "a string that holds a JSON object")?;
    // A call without arguments is often sent back as an empty text, which is no JSON.
    let arguments = if arguments.trim().is_empty() { "{}".to_owned() } else { arguments };
    Ok(Call { id, name: name(&format!("{field}.name"), function.get("name"))?, arguments })
}

fn tool(field: &str, message: &Object, calls: &HashMap<String, String>) -> Result<Message, MessageError> {
    let id_field = format!("{field}.tool_call_id");
    let id = message.get("tool_call_id").filter(|id| !id.is_null()).map(|id| string(&id_field, Some(id), TEXT)).transpose()?;
    let given = message.get("name").filter(|given| !given.is_null()).map(|given| name(&format!("{field}.name"), Some(given)));
    let given = given.transpose()?;
    let called = given.or_else(|| id.as_ref().and_then(|id| calls.get(id).cloned()));
    let content = format!("{field}.content");
    let parts = parts(&content, required(&content, message.get("content"), CONTENT)?, CONTENT)?;
    if !parts.is_empty() && parts.iter().all(|part| part.name.is_some()) {
        let results = parts.into_iter().map(|part| (part.name.unwrap_or_default(), part.text)).collect();
        return Ok(Message::Tool { id, results: Results::Named(results) });
    }
    match (called, id) {
        (Some(name), id) => Ok(Message::Tool { id, results: Results::One { name, text: join(parts) } }),
        (None, Some(given)) => Err(MessageError::UnknownCall { field: id_field, given }),
        (None, None) => {
            Err(MessageError::Missing { field: id_field, allowed: "the id of a tool call of an earlier assistant message" })
        }
    }
}

fn text(field: &str, message: &Object) -> Result<String, MessageError> {
    Ok(join(parts(field, required(field, message.get("content"), CONTENT)?, CONTENT)?))
}

fn parts(field: &str, value: &Value, allowed: &'static str) -> Result<Vec<Part>, MessageError> {
    match value {
        Value::String(text) => Ok(vec![Part { name: None, text: text.clone() }]),
        Value::Array(items) => items.iter().enumerate().map(|(at, item)| part(&format!("{field}[{at}]"), item)).collect(),
        other => Err(invalid(field, other, allowed)),
    }
}

fn part(field: &str, value: &Value) -> Result<Part, MessageError> {
    let part = object(field, value)?;
    let kind = format!("{field}.type");
    let given = required(&kind, part.get("type"), "text")?;
    if given != "text" {
        return Err(invalid(&kind, given, "text, as this model reads nothing else"));
    }
    let named = part.get("name").filter(|given| !given.is_null()).map(|given| name(&format!("{field}.name"), Some(given)));
    Ok(Part { name: named.transpose()?, text: string(&format!("{field}.text"), part.get("text"), TEXT)? })
}

fn join(parts: Vec<Part>) -> String {
    parts.into_iter().map(|part| part.text).collect()
}

fn function_type(field: &str, value: &Object, must: bool) -> Result<(), MessageError> {
    let field = format!("{field}.type");
    match value.get("type") {
        Some(Value::String(kind)) if kind == "function" => Ok(()),
        None if !must => Ok(()),
        None => Err(MessageError::Missing { field, allowed: "function" }),
        Some(other) => Err(invalid(&field, other, "function")),
    }
}

fn required<'a>(field: &str, value: Option<&'a Value>, allowed: &'static str) -> Result<&'a Value, MessageError> {
    value.ok_or_else(|| MessageError::Missing { field: field.to_owned(), allowed })
}

fn optional(field: &str, value: Option<&Value>, test: fn(&Value) -> bool, allowed: &'static str) -> Result<(), MessageError> {
    match value {
        Some(value) if !value.is_null() && !test(value) => Err(invalid(field, value, allowed)),
        _ => Ok(()),
    }
}

fn object<'a>(field: &str, value: &'a Value) -> Result<&'a Object, MessageError> {
    value.as_object().ok_or_else(|| invalid(field, value, "an object"))
}

fn string(field: &str, value: Option<&Value>, allowed: &'static str) -> Result<String, MessageError> {
    let value = required(field, value, allowed)?;
    value.as_str().map(str::to_owned).ok_or_else(|| invalid(field, value, allowed))
}

fn name(field: &str, value: Option<&Value>) -> Result<String, MessageError> {
    let name = string(field, value, NAME)?;
    if name.is_empty() { Err(invalid(field, &Value::from(""), NAME)) } else { Ok(name) }
}

/// Texts are shown up to this many characters: enough to recognise, too few to fill a log.
const SHOWN: usize = 40;

fn invalid(field: &str, given: &Value, allowed: &'static str) -> MessageError {
    let given = match given {
        Value::Null => "null".to_owned(),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.chars().count() > SHOWN => format!("{:?}..", text.chars().take(SHOWN).collect::<String>()),
        other => other.to_string(),
    };
    MessageError::Invalid { field: field.to_owned(), given, allowed }
}
