//! The device thread over an engine double, several of them in one thread: what a sequence says is what it says alone, whatever its pods go
//! through.

mod bits;
mod double;
mod world;

use std::sync::atomic::Ordering;

use m1_arch::ExpertSet;
use m1_proto::worker::{FinishReason, Phase};

use world::{Setup, World};

const SLOTS: u32 = 6;

/// Pods that are connected and share the experts.
fn group(pods: usize, copies: usize, prefill_chunk: u32) -> World {
    crowded_group(pods, copies, prefill_chunk, (4096, 0))
}

/// The same with so many tokens of KV, beside a block for every slot, and bytes for what is set aside.
fn crowded_group(pods: usize, copies: usize, prefill_chunk: u32, (kv_tokens, set_aside): (u32, u64)) -> World {
    group_of(Setup { pods, slots: SLOTS, kv_tokens, prefill_chunk, set_aside, threads: 1, load: double::load }, copies)
}

fn group_of(setup: Setup, copies: usize) -> World {
    let (pods, mut world) = (setup.pods, World::new(setup));
    let shares = world.shares(copies, 0);
    world.place(1, &shares);
    world.connect_all();
    world.settle(1000);
    for pod in 0..pods {
        assert_eq!((world.epoch(pod), world.phase(pod)), (1, Phase::Ready));
    }
    world
}

fn prompt(seed: usize, tokens: usize) -> Vec<u32> {
    (0..tokens).map(|i| ((i + 1) * (seed + 3) * 7919 % 310) as u32).collect()
}

#[test]
fn alone_and_together_sequences_say_the_same() {
    for pods in [1, 2, 3] {
        let mut world = group(pods, 1, 64);
        for reader in 0..3 * pods {
            world.submit(reader % pods, prompt(reader, 1 + 40 * reader), 12).unwrap();
        }
        world.finish();
        world.check();
        assert!(world.readers.iter().all(|reader| reader.is_whole()));
    }
}

#[test]
fn a_prompt_is_read_while_the_decode_step_waits_for_its_peer() {
    let mut world = group(2, 1, 16);
    world.submit(0, prompt(1, 3), 40).unwrap();
    while world.readers[0].said.is_empty() {
        world.settle(1);
    }
    // The decode step stands at a layer: nothing of its peer arrives.
    while world.work(0) {}
    assert_eq!(world.pods[0].steps.len(), 1);
    world.submit(0, prompt(2, 16), 4).unwrap();
    while world.work(0) {}
    assert_eq!(world.pods[0].steps.len(), 2, "the prompt has begun beside it");
    // The peer's answers to the prompt alone arrive.
    let prefill: Vec<usize> = (0..world.wires.len()).filter(|wire| world.wires[*wire].lane == m1_exchange::Lane::Prefill).collect();
    let said = world.readers[0].said.len();
    for _ in 0..200 {
        for wire in &prefill {
            let _ = (world.deliver(*wire, false), world.deliver(*wire, true));
        }
        while world.work(0) | world.work(1) {}
        world.read();
    }
    assert_eq!((world.readers[0].said.len(), world.readers[1].said.len()), (said, 1), "it was read to its end meanwhile");
    world.finish();
    world.check();
}

#[test]
fn peers_are_served_while_the_own_step_waits_and_together_where_they_can_be() {
    let mut world = group(3, 1, 64);
    for pod in 0..3 {
        world.submit(pod, prompt(pod, 2), 30).unwrap();
    }
    double::most_together();
    world.finish();
    world.check();
    assert!(world.pods.iter().all(|pod| pod.requests.rows > 30), "every pod has served");
    // Two pods ask the third for the same layer before it looks.
    world.submit(0, prompt(7, 2), 8).unwrap();
    world.submit(1, prompt(8, 2), 8).unwrap();
    let mut most = 0;
    while world.readers[3..].iter().any(|reader| reader.end.is_none()) {
        while world.work(0) | world.work(1) {}
        for wire in 0..world.wires.len() {
            while world.deliver(wire, false) {}
        }
        while world.work(2) | world.work(0) | world.work(1) {}
        for wire in 0..world.wires.len() {
            while world.deliver(wire, true) {}
        }
        world.read();
        most = most.max(double::most_together());
    }
    world.check();
    assert!(most >= 2, "{most} requests at once");
}

