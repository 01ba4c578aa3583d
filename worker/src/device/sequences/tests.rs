//! Sequences over a device that says what a script says: every stream ends exactly once, whatever meets in one step.

use std::path::Path;
use std::sync::OnceLock;

use m1_arch::LayerId;
use m1_engine::*;
use m1_proto::worker::FinishReason;
use m1_proto::worker::generate_event::Event;
use m1_text::Tokenizer;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::tallies::Tallies;
use crate::text::TextRules;

const SHAPE: RoutingShape = RoutingShape { layers: 1, experts: 4, top_k: 2 };
const PROMPT: [u32; 3] = [1, 2, 3];
const LIMITS: Limits = Limits { vocab: 2112, max_context: 256, slots: 3, kv_block_tokens: 16, kv_blocks: 64 };

/// Draws the same ids for every sequence, whatever it is fed: `script[n]` is the n-th output.
struct Scripted {
    script: Vec<u32>,
}

impl Scripted {
    fn compute(&self, batch: &Batch, results: &mut Results) {
        results.begin(batch.ids.len());
        let mut routing = LayerRouting::default();
        routing.reset(batch.ids.len(), SHAPE.top_k);
        routing.experts.chunks_exact_mut(2).for_each(|experts| experts.copy_from_slice(&[0, 3]));
        routing.weights.fill(0.5);
        results.routing.book(LayerId(0), &mut routing, &batch.segments).unwrap();
        let drawn = batch.draws.iter().map(|draw| self.script[draw.position as usize - PROMPT.len()]);
        results.drawn.extend(drawn.map(|id| Drawn { id: Ok(id), logprobs: None }));
    }
}

/// The reader's end of a sequence.
struct Reader {
    events: mpsc::Receiver<Result<m1_proto::worker::GenerateEvent, Status>>,
    accepted: oneshot::Receiver<Result<(), Status>>,
}

/// What a reader saw.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    ids: Vec<u32>,
    /// Reason, stop string, output tokens and the word of the error.
    ends: Vec<(FinishReason, String, u32, String)>,
}

impl Reader {
    fn read(&mut self) -> Heard {
        let mut heard = Heard::default();
        while let Ok(event) = self.events.try_recv() {
            assert!(heard.ends.is_empty(), "something comes after the end");
            match event.unwrap().event.unwrap() {
                Event::Tokens(tokens) => heard.ids.extend(tokens.ids),
                Event::Finished(end) => heard.ends.push((end.reason(), end.stop_string, end.output_tokens, end.error_reason)),
                Event::RawLogits(_) => panic!("not asked for"),
            }
        }
        heard
    }
}

struct Stand {
    sequences: Sequences,
    device: Scripted,
    tokenizer: &'static Tokenizer,
    next: u64,
}

/// The demo model's, opened once.
fn tokenizer() -> &'static Tokenizer {
    static DEMO: OnceLock<Tokenizer> = OnceLock::new();
    DEMO.get_or_init(|| Tokenizer::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/m1-demo")).unwrap())
}

impl Stand {
    fn new(text: &str) -> Self {
        let tokenizer = tokenizer();
        let config = SchedulerConfig { limits: LIMITS, queue: 4, prefill_tokens: 7, prefill_beside: 7, aside_bytes: 0 };
        let scheduler = Scheduler::new(config, SHAPE, AllowedIds::all(LIMITS.vocab)).unwrap();
        let device = Scripted { script: tokenizer.encode(text).unwrap() };
        Self { sequences: Sequences::new(scheduler), device, tokenizer, next: 0 }
    }

    fn begin(&mut self, request: SequenceRequest, stops: &[String], tally: Option<Arc<Tally>>) -> (SequenceKey, Reader) {
        let key = SequenceKey(self.next);
        self.next += 1;
        let (sink, events) = mpsc::channel(2 * (PROMPT.len() + request.max_tokens as usize) + 2);
        let (accepted, answer) = oneshot::channel();
        let text = Some(TextRules::new(self.tokenizer, stops, &request.prompt).unwrap());
        let request = SequenceRequest { tally: tally.as_ref().map(|tally| tally.id), ..request };
        let spec = SequenceSpec::new(request, &LIMITS).unwrap();
        self.sequences.admit(NewSequence { key, spec, text, tally, events: sink, accepted });
        (key, Reader { events, accepted: answer })
    }

    /// Computes a step.
    fn step(&mut self) -> Option<(Step, Results)> {
        let (step, mut results) = self.sequences.next_step()?;
        self.device.compute(&step.batch, &mut results);
        Some((step, results))
    }

