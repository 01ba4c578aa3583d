//! Every bad request gets an error of OpenAI's shape that names the field, and reaches no worker.

use crate::common::{NAME, Stand, chat, completion, merge};
use m1_proto::worker::Phase;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const M1: &str = "/v1/minimax-m1/generate";

fn check(answer: &crate::common::client::Answer, status: u16, code: &str, param: Option<&str>, case: &str) {
    assert_eq!(answer.status, status, "{case}: {}", answer.text);
    let error = answer.json()["error"].clone();
    assert_eq!(error["code"], code, "{case}: {error}");
    assert_eq!(error["param"], param.map_or(Value::Null, Value::from), "{case}: {error}");
    assert_eq!(error["type"], "invalid_request_error", "{case}");
    if let Some(param) = param {
        assert!(error["message"].as_str().unwrap().contains(param), "{case}: the message names the field: {error}");
    }
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let stand = Stand::ready(1).await;
    let common = [
        (json!({"model": null}), "model"),
        (json!({"model": 7}), "model"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": 2.5}), "temperature"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.01}), "top_p"),
        (json!({"top_p": [1]}), "top_p"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"seed": "x"}), "seed"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": 5.5}), "max_tokens"),
        (json!({"max_tokens": "5"}), "max_tokens"),
        (json!({"max_tokens": 99999999999999u64}), "max_tokens"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        (json!({"stream": true, "stream_options": 3}), "stream_options"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": ["a", 1]}), "stop"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
    ];
    for (changes, param) in &common {
        for (path, request) in [(CHAT, chat(changes.clone())), (TEXT, completion(changes.clone()))] {
            check(&stand.client.post(path, &request).await, 400, "invalid_value", Some(param), &format!("{path} {changes}"));
        }
    }
    let of_chat = [
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hello"}), "messages"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "messages[0].content"),
        (json!({"max_completion_tokens": -3}), "max_completion_tokens"),
        (json!({"logprobs": 3}), "logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"tools": "hammer"}), "tools"),
        (json!({"tool_choice": "maybe"}), "tool_choice"),
        (json!({"tool_choice": 1}), "tool_choice"),
    ];
    for (changes, param) in &of_chat {
        check(&stand.client.post(CHAT, &chat(changes.clone())).await, 400, "invalid_value", Some(param), &changes.to_string());
    }
    let of_text = [
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [1, "a"]}), "prompt[1]"),
        (json!({"prompt": [1, -1]}), "prompt[1]"),
        (json!({"prompt": [4000000000u32]}), "prompt[0]"),
        (json!({"logprobs": 6}), "logprobs"),
        (json!({"logprobs": true}), "logprobs"),
    ];
    for (changes, param) in &of_text {
        check(
            &stand.client.post(TEXT, &completion(changes.clone())).await,
            400,
            "invalid_value",
            Some(param),
            &changes.to_string(),
        );
    }
    let of_m1 = [
        (json!({"input": null}), "input"),
        (json!({"input": 5}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [{"role": "user"}]}), "input[0].content"),
        (json!({"input": {}}), "input.ids"),
        (json!({"input": {"ids": []}}), "input"),
        (json!({"input": {"ids": [1, 4000000000u32]}}), "input.ids[1]"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"context_window": 1}), "context_window"),
        (json!({"expert_threshold": 0.5}), "expert_threshold"),
        (json!({"expert_threshold": 1.1}), "expert_threshold"),
        (json!({"thinking_budget": -1}), "thinking_budget"),
        (json!({"temperature": true}), "temperature"),
        (json!({"stream": 1}), "stream"),
    ];
    for (changes, param) in &of_m1 {
        let request = merge(json!({"input": "hello"}), changes.clone());
        check(&stand.client.post(M1, &request).await, 400, "invalid_value", Some(param), &changes.to_string());
    }
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": 1}), "prompt"),
        ("/tokenize", json!({"prompt": "a", "messages": []}), "prompt"),
        ("/detokenize", json!({"tokens": "a"}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens[0]"),
    ] {
        check(&stand.client.post(path, &body).await, 400, "invalid_value", Some(param), path);
    }
    assert!(stand.doubles[0].seen().is_empty(), "no worker was asked");
}

