//! How sequences end over the wire, on the demo model: once, where they should, and nobody else with them.

use m1_arch::{ExpertId, ExpertSet, LayerId};

use super::*;

/// The demo model.
const SHAPE: (usize, usize) = (8, 32);

/// What one call of `Generate` brought.
#[derive(Debug, Default)]
struct Answer {
    ids: Vec<u32>,
    ends: Vec<pb::Finished>,
}

impl Answer {
    async fn of(pod: &Pod, request: pb::GenerateRequest) -> Self {
        let events = pod.client().await.generate(request).await.unwrap().into_inner();
        Self::read(events).await
    }

    async fn read(mut events: Streaming<pb::GenerateEvent>) -> Self {
        let mut answer = Self::default();
        while let Some(event) = tokio::time::timeout(LONG, events.message()).await.expect("it goes on").unwrap() {
            assert!(answer.ends.is_empty(), "something comes after the end");
            match event.event.unwrap() {
                Event::Tokens(tokens) => answer.ids.extend(tokens.ids),
                Event::Finished(finished) => answer.ends.push(finished),
                Event::RawLogits(_) => {}
            }
        }
        answer
    }

    fn end(&self) -> (pb::FinishReason, &str, u32) {
        let [end] = &self.ends[..] else { panic!("{} ends", self.ends.len()) };
        (end.reason(), &end.stop_string, end.output_tokens)
    }
}

/// A pod with all experts.
async fn ready() -> Pod {
    let pod = Pod::start(&demo(), "0", "5").await;
    place(&[&pod]).await;
    pod
}

