//! One good conversation, and one change to it a test.

use serde_json::json;

use super::*;
use crate::template::tests::context_of;

fn messages() -> Value {
    json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "eve", "content": [{"type": "text", "text": "Which "}, {"type": "text", "text": "pods?"}]},
        {"role": "assistant", "content": null, "reasoning_content": "Hm.", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_pods", "arguments": ""}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "[]"},
        {"role": "tool", "content": [{"type": "text", "name": "a", "text": "1"}, {"type": "text", "name": "b", "text": "2"}]},
        {"role": "assistant", "content": "None."},
    ])
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "f", "description": "F", "parameters": {"type": "object"}}}])
}

#[test]
fn a_good_conversation_is_read() {
    let conversation = Conversation::read(&messages(), Some(&tools())).unwrap();
    let expected = json!({"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which pods?"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_pods", "arguments": "{}"}}]},
        {"role": "tool", "name": "get_pods", "content": "[]", "tool_call_id": "c1"},
        {"role": "tool", "content": [{"name": "a", "type": "text", "text": "1"}, {"name": "b", "type": "text", "text": "2"}]},
        {"role": "assistant", "content": "None."},
    ], "add_generation_prompt": true, "tools": tools()});
    assert_eq!(context_of(conversation, false, false), expected);
}

#[test]
fn parts_and_inline_calls_suit_the_official_template() {
    let context = context_of(Conversation::read(&messages(), None).unwrap(), true, true);
    let call = "<tool_calls>\n{\"name\": \"get_pods\", \"arguments\": {}}\n</tool_calls>";
    assert_eq!(context["messages"][1]["content"], json!([{"type": "text", "text": "Which pods?"}]));
    assert_eq!(context["messages"][2], json!({"role": "assistant", "content": [{"type": "text", "text": call}]}));
    assert_eq!(context["messages"][3]["content"], json!([{"name": "get_pods", "type": "text", "text": "[]"}]));
    assert_eq!(context.get("tools"), None);
}

#[test]
fn empty_tools_are_none() {
    for tools in [json!([]), Value::Null] {
        assert!(!Conversation::read(&messages(), Some(&tools)).unwrap().has_tools());
    }
    assert!(!Conversation::read(&messages(), Some(&tools())).unwrap().without_tools().has_tools());
}

/// Sets `pointer` of the good messages to `value` and expects an error.
fn refuses(pointer: &str, value: Value, expected: &str) {
    let mut messages = messages();
    *messages.pointer_mut(pointer).unwrap() = value;
    let error = Conversation::read(&messages, None).unwrap_err();
    assert_eq!(error.to_string(), expected);
    assert!(expected.starts_with(error.field()));
}

#[test]
fn errors_name_the_field_of_a_message() {
    refuses("", json!([]), "messages is a list of 0; expected a list of at least one message");
    refuses("/1", json!("hi"), "messages[1] is \"hi\"; expected an object");
    refuses("/1", json!({"content": "a"}), "messages[1].role is missing; expected one of system, developer, user, assistant, tool");
    refuses(
        "/1/role",
        json!("function"),
        "messages[1].role is \"function\"; expected one of system, developer, user, assistant, tool",
    );
    refuses("/1/content", json!(3), "messages[1].content is 3; expected a string or a list of {\"type\": \"text\", \"text\": ..}");
    refuses(
        "/1/content",
        Value::Null,
        "messages[1].content is null; expected a string or a list of {\"type\": \"text\", \"text\": ..}",
    );
    refuses("/1/content/1/text", json!(1), "messages[1].content[1].text is 1; expected a string");
    refuses(
        "/1/content/0/type",
        json!("image_url"),
        "messages[1].content[0].type is \"image_url\"; expected text, as this model reads nothing else",
    );
    refuses(
        "/5/content",
        Value::Null,
        "messages[5].content is null; expected a string or a list of {\"type\": \"text\", \"text\": ..}; null is allowed beside tool_calls",
    );
}

#[test]
fn errors_name_the_field_of_a_call() {
    refuses("/2/tool_calls", json!({}), "messages[2].tool_calls is an object; expected a list of tool calls");
    refuses("/2/tool_calls/0/type", json!("x"), "messages[2].tool_calls[0].type is \"x\"; expected function");
    refuses(
        "/2/tool_calls/0/function/arguments",
        json!({}),
        "messages[2].tool_calls[0].function.arguments is an object; expected a string that holds a JSON object",
    );
    refuses(
        "/2/tool_calls/0/function/name",
        json!(""),
        "messages[2].tool_calls[0].function.name is \"\"; expected a string of at least one character",
    );
    refuses(
        "/3/tool_call_id",
        json!("c9"),
        "messages[3].tool_call_id is \"c9\"; expected the id of a tool call of an earlier assistant message",
    );
    refuses(
        "/3/tool_call_id",
        Value::Null,
        "messages[3].tool_call_id is missing; expected the id of a tool call of an earlier assistant message",
    );
}

#[test]
fn errors_name_the_field_of_a_tool() {
    let refuses = |pointer: &str, value: Value, expected: &str| {
        let mut tools = tools();
        *tools.pointer_mut(pointer).unwrap() = value;
        assert_eq!(Conversation::read(&messages(), Some(&tools)).unwrap_err().to_string(), expected);
    };
    refuses("", json!({}), "tools is an object; expected a list of {\"type\": \"function\", \"function\": {..}}");
    refuses("/0/type", json!("web"), "tools[0].type is \"web\"; expected function");
    refuses("/0/function/name", json!(1), "tools[0].function.name is 1; expected a string of at least one character");
    refuses("/0/function/parameters", json!([]), "tools[0].function.parameters is a list of 0; expected a JSON schema object");
}

#[test]
fn what_errors_show_is_short() {
    let long = "x".repeat(10_000);
    for (pointer, value) in [
        ("/1", json!(long)),
        ("/1/role", json!(long)),
        ("/1/content", json!([{"type": long}])),
        ("/3/tool_call_id", json!(long)),
        ("/2/tool_calls/0/type", json!(long)),
    ] {
        let mut messages = messages();
        *messages.pointer_mut(pointer).unwrap() = value;
        let error = Conversation::read(&messages, None).unwrap_err().to_string();
        assert!(error.contains("xxxx") && !error.contains(&"x".repeat(121)), "{error}");
    }
}

#[test]
fn a_doubled_field_of_a_tool_counts_as_its_last() {
    let parse = |tools: &str| Conversation::parse(&messages().to_string(), Some(tools), &AtomicBool::new(false));
    let tools = r#"[{"type": "function", "function": {"name": "f", "parameters": {"a": 1, "b": 2, "a": 3}}}]"#;
    let context = context_of(parse(tools).unwrap(), false, false);
    assert_eq!(context["tools"][0]["function"]["parameters"].to_string(), "{\"a\":3,\"b\":2}");
    let long = tools.replace("\"a\": 3", &format!("\"a\": [{}1]", "0,".repeat(10_000)));
    assert_eq!(parse(&long).unwrap_err().field(), "tools");
    let odd = tools.replace("\"b\": 2", "\"b\": 1e999");
    assert_eq!(parse(&odd).unwrap_err().to_string(), "tools: number out of range");
}

#[test]
fn reading_ends_when_nobody_waits() {
    let gone = AtomicBool::new(true);
    let many = format!("[{}]", vec![r#"{"role": "user", "content": "a"}"#; 10_000].join(","));
    assert_eq!(Conversation::parse(&many, None, &gone), Err(MessageError::Cancelled));
}
