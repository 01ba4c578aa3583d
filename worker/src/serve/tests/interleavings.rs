//! Every stream ends exactly once over the wire, whatever meets: lengths, stop texts, end ids, budgets, clients that leave or are
//! slow, drains, stops, and a peer that goes. The engine's own property (`worker/engine/tests/properties.rs`) has more cases.
//!
//! `M1_WIRE_CASES=200 cargo test --release -p m1-worker interleavings` runs as many cases as it says.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

/// Cases where the environment names no number.
const CASES: u32 = 10;
/// Tokens of the longest answer.
const TOKENS: u32 = 24;
/// Why a worker may end or refuse what it was asked for, in the words of `m1-reason` and `error_reason`.
const LEAVING: [&str; 3] = ["Draining", "Stopping", "NotReady"];

/// A prompt and how it is answered: wishes differ in where that ends.
#[derive(Debug, Clone)]
struct Base {
    request: pb::GenerateRequest,
    /// Stop texts are compared with the plain text, which reasoning has not.
    plain: bool,
    ids: Vec<u32>,
}

impl Base {
    fn requests(tokenizer: &Tokenizer) -> Vec<(pb::GenerateRequest, bool)> {
        let drawn = Some(pb::Sampling { temperature: 1.0, top_p: 0.9, seed: 7 });
        let close_ids = tokenizer.encode("</think>").unwrap();
        let thinking = |tokens| Some(pb::ThinkingBudget { tokens, close_ids: close_ids.clone() });
        let reasons = tokenizer.encode("ai\n<think>").unwrap();
        // More than one chunk of a prompt.
        let long: Vec<u32> = (0..600).map(|at| 5 + at % 90).collect();
        let plain = request(TOKENS);
        vec![
            (plain.clone(), true),
            (pb::GenerateRequest { prompt: vec![9, 8, 7], sampling: drawn, ..plain.clone() }, true),
            (pb::GenerateRequest { prompt: long, ..plain.clone() }, true),
            (pb::GenerateRequest { prompt: reasons.clone(), thinking: thinking(5), ..plain.clone() }, false),
            (pb::GenerateRequest { prompt: reasons, thinking: thinking(0), sampling: drawn, ..plain }, false),
        ]
    }
}

#[derive(Debug, Clone)]
struct Wish {
    base: prop::sample::Index,
    max_tokens: u32,
    /// Where in the text the stop text begins, and how many characters it has.
    stop_text: Option<(prop::sample::Index, usize)>,
    stop_id: Option<prop::sample::Index>,
    omit_routing: bool,
    /// Milliseconds after the first.
    after: u64,
    reads: Reads,
}

