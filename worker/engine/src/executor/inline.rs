//! [`Inline`]: the port for a [`Network`], which computes when it is called: commands are kept, and every turn carries out one piece, so that
//! whoever looks after the device comes to look at its inbox between pieces.

mod loads;
mod running;
mod turns;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use m1_arch::{ExpertSet, LayerId};

use super::batch::{Batch, Results, SlotId, StepId};
use super::checks::{check_batch, check_bytes, check_experts};
use super::command::{Command, Completion, Move, Request};
use super::cost::{Costs, Due, Piece};
use super::error::ExecutorError;
use super::network::Network;
use super::tables::{KV_BLOCK_TOKENS, Tables};
use super::uses::{Uses, used};
use super::{Capabilities, Executor, Turn};
use loads::Loads;
use running::{Ask, At, Running, With};
use turns::{Class, Turns};

/// A network and what was handed over for it.
pub struct Inline<N: Network> {
    network: N,
    capabilities: Capabilities,
    tables: Tables,
    costs: Costs,
    /// Oldest first.
    steps: Vec<Running<N::InFlight>>,
    /// Of streams, and of prompts.
    serves: [VecDeque<(LayerId, Vec<Request>)>; 2],
    turns: Turns,
    /// What the next turn does, where that was asked.
    chosen: Option<Next>,
    moves: VecDeque<Move>,
    loads: Loads<N>,
    /// What is to go once nobody needs it any more.
    unloads: Option<ExpertSet>,
    /// What is held and is not to go.
    held: ExpertSet,
    done: VecDeque<Completion>,
    uses: Uses,
}

/// What the next turn does.
#[derive(Clone, Copy)]
enum Next {
    Move,
    Unload,
    Serve(Class),
    Step(Class, usize),
}

impl<N: Network> Inline<N> {
    /// An executor that computes with this network.
    pub fn new(network: N) -> Self {
        let capabilities = network.capabilities();
        Self {
            tables: Tables::new(capabilities.size),
            capabilities,
            costs: Costs::of(network.architecture()),
            held: network.held().clone(),
            network,
            steps: Vec::new(),
            serves: Default::default(),
            turns: Turns::default(),
            chosen: None,
            moves: VecDeque::new(),
            loads: Loads::none(),
            unloads: None,
            done: VecDeque::new(),
            uses: Uses::default(),
        }
    }

    fn next(&mut self) -> Option<Next> {
        if !self.moves.is_empty() {
            return Some(Next::Move);
        }
        // What was handed out before may need them yet.
        let needed = || self.serves.iter().any(|serves| !serves.is_empty()) || self.steps.iter().any(Running::needs_experts);
        if self.unloads.is_some() && !needed() {
            return Some(Next::Unload);
        }
        let runnable = |urgent| self.steps.iter().position(|step| step.urgent == urgent && step.is_runnable());
        let (decode, prefill) = (runnable(true), runnable(false));
        let [of_streams, of_prompts] = self.serves.each_ref().map(|serves| !serves.is_empty());
        let class = self.turns.choose([of_streams, decode.is_some(), of_prompts, prefill.is_some()])?;
        Some(match class {
            Class::PeersDecode | Class::PeersPrefill => Next::Serve(class),
            Class::Decode => Next::Step(class, decode?),
            Class::Prefill => Next::Step(class, prefill?),
        })
    }

    fn begin(&mut self, step: StepId, urgent: bool, batch: Arc<Batch>, mut results: Results) {
        let checked = check_batch(&batch, self.network.architecture().vocab).and_then(|()| self.tables.admit(&batch));
        match checked {
            Ok(()) => {
                results.begin(batch.ids.len());
                self.steps.push(Running::new(step, urgent, batch, results));
            }
            Err(error) => self.done.push_back(Completion::Failed { step, error }),
        }
    }

    fn ask(&mut self, step: StepId, ask: Ask) {
        // A step that has failed is gone, and what was handed over for it meanwhile is of no use.
        if let Some(running) = self.steps.iter_mut().find(|running| running.id == step) {
            running.asked.push_back(ask);
        }
    }

