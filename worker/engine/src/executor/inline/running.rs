//! A step in flight: how far it is, and its pieces.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use m1_arch::{Architecture, ExpertId, ExpertSet, LayerId};

use super::super::UNUSED;
use super::super::batch::{Batch, LayerRouting, Results, StepId};
use super::super::checks::{check_bytes, check_experts, check_rows};
use super::super::command::{Completion, Work};
use super::super::cost::{Costs, Due, Load};
use super::super::error::ExecutorError;
use super::super::network::Network;
use super::super::tables::Tables;
use super::super::uses::{Uses, used};

/// What the host wants of a step that stands at a layer's experts.
pub(super) enum Ask {
    Gather(Vec<u32>),
    Local(Work),
    Accumulate(Vec<u32>, Bytes),
    Combine(LayerRouting),
}

/// What a step does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// The embedding.
    Start,
    Attention(LayerId),
    /// Experts of a layer, all of which are here.
    Own(LayerId),
    /// It stands: the host says what is to be done about the experts of a layer.
    Experts(LayerId),
    Head,
    End,
}

/// What a piece is computed with.
pub(super) struct With<'a, N> {
    pub network: &'a mut N,
    /// Of one number on the wire.
    pub wire_bytes: usize,
    pub uses: &'a mut Uses,
}

/// A step in flight.
pub(super) struct Running<S> {
    pub id: StepId,
    pub urgent: bool,
    pub at: At,
    pub asked: VecDeque<Ask>,
    /// Absent until it has started.
    pub numbers: Option<S>,
    pub results: Results,
    batch: Arc<Batch>,
    load: Load,
    routing: LayerRouting,
}

impl<S> Running<S> {
    pub fn new(id: StepId, urgent: bool, batch: Arc<Batch>, results: Results) -> Self {
        let (load, asked, routing) = (Load::of(&batch), VecDeque::new(), LayerRouting::default());
        Self { id, urgent, at: At::Start, asked, numbers: None, results, batch, load, routing }
    }

    pub fn is_runnable(&self) -> bool {
        !matches!(self.at, At::Experts(_)) || !self.asked.is_empty()
    }

    /// Whether work was handed out that counts on experts which are here.
    pub fn needs_experts(&self) -> bool {
        matches!(self.at, At::Own(_)) || self.asked.iter().any(|ask| matches!(ask, Ask::Local(_)))
    }

    pub fn due(&self, arch: &Architecture, costs: &Costs) -> Option<Due> {
        match self.at {
            At::Attention(layer) => Some(costs.attention(arch, layer, self.load)),
            At::Own(_) => Some(costs.experts(used(&self.routing.experts))),
            At::Experts(_) => match self.asked.front()? {
                Ask::Local(work) => Some(costs.experts(used(&work.experts))),
                _ => None,
            },
            At::Head => Some(costs.head(self.load)),
            At::Start | At::End => None,
        }
    }

    /// One piece.
    pub fn advance<N: Network<InFlight = S>>(
        &mut self,
        with: With<'_, N>,
        tables: &Tables,
        done: &mut VecDeque<Completion>,
    ) -> Result<(), ExecutorError> {
        let With { network, uses, .. } = with;
        if let (false, Some(early)) = (matches!(self.at, At::Experts(_)), self.asked.front()) {
            return Err(early.out_of_order());
        }
        let Some(numbers) = &mut self.numbers else {
            self.numbers = Some(network.begin(&self.batch, tables)?);
            self.at = At::Attention(LayerId(0));
            return Ok(());
        };
        match self.at {
            At::Start | At::End => {}
            At::Attention(layer) => {
                if !network.attention(numbers, layer, &mut self.routing)? {
                    return Ok(());
                }
                self.results.routing.book(layer, &mut self.routing, &self.batch.segments)?;
                if all_held(network.held(), layer, &self.routing) {
                    self.at = At::Own(layer);
                } else {
                    self.at = At::Experts(layer);
                    done.push_back(Completion::Routed { step: self.id, layer, routing: std::mem::take(&mut self.routing) });
                }
            }
            At::Own(layer) => {
                uses.clear();
                uses.add(0..self.routing.tokens as u32, &self.routing.experts, &self.routing.weights, self.routing.top_k);
                network.local(numbers, layer, uses.sorted())?;
                network.combine(numbers, layer)?;
                self.at = after(layer, network.architecture());
            }
            At::Experts(layer) => {
                let Some(ask) = self.asked.pop_front() else { return Ok(()) };
                self.answer(ask, layer, With { network, uses, ..with }, done)?;
            }
            At::Head => {
                network.end(numbers, &self.batch, &mut self.results)?;
                self.at = At::End;
            }
        }
        Ok(())
    }

    fn answer<N: Network<InFlight = S>>(
        &mut self,
        ask: Ask,
        layer: LayerId,
        With { network, wire_bytes, uses }: With<'_, N>,
        done: &mut VecDeque<Completion>,
    ) -> Result<(), ExecutorError> {
        let (rows, width) = (self.batch.ids.len(), network.architecture().hidden);
        let Some(numbers) = &mut self.numbers else { return Ok(()) };
        match ask {
            Ask::Gather(picked) => {
                check_rows("gathered row", picked.iter().copied(), rows)?;
                let mut hidden = BytesMut::with_capacity(picked.len() * width * wire_bytes);
                network.gather(numbers, &picked, &mut hidden)?;
                done.push_back(Completion::Gathered { step: self.id, hidden: hidden.freeze() });
            }
            Ask::Local(work) => {
                check_rows("assigned row", work.rows.iter().copied(), rows)?;
                check_experts(network.held(), layer, work.rows.len(), &work.experts, &work.weights)?;
                uses.clear();
                let places = work.experts.len() / work.rows.len().max(1);
                uses.add(work.rows.iter().copied(), &work.experts, &work.weights, places);
                network.local(numbers, layer, uses.sorted())?;
            }
            Ask::Accumulate(to, sums) => {
                check_rows("answered row", to.iter().copied(), rows)?;
                check_bytes("sums", sums.len(), to.len(), width, size_of::<f32>())?;
                network.accumulate(numbers, &to, &sums)?;
            }
            Ask::Combine(routing) => {
                self.routing = routing;
                network.combine(numbers, layer)?;
                self.at = after(layer, network.architecture());
            }
        }
        Ok(())
    }
}

impl Ask {
    fn out_of_order(&self) -> ExecutorError {
        let command = match self {
            Self::Gather(_) => "Gather",
            Self::Local(_) => "Local",
            Self::Accumulate(..) => "Accumulate",
            Self::Combine(_) => "Combine",
        };
        ExecutorError::OutOfOrder { command, expected: "the step to stand at a layer's experts (Routed)" }
    }
}

fn after(layer: LayerId, arch: &Architecture) -> At {
    let next = LayerId(layer.0 + 1);
    if next.index() < arch.layers.len() { At::Attention(next) } else { At::Head }
}

fn all_held(held: &ExpertSet, layer: LayerId, routing: &LayerRouting) -> bool {
    routing.experts.iter().all(|expert| *expert == UNUSED || held.contains(layer, ExpertId(*expert)))
}
