//! [`Rig`]: an executor, and the part of a scheduler that a test needs: slots, blocks, steps one after another.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use m1_arch::{Architecture, ExpertId, ExpertSet, LayerId};
use m1_engine::*;
use m1_weights::Checkpoint;

/// Turns after which an executor that has not come to an end is taken to hang.
const PATIENCE: usize = 2_000_000;

/// One sequence's part of a step.
#[derive(Debug, Clone)]
pub struct Turn {
    pub slot: SlotId,
    pub position: usize,
    pub ids: Vec<u32>,
    /// Tokens of the sequence's prompt.
    pub prompt: usize,
}

/// What came of a step: logits by row, and drawn ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub logits: Vec<Vec<f32>>,
    pub drawn: Vec<Drawn>,
    /// Layers at which the host was asked.
    pub asked: usize,
}

pub struct Rig<E: Executor> {
    pub executor: E,
    pub arch: Architecture,
    /// Of each slot.
    pub blocks: Vec<Vec<u32>>,
    free: VecDeque<u32>,
    steps: u64,
}

impl<E: Executor<Weights = Arc<Checkpoint>>> Rig<E> {
    pub fn new(executor: E, arch: &Architecture) -> Self {
        let CacheSize { slots, kv_blocks } = executor.capabilities().size;
        let blocks = vec![Vec::new(); slots as usize];
        Self { executor, arch: arch.clone(), blocks, free: (0..kv_blocks).collect(), steps: 0 }
    }

    /// Gives the blocks of a slot back.
    pub fn close(&mut self, slot: SlotId) {
        let blocks = std::mem::take(&mut self.blocks[slot.0 as usize]);
        self.free.extend(blocks);
    }

    pub fn take_block(&mut self) -> u32 {
        self.free.pop_front().unwrap()
    }

    /// Packs turns one after another; all rows' logits are wanted.
    pub fn pack(&mut self, turns: &[Turn]) -> Batch {
        let mut batch = Batch::default();
        for turn in turns {
            if turn.position == 0 {
                self.close(turn.slot);
            }
            let needed = (turn.position + turn.ids.len()).div_ceil(KV_BLOCK_TOKENS);
            let held = self.blocks[turn.slot.0 as usize].len();
            let fresh: Vec<u32> = (held..needed).map(|_| self.take_block()).collect();
            batch.segments.push(Segment {
                slot: turn.slot,
                start: batch.ids.len() as u32,
                tokens: turn.ids.len() as u32,
                position: turn.position as u32,
                prompt: turn.prompt as u32,
                fresh: fresh.len() as u32,
                threshold: 1.0,
            });
            batch.blocks.extend(&fresh);
            self.blocks[turn.slot.0 as usize].extend(fresh);
            batch.ids.extend(&turn.ids);
        }
        batch.logit_rows = (0..batch.ids.len() as u32).collect();
        batch
    }

    /// Hands a step over that streams wait for.
    pub fn begin(&mut self, batch: Batch) -> StepId {
        self.begin_as(true, batch)
    }

    /// Hands a step over.
    pub fn begin_as(&mut self, urgent: bool, batch: Batch) -> StepId {
        self.steps += 1;
        let (step, results) = (StepId(self.steps), Results::new(RoutingShape::of(&self.arch)));
        self.executor.submit(Command::Begin { step, urgent, batch: Arc::new(batch), results });
        step
    }

    /// The next completion; there has to be one.
    pub fn completion(&mut self) -> Completion {
        for _ in 0..PATIENCE {
            match self.executor.turn() {
                m1_engine::Turn::Done(completion) => return completion,
                m1_engine::Turn::Working => {}
                m1_engine::Turn::Idle => std::thread::yield_now(),
            }
        }
        panic!("nothing comes");
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&mut self) -> bool {
        matches!(self.executor.turn(), m1_engine::Turn::Idle)
    }

    /// One step; experts that are not held are asked of `peer`.
    pub fn step(&mut self, peer: Option<&mut Self>, turns: &[Turn]) -> Result<Outcome, ExecutorError> {
        let batch = self.pack(turns);
        self.run(peer, batch)
    }

