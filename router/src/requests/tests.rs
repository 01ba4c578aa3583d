//! Requests as clients send them, good and bad, against the demo's model.

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

static MODEL: LazyLock<Model> =
    LazyLock::new(|| Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/m1-demo"), "m".to_owned()).unwrap());
static NEVER: AtomicBool = AtomicBool::new(false);

fn context(window: u32) -> Context<'static> {
    Context { model: &MODEL, limits: Limits { window, output: None }, cancelled: &NEVER, random: &|| 7 }
}

#[derive(Clone, Copy, Debug)]
enum Endpoint {
    Chat,
    Text,
    M1,
    Tokenize,
    Detokenize,
}

const ALL: [Endpoint; 5] = [Endpoint::Chat, Endpoint::Text, Endpoint::M1, Endpoint::Tokenize, Endpoint::Detokenize];

/// What is read, as text.
fn read(ctx: &Context<'_>, endpoint: Endpoint, body: &[u8]) -> Result<String, ApiError> {
    let text = |answer: Vec<u8>| String::from_utf8(answer).unwrap();
    match endpoint {
        Endpoint::Chat => chat::read(ctx, body, "id".to_owned()).map(|chat| format!("{chat:?}")),
        Endpoint::Text => completions::read(ctx, body, "id".to_owned()).map(|completion| format!("{completion:?}")),
        Endpoint::M1 => generate::read(ctx, body, "id".to_owned()).map(|generate| format!("{generate:?}")),
        Endpoint::Tokenize => tokenize::encode(ctx, body).map(text),
        Endpoint::Detokenize => tokenize::decode(ctx, body).map(text),
    }
}

fn user(content: &str) -> Value {
    json!([{"role": "user", "content": content}])
}

#[test]
fn a_chat_is_read() {
    let body = json!({
        "model": "m", "messages": user("hello"), "max_tokens": 30.0, "seed": 42.0, "temperature": 0, "stop": ["a", "b"], "stream": true,
        "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 2, "unknown": [[{"a": 1}]],
    });
    let chat = chat::read(&context(4096), body.to_string().as_bytes(), "id".to_owned()).unwrap();
    let order = &chat.order;
    assert_eq!((order.max_tokens, order.seed, order.temperature, order.logprobs), (30, 42, 0.0, Some(2)));
    assert_eq!((order.stops.texts(), order.want_routing), (["a".to_owned(), "b".to_owned()].as_slice(), false));
    assert!(chat.streaming.on && chat.streaming.usage);
    let expected = MODEL.tokenizer.encode_prompt(&MODEL.template.render_user("hello").unwrap()).unwrap();
    assert_eq!(order.prompt, expected);
    let wire = order.to_wire(&MODEL, 3, "me");
    assert_eq!((wire.attempt, wire.omit_routing, wire.router.as_str(), wire.said.len()), (3, true, "me", 0));
}

fn parsed(calls: m1_text::Calls) -> crate::generation::Reading {
    crate::generation::Reading::Parsed { calls, opened: None }
}

#[test]
fn tools_are_offered_unless_none_are_wanted() {
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    let body = |choice: &str| json!({"model": "m", "messages": user("a"), "tools": tools, "tool_choice": choice}).to_string();
    let read = |choice: &str| chat::read(&context(4096), body(choice).as_bytes(), String::new());
    let (auto, none) = (read("auto").unwrap(), read("none").unwrap());
    assert_eq!((auto.reading, none.reading), (parsed(m1_text::Calls::Parse), parsed(m1_text::Calls::Keep)));
    let text = MODEL.tokenizer.decode_with_control(&auto.order.prompt);
    assert!(text.contains("{\"name\": \"f\", \"parameters\": {\"type\": \"object\"}}"), "{text}");
    assert!(none.order.prompt.len() < auto.order.prompt.len());
    assert_eq!(read("required").unwrap_err().reason(), "unsupported_parameter");
    assert_eq!(read("maybe").unwrap_err().reason(), "invalid_value");
}