#[tokio::test]
async fn known_fields_that_are_not_served_are_named() {
    let stand = Stand::ready(1).await;
    let of_both =
        [json!({"n": 2}), json!({"logit_bias": {"5": 1}}), json!({"presence_penalty": 0.5}), json!({"frequency_penalty": -1})];
    let of_chat = [
        json!({"response_format": {"type": "json_object"}}),
        json!({"response_format": {"type": "json_schema"}}),
        json!({"audio": {}}),
        json!({"modalities": ["text", "audio"]}),
        json!({"tool_choice": "required"}),
        json!({"tool_choice": {"type": "function"}}),
        json!({"functions": []}),
        json!({"function_call": "auto"}),
        json!({"prediction": {}}),
        json!({"store": true}),
    ];
    let of_text = [json!({"best_of": 2}), json!({"echo": true}), json!({"suffix": "x"}), json!({"prompt": ["a", "b"]})];
    let chats = of_both.iter().chain(&of_chat).map(|changes| (CHAT, chat(changes.clone()), changes));
    let texts = of_both.iter().chain(&of_text).map(|changes| (TEXT, completion(changes.clone()), changes));
    for (path, request, changes) in chats.chain(texts) {
        let param = changes.as_object().unwrap().keys().next().unwrap();
        check(&stand.client.post(path, &request).await, 400, "unsupported_parameter", Some(param), &changes.to_string());
    }
    let harmless = json!({
        "n": 1, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "response_format": {"type": "text"}, "modalities": ["text"],
        "store": false, "user": "me", "tools": [], "top_k": 5
    });
    assert_eq!(stand.client.post(CHAT, &chat(harmless)).await.status, 200);
    let harmless = json!({"best_of": 1, "echo": false, "suffix": null, "n": 1});
    assert_eq!(stand.client.post(TEXT, &completion(harmless)).await.status, 200);
}

#[tokio::test]
async fn bodies_paths_methods_and_models_that_do_not_exist() {
    let stand = Stand::ready(1).await;
    for path in [CHAT, TEXT, M1, "/tokenize", "/detokenize"] {
        let broken = stand.client.send("POST", path, b"{\n  \"model\": }".to_vec()).await;
        check(&broken, 400, "malformed_json", None, path);
        assert!(broken.text.contains("line 2 column 12"), "{}", broken.text);
        check(&stand.client.send("POST", path, b"{\"a\": \"\xc3\x28\"}".to_vec()).await, 400, "malformed_json", None, path);
        check(&stand.client.send("POST", path, Vec::new()).await, 400, "malformed_json", None, path);
        check(&stand.client.post(path, &json!([1])).await, 400, "invalid_value", Some("body"), path);
        check(&stand.client.send("POST", path, vec![b'['; 200_000]).await, 413, "body_too_large", None, path);
        check(&stand.client.send("POST", path, vec![b'['; 60_000]).await, 400, "malformed_json", None, path);
        let get = stand.client.get(path).await;
        check(&get, 405, "method_not_allowed", None, path);
        assert_eq!(get.header("allow"), "POST");
    }
    check(&stand.client.get("/v2/chat").await, 404, "unknown_url", None, "path");
    check(&stand.client.get("/v1/models/gpt-9").await, 404, "model_not_found", Some("model"), "model");
    let other = json!({"model": "gpt-9"});
    for (path, request) in
        [(CHAT, chat(other.clone())), (TEXT, completion(other.clone())), (M1, merge(json!({"input": "x"}), other))]
    {
        let answer = stand.client.post(path, &request).await;
        check(&answer, 404, "model_not_found", Some("model"), path);
        assert!(answer.text.contains(NAME), "what exists is named");
    }
}

#[tokio::test]
async fn a_worker_with_a_small_window_is_no_bound_for_the_others() {
    let stand = Stand::ready(2).await;
    stand.doubles[0].status(|status| (status.phase, status.max_context_tokens) = (Phase::Loading.into(), 2));
    stand.until(|client| async move { client.get("/ready").await.text.contains("loading") }).await;
    stand.doubles[0].status(|status| status.phase = Phase::Ready.into());
    stand.wait_ready().await;
    for _ in 0..8 {
        let answer = stand.client.post(CHAT, &chat(json!({"max_tokens": 1000}))).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let answer = stand.client.post(CHAT, &chat(json!({"max_tokens": 2048}))).await;
    check(&answer, 400, "context_length_exceeded", Some("messages"), "longer than any window");
    assert_eq!(stand.doubles[0].seen().len(), 0);
}

#[tokio::test]
async fn the_window_is_held_with_the_numbers() {
    let stand = Stand::ready(1).await;
    // The double's window, 2048, is the smaller one.
    let long = "hello ".repeat(3000);
    let answer = stand.client.post(TEXT, &completion(json!({"prompt": long}))).await;
    check(&answer, 400, "context_length_exceeded", Some("prompt"), "long prompt");
    assert!(answer.text.contains("2048"), "{}", answer.text);
    let answer = stand.client.post(CHAT, &chat(json!({"max_tokens": 2048}))).await;
    check(&answer, 400, "context_length_exceeded", Some("messages"), "prompt and output");
    let answer = stand.client.post(M1, &json!({"input": "hello", "max_output_tokens": 2048})).await;
    check(&answer, 400, "context_length_exceeded", Some("input"), "prompt and output");
    let answer = stand.client.post(M1, &json!({"input": {"ids": [1, 2, 3]}, "context_window": 3})).await;
    check(&answer, 400, "context_length_exceeded", Some("input"), "own window");
    assert!(stand.doubles[0].seen().is_empty());
}
