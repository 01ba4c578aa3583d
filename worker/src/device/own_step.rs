//! The own step in flight: attention, own experts and the end of each layer, in that order. The exchange says when a layer's
//! experts are all accounted for; until then the thread serves peers.

use std::collections::VecDeque;

use m1_arch::LayerId;
use m1_engine::{Assignment, Executor, ExecutorError, Failure, LayerRouting, Step, StepKind, UNUSED};
use m1_exchange::{Event, ExchangeError, Lane, StepId};

use super::Device;

/// Rows for own experts.
#[derive(Debug)]
pub(super) struct Local {
    pub rows: Vec<u32>,
    /// `[rows, top_k]`.
    pub experts: Vec<u16>,
}

/// What the step waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Attention,
    Experts,
}

/// A step and how far it is.
#[derive(Debug)]
pub(super) struct OwnStep {
    pub id: StepId,
    pub lane: Lane,
    step: Step,
    layer: LayerId,
    due: Due,
    /// Of `layer`.
    pub routing: LayerRouting,
    /// Own experts' work of `layer` that is not done yet.
    pub local: VecDeque<Local>,
    /// Everything of `layer` is handed out or here.
    pub complete: bool,
    /// It stands: nobody can be asked for an expert of `layer`.
    pub parked: bool,
    /// It has waited for an expert as long as it may, in whatever layer.
    waited: bool,
    /// The step cannot go on.
    pub failure: Option<Failure>,
    /// Weights of a local part, kept for the allocation.
    weights: Vec<f32>,
}

impl OwnStep {
    fn new(id: StepId, step: Step) -> Self {
        let lane = match step.kind {
            StepKind::Decode => Lane::Decode,
            StepKind::Prefill => Lane::Prefill,
        };
        Self {
            id,
            lane,
            step,
            layer: LayerId(0),
            due: Due::Attention,
            routing: LayerRouting::default(),
            local: VecDeque::new(),
            complete: false,
            parked: false,
            waited: false,
            failure: None,
            weights: Vec::new(),
        }
    }

    /// Routing weights of these rows, `[rows, top_k]`, appended to `out`.
    pub fn weights_of(&self, rows: &[u32], out: &mut Vec<f32>) {
        let top_k = self.routing.top_k;
        for row in rows {
            let start = *row as usize * top_k;
            out.extend_from_slice(self.routing.weights.get(start..start + top_k).unwrap_or_default());
        }
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

    /// One piece of own experts' work.
    fn compute_local(&mut self, executor: &mut dyn Executor, local: &Local) -> Result<(), ExecutorError> {
        let mut weights = std::mem::take(&mut self.weights);
        weights.clear();
        self.weights_of(&local.rows, &mut weights);
        let assignment = Assignment { rows: &local.rows, slots: self.routing.top_k, experts: &local.experts, weights: &weights };
        let done = executor.local(self.layer, &assignment);
        self.weights = weights;
        done
    }
}

impl Device {
    /// Begins the next step. False: there is none.
    pub(super) fn begin(&mut self) -> bool {
        let Some(executor) = &mut self.executor else { return false };
        let Some(step) = self.sequences.next_step(executor) else { return false };
        let failure = executor.begin_step(&step.batch).err().map(|error| Failure::from(&error));
        self.steps_begun += 1;
        self.step = Some(OwnStep { failure, ..OwnStep::new(StepId(self.steps_begun), step) });
        true
    }

    /// Does one piece of the step. False: it waits for peers.
    pub(super) fn advance(&mut self) -> bool {
        let Some(mut own) = self.step.take() else { return false };
        if let Some(failure) = own.failure.take() {
            self.step = Some(own);
            self.fail_step(&failure);
            return true;
        }
        match own.due {
            Due::Attention => self.attend(own),
            Due::Experts if !own.local.is_empty() => self.local(own),
            Due::Experts if own.complete => self.end_layer(own),
            Due::Experts if own.waited && own.parked => {
                // A token waits once. What it waited for in an earlier layer is most likely what is missing here.
                own.parked = false;
                let step = own.id;
                self.step = Some(own);
                self.tell(Event::GiveUp { step });
            }
            Due::Experts => {
                self.step = Some(own);
                return false;
            }
        }
        true
    }

    fn attend(&mut self, mut own: OwnStep) {
        let Some(executor) = &mut self.executor else { return };
        let done = executor.attention(own.layer, &mut own.routing).map_err(|error| Failure::from(&error)).and_then(|()| {
            let routed = self.sequences.scheduler.route(&own.step, own.layer, &mut own.routing);
            routed.map_err(|error| Failure { reason: error.reason(), message: error.to_string() })
        });
        own.leave_out();
        own.due = Due::Experts;
        (own.complete, own.parked) = (false, false);
        own.failure = done.err();
        let (id, lane, layer, now) = (own.id, own.lane, own.layer, self.now());
        if own.failure.is_none() {
            let open = Event::Open { step: id, lane, layer, experts: &own.routing.experts };
            self.exchange.handle(open, now, &mut self.actions);
        }
        self.step = Some(own);
        self.carry_out();
    }

    fn local(&mut self, mut own: OwnStep) {
        if let (Some(executor), Some(local)) = (&mut self.executor, own.local.pop_front()) {
            own.failure = own.compute_local(executor, &local).err().map(|error| Failure::from(&error));
        }
        self.step = Some(own);
    }

    /// Does all own experts' work that is handed out, so that experts may be taken away.
    pub(super) fn finish_local(&mut self) {
        while self.step.as_ref().is_some_and(|own| own.failure.is_none() && !own.local.is_empty()) {
            self.advance();
        }
    }

    fn end_layer(&mut self, mut own: OwnStep) {
        let Some(executor) = &mut self.executor else { return };
        if let Err(error) = executor.combine(own.layer) {
            own.failure = Some(Failure::from(&error));
            self.step = Some(own);
            return;
        }
        own.layer = LayerId(own.layer.0 + 1);
        own.due = Due::Attention;
        if own.layer.index() < self.checkpoint.architecture().layers.len() {
            self.step = Some(own);
            return;
        }
        self.sequences.complete(own.step, executor);
    }

    /// The step goes on without these rows: their sequences end with it, and where they were the last, it ends now.
    pub(super) fn go_on_without(&mut self, step: StepId, rows: &[u32], error: &ExchangeError) {
        let Some(own) = self.step.as_mut().filter(|own| own.id == step) else { return };
        let failure = Failure { reason: error.reason(), message: error.to_string() };
        rows.iter().for_each(|row| own.step.give_up(*row, &failure));
        (own.parked, own.waited) = (false, true);
        tracing::error!(step = step.0, rows = rows.len(), reason = failure.reason, error = %failure, "sequences are given up");
        if !self.sequences.wants_any(&own.step) {
            own.failure = Some(failure);
        }
    }

    /// Ends the step, if one is in flight, and its sequences.
    pub(super) fn fail_step(&mut self, failure: &Failure) {
        if self.step.is_some() {
            tracing::error!(reason = failure.reason, error = %failure, "a step failed");
        }
        self.end_step(failure);
    }

    fn end_step(&mut self, failure: &Failure) {
        let Some(own) = self.step.take() else { return };
        self.tell(Event::Abort { step: own.id });
        self.sequences.fail(own.step, failure);
    }

    /// Drops the step in flight where nobody waits for any of its sequences.
    pub(super) fn abort_unwanted(&mut self) {
        if self.step.as_ref().is_some_and(|own| !self.sequences.wants_any(&own.step)) {
            // No failure: its clients have gone.
            self.end_step(&Failure { reason: "Cancelled", message: "nobody waits for this step".into() });
        }
    }
}
