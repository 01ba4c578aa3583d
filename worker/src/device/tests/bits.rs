//! The same bits: on the real executor the logits of a sequence depend on its ids alone. What else is in the batch, where prompts are cut, threads,
//! pods, the order of answers, and being set aside have no influence.

use m1_engine::{Sampling, SequenceRequest};
use m1_proto::worker::FinishReason;

use super::world::{Reader, Setup, World};
use super::{Rng, group_of, prompt};

/// A machine that has nothing else to do.
const QUIET: Setup =
    Setup { pods: 1, slots: 6, kv_tokens: 4096, prefill_chunk: 512, set_aside: 0, threads: 1, load: crate::device::load };

fn request(rng: &mut Rng) -> SequenceRequest {
    let mut request = SequenceRequest::greedy(prompt(rng.below(99), 1 + rng.below(150)), 1 + rng.below(40) as u32);
    if rng.below(2) == 0 {
        request.sampling = Sampling { temperature: 1.0, top_p: 0.95, seed: rng.below(9) as u64 };
    }
    if rng.below(3) == 0 {
        // Of an earlier attempt: ids as good as any.
        request.said = prompt(rng.below(99), rng.below(request.max_tokens as usize));
    }
    request.prefill_chunk = [0, 64, 128][rng.below(3)];
    request.raw_logits = true;
    request
}

/// What a request says on a machine of its own, and all its logits.
fn alone(request: &SequenceRequest) -> (Vec<u32>, Vec<u8>) {
    let mut world = group_of(QUIET, 1);
    world.ask(0, SequenceRequest { prefill_chunk: 0, ..request.clone() }).unwrap();
    world.finish();
    let Reader { said, logits, end, .. } = world.readers.remove(0);
    assert!(matches!(end, Some((FinishReason::FinishLength, _))), "{end:?}");
    (said, logits)
}

/// Lets pods work and frames arrive in a random order.
fn shuffle(world: &mut World, rng: &mut Rng, rounds: usize) {
    for _ in 0..rounds {
        let (pod, wires) = (rng.below(world.pods.len()), world.wires.len());
        if wires > 0 && rng.below(3) == 0 {
            world.deliver(rng.below(wires), rng.below(2) == 0);
        } else {
            world.work(pod);
        }
        world.read();
    }
}

fn compare(seed: u64) {
    let mut rng = Rng(seed);
    // Every second world has room for little more than the longest sequence.
    let kv_tokens = if seed.is_multiple_of(2) { 4096 } else { 192 };
    let setup = Setup {
        pods: [1, 2, 4][rng.below(3)],
        kv_tokens,
        prefill_chunk: 64 * (1 + rng.below(3)) as u32,
        set_aside: [0, u64::MAX][rng.below(2)],
        threads: 1 + rng.below(3) as u16,
        ..QUIET
    };
    let mut world = group_of(setup, 1 + rng.below(2).min(setup.pods - 1));
    let requests: Vec<SequenceRequest> = (0..6).map(|_| request(&mut rng)).collect();
    for request in &requests {
        let pod = rng.below(setup.pods);
        world.ask(pod, request.clone()).unwrap();
        let rounds = rng.below(200);
        shuffle(&mut world, &mut rng, rounds);
    }
    world.finish();
    for (reader, request) in world.readers.iter().zip(&requests) {
        let (said, logits) = alone(request);
        assert_eq!(reader.said, said, "{:?}", reader.end);
        assert!(reader.logits == logits, "a bit of a logit is another");
    }
}

#[test]
fn logits_have_the_same_bits_in_any_company() {
    let seeds = std::env::var("M1_BITS_CASES").map_or(12, |cases| cases.parse().expect("M1_BITS_CASES is a number"));
    for seed in 0..seeds {
        std::panic::catch_unwind(|| compare(seed)).unwrap_or_else(|_| panic!("seed {seed}"));
    }
}
