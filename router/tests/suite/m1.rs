//! M1's own endpoint: inputs, the routing log, and its events.

use crate::common::{Act, NAME, Stand, tokenizer};
use serde_json::{Value, json};

const M1: &str = "/v1/minimax-m1/generate";

#[tokio::test]
async fn reasoning_that_the_prompt_opened_is_reasoning() {
    let stand = Stand::ready(1).await;
    stand.script(&[Act::Say("well\n</think>\n\nyes"), Act::Eos]);
    let ids = |text: &str| tokenizer().encode(text).unwrap();
    for (prompt, reasoning, text) in [
        (ids("hello <think>\n"), "well", "yes"),
        (ids("hello <think>\nhm </thi"), "well", "yes"),
        // What a user wrote in a turn of theirs opens nothing.
        ([ids("<think>"), vec![tokenizer().eos_ids()[0]], ids("hello")].concat(), "", "well\n</think>\n\nyes"),
    ] {
        let answer = stand.client.post(M1, &json!({"input": {"ids": prompt}, "max_output_tokens": 50})).await.json();
        assert!(answer["reasoning"].as_str().unwrap().ends_with(reasoning), "{answer}");
        assert_eq!((answer["reasoning"] == "", &answer["text"]), (reasoning.is_empty(), &json!(text)));
    }
}

#[tokio::test]
async fn the_answer_carries_text_reasoning_usage_and_the_routing_log() {
    let stand = Stand::ready(1).await;
    stand.script(&[Act::Say("<think>\nwell\n</think>\n\nyes"), Act::Eos]);
    let request = json!({
        "input": "hello", "max_output_tokens": 50, "context_window": 500, "expert_threshold": 0.8, "thinking_budget": 40, "temperature": 0.5,
        "top_p": 0.9, "seed": 7, "stream": false
    });
    let answer = stand.client.post(M1, &request).await.json();
    assert_eq!((&answer["text"], &answer["reasoning"], &answer["finish_reason"]), (&json!("yes"), &json!("well"), &json!("stop")));
    assert_eq!(answer["model"], NAME);
    let seen = stand.doubles[0].seen().remove(0);
    assert_eq!((seen.expert_threshold, seen.max_tokens), (0.8, 50));
    let thinking = seen.thinking.unwrap();
    assert_eq!((thinking.tokens, tokenizer().decode(&thinking.close_ids)), (40, "</think>\n".to_owned()));
    let number = |path: &str| answer.pointer(path).unwrap().as_u64().unwrap();
    assert_eq!(number("/usage/input_tokens"), seen.prompt.len() as u64);
    assert_eq!(number("/usage/total_tokens"), number("/usage/input_tokens") + number("/usage/output_tokens"));
    assert_eq!(number("/routing/tokens"), number("/usage/total_tokens") - 1);
    assert!(number("/usage/reasoning_tokens") > 0 && number("/routing/skipped") > 0);
    let sum = number("/routing/executed") + number("/routing/skipped") + number("/routing/lost");
    assert_eq!(sum, number("/routing/tokens") * number("/routing/top_k") * number("/routing/layers"));
    let layers = answer["routing"]["by_layer"].as_array().unwrap();
    assert_eq!(layers.len(), 3);
    for (place, layer) in layers.iter().enumerate() {
        assert_eq!(layer["layer"], place);
        let total = |field: &str| layer[field].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
        assert_eq!(total("tokens") + total("skipped"), number("/routing/tokens") * 2);
        let used = layer["tokens"].as_array().unwrap().iter().map(|tokens| tokens != 0);
        for (weight, used) in layer["mean_weight"].as_array().unwrap().iter().zip(used) {
            assert_eq!(weight.as_f64(), Some(if used { 0.5 } else { 0.0 }), "{layer}");
        }
    }
}

#[tokio::test]
async fn events_tell_the_same_as_the_whole_answer() {
    let stand = Stand::ready(1).await;
    stand.script(&[Act::Say("<think>a \u{1F980} b</think> c \u{65e5}"), Act::Eos]);
    let mut request = json!({"input": [{"role": "user", "content": "hello"}], "seed": 1});
    let whole = stand.client.post(M1, &request).await.json();
    request["stream"] = json!(true);
    let events = stand.client.stream(M1, &request).await.rest().await;
    let (mut text, mut reasoning, mut names) = (String::new(), String::new(), Vec::new());
    for (name, data) in &events {
        text.push_str(data["text"].as_str().unwrap_or(""));
        reasoning.push_str(data["reasoning"].as_str().unwrap_or(""));
        if names.last() != Some(name) {
            names.push(name.clone());
        }
    }
    assert_eq!(names, ["text", "usage", "routing", "done"]);
    assert_eq!((&whole["text"], &whole["reasoning"]), (&Value::from(text), &Value::from(reasoning)));
    let last = |name: &str| events.iter().find(|(event, _)| event == name).unwrap().1.clone();
    assert_eq!((&whole["usage"], &whole["routing"]), (&last("usage"), &last("routing")));
    assert_eq!(last("done")["finish_reason"], "stop");
}

#[tokio::test]
async fn ids_pass_as_they_are_and_the_callers_window_cuts() {
    let stand = Stand::ready(1).await;
    stand.script(&[Act::Say("one two three four five six seven eight nine ten")]);
    let answer =
        stand.client.post(M1, &json!({"input": {"ids": [5, 6, 7]}, "context_window": 8, "max_output_tokens": 100})).await.json();
    let seen = stand.doubles[0].seen().remove(0);
    assert_eq!((seen.prompt, seen.max_tokens), (vec![5, 6, 7], 5));
    assert_eq!((&answer["finish_reason"], &answer["usage"]["total_tokens"]), (&json!("length"), &json!(8)));
    stand.script(&[Act::Say("one"), Act::Eos]);
    let wide = json!({"input": {"ids": [5, 6, 7]}, "context_window": 500_000, "max_output_tokens": 100});
    assert_eq!(stand.client.post(M1, &wide).await.json()["finish_reason"], "stop");
    assert_eq!(
        stand.doubles[0].seen().pop().map(|seen| seen.max_tokens),
        Some(100),
        "a window wider than the served one does not bind"
    );
}

#[tokio::test]
async fn counts_that_do_not_add_up_are_not_passed_on() {
    let stand = Stand::ready(1).await;
    stand.script(&[Act::Say("x"), Act::Miscount]);
    let answer = stand.client.post(M1, &json!({"input": "hello"})).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (502, &json!("RoutingCounts")));
    let metrics = stand.client.get("/metrics").await.text;
    assert!(metrics.contains("m1_router_routing_rejected_total{model_name=\"MiniMax-M1-demo\"} 1"));
    assert!(!metrics.lines().any(|line| line.starts_with("m1_router_expert_tokens_total") && !line.ends_with(" 0")));
}