    /// Those that were to go, and have not yet, stay.
    fn load(&mut self, weights: N::Weights, experts: &ExpertSet) {
        self.unloads = self.unloads.take().map(|going| going.difference(experts));
        self.count_held();
        let bring = self.network.bring(experts.difference(self.network.held()));
        self.loads.start(bring, weights);
    }

    fn loads_come_in(&mut self) {
        if self.loads.take(&mut self.network, &mut self.done) {
            self.count_held();
        }
    }

    fn count_held(&mut self) {
        let held = self.network.held();
        self.held = self.unloads.as_ref().map_or_else(|| held.clone(), |going| held.difference(going));
    }

    fn abort(&mut self, step: StepId) {
        if let Some(place) = self.steps.iter().position(|running| running.id == step) {
            self.remove(place);
        }
        self.done.retain(|completion| match completion {
            Completion::Routed { step: of, .. }
            | Completion::Gathered { step: of, .. }
            | Completion::Ended { step: of, .. }
            | Completion::Failed { step: of, .. } => *of != step,
            _ => true,
        });
    }

    /// Takes a step out. Its numbers' memory goes back, what comes of it is handed out.
    fn remove(&mut self, place: usize) -> Results {
        let running = self.steps.remove(place);
        if let Some(numbers) = running.numbers {
            self.network.reuse(numbers);
        }
        running.results
    }

    /// One piece of a step.
    fn advance(&mut self, place: usize) {
        let Some(running) = self.steps.get_mut(place) else { return };
        let id = running.id;
        let with = With { network: &mut self.network, wire_bytes: self.capabilities.wire_bytes, uses: &mut self.uses };
        match running.advance(with, &self.tables, &mut self.done) {
            Ok(()) if running.at == At::End => {
                let results = self.remove(place);
                self.done.push_back(Completion::Ended { step: id, results });
            }
            Ok(()) => {}
            Err(error) => {
                // A sum that was added in part cannot be mended.
                self.remove(place);
                self.done.push_back(Completion::Failed { step: id, error });
            }
        }
    }

    /// Computes requests of one layer together. Those that do not fit are refused one by one.
    fn serve(&mut self, urgent: bool, layer: LayerId, mut requests: Vec<Request>) {
        let (width, wire) = (self.network.architecture().hidden, self.capabilities.wire_bytes);
        let (network, done) = (&self.network, &mut self.done);
        requests.retain(|request| {
            let rows = request.rows as usize;
            let checked = check_experts(network.held(), layer, rows, &request.experts, &request.weights)
                .and_then(|()| check_bytes("hidden", request.hidden.len(), rows, width, wire));
            if let Err(error) = checked {
                done.push_back(Completion::Served { key: request.key, sums: Err(error) });
                return false;
            }
            true
        });
        let Some(first) = requests.first() else { return };
        self.uses.clear();
        let mut rows = 0;
        for request in &requests {
            let places = request.experts.len() / (request.rows as usize).max(1);
            self.uses.add(rows..rows + request.rows, &request.experts, &request.weights, places);
            rows += request.rows;
        }
        let first = first.key;
        match self.network.serve(layer, &requests, self.uses.sorted()) {
            Ok(sums) => {
                let served =
                    requests.iter().zip(sums).map(|(request, sums)| Completion::Served { key: request.key, sums: Ok(sums) });
                self.done.extend(served);
            }
            // One of many may be at fault: each for itself then.
            Err(_) if requests.len() > 1 => {
                for request in requests.into_iter().rev() {
                    self.serves[usize::from(!urgent)].push_front((layer, vec![request]));
                }
            }
            Err(error) => self.done.push_back(Completion::Served { key: first, sums: Err(error) }),
        }
    }

    fn move_one(&mut self, what: Move) {
        match what {
            Move::Export { slot } => {
                let state = self.network.export(slot, &self.tables);
                self.done.push_back(Completion::Exported { slot, state });
            }
            Move::Import { slot, blocks, state } => {
                let set = self.tables.set(slot, state.tokens, &blocks);
                let result = set.and_then(|()| self.network.import(slot, &self.tables, &state));
                self.done.push_back(Completion::Imported { slot, result });
            }
            Move::Fork { from, to, last } => {
                let result = self.fork(from, to, last);
                self.done.push_back(Completion::Imported { slot: to, result });
            }
        }
    }

