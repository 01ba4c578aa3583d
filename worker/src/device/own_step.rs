//! Own steps in flight, at most one of each kind. The executor brings a step to a layer whose experts are not all here; the exchange says what is
//! asked of whom and when all of it is accounted for; until then the device serves peers and computes the other step.

use std::collections::VecDeque;

use m1_arch::LayerId;
use m1_engine::{Command, ExecutorError, Failure, LayerRouting, Results, Step, StepId, StepKind, UNUSED, Work};
use m1_exchange::{Event, ExchangeError, Lane, PodId, RequestId};

use super::Device;
use super::dispatch::Payload;

/// A request frame whose rows the executor was asked for.
#[derive(Debug)]
pub(super) struct Sending {
    pub peer: PodId,
    pub lane: Lane,
    pub id: RequestId,
    pub epoch: u64,
    pub layer: LayerId,
    pub rows: u32,
    /// `[rows, top_k]`.
    pub experts: Vec<u16>,
    /// `[rows, top_k]`.
    pub weights: Vec<f32>,
    /// The link that it was meant for has gone.
    pub stale: bool,
}

/// A step in flight.
#[derive(Debug)]
pub(super) struct OwnStep {
    pub lane: Lane,
    step: Step,
    /// Where it stands.
    pub layer: LayerId,
    /// Of `layer`.
    pub routing: LayerRouting,
    /// In the order in which their rows come.
    pub sending: VecDeque<Sending>,
    /// It stands: nobody can be asked for an expert of `layer`.
    pub parked: bool,
    /// It has waited for an expert as long as it may, in whatever layer.
    waited: bool,
    /// The step cannot go on.
    pub failure: Option<Failure>,
}

impl OwnStep {
    fn new(step: Step) -> Self {
        let lane = match step.kind {
            StepKind::Decode => Lane::Decode,
            StepKind::Prefill => Lane::Prefill,
        };
        let (layer, routing, sending) = (LayerId(0), LayerRouting::default(), VecDeque::new());
        Self { lane, step, layer, routing, sending, parked: false, waited: false, failure: None }
    }

    pub fn id(&self) -> StepId {
        self.step.id
    }

    /// Routing weights of these rows, `[rows, top_k]`.
    pub fn weights_of(&self, rows: &[u32]) -> Vec<f32> {
        let top_k = self.routing.top_k;
        let mut weights = Vec::with_capacity(rows.len() * top_k);
        for row in rows {
            let start = *row as usize * top_k;
            weights.extend_from_slice(self.routing.weights.get(start..start + top_k).unwrap_or_default());
        }
        weights
    }

    /// Takes the rows of given up sequences out of the layer's routing: nobody computes or waits for them any more.
    fn leave_out(&mut self) {
        let top_k = self.routing.top_k;
        for rows in self.step.given_up_rows() {
            let places = rows.start as usize * top_k..rows.end as usize * top_k;
            if let Some(experts) = self.routing.experts.get_mut(places) {
                experts.fill(UNUSED);
            }
        }
    }
}

/// The same number as the exchange has it.
fn to_exchange(step: StepId) -> m1_exchange::StepId {
    m1_exchange::StepId(step.0)
}

/// And back.
pub(super) fn of_exchange(step: m1_exchange::StepId) -> StepId {
    StepId(step.0)
}

/// One of the steps in flight.
pub(super) fn find(steps: &mut [OwnStep], step: StepId) -> Option<&mut OwnStep> {
    steps.iter_mut().find(|own| own.step.id == step)
}

impl Device {
    /// Begins a step beside those in flight. False: there is none.
    pub(super) fn begin(&mut self) -> bool {
        if self.executor.is_none() {
            return false;
        }
        let next = self.sequences.next_step();
        // Sequences come back before the step that they are part of, and go before another gets their place.
        self.move_states();
        let Some((step, results)) = next else { return false };
        let urgent = step.kind == StepKind::Decode;
        self.submit(Command::Begin { step: step.id, urgent, batch: step.batch.clone(), results });
        self.steps.push(OwnStep::new(step));
        true
    }

