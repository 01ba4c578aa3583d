//! The exposition: every expert's series from readiness on, and sums that agree with the routing logs of the answers.

use crate::common::{Act, Stand, chat, completion};
use serde_json::json;

fn rows<'a>(text: &'a str, name: &'a str) -> Vec<(&'a str, f64)> {
    let rows = text.lines().filter_map(move |line| line.strip_prefix(name).filter(|rest| rest.starts_with('{')));
    rows.map(|row| row.rsplit_once(' ').unwrap()).map(|(labels, value)| (labels, value.parse().unwrap())).collect()
}

fn sum(text: &str, name: &str) -> f64 {
    rows(text, name).iter().map(|(_, value)| value).sum()
}

#[tokio::test]
async fn every_series_is_there_from_readiness_on() {
    let stand = Stand::ready(2).await;
    let text = stand.client.get("/metrics").await.text;
    let tokens = rows(&text, "m1_router_expert_tokens_total");
    assert_eq!(tokens.len(), 3 * 4 * 3, "layers x experts x outcomes");
    assert!(tokens.iter().all(|(labels, value)| labels.contains("model_name=\"MiniMax-M1-demo\"") && *value == 0.0));
    assert!(
        tokens.iter().any(|(labels, _)| labels.contains("expert=\"0\",layer=\"0\"") && labels.contains("outcome=\"executed\""))
    );
    assert_eq!(rows(&text, "m1_router_expert_utilization").len(), 12);
    assert!(rows(&text, "m1_router_expert_replicas").iter().all(|(_, copies)| *copies == 1.0));
    assert_eq!(rows(&text, "m1_router_expert_balancedness").len(), 2);
    assert_eq!(sum(&text, "vllm:kv_cache_usage_perc"), 0.25);
    for name in
        ["vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:prompt_tokens_total", "vllm:generation_tokens_total"]
    {
        assert_eq!(rows(&text, name).len(), 1, "{name}");
    }
    for name in ["vllm:time_to_first_token_seconds", "vllm:time_per_output_token_seconds", "vllm:e2e_request_latency_seconds"] {
        assert!(text.contains(&format!("{name}_count{{model_name=")), "{name}");
    }
    assert_eq!(rows(&text, "m1_router_requests_total").len(), 3 * 5);
}

#[tokio::test]
async fn the_sums_agree_with_the_answers_at_their_last_byte() {
    let stand = Stand::ready(2).await;
    stand.script(&[Act::Say("one two"), Act::Burst(" three"), Act::Eos]);
    let (mut routed, mut prompt, mut output) = (0.0, 0.0, 0.0);
    for turn in 0..6 {
        let (path, request) = match turn % 3 {
            0 => ("/v1/chat/completions", chat(json!({}))),
            1 => ("/v1/completions", completion(json!({}))),
            _ => ("/v1/minimax-m1/generate", json!({"input": "hello", "expert_threshold": 0.7})),
        };
        let usage = stand.client.post(path, &request).await.json()["usage"].clone();
        let number = |a: &str, b: &str| usage[a].as_f64().or_else(|| usage[b].as_f64()).unwrap();
        prompt += number("prompt_tokens", "input_tokens");
        output += number("completion_tokens", "output_tokens");
        routed += (number("prompt_tokens", "input_tokens") + number("completion_tokens", "output_tokens") - 1.0) * 2.0 * 3.0;
        let text = stand.client.get("/metrics").await.text;
        assert_eq!(sum(&text, "m1_router_expert_tokens_total"), routed);
        assert_eq!((sum(&text, "vllm:prompt_tokens_total"), sum(&text, "vllm:generation_tokens_total")), (prompt, output));
        assert_eq!(sum(&text, "vllm:e2e_request_latency_seconds_count"), f64::from(turn + 1));
        assert_eq!(sum(&text, "vllm:time_to_first_token_seconds_count"), f64::from(turn + 1));
    }
    let text = stand.client.get("/metrics").await.text;
    let of = |outcome: &str| {
        rows(&text, "m1_router_expert_tokens_total").iter().filter(|(l, _)| l.contains(outcome)).map(|(_, v)| v).sum::<f64>()
    };
    assert!(of("skipped") > 0.0 && of("lost") == 0.0);
    let balanced = rows(&text, "m1_router_expert_balancedness");
    assert!(balanced.iter().all(|(_, value)| (0.5..=1.0).contains(value)), "{balanced:?}");
}

#[tokio::test]
async fn a_streamed_answer_is_booked_before_its_end() {
    let stand = Stand::ready(1).await;
    let mut events = stand.client.stream("/v1/chat/completions", &chat(json!({"stream": true}))).await;
    while let Some((_, data)) = events.next().await {
        if data == "[DONE]" {
            let text = stand.client.get("/metrics").await.text;
            assert!(sum(&text, "m1_router_expert_tokens_total") > 0.0);
            return;
        }
    }
    panic!("no [DONE]");
}
