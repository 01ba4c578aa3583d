//! Overload, workers that are not there yet, refuse, break or die, and clients that go away.

use crate::common::client::{Answer, Events};
use crate::common::{Act, PATIENCE, Stand, chat, completion};
use m1_proto::worker::Phase;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic::Code;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn stream() -> Value {
    chat(json!({"stream": true}))
}

async fn metric(stand: &Stand, line: &str) -> String {
    let text = stand.client.get("/metrics").await.text;
    let found = text.lines().find_map(|row| row.strip_prefix(line).map(|rest| rest.trim().to_owned()));
    found.unwrap_or_else(|| panic!("no {line} in {text}"))
}

const MODEL: &str = "{model_name=\"MiniMax-M1-demo\"}";

#[tokio::test]
async fn answers_503_until_every_pod_is_ready() {
    let stand = Stand::with(2, |_| {}).await;
    stand.doubles[1].status(|status| status.phase = Phase::Loading.into());
    assert_eq!(stand.client.get("/health").await.status, 200);
    stand.until(|client| async move { client.get("/ready").await.text.contains("loading") }).await;
    let ready = stand.client.get("/ready").await;
    assert_eq!((ready.status, ready.header("retry-after")), (503, "2"));
    let answer = stand.client.post(CHAT, &chat(json!({}))).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "2"));
    assert_eq!(answer.json()["error"]["code"], "not_ready");
    assert_eq!(answer.json()["error"]["type"], "server_error");
    assert_eq!(stand.client.get("/v1/models").await.status, 200, "the model exists");
    stand.doubles[1].status(|status| status.phase = Phase::Ready.into());
    stand.wait_ready().await;
    assert_eq!(stand.client.post(CHAT, &chat(json!({}))).await.status, 200);
}

/// A worker with one place, a stream that has it, and a request behind it in a queue of one.
async fn one_runs_and_one_is_to_wait() -> (Stand, Events, JoinHandle<Answer>) {
    let stand = Stand::with(1, |config| config.patience.limit = 1).await;
    stand.doubles[0].status(|status| status.state_slots_total = 1);
    stand.wait_ready().await;
    stand.script(&[Act::Say("hi"), Act::Hold, Act::Eos]);
    let first = stand.client.stream(CHAT, &stream()).await;
    let client = stand.client.clone();
    let second = tokio::spawn(async move { client.post(CHAT, &chat(json!({}))).await });
    (stand, first, second)
}