    fn fork(&mut self, from: SlotId, to: SlotId, last: Option<u32>) -> Result<(), ExecutorError> {
        let (tokens, mut blocks) = (self.tables.tokens(from)?, self.tables.blocks(from)?.to_vec());
        let partial = !(tokens as usize).is_multiple_of(KV_BLOCK_TOKENS);
        if partial != last.is_some() {
            let allowed = format!("{}, for {tokens} tokens", u64::from(partial));
            return Err(ExecutorError::InvalidArgument { what: "last blocks", given: u64::from(last.is_some()), allowed });
        }
        let copy = match (blocks.last_mut(), last) {
            (Some(block), Some(last)) => Some((std::mem::replace(block, last), last)),
            _ => None,
        };
        self.tables.set(to, tokens, &blocks)?;
        self.network.fork(from, to, copy)
    }
}

impl<N: Network> Executor for Inline<N> {
    type Weights = N::Weights;

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn held(&self) -> &ExpertSet {
        &self.held
    }

    fn submit(&mut self, command: Command<N::Weights>) {
        self.chosen = None;
        match command {
            Command::Begin { step, urgent, batch, results } => self.begin(step, urgent, batch, results),
            Command::Gather { step, rows } => self.ask(step, Ask::Gather(rows)),
            Command::Local { step, work } => self.ask(step, Ask::Local(work)),
            Command::Accumulate { step, rows, sums } => self.ask(step, Ask::Accumulate(rows, sums)),
            Command::Combine { step, routing } => self.ask(step, Ask::Combine(routing)),
            Command::Abort { step } => self.abort(step),
            Command::Serve { urgent, layer, requests } => self.serves[usize::from(!urgent)].push_back((layer, requests)),
            Command::Load { weights, experts } => self.load(weights, &experts),
            Command::Unload { experts } => {
                self.held = self.held.difference(&experts);
                self.unloads = Some(self.unloads.take().map_or(experts.clone(), |going| going.union(&experts)));
            }
            Command::Move(what) => self.moves.push_back(what),
        }
    }

    fn due(&mut self) -> Option<Due> {
        self.loads_come_in();
        if !self.done.is_empty() {
            return None;
        }
        self.chosen = self.next();
        match self.chosen? {
            Next::Move => {
                Some(Due { piece: Piece::Copy, operations: self.network.architecture().state_bytes_per_sequence().0 as f64 })
            }
            Next::Serve(class) => {
                let (_, requests) = self.serves[of_prompts(class)].front()?;
                Some(self.costs.experts(requests.iter().map(|request| used(&request.experts)).sum()))
            }
            Next::Unload => None,
            Next::Step(_, place) => self.steps.get(place)?.due(self.network.architecture(), &self.costs),
        }
    }

    fn turn(&mut self) -> Turn {
        self.loads_come_in();
        if let Some(completion) = self.done.pop_front() {
            return Turn::Done(completion);
        }
        let Some(next) = self.chosen.take().or_else(|| self.next()) else { return Turn::Idle };
        let began = Instant::now();
        match next {
            Next::Move => {
                if let Some(what) = self.moves.pop_front() {
                    self.move_one(what);
                }
            }
            Next::Unload => {
                if let Some(experts) = self.unloads.take() {
                    self.network.let_go(&experts);
                }
            }
            Next::Serve(class) => {
                let place = of_prompts(class);
                if let Some((layer, requests)) = self.serves[place].pop_front() {
                    self.serve(place == 0, layer, requests);
                }
                self.turns.took(class, began.elapsed());
            }
            Next::Step(class, place) => {
                self.advance(place);
                self.turns.took(class, began.elapsed());
            }
        }
        self.done.pop_front().map_or(Turn::Working, Turn::Done)
    }
}

/// Where a class's requests wait.
fn of_prompts(class: Class) -> usize {
    usize::from(class == Class::PeersPrefill)
}

/// Sums of each request, cut out of all rows' bytes.
pub fn cut(mut all: BytesMut, requests: &[Request], row_bytes: usize) -> Vec<Bytes> {
    let cut = requests.iter().map(|request| all.split_to((request.rows as usize * row_bytes).min(all.len())).freeze());
    cut.collect()
}