#[test]
fn prompts_are_texts_or_ids() {
    let read = |prompt: &str| {
        let body = format!("{{\"model\": \"m\", \"prompt\": {prompt}}}");
        completions::read(&context(64), body.as_bytes(), String::new()).map(|completion| completion.order.prompt)
    };
    assert_eq!(read("[5, 6]"), Ok(vec![5, 6]));
    assert_eq!(read("[[5, 6]]"), Ok(vec![5, 6]));
    assert_eq!(read("\"hello\""), read("[\"h\\u0065llo\"]"));
    assert_eq!(read("[\"a\", \"b\"]").unwrap_err().reason(), "unsupported_parameter");
    assert_eq!(
        read("[5, \"a\"]").unwrap_err().to_string(),
        format!("prompt[1]: given \"a\", allowed: a token id from 0 to {}", MODEL.vocab - 1)
    );
    assert_eq!(
        read("[5, 5.5]").unwrap_err().to_string(),
        format!("prompt[1]: given 5.5, allowed: a token id from 0 to {}", MODEL.vocab - 1)
    );
    assert!(read(&format!("[{}]", MODEL.vocab)).is_err());
    let error = read(&format!("[{}5]", "5,".repeat(99))).unwrap_err();
    assert_eq!(error.to_string(), "prompt: the prompt has 100 tokens, the window holds 64 tokens of prompt and output together");
}

#[test]
fn m1s_endpoint_takes_three_forms() {
    let read = |input: Value, window: u32| {
        let body = json!({"input": input, "context_window": window}).to_string();
        generate::read(&context(4096), body.as_bytes(), String::new()).map(|generate| generate.order)
    };
    let text = read(json!("hello"), 4096).unwrap();
    assert_eq!(text.prompt, read(user("hello"), 4096).unwrap().prompt);
    assert!(text.want_routing);
    assert_eq!(read(json!({"ids": [1, 2, 3]}), 8).unwrap().max_tokens, 5);
    assert_eq!(read(json!([{"role": "user"}]), 8).unwrap_err().to_string().split(';').next(), Some("input[0].content is missing"));
    let error = read(json!("hello ".repeat(400)), 100).unwrap_err();
    assert_eq!(
        (error.reason(), error.to_string().contains("the window holds 100 tokens")),
        ("context_length_exceeded", true),
        "{error}"
    );
}

#[test]
fn what_cannot_fit_is_refused_with_numbers() {
    let long = "x".repeat(8 << 20);
    for (endpoint, body) in [
        (Endpoint::Chat, json!({"model": "m", "messages": user(&long)})),
        (Endpoint::Text, json!({"model": "m", "prompt": long})),
        (Endpoint::M1, json!({"input": long})),
    ] {
        let error = read(&context(4096), endpoint, body.to_string().as_bytes()).unwrap_err();
        assert_eq!(error.reason(), "context_length_exceeded");
        let said = error.to_string();
        assert!(said.contains(" bytes or more, at least ") && said.contains("the window holds 4096 tokens"), "{said}");
    }
}

#[test]
fn nothing_is_read_for_a_client_that_is_gone() {
    let gone = AtomicBool::new(true);
    let ctx = Context { cancelled: &gone, ..context(4096) };
    for endpoint in ALL {
        assert_eq!(read(&ctx, endpoint, b"{}"), Err(ApiError::Cancelled));
    }
}

