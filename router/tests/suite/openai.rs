//! Chat and completions over HTTP: shapes, streamed against whole, reasoning, tools, stops, log-probabilities.

use crate::common::{Act, NAME, Stand, chat, completion, merge, tokenizer};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
/// Characters of two, three and four bytes, most of them spread over tokens.
const WIDE: &str = "na\u{ef}ve \u{1F980} \u{65e5}\u{672c}\u{8a9e} e\u{301} \u{1F468}\u{200D}\u{1F469} end";

/// Puts the chunks of a streamed chat together as a client does.
fn put_together(events: &[(String, Value)]) -> (Value, Value, Value) {
    let (mut message, mut finish, mut usage) =
        (json!({"content": "", "reasoning_content": "", "tool_calls": []}), Value::Null, Value::Null);
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last.1, "[DONE]");
    for (_, chunk) in chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        if let Some(given) = chunk.get("usage").filter(|usage| !usage.is_null()) {
            usage = given.clone();
        }
        let Some(choice) = chunk["choices"].get(0) else { continue };
        for field in ["content", "reasoning_content"] {
            let sum = format!("{}{}", message[field].as_str().unwrap(), choice["delta"][field].as_str().unwrap_or(""));
            message[field] = Value::String(sum);
        }
        for call in choice["delta"]["tool_calls"].as_array().unwrap_or(&Vec::new()) {
            message["tool_calls"].as_array_mut().unwrap().push(json!({"type": call["type"], "function": call["function"]}));
        }
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    (message, finish, usage)
}

/// Asks once whole and once streamed; both must say the same. Gives message, finish reason and usage.
async fn both(stand: &Stand, request: Value) -> (Value, Value, Value) {
    let whole = stand.client.post(CHAT, &request).await;
    assert_eq!(whole.status, 200, "{}", whole.text);
    let whole = whole.json();
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = stand.client.stream(CHAT, &merge(request, options)).await.rest().await;
    let (streamed, finish, usage) = put_together(&events);
    let message = &whole["choices"][0]["message"];
    for field in ["content", "reasoning_content"] {
        assert_eq!(message[field].as_str().unwrap_or(""), streamed[field], "{field}");
    }
    let calls: Vec<Value> = message["tool_calls"]
        .as_array()
        .unwrap_or(&Vec::new())
        .iter()
        .map(|call| json!({"type": call["type"], "function": call["function"]}))
        .collect();
    assert_eq!(Value::Array(calls), streamed["tool_calls"]);
    assert_eq!(whole["choices"][0]["finish_reason"], finish);
    assert_eq!(whole["usage"], usage);
    (message.clone(), finish, usage)
}

#[tokio::test]
async fn an_answer_has_openais_shape_and_counts() {
    let stand = Stand::ready(1).await;
    let answer = stand.client.post(CHAT, &chat(json!({"seed": 7, "temperature": 0, "top_p": 0.5, "max_tokens": 9}))).await.json();
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!(NAME)));
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["choices"][0]["message"], json!({"role": "assistant", "content": "hi", "reasoning_content": null}));
    let seen = stand.doubles[0].seen().remove(0);
    let sampling = seen.sampling.unwrap();
    assert_eq!((sampling.temperature, sampling.top_p, sampling.seed, seen.max_tokens), (0.0, 0.5, 7, 9));
    assert_eq!(seen.stop_ids, tokenizer().eos_ids());
    let said = u64::try_from(tokenizer().encode("hi").unwrap().len()).unwrap() + 1;
    let usage = json!({
        "prompt_tokens": seen.prompt.len(), "completion_tokens": said, "total_tokens": seen.prompt.len() as u64 + said,
        "completion_tokens_details": {"reasoning_tokens": 0}
    });
    assert_eq!(answer["usage"], usage);
    let prompt = stand.client.post("/tokenize", &json!({"messages": [{"role": "user", "content": "hello"}]})).await.json();
    assert_eq!(prompt["tokens"], json!(seen.prompt));
}

#[tokio::test]
async fn defaults_are_m1s_and_the_window_leaves_the_rest() {
    let stand = Stand::ready(1).await;
    stand.client.post(TEXT, &completion(json!({"temperature": null, "unheard_of": [1]}))).await;
    let seen = stand.doubles[0].seen().remove(0);
    let sampling = seen.sampling.unwrap();
    assert_eq!((sampling.temperature, sampling.top_p, seen.expert_threshold), (1.0, 0.95, 1.0));
    // The double takes 2048 tokens, the router's own bound is 4096.
    assert_eq!(seen.max_tokens as usize, 2048 - seen.prompt.len());
}

