//! What an operator of the server may bound: waiting, the length of answers, and who may ask.

use std::time::Duration;

use crate::common::{Act, PATIENCE, Stand, chat, completion, merge};
use serde_json::{Value, json};
use tonic::Code;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const M1: &str = "/v1/minimax-m1/generate";

#[tokio::test]
async fn a_wait_ends_with_429() {
    let stand = Stand::with(1, |config| config.patience.wait = Duration::from_secs(1)).await;
    stand.doubles[0].status(|status| status.state_slots_total = 1);
    stand.wait_ready().await;
    stand.script(&[Act::Say("hi"), Act::Hold, Act::Eos]);
    let first = stand.client.stream(CHAT, &chat(json!({"stream": true}))).await;
    let second = stand.client.post(CHAT, &chat(json!({}))).await;
    assert_eq!((second.status, second.header("retry-after")), (429, "1"));
    let error = second.json()["error"].clone();
    assert_eq!((&error["code"], &error["type"]), (&json!("queue_timeout"), &json!("rate_limit_error")));
    assert_eq!(error["message"], "no worker had room within 1 seconds; try again");
    let metrics = stand.client.get("/metrics").await.text;
    assert!(metrics.contains("m1_router_queue_depth{model_name=\"MiniMax-M1-demo\"} 0"), "it left the queue");
    assert!(metrics.contains("endpoint=\"chat\",model_name=\"MiniMax-M1-demo\",outcome=\"overloaded\"} 1"));
    stand.doubles[0].release();
    assert_eq!(first.rest().await.last().unwrap().1, "[DONE]");
    assert_eq!(stand.client.post(CHAT, &chat(json!({}))).await.status, 200, "its place is free again");
}

#[tokio::test]
async fn a_worker_that_always_refuses_ends_the_wait_too() {
    let stand = Stand::with(1, |config| config.patience.wait = Duration::from_secs(1)).await;
    stand.wait_ready().await;
    (0..1000).for_each(|_| stand.doubles[0].refuse_once(Code::ResourceExhausted));
    let request = chat(json!({}));
    let asked = stand.client.post(CHAT, &request);
    let answer = tokio::time::timeout(PATIENCE, asked).await.expect("all its waits together are bounded");
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (429, &json!("queue_timeout")));
}

#[tokio::test]
async fn answers_are_no_longer_than_the_server_gives() {
    let stand = Stand::with(1, |config| config.max_output_tokens = Some(5)).await;
    stand.wait_ready().await;
    stand.script(&[Act::Say("one two three four five six seven eight nine ten")]);
    let m1 = |changes: Value| merge(json!({"input": "hello"}), changes);
    let too_many = [
        (CHAT, chat(json!({"max_tokens": 6})), "max_tokens"),
        (CHAT, chat(json!({"max_completion_tokens": 6})), "max_completion_tokens"),
        (TEXT, completion(json!({"max_tokens": 6})), "max_tokens"),
        (M1, m1(json!({"max_output_tokens": 6})), "max_output_tokens"),
        (M1, m1(json!({"max_output_tokens": 6, "context_window": 100})), "max_output_tokens"),
    ];
    for (path, request, param) in too_many {
        let answer = stand.client.post(path, &request).await;
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["code"], &error["param"]), (400, &json!("invalid_value"), &json!(param)), "{error}");
        assert_eq!(error["message"], format!("{param}: given 6, allowed: at most 5, this server's limit"));
    }
    assert!(stand.doubles[0].seen().is_empty());
    let served = [
        (CHAT, chat(json!({})), 5),
        (CHAT, chat(json!({"max_tokens": 4})), 4),
        (TEXT, completion(json!({})), 5),
        (M1, m1(json!({})), 5),
        (M1, m1(json!({"context_window": 100})), 5),
        (M1, m1(json!({"context_window": 100, "max_output_tokens": 3})), 3),
    ];
    for (path, request, most) in served {
        let answer = stand.client.post(path, &request).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(answer.text.contains("\"length\""), "{}", answer.text);
        assert_eq!(stand.doubles[0].seen().last().unwrap().max_tokens, most, "{path} {request}");
    }
}

#[tokio::test]
async fn only_those_with_a_key_may_ask() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("alice"), "key-a\n").unwrap();
    let stand = Stand::with(1, |config| config.api_keys = Some(dir.path().to_owned())).await;
    stand.wait_ready().await;
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(stand.client.get(path).await.status, 200, "{path} is open");
    }
    let (good, bad) = (stand.client.with_authorization("Bearer key-a"), stand.client.with_authorization("Bearer key-b"));
    let posts = [
        (CHAT, chat(json!({}))),
        (TEXT, completion(json!({}))),
        (M1, json!({"input": "hello"})),
        ("/tokenize", json!({"prompt": "hello"})),
        ("/detokenize", json!({"tokens": [5]})),
    ];
    for (path, request) in &posts {
        for client in [&stand.client, &bad] {
            let answer = client.post(path, request).await;
            let error = answer.json()["error"].clone();
            assert_eq!((answer.status, &error["code"]), (401, &json!("invalid_api_key")), "{path}");
            assert_eq!((&error["type"], answer.header("www-authenticate")), (&json!("invalid_request_error"), "Bearer"));
            assert!(!answer.text.contains("key-b"), "a key is not repeated");
        }
        assert_eq!(good.post(path, request).await.status, 200, "{path}");
    }
    for path in ["/v1/models", "/v1/models/x", "/v1/nothing"] {
        assert_eq!(stand.client.get(path).await.status, 401, "{path}");
    }
    assert_eq!(good.get("/v1/models").await.status, 200);
    assert_eq!(stand.doubles[0].seen().len(), 3, "no worker was asked without a key");
    let long = stand.client.send("POST", CHAT, vec![b'['; 50_000]).await;
    assert_eq!(long.status, 401, "a client that sends much sees why not");
}