    /// Ends a step that cannot go on, or lets one wait no longer. False: there is none.
    pub(super) fn tend_steps(&mut self) -> bool {
        if let Some((id, failure)) = self.steps.iter_mut().find_map(|own| Some((own.id(), own.failure.take()?))) {
            self.fail_step(id, &failure);
            return true;
        }
        // A token waits once. What it waited for in an earlier layer is most likely what is missing here.
        let Some(own) = self.steps.iter_mut().find(|own| own.waited && own.parked) else { return false };
        own.parked = false;
        let step = to_exchange(own.id());
        self.tell(Event::GiveUp { step });
        true
    }

    /// A step stands at a layer.
    pub(super) fn routed(&mut self, step: StepId, layer: LayerId, routing: LayerRouting) {
        let now = self.now();
        let Some(own) = find(&mut self.steps, step) else { return };
        (own.layer, own.routing, own.parked) = (layer, routing, false);
        own.leave_out();
        let open = Event::Open { step: to_exchange(step), lane: own.lane, layer, experts: &own.routing.experts };
        self.exchange.handle(open, now, &mut self.actions);
        self.carry_out(Payload::None);
    }

    /// Own experts' part of a layer.
    pub(super) fn local(&mut self, step: StepId, rows: Vec<u32>, experts: Vec<u16>) {
        let Some(own) = find(&mut self.steps, step) else { return };
        let weights = own.weights_of(&rows);
        self.submit(Command::Local { step, work: Work { rows, experts, weights } });
    }

    /// All of a layer's experts are accounted for.
    pub(super) fn combine(&mut self, step: StepId) {
        let Some(own) = find(&mut self.steps, step) else { return };
        let routing = std::mem::take(&mut own.routing);
        self.submit(Command::Combine { step, routing });
    }

    /// A step was computed.
    pub(super) fn step_ended(&mut self, step: StepId, results: Results) {
        if let Some(own) = self.take_step(step) {
            self.sequences.complete(own.step, results);
        }
    }

    /// The executor could not compute a step, which it has forgotten.
    pub(super) fn step_failed(&mut self, step: StepId, error: &ExecutorError) {
        self.fail_step(step, &Failure::from(error));
        self.end_if_changed(error);
    }

    /// The step goes on without these rows: their sequences end with it, and where they were the last, it ends now.
    pub(super) fn go_on_without(&mut self, step: StepId, rows: &[u32], error: &ExchangeError) {
        let Some(own) = find(&mut self.steps, step) else { return };
        let failure = Failure { reason: error.reason(), message: error.to_string() };
        rows.iter().for_each(|row| own.step.give_up(*row, &failure));
        (own.parked, own.waited) = (false, true);
        tracing::error!(step = step.0, rows = rows.len(), reason = failure.reason, error = %failure, "sequences are given up");
        if !self.sequences.wants_any(&own.step) {
            own.failure = Some(failure);
        }
    }

    /// Ends all steps in flight, and their sequences.
    pub(super) fn fail_steps(&mut self, failure: &Failure) {
        while let Some(id) = self.steps.first().map(OwnStep::id) {
            self.fail_step(id, failure);
        }
    }

    fn fail_step(&mut self, step: StepId, failure: &Failure) {
        tracing::error!(step = step.0, reason = failure.reason, error = %failure, "a step failed");
        self.end_step(step, failure);
    }

    fn end_step(&mut self, step: StepId, failure: &Failure) {
        let Some(own) = self.take_step(step) else { return };
        self.submit(Command::Abort { step });
        self.tell(Event::Abort { step: to_exchange(step) });
        for Sending { peer, lane, id, .. } in own.sending.into_iter().filter(|sending| !sending.stale) {
            self.tell(Event::Unsent { peer, lane, id });
        }
        self.sequences.fail(own.step, failure);
    }

    /// Drops steps in flight where nobody waits for any of their sequences.
    pub(super) fn abort_unwanted(&mut self) {
        while let Some(own) = self.steps.iter().find(|own| !self.sequences.wants_any(&own.step)) {
            // No failure: its clients have gone.
            self.end_step(own.id(), &Failure { reason: "Cancelled", message: "nobody waits for this step".into() });
        }
    }

    fn take_step(&mut self, step: StepId) -> Option<OwnStep> {
        let place = self.steps.iter().position(|own| own.id() == step)?;
        Some(self.steps.remove(place))
    }
}