#[tokio::test]
async fn characters_are_never_cut() {
    let stand = Stand::ready(1).await;
    stand.script(&[Act::Say(WIDE), Act::Eos]);
    let (message, finish, _) = both(&stand, chat(json!({}))).await;
    assert_eq!((&message["content"], &finish), (&json!(WIDE), &json!("stop")));
    // A reader that is behind gets several tokens at once; one that waits gets each when it comes.
    let (one, two) = WIDE.split_at(WIDE.char_indices().nth(8).unwrap().0);
    stand.script(&[Act::Say(one), Act::Hold, Act::Say(two), Act::Eos]);
    let mut events = stand.client.stream(CHAT, &chat(json!({"stream": true}))).await;
    let mut said = String::new();
    while said != one {
        said += events.json().await["choices"][0]["delta"]["content"].as_str().unwrap();
    }
    stand.doubles[0].release();
    let events = events.rest().await;
    assert!(events.len() >= 3, "text, the end, [DONE]");
    assert!(events.iter().all(|(_, event)| !event.to_string().contains('\u{fffd}')));
    assert!(events.iter().all(|(_, event)| event.get("usage").is_none()), "usage only when asked for");
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = stand.client.stream(CHAT, &chat(options)).await.rest().await;
    let without_usage = events.iter().filter(|(_, event)| event.get("usage") == Some(&Value::Null)).count();
    assert_eq!(without_usage, events.len() - 2, "null in all but the last chunk");
}

#[tokio::test]
async fn reasoning_is_told_apart_and_counted() {
    let stand = Stand::ready(1).await;
    stand.script(&[Act::Say("<think>\nlet me see\n</think>\n\nforty"), Act::Burst("-two"), Act::Eos]);
    let (message, _, usage) = both(&stand, chat(json!({}))).await;
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("let me see"), &json!("forty-two")));
    let reasoning = usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    let thought = tokenizer().encode("<think>\nlet me see\n</think>").unwrap().len() as u64;
    assert!((thought - 1..=thought + 1).contains(&reasoning), "{reasoning} of about {thought}");
    // Cut in the middle of the reasoning: all of it is reasoning.
    let (message, finish, usage) = both(&stand, chat(json!({"max_completion_tokens": 9}))).await;
    assert_eq!((&message["content"], &finish), (&json!(""), &json!("length")));
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 9);
}