#[test]
fn texts_go_to_ids_and_back() {
    let ids = read(&context(64), Endpoint::Tokenize, br#"{"prompt": "he\"llo\n<pad>"}"#).unwrap();
    let ids: Value = serde_json::from_str(&ids).unwrap();
    assert_eq!((&ids["count"], &ids["max_model_len"]), (&json!(ids["tokens"].as_array().unwrap().len()), &json!(64)));
    let back = read(&context(64), Endpoint::Detokenize, json!({"tokens": ids["tokens"]}).to_string().as_bytes()).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&back).unwrap(), json!({"prompt": "he\"llo\n<pad>"}));
    let long = format!("{{\"tokens\": [{}1]}}", "2047,".repeat(400_000));
    let longest = (0..MODEL.vocab).max_by_key(|id| MODEL.tokenizer.token_bytes(*id).map_or(0, <[u8]>::len)).unwrap();
    let error = read(&context(64), Endpoint::Detokenize, long.replace("2047", &longest.to_string()).as_bytes()).unwrap_err();
    assert!(error.to_string().starts_with("tokens: their text is longer than "), "{error}");
}

/// The longest run of x that an error may repeat.
const ECHO: usize = 120;

/// Values of every kind, with long texts in every place.
fn value() -> impl Strategy<Value = Value> {
    let long = Just("x".repeat(1000));
    let text = prop_oneof![long.clone(), "[a-z]{0,4}"];
    let leaf = prop_oneof![
        4 => text.clone().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        let key = prop_oneof![
            long.clone(),
            prop::sample::select(vec![
                "role",
                "content",
                "type",
                "text",
                "name",
                "function",
                "tool_calls",
                "tool_call_id",
                "id",
                "ids",
                "arguments"
            ])
            .prop_map(str::to_owned),
        ];
        let role = prop::sample::select(vec!["user", "assistant", "tool", "system", "text", "function"]).prop_map(Value::from);
        let field = (key, prop_oneof![inner.clone(), role]);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
            prop::collection::vec(field, 0..5).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn field() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "messages",
        "prompt",
        "input",
        "tools",
        "tool_choice",
        "stop",
        "tokens",
        "max_tokens",
        "temperature",
        "seed",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "n",
        "logit_bias",
        "response_format",
        "suffix",
        "context_window",
        "service_tier",
        "priority",
        "model",
    ])
    .prop_map(str::to_owned)
}

#[test]
fn who_has_time_says_so_and_goes_behind_the_others() {
    let of_chat = |tier: Value| {
        let body = json!({"model": "m", "messages": user("hello"), "service_tier": tier}).to_string();
        chat::read(&context(4096), body.as_bytes(), "id".to_owned()).map(|chat| chat.order)
    };
    for (tier, batch) in [(json!("flex"), true), (json!("auto"), false), (json!("default"), false), (json!("priority"), false)] {
        let order = of_chat(tier).unwrap();
        let wire = order.to_wire(&MODEL, 1, "me");
        assert_eq!((order.batch, wire.priority), (batch, i32::from(batch)));
    }
    let refused = of_chat(json!("cheap")).unwrap_err().to_string();
    assert_eq!(refused, "service_tier: given \"cheap\", allowed: \"auto\", \"default\", \"priority\", \"flex\"");
    assert!(of_chat(json!(1)).unwrap_err().to_string().starts_with("service_tier: given 1"));
    let of_m1 = |priority: &str| {
        let body = json!({"input": "hello", "priority": priority}).to_string();
        generate::read(&context(4096), body.as_bytes(), "id".to_owned()).map(|generate| generate.order.batch)
    };
    assert_eq!((of_m1("batch").unwrap(), of_m1("interactive").unwrap()), (true, false));
    assert!(of_m1("low").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn errors_repeat_little(fields in prop::collection::vec((field(), value()), 0..4), named in any::<bool>(), cut in 0usize..40) {
        let mut body = serde_json::Map::new();
        if named {
            body.insert("model".to_owned(), json!("m"));
        }
        body.extend(fields);
        let text = Value::Object(body).to_string();
        // Now and then it ends too early.
        let end = if cut < 4 { text.len() * cut / 4 } else { text.len() };
        for endpoint in ALL {
            if let Err(error) = read(&context(4096), endpoint, text.as_bytes().get(..end).unwrap()) {
                let said = error.body().to_string();
                prop_assert!(!said.contains(&"x".repeat(ECHO + 1)) && said.len() < 1200, "{}", said);
            }
        }
    }
}