    /// The same with a batch.
    pub fn run(&mut self, mut peer: Option<&mut Self>, batch: Batch) -> Result<Outcome, ExecutorError> {
        let step = self.begin(batch);
        let mut asked = 0;
        loop {
            match self.completion() {
                Completion::Routed { step: of, layer, routing } => {
                    assert_eq!(of, step);
                    asked += 1;
                    self.experts(step, layer, routing, peer.as_deref_mut())?;
                }
                Completion::Ended { step: of, results } => {
                    assert_eq!(of, step);
                    let logits = results.logits.chunks(self.arch.vocab).map(<[f32]>::to_vec).collect();
                    return Ok(Outcome { logits, drawn: results.drawn, asked });
                }
                Completion::Failed { error, .. } => return Err(error),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A layer's experts: own ones here, the others at `peer`; without one all here.
    pub fn experts(
        &mut self,
        step: StepId,
        layer: LayerId,
        routing: LayerRouting,
        peer: Option<&mut Self>,
    ) -> Result<(), ExecutorError> {
        let (held, top_k) = (self.executor.held().clone(), routing.top_k);
        let here = |expert: u16| peer.is_none() || held.contains(layer, ExpertId(expert));
        let only = |wanted: bool| routing.experts.iter().map(|e| if here(*e) == wanted { *e } else { UNUSED }).collect::<Vec<_>>();
        let (mine, theirs) = (only(true), only(false));
        if let Some(peer) = peer {
            let of_row = |row: &u32| *row as usize * top_k..(*row as usize + 1) * top_k;
            let mut rows: Vec<u32> = (0..routing.tokens as u32).collect();
            rows.retain(|row| theirs[of_row(row)].iter().any(|expert| *expert != UNUSED));
            if !rows.is_empty() {
                self.executor.submit(Command::Gather { step, rows: rows.clone() });
                let hidden = match self.completion() {
                    Completion::Gathered { hidden, .. } => hidden,
                    Completion::Failed { error, .. } => return Err(error),
                    other => panic!("{other:?}"),
                };
                let experts = rows.iter().flat_map(|row| theirs[of_row(row)].to_vec()).collect();
                let weights = rows.iter().flat_map(|row| routing.weights[of_row(row)].to_vec()).collect();
                let request = Request { key: RequestKey(7), hidden, rows: rows.len() as u32, experts, weights };
                let sums = peer.serve(layer, vec![request]).remove(0)?;
                self.executor.submit(Command::Accumulate { step, rows, sums });
            }
        }
        let work = Work { rows: (0..routing.tokens as u32).collect(), experts: mine, weights: routing.weights.clone() };
        self.executor.submit(Command::Local { step, work });
        self.executor.submit(Command::Combine { step, routing });
        Ok(())
    }

    /// Serves requests of a layer together.
    pub fn serve(&mut self, layer: LayerId, requests: Vec<Request>) -> Vec<Result<Bytes, ExecutorError>> {
        let keys: Vec<RequestKey> = requests.iter().map(|request| request.key).collect();
        self.executor.submit(Command::Serve { urgent: true, layer, requests });
        let mut served: Vec<(RequestKey, Result<Bytes, ExecutorError>)> = Vec::new();
        while served.len() < keys.len() {
            match self.completion() {
                Completion::Served { key, sums } => served.push((key, sums)),
                other => panic!("{other:?}"),
            }
        }
        let take = |key: &RequestKey| {
            let place = served.iter().position(|(of, _)| of == key).unwrap();
            served.remove(place).1
        };
        keys.iter().map(take).collect()
    }

    /// Brings experts in, and says how many bytes were read.
    pub fn load(&mut self, checkpoint: Arc<Checkpoint>, experts: &ExpertSet) -> Result<u64, ExecutorError> {
        self.executor.submit(Command::Load { weights: checkpoint, experts: experts.clone() });
        let mut bytes = 0;
        loop {
            match self.completion() {
                Completion::Loading { read } => bytes = read,
                Completion::Loaded { result, .. } => return result.map(|()| bytes),
                other => panic!("{other:?}"),
            }
        }
    }
}