#[tokio::test]
async fn tool_calls_are_parsed_when_tools_are_offered() {
    let stand = Stand::ready(1).await;
    stand.script(&[
        Act::Say("<think>call</think>\n<tool_calls>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n"),
        Act::Say("{\"name\": \"now\", \"arguments\": {}}\n</tool_calls>"),
        Act::Eos,
    ]);
    let tools = json!({"tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}]});
    let (message, finish, _) = both(&stand, chat(tools.clone())).await;
    assert_eq!(finish, "tool_calls");
    assert_eq!((&message["content"], &message["reasoning_content"]), (&Value::Null, &json!("call")));
    assert_eq!(message["tool_calls"][0]["function"], json!({"name": "add", "arguments": "{\"a\": 1}"}));
    assert_eq!(message["tool_calls"][1]["function"]["name"], "now");
    assert_ne!(message["tool_calls"][0]["id"], message["tool_calls"][1]["id"]);
    let offered = stand.doubles[0].seen().remove(0).prompt.len();
    let (message, finish, _) = both(&stand, chat(merge(tools, json!({"tool_choice": "none"})))).await;
    assert_eq!(finish, "stop");
    assert!(message["content"].as_str().unwrap().contains("<tool_calls>") && message.get("tool_calls").is_none());
    assert!(stand.doubles[0].seen().pop().unwrap().prompt.len() < offered, "the model is not shown the tools");
}

#[tokio::test]
async fn stop_strings_are_short() {
    let stand = Stand::ready(1).await;
    for (length, status) in [(4096, 200), (4097, 400), (50_000, 400)] {
        let answer = stand.client.post(CHAT, &chat(json!({"stop": ["x", "y".repeat(length)]}))).await;
        assert_eq!(answer.status, status, "{length}");
        assert!(status == 200 || answer.json()["error"]["message"].as_str().unwrap().contains("each of 1 to 4096 bytes"));
    }
}

#[tokio::test]
async fn stop_strings_cut_the_text_wherever_tokens_end() {
    let stand = Stand::ready(1).await;
    stand.script(&[Act::Say("one two STOP three"), Act::Eos]);
    for stop in [json!("STOP"), json!(["nothing", "STOP"]), json!(["o STOP", "zzz"]), json!(["ree"])] {
        let (message, finish, _) = both(&stand, chat(json!({"stop": stop}))).await;
        let (wanted, _) = "one two STOP three"
            .split_once(stop.as_str().unwrap_or_else(|| match stop.as_array().unwrap().len() {
                1 => "ree",
                _ if stop[0] == "nothing" => "STOP",
                _ => "o STOP",
            }))
            .unwrap();
        assert_eq!((message["content"].as_str().unwrap(), &finish), (wanted, &json!("stop")), "{stop}");
    }
    let (message, finish, _) = both(&stand, chat(json!({"stop": ["four", "s"], "max_tokens": 2}))).await;
    assert_eq!(finish, "length");
    assert_eq!(message["content"], tokenizer().decode(&tokenizer().encode("one two STOP three").unwrap()[..2]));
}

#[tokio::test]
async fn completions_are_raw_text() {
    let stand = Stand::ready(1).await;
    stand.script(&[Act::Say("<think>x</think> y"), Act::Burst(WIDE), Act::Eos]);
    let whole = stand.client.post(TEXT, &completion(json!({}))).await.json();
    assert_eq!((&whole["object"], &whole["choices"][0]["finish_reason"]), (&json!("text_completion"), &json!("stop")));
    assert_eq!(whole["choices"][0]["text"], format!("<think>x</think> y{WIDE}"));
    let events = stand.client.stream(TEXT, &completion(json!({"stream": true}))).await.rest().await;
    let text: String = events.iter().filter_map(|(_, event)| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(whole["choices"][0]["text"], text);
    let ids = tokenizer().encode("hello").unwrap();
    for prompt in [json!("hello"), json!(["hello"]), json!(ids), json!([ids])] {
        stand.client.post(TEXT, &completion(json!({"prompt": prompt}))).await;
        assert_eq!(stand.doubles[0].seen().pop().unwrap().prompt, ids, "{prompt}");
    }
}

#[tokio::test]
async fn log_probabilities_come_with_every_token_of_the_text() {
    let stand = Stand::ready(1).await;
    stand.script(&[Act::Say("one \u{1F980} two STOP"), Act::Eos]);
    let request = chat(json!({"logprobs": true, "top_logprobs": 2, "stop": " STOP"}));
    let whole = stand.client.post(CHAT, &request).await.json();
    let content = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let bytes: Vec<u8> =
        content.iter().flat_map(|token| token["bytes"].as_array().unwrap()).map(|byte| byte.as_u64().unwrap() as u8).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), "one \u{1F980} two");
    assert!(content.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2 && token["logprob"] == -0.5));
    let events = stand.client.stream(CHAT, &merge(request, json!({"stream": true}))).await.rest().await;
    let streamed: Vec<Value> =
        events.iter().filter_map(|(_, event)| event["choices"][0]["logprobs"]["content"].as_array().cloned()).flatten().collect();
    assert_eq!(streamed, content);
    let plain = stand.client.post(CHAT, &chat(json!({"logprobs": true}))).await.json();
    assert_eq!(plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
    let old = stand.client.post(TEXT, &completion(json!({"logprobs": 1}))).await.json();
    let logprobs = &old["choices"][0]["logprobs"];
    assert_eq!(logprobs["text_offset"][0], 0);
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), logprobs["top_logprobs"].as_array().unwrap().len());
    assert_eq!(stand.client.post(TEXT, &completion(json!({}))).await.json()["choices"][0]["logprobs"], Value::Null);
}

#[tokio::test]
async fn the_model_is_listed_and_tokens_go_round() {
    let stand = Stand::ready(1).await;
    let list = stand.client.get("/v1/models").await.json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!(NAME)));
    assert_eq!(stand.client.get(&format!("/v1/models/{NAME}")).await.json()["object"], "model");
    let tokens = stand.client.post("/tokenize", &json!({"prompt": WIDE})).await.json();
    assert_eq!(tokens["count"].as_u64().unwrap() as usize, tokens["tokens"].as_array().unwrap().len());
    let text = stand.client.post("/detokenize", &json!({"tokens": tokens["tokens"]})).await.json();
    assert_eq!(text["prompt"], WIDE);
}
