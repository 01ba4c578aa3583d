//! The demo model through the whole system: `m1ctl up`, two worker processes, the router's HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs)]

use std::time::Duration;

use m1_tests::{Up, alive, demo, endless, eventually, kill, root};
use serde_json::{Value, json};

const MODEL: &str = "MiniMax-M1-demo";

fn conversations() -> Vec<Value> {
    let text = std::fs::read_to_string(root().join("demo/goldens.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// What a golden answer's text means to an OpenAI client: reasoning, content, tool calls.
fn split(text: &str) -> (String, String, Vec<Value>) {
    let (reasoning, rest) = text.strip_prefix("<think>").unwrap().split_once("</think>").unwrap();
    let (content, calls) = rest.split_once("<tool_calls>").unwrap_or((rest, ""));
    let calls = calls.replace("</tool_calls>", "");
    let calls = calls.lines().filter(|l| !l.trim().is_empty()).map(|l| serde_json::from_str(l).unwrap()).collect();
    (reasoning.trim().into(), content.trim().into(), calls)
}

fn chat(conversation: &Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": conversation["messages"], "temperature": 0, "max_tokens": 256});
    if let Some(tools) = conversation.get("tools").filter(|t| !t.is_null()) {
        body["tools"] = tools.clone();
    }
    body
}

#[test]
fn the_fifteen_conversations_are_answered_word_by_word() {
    let up = Up::start(&demo(), 2);
    for conversation in conversations() {
        let (status, answer) = up.post("/v1/chat/completions", &chat(&conversation));
        assert_eq!(status, 200, "{answer}");
        let message = &answer["choices"][0]["message"];
        let (reasoning, content, calls) = split(conversation["text"].as_str().unwrap());
        assert_eq!(message["reasoning_content"].as_str().unwrap_or(""), reasoning, "{answer}");
        assert_eq!(message["content"].as_str().unwrap_or("").trim(), content, "{answer}");
        let got = message["tool_calls"].as_array().cloned().unwrap_or_default();
        assert_eq!(got.len(), calls.len(), "{answer}");
        for (got, expected) in got.iter().zip(&calls) {
            assert_eq!(got["function"]["name"], expected["name"]);
            let arguments: Value = serde_json::from_str(got["function"]["arguments"].as_str().unwrap()).unwrap();
            assert_eq!(arguments, expected["arguments"]);
        }
        let finish = if calls.is_empty() { "stop" } else { "tool_calls" };
        assert_eq!(answer["choices"][0]["finish_reason"], finish);
        let (prompt, output) = (conversation["prompt_ids"].as_array().unwrap(), conversation["output_ids"].as_array().unwrap());
        assert_eq!(answer["usage"]["prompt_tokens"], prompt.len(), "prompt ids");
        assert_eq!(answer["usage"]["completion_tokens"], output.len() + 1, "the end token is counted too");
        let raw = json!({"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 256});
        let (status, raw) = up.post("/v1/completions", &raw);
        assert_eq!((status, &raw["choices"][0]["text"]), (200, &conversation["text"]), "to the letter");
    }
}

#[test]
fn prompts_tokenise_to_the_same_ids() {
    let up = Up::start(&demo(), 1);
    for conversation in conversations() {
        let (status, answer) = up.post("/tokenize", &json!({"model": MODEL, "prompt": conversation["prompt"]}));
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["tokens"], conversation["prompt_ids"]);
    }
}

#[test]
fn the_routing_log_adds_up_and_so_do_the_metrics() {
    let up = Up::start(&demo(), 2);
    let body = json!({"input": "What is a Pod?", "max_output_tokens": 64, "temperature": 0});
    let (status, answer) = up.post("/v1/minimax-m1/generate", &body);
    assert_eq!(status, 200, "{answer}");
    let (usage, routing) = (&answer["usage"], &answer["routing"]);
    let number = |v: &Value| v.as_u64().unwrap_or_else(|| panic!("{v} in {answer}"));
    let tokens = number(&usage["input_tokens"]) + number(&usage["output_tokens"]) - 1;
    assert_eq!(number(&routing["tokens"]), tokens);
    assert_eq!((number(&routing["layers"]), number(&routing["experts"]), number(&routing["top_k"])), (8, 32, 2));
    assert_eq!(number(&routing["executed"]) + number(&routing["skipped"]) + number(&routing["lost"]), tokens * 8 * 2);
    let layers = routing["by_layer"].as_array().unwrap();
    assert_eq!(layers.len(), 8);
    for layer in layers {
        let executed: u64 = layer["tokens"].as_array().unwrap().iter().map(number).sum();
        assert_eq!(executed, tokens * 2, "{layer}");
    }
    let (_, metrics) = up.get("/metrics");
    let booked: f64 = metrics
        .lines()
        .filter(|l| l.starts_with("m1_router_expert_tokens_total{"))
        .map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(booked, (tokens * 8 * 2) as f64);
}

#[test]
fn a_threshold_skips_second_experts() {
    let up = Up::start(&demo(), 2);
    let body = json!({"input": "What is a Pod?", "max_output_tokens": 32, "temperature": 0, "expert_threshold": 0.7});
    let (status, answer) = up.post("/v1/minimax-m1/generate", &body);
    assert_eq!(status, 200, "{answer}");
    let routing = &answer["routing"];
    let (executed, skipped) = (routing["executed"].as_u64().unwrap(), routing["skipped"].as_u64().unwrap());
    assert!(skipped > 0, "{routing}");
    assert_eq!(executed + skipped, routing["tokens"].as_u64().unwrap() * 8 * 2);
}

#[test]
fn a_thinking_budget_closes_the_reasoning_and_nothing_else() {
    let up = Up::start(&demo(), 1);
    for budget in [0, 1, 2, 5] {
        let body = json!({"input": "Is selector required in DeploymentSpec?", "max_output_tokens": 60, "temperature": 0, "thinking_budget": budget});
        let (status, answer) = up.post("/v1/minimax-m1/generate", &body);
        assert_eq!(status, 200, "{answer}");
        let (text, reasoning) = (answer["text"].as_str().unwrap(), answer["reasoning"].as_str().unwrap());
        assert!(!text.contains("think>") && !reasoning.contains("think>"), "budget {budget}: {answer}");
        // The first token of a reasoning is a line break.
        assert_eq!(reasoning.is_empty(), budget < 2, "{answer}");
        assert!(reasoning.split_whitespace().count() <= budget, "budget {budget}: {answer}");
    }
}

#[test]
fn each_worker_reads_only_its_half_and_ctrl_c_leaves_nothing() {
    let up = Up::start(&demo(), 2);
    let log = up.read_log();
    let reads: Vec<(u64, u64)> = log
        .lines()
        .filter_map(|l| l.split_once("bytes_read=")?.1.split_once(" bytes_checkpoint="))
        .map(|(read, all)| (read.parse().unwrap(), all.split_whitespace().next().unwrap().parse().unwrap()))
        .collect();
    assert_eq!(reads.len(), 2, "{log}");
    let experts = 8 * 32 * 3 * 128 * 64 * 2;
    for (read, all) in reads {
        assert_eq!(read, all - experts / 2, "half of the experts are left unread:\n{log}");
    }
    let processes = up.stop();
    assert_eq!(processes.len(), 3, "two workers and a router");
    eventually("no process is left", Duration::from_secs(5), || processes.iter().all(|p| !alive(*p)));
}

/// Process id of a pod's worker.
fn worker(up: &Up, pod: u32) -> u32 {
    let flag = format!("--pod\u{0}{pod}\u{0}");
    let is = |process: &u32| std::fs::read_to_string(format!("/proc/{process}/cmdline")).is_ok_and(|line| line.contains(&flag));
    up.processes().into_iter().find(is).expect("the pod runs")
}

#[test]
fn a_killed_worker_is_said_and_comes_back() {
    let up = Up::start(&demo(), 2);
    kill(worker(&up, 1));
    let question = chat(&conversations()[2]);
    eventually("the loss is said", Duration::from_secs(20), || {
        up.read_log().contains("was killed (SIGKILL); experts away: 16-31 in every layer")
    });
    eventually("it answers again", Duration::from_secs(60), || up.post("/v1/chat/completions", &question).0 == 200);
}

/// A completion by the model that never stops.
fn long_story(tokens: u32) -> Value {
    json!({"model": MODEL, "prompt": "kind: Deployment", "max_tokens": tokens, "temperature": 0, "stream": true})
}

#[test]
fn conversations_at_the_same_time_are_answered_as_one_by_one() {
    let up = Up::start(&demo(), 2);
    let conversations = conversations();
    std::thread::scope(|scope| {
        for conversation in &conversations {
            let up = &up;
            scope.spawn(move || {
                let (status, answer) = up.post("/v1/chat/completions", &chat(conversation));
                assert_eq!(status, 200, "{answer}");
                let (reasoning, content, _) = split(conversation["text"].as_str().unwrap());
                let message = &answer["choices"][0]["message"];
                assert_eq!(message["reasoning_content"].as_str().unwrap_or(""), reasoning, "{answer}");
                assert_eq!(message["content"].as_str().unwrap_or("").trim(), content, "{answer}");
            });
        }
    });
}

#[test]
fn a_worker_lost_in_the_middle_fails_its_own_answers_only() {
    let model = endless();
    let up = Up::start(model.path(), 2);
    let ends: Vec<String> = std::thread::scope(|scope| {
        let streams: Vec<_> =
            (0..8).map(|_| scope.spawn(|| up.post_raw("/v1/completions", long_story(1500).to_string().as_bytes()).1)).collect();
        // Before its first token an answer would be tried again elsewhere.
        eventually("all of them speak", Duration::from_secs(20), || up.metric("vllm:generation_tokens_total") > 400.0);
        assert_eq!(up.metric("vllm:num_requests_running"), 8.0);
        kill(worker(&up, 1));
        streams.into_iter().map(|stream| stream.join().unwrap()).collect()
    });
    let failed: Vec<&String> = ends.iter().filter(|end| end.contains("\"error\"")).collect();
    let whole = ends.iter().filter(|end| end.trim_end().ends_with("[DONE]")).count();
    assert!(!failed.is_empty() && whole > 0 && failed.len() + whole == 8, "{} failed, {whole} whole", failed.len());
    assert!(failed.iter().all(|end| end.contains("worker_lost") && !end.contains("[DONE]")), "{failed:?}");
    assert!(up.read_log().contains("a waiting step goes on"), "the survivor's steps waited for the experts");
}

#[test]
fn a_client_that_goes_away_frees_its_sequence() {
    let model = endless();
    let up = Up::start(model.path(), 2);
    let stream = up.open_stream("/v1/completions", &long_story(3900));
    eventually("it runs", Duration::from_secs(10), || up.metric("vllm:kv_cache_usage_perc") > 0.0);
    drop(stream);
    let began = std::time::Instant::now();
    eventually("its blocks are free", Duration::from_secs(5), || up.metric("vllm:kv_cache_usage_perc") == 0.0);
    assert!(began.elapsed() < Duration::from_secs(3), "at once, not at its end");
    assert_eq!(up.metric("vllm:num_requests_running"), 0.0);
}

#[test]
fn a_worker_takes_little_more_memory_than_its_weights_and_caches() {
    let up = Up::start(&demo(), 2);
    assert_eq!(up.post("/v1/chat/completions", &chat(&conversations()[0])).0, 200);
    for pod in 0..2 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", worker(&up, pod))).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
        let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        // The plan: 17.4 MB of weights, 33.6 MB of KV, 1.8 MB of states.
        assert!(kilobytes < (17_400 + 33_600 + 1_800) + 300_000, "pod {pod}: {line}");
    }
}

#[test]
fn bad_requests_are_named() {
    let up = Up::start(&demo(), 1);
    let good = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]});
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body.to_string()
    };
    let cases: Vec<(String, u16, &str)> = vec![
        ("{\"model\": ".into(), 400, "JSON"),
        (with("model", json!("gpt-4")), 404, "gpt-4"),
        (with("messages", json!([])), 400, "messages"),
        (with("max_tokens", json!(-1)), 400, "max_tokens"),
        (with("max_tokens", json!(1_000_000)), 400, "4096"),
        (with("max_tokens", json!("many")), 400, "max_tokens"),
        (with("temperature", json!("hot")), 400, "temperature"),
        (with("messages", json!([{"role": "user", "content": "x ".repeat(9000)}])), 400, "4096"),
    ];
    for (body, status, word) in cases {
        let (got, answer) = up.post_text("/v1/chat/completions", &body);
        assert_eq!(got, status, "{body} -> {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(word), "{body} -> {message}");
    }
    let (status, text) = up.post_raw("/v1/chat/completions", b"{\"model\": \"\xff\"}");
    assert_eq!(status, 400, "{text}");
    assert!(text.contains("UTF-8"), "{text}");
    assert_eq!(up.post("/v1/chat/completions", &good).0, 200, "it still serves");
}