#[test]
fn experts_come_beside_what_is_served_and_those_that_go_go_last() {
    let mut world = group(2, 1, 64);
    let strings = double::strings();
    let (old, new) = (world.shares(1, 0), world.shares(1, 1));
    let union: Vec<ExpertSet> = old.iter().zip(&new).map(|(old, new)| old.union(new)).collect();
    world.submit(0, prompt(1, 20), 60).unwrap();
    world.submit(1, prompt(2, 20), 60).unwrap();
    world.settle(5);
    strings.loads_wait.store(true, Ordering::Relaxed);
    world.place(2, &union);
    for _ in 0..20 {
        world.settle(3);
        assert_eq!((world.phase(0), world.phase(1), world.epoch(0)), (Phase::Ready, Phase::Ready, 1));
    }
    let said = world.readers[0].said.len();
    assert!(said > 2, "they go on while experts are on their way");
    strings.loads_wait.store(false, Ordering::Relaxed);
    until(&mut world, |world| world.epoch(0) == 2 && world.epoch(1) == 2);
    world.place(3, &new);
    until(&mut world, |world| (0..2).all(|pod| world.pods[pod].executor.as_ref().unwrap().held() == &new[pod]));
    assert_eq!((world.epoch(0), world.phase(0)), (3, Phase::Ready));
    world.finish();
    world.check();
    assert!(world.readers.iter().all(|reader| reader.is_whole()));
}

#[test]
fn a_load_that_fails_leaves_what_is_held_and_the_placement_can_be_said_again() {
    let mut world = group(1, 1, 64);
    let strings = double::strings();
    let all = world.shares(1, 0);
    let half = vec![ExpertSet::from_range(world.arch.layers.len(), world.arch.experts, 0..16)];
    world.place(2, &half);
    until(&mut world, |world| world.pods[0].executor.as_ref().unwrap().held() == &half[0]);
    strings.loads_fail.store(true, Ordering::Relaxed);
    world.place(3, &all);
    until(&mut world, |world| world.pods[0].placing.is_none());
    assert_eq!((world.epoch(0), world.pods[0].executor.as_ref().unwrap().held()), (2, &half[0]));
    strings.loads_fail.store(false, Ordering::Relaxed);
    world.place(3, &all);
    until(&mut world, |world| world.epoch(0) == 3);
    world.submit(0, prompt(1, 9), 9).unwrap();
    world.finish();
    world.check();
    assert!(world.readers[0].is_whole());
}