#[derive(Debug, Clone, Copy)]
enum Reads {
    ToItsEnd,
    /// With so many milliseconds between events.
    Slowly(u64),
    /// Leaves after so many events.
    Leaves(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    None,
    Drains,
    Stops,
    /// The group's other pod ends.
    LosesPeer,
}

#[derive(Debug, Clone)]
struct Case {
    wishes: Vec<Wish>,
    fate: Fate,
    /// Milliseconds after the first.
    after: u64,
}

fn wish() -> impl Strategy<Value = Wish> {
    let reads = prop_oneof![
        4 => Just(Reads::ToItsEnd),
        1 => (1u64..8).prop_map(Reads::Slowly),
        2 => (0usize..12).prop_map(Reads::Leaves),
    ];
    let parts = (
        any::<prop::sample::Index>(),
        1..=TOKENS,
        prop::option::of((any::<prop::sample::Index>(), 1usize..6)),
        prop::option::weighted(0.3, any::<prop::sample::Index>()),
        any::<bool>(),
        0u64..150,
        reads,
    );
    parts.prop_map(|(base, max_tokens, stop_text, stop_id, omit_routing, after, reads)| Wish {
        base,
        max_tokens,
        stop_text,
        stop_id,
        omit_routing,
        after,
        reads,
    })
}

fn case() -> impl Strategy<Value = Case> {
    let fate = prop_oneof![2 => Just(Fate::None), 2 => Just(Fate::Drains), 2 => Just(Fate::Stops), 1 => Just(Fate::LosesPeer)];
    (prop::collection::vec(wish(), 1..28), fate, 0u64..400).prop_map(|(wishes, fate, after)| Case { wishes, fate, after })
}

/// A request, and by definition where it ends when nothing comes between.
fn asked(wish: &Wish, bases: &[Base], tokenizer: &Tokenizer) -> (pb::GenerateRequest, pb::FinishReason, Vec<u32>) {
    let base = wish.base.get(bases);
    let text: Vec<char> = tokenizer.decode(&base.ids).chars().collect();
    let stop_text: Option<String> = wish.stop_text.filter(|_| base.plain).and_then(|(at, length)| {
        let stop: String = text[at.index(text.len())..].iter().take(length).collect();
        // A character that is cut in two is no text yet.
        (!stop.contains('\u{fffd}')).then_some(stop)
    });
    let stop_id = wish.stop_id.map(|at| *at.get(&base.ids));
    let stops = |said: &[u32]| {
        stop_id.is_some() && said.last() == stop_id.as_ref()
            || stop_text.as_ref().is_some_and(|stop| tokenizer.decode(said).contains(stop))
    };
    let whole = (1..=wish.max_tokens as usize).find(|k| stops(&base.ids[..*k]));
    let reason = if whole.is_some() { pb::FinishReason::FinishStop } else { pb::FinishReason::FinishLength };
    let request = pb::GenerateRequest {
        max_tokens: wish.max_tokens,
        stop_strings: stop_text.into_iter().collect(),
        stop_ids: stop_id.into_iter().collect(),
        omit_routing: wish.omit_routing,
        ..base.request.clone()
    };
    (request, reason, base.ids[..whole.unwrap_or(wish.max_tokens as usize)].to_vec())
}

/// How one call went.
#[derive(Debug)]
enum Went {
    /// Its ids and its one end.
    Ended(Vec<u32>, Box<pb::Finished>),
    /// The client left it.
    Left,
    /// Refused, or ended, with a word.
    Refused(String),
}

/// Reads one call as a client of the kind does. Panics where it has no end, or goes on after it.
async fn read(mut client: WorkerClient<Channel>, request: pb::GenerateRequest, reads: Reads) -> Went {
    let word = |status: &tonic::Status| Some(status.metadata().get("m1-reason")?.to_str().unwrap().to_owned());
    let mut events = match client.generate(request).await {
        Ok(events) => events.into_inner(),
        Err(status) => match (word(&status), status.code()) {
            (Some(word), _) => return Went::Refused(word),
            // The process listens no more, or closes the connection: what tonic says of its own.
            (None, tonic::Code::Unavailable | tonic::Code::Cancelled) => return Went::Refused("Stopping".into()),
            (None, _) => panic!("no word: {status:?}"),
        },
    };
    let (mut ids, mut heard) = (Vec::new(), 0);
    loop {
        match reads {
            Reads::Leaves(after) if heard >= after => return Went::Left,
            Reads::Slowly(pause) => tokio::time::sleep(Duration::from_millis(pause)).await,
            _ => {}
        }
        heard += 1;
        let event = match tokio::time::timeout(LONG, events.message()).await.expect("it goes on") {
            Ok(event) => event.expect("an end").event.unwrap(),
            Err(status) => return Went::Refused(word(&status).unwrap_or_else(|| panic!("no word: {status:?}"))),
        };
        match event {
            Event::Tokens(tokens) => ids.extend(tokens.ids),
            Event::RawLogits(_) => panic!("nobody asked"),
            Event::Finished(finished) => {
                let after = tokio::time::timeout(LONG, events.message()).await.expect("the stream ends");
                assert!(matches!(after, Ok(None)), "after the end: {after:?}");
                return Went::Ended(ids, Box::new(finished));
            }
        }
    }
}

/// Whether a call may have gone so.
fn judge(went: Went, (reason, whole): (pb::FinishReason, &[u32]), fate: Fate) {
    let (ids, end) = match went {
        Went::Left => return,
        Went::Refused(word) => {
            assert!(fate != Fate::None && LEAVING.contains(&&*word), "refused with {word} where {fate:?}");
            return;
        }
        Went::Ended(ids, end) => (ids, end),
    };
    assert_eq!(ids.len(), end.output_tokens as usize);
    if end.reason() == pb::FinishReason::FinishError {
        let word = match fate {
            Fate::None | Fate::Drains => panic!("{end:?} where {fate:?}"),
            Fate::Stops => "Stopping",
            Fate::LosesPeer => "ExpertUnavailable",
        };
        assert_eq!(end.error_reason, word, "{}", end.error_message);
        assert!(whole.starts_with(&ids), "{ids:?} is no part of {whole:?}");
        return;
    }
    assert_eq!((end.reason(), &ids[..]), (reason, whole), "{end:?}");
}

async fn happens(case: &Case, bases: &[Base], tokenizer: &Tokenizer) {
    let pod = Pod::start(&demo(), "0", "60").await;
    let peer = if case.fate == Fate::LosesPeer { Some(Pod::start(&demo(), "1", "0").await) } else { None };
    place(&std::iter::once(&pod).chain(&peer).collect::<Vec<_>>()).await;
    let client = pod.client().await;
    let calls: Vec<_> = case
        .wishes
        .iter()
        .map(|wish| {
            let (request, reason, whole) = asked(wish, bases, tokenizer);
            let (client, reads, after) = (client.clone(), wish.reads, Duration::from_millis(wish.after));
            let call = tokio::spawn(async move {
                tokio::time::sleep(after).await;
                read(client, request, reads).await
            });
            (call, reason, whole)
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(case.after)).await;
    match case.fate {
        Fate::None => {}
        Fate::Drains => pod.signal().await,
        Fate::Stops => {
            pod.signal().await;
            // A second one ends what a drain would let end; the process may have had nothing to drain.
            let _ = pod.signals.send(Signal::Terminate).await;
        }
        Fate::LosesPeer => {
            let peer = peer.unwrap();
            peer.signal().await;
            peer.ended().await;
        }
    }
    for (call, reason, whole) in calls {
        let went = tokio::time::timeout(LONG, call).await.expect("it ends").unwrap();
        judge(went, (reason, &whole), case.fate);
    }
    if matches!(case.fate, Fate::None | Fate::LosesPeer) {
        eventually("nothing is held", async || {
            let status = client.clone().status(pb::StatusRequest {}).await.unwrap().into_inner();
            (status.state_slots_used, status.kv_blocks_used, status.running, status.waiting) == (0, 0, 0, 0)
        })
        .await;
        pod.signal().await;
    }
    pod.ended().await;
}

#[test]
fn every_stream_ends_once_whatever_meets() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let tokenizer = Tokenizer::open(&demo()).unwrap();
    let bases: Vec<Base> = runtime.block_on(async {
        let pod = Pod::start(&demo(), "0", "5").await;
        place(&[&pod]).await;
        let mut bases = Vec::new();
        for (request, plain) in Base::requests(&tokenizer) {
            match read(pod.client().await, request.clone(), Reads::ToItsEnd).await {
                Went::Ended(ids, end) if end.reason() == pb::FinishReason::FinishLength => bases.push(Base { request, plain, ids }),
                went => panic!("{went:?}"),
            }
        }
        pod.signal().await;
        pod.ended().await;
        bases
    });
    let cases = std::env::var("M1_WIRE_CASES").map_or(CASES, |cases| cases.parse().expect("M1_WIRE_CASES is a number"));
    let config = ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 4, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(&case(), |case| {
        runtime.block_on(happens(&case, &bases, &tokenizer));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    runtime.shutdown_background();
}