    fn run(&mut self) {
        let mut steps = 0;
        while let Some((step, results)) = self.step() {
            self.sequences.complete(step, results);
            steps += 1;
            assert!(steps < 10_000, "it never ends");
        }
        assert!(self.sequences.open.is_empty() && self.sequences.ids.is_empty() && self.sequences.scheduler.is_idle());
    }
}

fn request(max_tokens: usize) -> SequenceRequest {
    SequenceRequest::greedy(PROMPT.to_vec(), max_tokens as u32)
}

#[test]
fn every_stop_string_at_every_length_ends_once() {
    const TEXT: &str = "Wait, the old \u{20ac} sign";
    let mut stand = Stand::new(TEXT);
    let script = stand.device.script.clone();
    let letters: Vec<usize> = TEXT.char_indices().map(|(at, _)| at).chain([TEXT.len()]).collect();
    let mut stopped_by_the_last = 0;
    for length in 1..=script.len() {
        for (from, begin) in letters.iter().enumerate() {
            for end in letters[from + 1..].iter().take(9) {
                let stop = &TEXT[*begin..*end];
                let (_, mut reader) = stand.begin(request(length), &[stop.to_owned()], None);
                stand.run();
                let whole = |tokens: usize| stand.tokenizer.decode(&script[..tokens]).contains(stop);
                let expected = match (1..=length).find(|tokens| whole(*tokens)) {
                    Some(tokens) => (FinishReason::FinishStop, stop.to_owned(), tokens as u32, String::new()),
                    None => (FinishReason::FinishLength, String::new(), length as u32, String::new()),
                };
                stopped_by_the_last += usize::from(expected.0 == FinishReason::FinishStop && expected.2 as usize == length);
                let heard = reader.read();
                assert_eq!(heard.ends, [expected], "{stop:?} within {length} tokens");
                assert_eq!(heard.ids, script[..heard.ids.len()]);
                assert_eq!(heard.ids.len(), heard.ends[0].2 as usize);
            }
        }
    }
    assert!(stopped_by_the_last > 20, "{stopped_by_the_last} stop strings met the length");
}

/// A small generator of numbers: the seed of a failure is all that is needed to see it again.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Random stop strings, stop ids, lengths, cancels, failures, given up rows and ends of the worker, of several sequences.
fn interleave(seed: u64) {
    const TEXT: &str = "so it goes on and on and on until it ends";
    let (mut rng, mut stand, tallies) = (Rng(seed), Stand::new(TEXT), Tallies::new(SHAPE));
    let mut readers: Vec<(SequenceKey, Reader, bool)> = Vec::new();
    let failure = || Failure { reason: "Test", message: "on purpose".into() };
    for _ in 0..rng.below(40) {
        match rng.below(10) {
            0..3 => {
                let length = 1 + rng.below(stand.device.script.len() as u64) as usize;
                let at = rng.below(TEXT.len() as u64 - 4) as usize;
                let stops = if rng.below(3) > 0 { vec![TEXT[at..at + 1 + rng.below(4) as usize].to_owned()] } else { vec![] };
                let stop_ids =
                    if rng.below(4) == 0 { vec![stand.device.script[rng.below(length as u64) as usize]] } else { vec![] };
                let omit_routing = rng.below(2) == 0;
                let request = SequenceRequest { stop_ids, omit_routing, ..request(length) };
                let tally = tallies.open(["", "a", "b"][rng.below(3) as usize], std::time::Instant::now());
                let (key, reader) = stand.begin(request, &stops, tally);
                readers.push((key, reader, false));
            }
            3 => {
                if let Some((key, _, cancelled)) = readers.last_mut() {
                    stand.sequences.cancel(*key);
                    *cancelled = true;
                }
            }
            4 => stand.sequences.fail_all(&failure()),
            _ => {
                let Some((mut step, results)) = stand.step() else { continue };
                for _ in 0..rng.below(3) {
                    match rng.below(3) {
                        0 => step.give_up(rng.below(8) as u32, &failure()),
                        1 if rng.below(4) == 0 => stand.sequences.fail_all(&failure()),
                        _ => {
                            let count = readers.len().max(1) as u64;
                            if let Some((key, _, cancelled)) = readers.get_mut(rng.below(count) as usize) {
                                stand.sequences.cancel(*key);
                                *cancelled = true;
                            }
                        }
                    }
                }
                match rng.below(12) {
                    0 => stand.sequences.fail(step, &failure()),
                    _ => stand.sequences.complete(step, results),
                }
            }
        }
    }
    stand.run();
    assert_eq!(stand.sequences.scheduler.occupancy().slots_used, 0, "a slot is lost");
    for (_, mut reader, cancelled) in readers {
        let accepted = reader.accepted.try_recv().expect("an answer");
        let heard = reader.read();
        assert!(heard.ends.len() <= 1 && reader.events.is_closed());
        match accepted {
            Ok(()) => assert!(heard.ends.len() == 1 || cancelled, "{heard:?}"),
            Err(_) => assert_eq!(heard, Heard::default(), "refused"),
        }
        assert_eq!(heard.ids, stand.device.script[..heard.ids.len()]);
    }
}