fn until(world: &mut World, done: impl Fn(&mut World) -> bool) {
    let began = std::time::Instant::now();
    while !done(world) {
        world.settle(3);
        assert!(began.elapsed().as_secs() < 20, "it does not come");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A peer goes while a step of each kind is in each of its phases: before the request is read, before it is answered, before the answer
/// arrives. With a copy elsewhere, and without one where it comes back, nothing of a sequence changes.
#[test]
fn a_peer_that_goes_and_comes_back_changes_nothing() {
    for copies in [1, 2] {
        for moment in 0..24 {
            let mut world = group(3, copies, 8);
            world.submit(0, prompt(moment, 20), 10).unwrap();
            world.submit(0, prompt(moment + 1, 3), 10).unwrap();
            for _ in 0..moment {
                world.work(0);
                world.work(1);
                for wire in 0..world.wires.len() {
                    let _ = (world.deliver(wire, false), world.deliver(wire, true));
                }
            }
            let of_peer: Vec<usize> =
                (0..world.wires.len()).filter(|w| [world.wires[*w].from, world.wires[*w].to].contains(&1)).collect();
            of_peer.iter().for_each(|wire| world.cut(*wire, moment % 2 == 0));
            world.settle(3);
            (0..3).for_each(|pod| world.tick(pod));
            if copies == 1 {
                of_peer.iter().for_each(|wire| world.connect(*wire));
            }
            world.finish();
            world.check();
            assert!(world.readers.iter().all(|reader| reader.is_whole()), "copies {copies}, moment {moment}");
        }
    }
}

#[test]
fn where_kv_runs_out_sequences_pause_and_say_what_they_say_alone() {
    for set_aside in [0, u64::MAX] {
        // 14 blocks of 64 tokens, where 6 sequences come to need 3 each.
        let mut world = crowded_group(2, 1, 64, (512, set_aside));
        for reader in 0..6 {
            world.submit(0, prompt(reader, 60 + reader), 100).unwrap();
        }
        let mut most = 0;
        while world.readers.iter().any(|reader| reader.end.is_none()) {
            world.settle(1);
            most = most.max(world.pods[0].sequences.scheduler.occupancy().set_aside);
        }
        world.check();
        assert!(most > 0 && world.readers.iter().all(|reader| reader.is_whole()), "{most} set aside");
    }
}

#[test]
fn an_expert_that_nobody_can_be_asked_for_ends_those_that_need_it() {
    let mut world = group(2, 1, 64);
    world.submit(0, prompt(1, 20), 10).unwrap();
    (0..world.wires.len()).for_each(|wire| world.cut(wire, true));
    world.finish();
    assert_eq!(world.readers[0].end, Some((FinishReason::FinishError, "ExpertUnavailable".into())));
    assert_eq!(world.phase(0), Phase::Connecting);
    world.connect_all();
    world.submit(0, prompt(2, 20), 10).unwrap();
    world.finish();
    world.check();
    assert!(world.readers[1].is_whole() && world.pods[0].steps.is_empty());
}

#[test]
fn weights_that_have_changed_end_what_a_pod_serves_and_leave_nothing_open() {
    let mut world = group(3, 1, 64);
    let strings = double::strings();
    for pod in 1..3 {
        world.submit(pod, prompt(pod, 3), 400).unwrap();
    }
    // Both peers have asked pod 0, which has not computed anything.
    while world.pods[0].requests.owed() < 2 {
        while world.work(1) | world.work(2) {}
        for wire in 0..world.wires.len() {
            while world.deliver(wire, false) | world.deliver(wire, true) {}
        }
    }
    world.submit(0, prompt(0, 3), 400).unwrap();
    strings.weights_change.store(true, Ordering::Relaxed);
    while world.phase(0) != Phase::Failed {
        assert!(world.work(0), "something comes to fail");
    }
    strings.weights_change.store(false, Ordering::Relaxed);
    assert_eq!((world.pods[0].requests.owed(), world.pods[0].steps.len()), (0, 0));
    assert!(world.pods[0].exchange.is_quiet());
    world.finish();
    let ends: Vec<_> = world.readers.iter().map(|reader| reader.end.clone().unwrap()).collect();
    let of = |reason: &str| (FinishReason::FinishError, reason.to_owned());
    assert_eq!(ends, [of("ExpertUnavailable"), of("ExpertUnavailable"), of("WeightsChanged")]);
    assert_eq!(world.submit(0, prompt(3, 3), 4).unwrap_err().metadata().get("m1-reason").unwrap(), "NotReady");
    world.check();
}

/// A small generator of numbers: the seed of a failure is all that is needed to see it again.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

/// Random arrivals, cancels, orders of work and delivery, lost and new connections, moves of experts.
fn ride(seed: u64) {
    let mut rng = Rng(seed);
    let (pods, copies) = (1 + rng.below(4), 1 + rng.below(2));
    let chunk = 1 + rng.below(30) as u32;
    // Room for all, or for two of the longest: then sequences are set aside, and some of them are computed again.
    let room = [(4096, 0), (128, 0), (128, 24), (128, u64::MAX)][rng.below(4)];
    let mut world = crowded_group(pods, copies.min(pods), chunk, room);
    let (mut epoch, mut shares, mut target) = (1, world.shares(copies.min(pods), 0), None);
    for _ in 0..150 + rng.below(400) {
        match rng.below(40) {
            0..2 => drop(world.submit(rng.below(pods), prompt(rng.below(99), 1 + rng.below(90)), 1 + rng.below(12))),
            2 if !world.readers.is_empty() => {
                let reader = rng.below(world.readers.len());
                if world.readers[reader].end.is_none() {
                    world.cancel(reader);
                }
            }
            3 if !world.wires.is_empty() => {
                let wire = rng.below(world.wires.len());
                world.cut(wire, rng.below(2) == 0);
            }
            4..7 if !world.wires.is_empty() => {
                let wire = rng.below(world.wires.len());
                world.connect(wire);
            }
            7 => world.tick(rng.below(pods)),
            // Moves go over a union, which all have taken up before anything goes.
            8 if (0..pods).all(|pod| world.epoch(pod) == epoch) => {
                epoch += 1;
                shares = target.take().unwrap_or_else(|| {
                    let next = world.shares(copies.min(pods), rng.below(pods));
                    let union = shares.iter().zip(&next).map(|(old, new)| old.union(new)).collect();
                    target = Some(next);
                    union
                });
                world.place(epoch, &shares);
            }
            9..25 => {
                world.work(rng.below(pods));
            }
            _ if world.wires.is_empty() => {
                world.work(0);
            }
            _ => {
                let wire = rng.below(world.wires.len());
                world.deliver(wire, rng.below(2) == 0);
            }
        }
        world.read();
    }
    world.connect_all();
    world.finish();
    world.check();
    for pod in &mut world.pods {
        assert!(pod.steps.is_empty() && pod.sequences.scheduler.is_idle());
        let open = (pod.exchange.open_steps(), pod.exchange.open_requests(), pod.exchange.queued());
        assert!(pod.exchange.is_quiet(), "open steps, requests, queued: {open:?}");
        assert_eq!((pod.requests.owed(), pod.sequences.scheduler.occupancy().slots_used), (0, 0), "something is left");
    }
    for reader in &world.readers {
        let unavailable = matches!(&reader.end, Some((FinishReason::FinishError, reason)) if reason == "ExpertUnavailable");
        assert!(reader.cancelled || reader.is_whole() || unavailable, "{:?}", reader.end);
    }
}

#[test]
fn whatever_happens_between_pods_sequences_say_what_they_say_alone() {
    let seeds = std::env::var("M1_DEVICE_CASES").map_or(150, |cases| cases.parse().expect("M1_DEVICE_CASES is a number"));
    for seed in 0..seeds {
        std::panic::catch_unwind(|| ride(seed)).unwrap_or_else(|_| panic!("seed {seed}"));
    }
}