async fn over(pod: Pod) {
    pod.signal().await;
    pod.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stop_string_at_every_length_ends_once() {
    let pod = ready().await;
    let tokenizer = Tokenizer::open(&demo()).unwrap();
    let whole = Answer::of(&pod, request(10)).await.ids;
    let mut met = 0;
    for length in 1..=whole.len() {
        let text = tokenizer.decode(&whole[..length]);
        let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        for from in starts.into_iter().rev().take(4) {
            let stop = &text[from..];
            let expected = (1..=length).find(|tokens| tokenizer.decode(&whole[..*tokens]).contains(stop)).unwrap();
            let request = pb::GenerateRequest { stop_strings: vec![stop.to_owned()], ..request(length as u32) };
            let answer = Answer::of(&pod, request).await;
            // A character that is cut in two is no text yet, so its stop string may not be complete.
            if answer.end().0 == pb::FinishReason::FinishLength {
                assert!(text.ends_with('\u{fffd}'), "{stop:?} within {length} tokens of {text:?}");
                continue;
            }
            assert_eq!(answer.end(), (pb::FinishReason::FinishStop, stop, expected as u32), "{stop:?} within {length} tokens");
            assert_eq!(answer.ids, whole[..expected]);
            met += usize::from(expected == length);
        }
    }
    assert!(met >= 5, "{met} stop strings met the length");
    over(pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequence_goes_on_from_what_was_said_from_every_place() {
    let pod = ready().await;
    let tokenizer = Tokenizer::open(&demo()).unwrap();
    let prompt = tokenizer.encode("ai\n<think>").unwrap();
    let thinking = pb::ThinkingBudget { tokens: 5, close_ids: tokenizer.encode("</think>").unwrap() };
    for sampling in [None, Some(pb::Sampling { temperature: 1.0, top_p: 0.9, seed: 7 })] {
        let request = pb::GenerateRequest { thinking: Some(thinking.clone()), sampling, prompt: prompt.clone(), ..request(24) };
        let free = Answer::of(&pod, request.clone()).await;
        let text = tokenizer.decode(&free.ids);
        assert!(text.contains("</think>"), "the prompt has opened the reasoning, and the budget closes it: {text:?}");
        // A text of its end, so that it is complete late and across tokens.
        let chars: Vec<char> = text.chars().collect();
        let stop: String = chars[chars.len() - 4..chars.len() - 1].iter().collect();
        for stop_strings in [vec![], vec![stop]] {
            let request = pb::GenerateRequest { stop_strings, ..request.clone() };
            let whole = Answer::of(&pod, request.clone()).await;
            for k in 0..whole.ids.len() {
                let resumed = pb::GenerateRequest { said: whole.ids[..k].to_vec(), ..request.clone() };
                let rest = Answer::of(&pod, resumed).await;
                assert_eq!(rest.ids, whole.ids[k..], "from {k}");
                assert_eq!(rest.end(), whole.end());
            }
            let ended = pb::GenerateRequest { said: whole.ids.clone(), max_tokens: 40, ..request };
            if whole.end().0 == pb::FinishReason::FinishStop {
                let refused = pod.client().await.generate(ended).await.unwrap_err();
                assert_eq!((refused.code(), reason(&refused)), (tonic::Code::InvalidArgument, "SaidEnded"));
            }
        }
    }
    over(pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_runs_once_and_is_free_when_nobody_reads_it() {
    let pod = ready().await;
    let named = |attempt, tokens| pb::GenerateRequest { request_id: "r".into(), attempt, ..request(tokens) };
    let first = pod.client().await.generate(named(1, 30_000)).await.unwrap();
    let refused = pod.client().await.generate(named(1, 1)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (tonic::Code::AlreadyExists, "DuplicateAttempt"));
    Answer::of(&pod, named(2, 1)).await.end();
    drop(first);
    eventually("the attempt is free again", async || pod.client().await.generate(named(1, 1)).await.is_ok()).await;
    eventually("its slot is free", async || {
        pod.client().await.status(pb::StatusRequest {}).await.unwrap().into_inner().state_slots_used == 0
    })
    .await;
    over(pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_logits_are_bounded_in_bytes_by_a_flag() {
    let model = demo();
    let line = ["m1-worker", "serve", "--model", model.to_str().unwrap(), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    // Ten rows of the demo model's vocabulary.
    let pod = Pod::start_with(&[&line[..], &["--raw-logits-limit", "84480"]].concat()).await;
    place(&[&pod]).await;
    let raw = |tokens| pb::GenerateRequest { raw_logits: true, ..request(tokens) };
    let refused = pod.client().await.generate(raw(9)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (tonic::Code::InvalidArgument, "RawLogitsLimit"));
    assert_eq!(refused.message(), "raw_logits of this request take 92928 bytes; up to 84480 are allowed (--raw-logits-limit)");
    let held = pod.client().await.generate(raw(8)).await.unwrap().into_inner();
    let refused = pod.client().await.generate(raw(1)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (tonic::Code::ResourceExhausted, "RawLogitsFull"));
    assert_eq!(Answer::read(held).await.end().2, 8);
    eventually("what was read is free", async || pod.client().await.generate(raw(8)).await.is_ok()).await;
    over(pod).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stall_hold_neither_slots_nor_other_streams_of_their_connection() {
    let pod = ready().await;
    // Each stalled stream holds its own window of the connection's, and no more.
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", pod.address)).unwrap();
    let windows = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(16 << 20);
    let mut client = WorkerClient::new(windows.connect().await.unwrap());
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let raw = pb::GenerateRequest { raw_logits: true, ..request(40) };
        stalled.push(client.generate(raw).await.unwrap().into_inner());
    }
    let answer = Answer::read(client.generate(request(8)).await.unwrap().into_inner()).await;
    assert_eq!(answer.end(), (pb::FinishReason::FinishLength, "", 8));
    eventually("no slot is held", async || {
        let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
        status.state_slots_used == 0 && status.waiting == 0
    })
    .await;
    for late in stalled.drain(..3) {
        assert_eq!(Answer::read(late).await.end(), (pb::FinishReason::FinishLength, "", 40), "nothing of it is lost");
    }
    drop(stalled);
    over(pod).await;
}

/// Pairs of a layer and an expert that computed something.
fn used(answer: &Answer) -> Vec<bool> {
    answer.ends[0].routing.as_ref().unwrap().expert_tokens.iter().map(|tokens| *tokens > 0).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expert_that_nobody_holds_ends_only_the_sequences_that_need_it() {
    let needs = |tokens| pb::GenerateRequest { prompt: vec![9, 8, 7], ..request(tokens) };
    let pod = ready().await;
    let (prompt_only, whole) = (Answer::of(&pod, needs(1)).await, Answer::of(&pod, needs(40)).await);
    let other = Answer::of(&pod, request(120)).await;
    over(pod).await;
    // One that the first sequence needs while it decodes, in one step with the other, and the other never.
    let (early, late, never) = (used(&prompt_only), used(&whole), used(&other));
    let pair = (0..early.len()).find(|at| late[*at] && !early[*at] && !never[*at]).expect("a pair");
    let mut missing = ExpertSet::empty(SHAPE.0, SHAPE.1);
    assert!(missing.insert(LayerId((pair / SHAPE.1) as u16), ExpertId((pair % SHAPE.1) as u16)));

    let pod = Pod::start(&demo(), "0", "5").await;
    let all = ExpertSet::full(SHAPE.0, SHAPE.1);
    // Nobody listens at the port of the pod that should hold it.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let holds = [(pod.address, all.difference(&missing)), (nobody, missing)];
    let pods = holds.iter().enumerate().map(|(index, (address, holds))| pb::PodPlacement {
        pod: index as u32,
        address: address.to_string(),
        holds: holds.to_hex(),
    });
    let placement = pb::ApplyPlacementRequest { pods: pods.collect(), ..whole_group(&pod) };
    pod.client().await.apply_placement(placement).await.unwrap();
    pod.until("/readyz", 503, "ExpertsUnreachable").await;
    let mut client = pod.client().await;
    let going_on = client.generate(request(120)).await.unwrap().into_inner();
    let failing = client.generate(needs(40)).await.unwrap().into_inner();
    let (going_on, failing) = tokio::join!(Answer::read(going_on), Answer::read(failing));
    assert_eq!(failing.end().0, pb::FinishReason::FinishError, "{failing:?}");
    assert_eq!(failing.ends[0].error_reason, "ExpertUnavailable");
    assert_eq!(failing.ids, whole.ids[..failing.ids.len()]);
    assert_eq!((going_on.end(), &going_on.ids), (other.end(), &other.ids), "it needs nothing that is missing");
    over(pod).await;
}