#[tokio::test]
async fn the_queue_is_bounded_and_first_come_first_served() {
    let (stand, first, second) = one_runs_and_one_is_to_wait().await;
    stand
        .until(|client| async move { client.get("/metrics").await.text.contains(&format!("m1_router_queue_depth{MODEL} 1")) })
        .await;
    assert_eq!(metric(&stand, &format!("vllm:num_requests_waiting{MODEL}")).await, "1");
    assert_eq!(metric(&stand, &format!("vllm:num_requests_running{MODEL}")).await, "1");
    let third = stand.client.post(CHAT, &chat(json!({}))).await;
    assert_eq!((third.status, third.header("retry-after")), (429, "1"));
    assert_eq!(third.json()["error"]["code"], "queue_full");
    assert_eq!(stand.doubles[0].seen().len(), 1, "the worker has one sequence");
    stand.doubles[0].release();
    assert_eq!(first.rest().await.last().unwrap().1, "[DONE]");
    assert_eq!(second.await.unwrap().status, 200);
    assert_eq!(metric(&stand, &format!("m1_router_queue_depth{MODEL}")).await, "0");
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_leaves_no_trace() {
    let (stand, first, second) = one_runs_and_one_is_to_wait().await;
    let depth = |n: u32| {
        move |client: crate::common::Client| async move {
            client.get("/metrics").await.text.contains(&format!("m1_router_queue_depth{MODEL} {n}"))
        }
    };
    stand.until(depth(1)).await;
    second.abort();
    stand.until(depth(0)).await;
    stand.doubles[0].release();
    first.rest().await;
    assert_eq!(stand.doubles[0].seen().len(), 1);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_stream_at_the_worker() {
    let stand = Stand::ready(1).await;
    stand.script(&[Act::Say("hi"), Act::Hold, Act::Eos]);
    let mut events = stand.client.stream(CHAT, &stream()).await;
    events.json().await;
    drop(events);
    stand.doubles[0].wait_cancelled().await;
    stand
        .until(|client| async move { client.get("/metrics").await.text.contains(&format!("vllm:num_requests_running{MODEL} 0")) })
        .await;
    let ended = "m1_router_requests_total{endpoint=\"chat\",model_name=\"MiniMax-M1-demo\",outcome=\"cancelled\"}";
    assert_eq!(metric(&stand, ended).await, "1");
}

#[tokio::test]
async fn a_client_that_waits_for_a_whole_answer_and_goes_away_too() {
    let stand = Stand::ready(1).await;
    stand.script(&[Act::Hold, Act::Eos]);
    let client = stand.client.clone();
    let asked = tokio::spawn(async move { client.post(CHAT, &chat(json!({}))).await });
    stand.doubles[0].wait_seen(1).await;
    asked.abort();
    stand.doubles[0].wait_cancelled().await;
}

#[tokio::test]
async fn a_worker_that_dies_ends_its_own_answers_only() {
    let mut stand = Stand::ready(2).await;
    stand.script(&[Act::Say("hi there"), Act::Hold, Act::Eos]);
    let mut first = stand.client.stream(CHAT, &stream()).await;
    first.json().await;
    let mut second = stand.client.stream(CHAT, &stream()).await;
    second.json().await;
    assert_eq!((stand.doubles[0].seen().len(), stand.doubles[1].seen().len()), (1, 1), "the load is spread");
    let id = first.json().await["id"].as_str().unwrap().to_owned();
    let died = usize::from(stand.doubles[1].seen()[0].request_id == id);
    stand.doubles[died].kill();
    let events = tokio::time::timeout(PATIENCE, first.rest()).await.unwrap();
    let (_, last) = events.last().unwrap();
    assert_eq!((&last["error"]["code"], &last["error"]["type"]), (&json!("worker_lost"), &json!("server_error")));
    stand.doubles[1 - died].release();
    assert_eq!(second.rest().await.last().unwrap().1, "[DONE]");
    assert_eq!(stand.client.post(CHAT, &chat(json!({}))).await.status, 200, "the other pod serves on");
}

#[tokio::test]
async fn a_whole_answer_whose_worker_dies_is_a_502() {
    let mut stand = Stand::ready(1).await;
    stand.script(&[Act::Say("hi there"), Act::Hold, Act::Eos]);
    let client = stand.client.clone();
    let asked = tokio::spawn(async move { client.post(TEXT, &completion(json!({}))).await });
    stand
        .until(
            |client| async move { !client.get("/metrics").await.text.contains(&format!("vllm:generation_tokens_total{MODEL} 0")) },
        )
        .await;
    stand.doubles[0].kill();
    let answer = tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap();
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (502, &json!("worker_lost")));
    stand.until(|client| async move { client.get("/ready").await.status == 503 }).await;
    assert_eq!(stand.client.post(TEXT, &completion(json!({}))).await.status, 503);
}

#[tokio::test]
async fn requests_wait_for_a_worker_that_was_lost_a_moment_ago() {
    let stand = Stand::with(1, |config| config.patience.comeback = PATIENCE).await;
    stand.wait_ready().await;
    stand.doubles[0].status(|status| status.phase = Phase::Loading.into());
    stand.until(|client| async move { client.get("/ready").await.status == 503 }).await;
    let client = stand.client.clone();
    let asked = tokio::spawn(async move { client.post(TEXT, &completion(json!({}))).await });
    stand
        .until(|client| async move { client.get("/metrics").await.text.contains(&format!("vllm:num_requests_waiting{MODEL} 1")) })
        .await;
    stand.doubles[0].status(|status| status.phase = Phase::Ready.into());
    let answer = tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn before_the_first_token_another_worker_takes_over() {
    let stand = Stand::ready(2).await;
    stand.doubles[1].status(|status| status.running = 3);
    for code in [Code::Unavailable, Code::Internal, Code::FailedPrecondition] {
        stand.doubles[0].refuse_once(code);
        stand.doubles[1].refuse_once(Code::ResourceExhausted);
    }
    for _ in 0..3 {
        let answer = stand.client.post(CHAT, &chat(json!({}))).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let attempts: Vec<u32> = stand.doubles[1].seen().iter().map(|request| request.attempt).collect();
    assert!(attempts.contains(&1), "{attempts:?}");
    assert_ne!(metric(&stand, &format!("m1_router_retries_total{MODEL}")).await, "0");
}

#[tokio::test]
async fn a_worker_without_room_is_asked_again() {
    let stand = Stand::ready(1).await;
    stand.doubles[0].refuse_once(Code::ResourceExhausted);
    assert_eq!(stand.client.post(CHAT, &chat(json!({}))).await.status, 200);
    assert_eq!(stand.doubles[0].seen().len(), 2);
}

#[tokio::test]
async fn what_a_worker_says_of_a_failure_reaches_the_client() {
    let stand = Stand::ready(1).await;
    stand.script(&[Act::Say("hi"), Act::Fail("ExpertUnavailable")]);
    let answer = stand.client.post(CHAT, &chat(json!({}))).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (502, &json!("ExpertUnavailable")));
    let events = stand.client.stream(CHAT, &stream()).await.rest().await;
    assert_eq!(events.last().unwrap().1["error"]["code"], "ExpertUnavailable");
    stand.script(&[Act::Say("hi"), Act::Break(Code::Internal)]);
    let events = stand.client.stream(TEXT, &completion(json!({"stream": true}))).await.rest().await;
    assert_eq!(events.last().unwrap().1["error"]["code"], "worker_lost");
    stand.doubles[0].refuse_once(Code::InvalidArgument);
    assert_eq!(stand.client.post(CHAT, &chat(json!({}))).await.status, 400);
}

#[tokio::test]
async fn a_worker_that_sends_what_nobody_asked_for_is_found_out() {
    let stand = Stand::ready(1).await;
    let asks = json!({"logprobs": true, "top_logprobs": 3});
    stand.script(&[Act::Alternatives(3), Act::Eos]);
    assert_eq!(stand.client.post(CHAT, &chat(asks.clone())).await.status, 200);
    for script in [&[Act::Alternatives(100), Act::Eos][..], &[Act::Alternatives(1000), Act::Eos], &[Act::Say("hi"), Act::Shrug]] {
        stand.script(script);
        let answer = stand.client.post(CHAT, &chat(asks.clone())).await;
        assert!(matches!(answer.status, 500 | 502), "{}: {}", answer.status, answer.text);
    }
}