#[test]
fn whatever_meets_in_one_step_a_stream_ends_once() {
    let seeds = std::env::var("M1_ENGINE_CASES").map_or(2000, |cases| cases.parse().expect("M1_ENGINE_CASES is a number"));
    for seed in 0..seeds {
        std::panic::catch_unwind(|| interleave(seed)).unwrap_or_else(|_| panic!("seed {seed}"));
    }
}

#[test]
fn a_full_queue_refuses_and_who_is_gone_before_it_is_taken_in_is_forgotten() {
    let mut stand = Stand::new("abc");
    let mut readers: Vec<Reader> = (0..8).map(|_| stand.begin(request(2), &[], None).1).collect();
    let refusal = readers[7].accepted.try_recv().unwrap().unwrap_err();
    assert_eq!(
        (refusal.code(), refusal.metadata().get("m1-reason").unwrap().to_str().unwrap()),
        (tonic::Code::ResourceExhausted, "QueueFull")
    );
    assert!(readers[..7].iter_mut().all(|reader| reader.accepted.try_recv().unwrap().is_ok()));
    stand.run();
    let (key, (sink, _events)) = (SequenceKey(99), mpsc::channel(9));
    let spec = SequenceSpec::new(request(2), &LIMITS).unwrap();
    let (accepted, answer) = oneshot::channel();
    drop(answer);
    stand.sequences.admit(NewSequence { key, spec, text: None, tally: None, events: sink, accepted });
    assert!(stand.sequences.scheduler.is_idle() && stand.sequences.open.is_empty());
}

#[test]
fn an_end_says_what_of_it_is_counted_and_that_is_published_at_once() {
    let (mut stand, tallies) = (Stand::new("so it goes"), Tallies::new(SHAPE));
    let tally = tallies.open("router", std::time::Instant::now()).unwrap();
    let omitted = SequenceRequest { omit_routing: true, ..request(3) };
    let (_, mut reader) = stand.begin(omitted, &[], Some(tally.clone()));
    while let Some((step, results)) = stand.step() {
        assert!(!stand.sequences.any_ended());
        stand.sequences.complete(step, results);
    }
    assert!(stand.sequences.any_ended() && tally.tokens() == 0);
    stand.sequences.publish_ended();
    let told = tally.follow().borrow().clone();
    assert_eq!((told.counts.tokens, told.urgent, &told.counts.expert_tokens[..]), (5, 1, &[5, 0, 0, 5][..]));
    let mut events = Vec::new();
    while let Ok(event) = reader.events.try_recv() {
        events.push(event.unwrap().event.unwrap());
    }
    let Some(Event::Finished(finished)) = events.pop() else { panic!("no end") };
    assert_eq!(finished.counted, 5);
    let routing = finished.routing.unwrap();
    assert_eq!((routing.tokens, routing.executed, routing.expert_tokens.len()), (5, 10, 0), "totals only");
}

#[test]
fn signs_of_progress_never_take_the_place_of_what_must_arrive() {
    let mut stand = Stand::new("so it goes");
    let request = request(3);
    let (sink, mut events) = mpsc::channel(must_arrive(&request) + 1);
    let (accepted, _answer) = oneshot::channel();
    let spec = SequenceSpec::new(request, &LIMITS).unwrap();
    stand.sequences.admit(NewSequence { key: SequenceKey(5), spec, text: None, tally: None, events: sink, accepted });
    let open = stand.sequences.open.values().next().unwrap();
    (0..100).for_each(|_| open.progress());
    stand.run();
    let mut ids = 0;
    let mut ends = 0;
    while let Ok(event) = events.try_recv() {
        match event.unwrap().event.unwrap() {
            Event::Tokens(tokens) => ids += tokens.ids.len(),
            Event::Finished(_) => ends += 1,
            Event::RawLogits(_) => panic!("not asked for"),
        }
    }
    assert_eq!((ids, ends), (3, 1));
}
