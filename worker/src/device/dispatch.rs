//! Between connections and the exchange: what connections say becomes an event, what the exchange wants is carried out.
//! Decides nothing.

use bytes::BytesMut;
use m1_engine::{Executor, Failure};
use m1_exchange::{Action, Event, Lane, PodId, RequestId, StepId};
use m1_proto::dispatch as pb;
use m1_proto::dispatch::frame::Kind;

use super::Device;
use super::own_step::Local;
use crate::pulses::Known;
use crate::traffic::Direction;
use crate::transport::{Inbound, RequestHead, request_frame};

impl Device {
    /// Takes what a connection says; nothing of one that was replaced.
    pub(super) fn heard(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::RequesterUp { peer, lane, link, credits } => {
                self.peers.forgive(peer);
                if self.links.requester_up(peer, lane, link) {
                    self.tell(Event::LinkDown { peer, lane });
                }
                self.tell(Event::LinkUp { peer, lane, credits });
                self.report();
            }
            Inbound::RequesterDown { peer, lane, generation } => {
                if self.links.requester_down(peer, lane, generation) {
                    self.tell(Event::LinkDown { peer, lane });
                    self.report();
                }
            }
            Inbound::PeerRefused { peer, reason, message } => {
                self.peers.refused(peer, reason, message);
                self.tell(Event::PeerRefused { peer });
                self.report();
            }
            Inbound::ServerUp { peer, lane, link } => {
                if self.links.server_up(peer, lane, link) {
                    self.client_down(peer, lane);
                }
                self.tell(Event::ClientUp { peer, lane });
                self.status.set_clients(self.links.clients());
            }
            Inbound::ServerDown { peer, lane, generation } => {
                if self.links.server_down(peer, lane, generation) {
                    self.client_down(peer, lane);
                    self.status.set_clients(self.links.clients());
                }
            }
            Inbound::Request { peer, lane, generation, request } if self.links.serves(peer, lane, generation) => {
                let bytes = payload(request.hidden.len(), request.experts.len());
                self.status.traffic().count(peer, lane, Direction::Received, bytes);
                self.requested(peer, lane, request);
            }
            Inbound::Server { peer, lane, generation, said } if self.links.asks(peer, lane, generation) => {
                self.heard_server(peer, lane, said);
            }
            Inbound::Request { .. } | Inbound::Server { .. } => {}
        }
    }

    fn heard_server(&mut self, peer: PodId, lane: Lane, said: crate::transport::Said) {
        use crate::transport::Said;
        match said {
            Said::Answer { id, tokens, sums } => {
                self.status.traffic().count(peer, lane, Direction::Received, sums.len());
                self.answer = sums;
                self.tell(Event::Answer { peer, lane, id: RequestId(id), rows: tokens as usize });
                self.answer.clear();
            }
            Said::NotHere { id, epoch } => self.tell(Event::NotHere { peer, lane, id: RequestId(id), epoch }),
            Said::Credit { frames } => self.tell(Event::CreditGranted { peer, lane, frames }),
        }
    }

    /// Time has passed: what is known of peers comes first, so that none is judged by what was known before.
    pub(super) fn tick(&mut self) {
        let status = self.status.clone();
        for Known { peer, life, round_trip_us } in status.pulses().known() {
            if let Some(micros) = round_trip_us {
                self.links.measured(peer, micros);
            }
            self.tell(Event::Life { peer, life });
        }
        self.tell(Event::Tick);
        self.report();
    }

    fn client_down(&mut self, peer: PodId, lane: Lane) {
        self.requests.forget_client(peer, lane);
        self.tell(Event::ClientDown { peer, lane });
    }

    /// Tells the exchange and carries out what it wants.
    pub(super) fn tell(&mut self, event: Event<'_>) {
        let now = self.now();
        self.exchange.handle(event, now, &mut self.actions);
        self.carry_out();
    }

    /// Carries out the actions of the last event, and those of connections that prove to be gone meanwhile.
    pub(super) fn carry_out(&mut self) {
        loop {
            let mut actions = std::mem::take(&mut self.actions);
            for action in actions.drain(..) {
                self.act(action);
            }
            self.actions = actions;
            let Some((peer, lane)) = self.gone.pop() else { return };
            let now = self.now();
            self.exchange.handle(Event::LinkDown { peer, lane }, now, &mut self.actions);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Local { step, rows, experts, .. } => {
                self.of_step(step, |own| own.local.push_back(Local { rows, experts }));
            }
            Action::Send { .. } => self.send(action),
            Action::Accept { step, rows, positions, .. } => self.accept(step, &rows, positions.as_deref()),
            Action::Complete { step } => self.of_step(step, |own| own.complete = true),
            Action::Failed { step, error } => {
                let failure = Failure { reason: error.reason(), message: error.to_string() };
                self.of_step(step, |own| own.failure = Some(failure));
            }
            Action::Parked { step, layer, missing } => {
                let missing: Vec<u16> = missing.iter().map(|expert| expert.0).collect();
                tracing::warn!(step = step.0, layer = layer.0, experts = ?missing, "a step waits: no reachable pod holds its experts");
                self.of_step(step, |own| own.parked = true);
            }
            Action::Resumed { step } => {
                tracing::info!(step = step.0, "a waiting step goes on");
                self.of_step(step, |own| own.parked = false);
            }
            Action::GivenUp { step, rows, error } => self.go_on_without(step, &rows, &error),
            Action::DropLink { peer, lane, error } => {
                tracing::warn!(peer = peer.0, %lane, reason = error.reason(), error = %error, "a link is dropped");
                self.links.drop_requester(peer, lane);
            }
            Action::DropClient { peer, lane, error } => self.drop_client(peer, lane, error.reason(), &error.to_string()),
            Action::Grant { peer, lane, frames } => self.answer_client(peer, lane, Kind::Credit(pb::Credit { frames })),
            Action::Reply { peer, lane, id } => {
                if let Some(sums) = self.requests.take_served((peer, lane, id)) {
                    let row = self.checkpoint.architecture().hidden * size_of::<f32>();
                    let tokens = (sums.len() / row.max(1)) as u32;
                    self.status.traffic().count(peer, lane, Direction::Sent, sums.len());
                    self.answer_client(peer, lane, Kind::Answer(pb::Answer { id: id.0, tokens, sums }));
                }
            }
            Action::ReplyNotHere { peer, lane, id, epoch } => {
                self.requests.forget((peer, lane, id));
                self.answer_client(peer, lane, Kind::NotHere(pb::NotHere { id: id.0, epoch }));
            }
            Action::Forget { peer, lane, id } => self.requests.forget((peer, lane, id)),
            Action::TableRefused { given, current } => {
                tracing::warn!(%given, %current, "an older placement was not taken");
            }
            Action::Discard { .. } => {}
        }
    }

    fn of_step(&mut self, step: StepId, change: impl FnOnce(&mut super::OwnStep)) {
        if let Some(own) = self.step.as_mut().filter(|own| own.id == step) {
            change(own);
        }
    }

    /// Sends one request frame of the step in flight.
    fn send(&mut self, action: Action) {
        let Action::Send { step, peer, lane, id, epoch, layer, rows, experts } = action else { return };
        let (Some(executor), Some(own)) = (&mut self.executor, self.step.as_mut().filter(|own| own.id == step)) else { return };
        let mut hidden = BytesMut::with_capacity(rows.len() * self.checkpoint.architecture().hidden * size_of::<f32>());
        if let Err(error) = executor.gather(&rows, &mut hidden) {
            own.failure = Some(Failure::from(&error));
            return;
        }
        let mut weights = Vec::with_capacity(experts.len());
        own.weights_of(&rows, &mut weights);
        let head = RequestHead { id: id.0, epoch, layer, tokens: rows.len() as u32 };
        let bytes = payload(hidden.len(), experts.len());
        let frame = request_frame(head, &experts, &weights, hidden.freeze());
        self.status.traffic().count(peer, lane, Direction::Sent, bytes);
        if !self.links.request(peer, lane, Kind::Request(frame)) {
            self.links.drop_requester(peer, lane);
            self.gone.push((peer, lane));
        }
    }

    /// Adds the sums of the answer in hand to the step in flight.
    fn accept(&mut self, step: StepId, rows: &[u32], positions: Option<&[u32]>) {
        let (Some(executor), Some(own)) = (&mut self.executor, self.step.as_mut().filter(|own| own.id == step)) else { return };
        let added = match positions {
            None => executor.accumulate(rows, &self.answer),
            Some(positions) => {
                let width = self.checkpoint.architecture().hidden * size_of::<f32>();
                let mut wanted = BytesMut::with_capacity(positions.len() * width);
                for at in positions.iter().map(|at| *at as usize * width) {
                    wanted.extend_from_slice(self.answer.get(at..at + width).unwrap_or_default());
                }
                executor.accumulate(rows, &wanted)
            }
        };
        if let Err(error) = added {
            own.failure = Some(Failure::from(&error));
        }
    }

    /// Answers a peer; a connection that does not take it is closed, and says so itself.
    fn answer_client(&mut self, peer: PodId, lane: Lane, kind: Kind) {
        if !self.links.answer(peer, lane, kind) {
            self.links.close_server(peer, lane);
        }
    }

    /// Tells a peer why it is served no more and closes its connection.
    pub(super) fn drop_client(&mut self, peer: PodId, lane: Lane, reason: &str, message: &str) {
        tracing::warn!(peer = peer.0, %lane, reason, message, "a peer's connection is dropped");
        self.requests.forget_client(peer, lane);
        let refused = pb::Refused { reason: reason.to_owned(), message: message.to_owned() };
        // A connection that is gone already needs no words.
        let _ = self.links.answer(peer, lane, Kind::Refused(refused));
        self.links.close_server(peer, lane);
    }
}

/// Bytes of a request's rows: hidden states, and an expert and a weight for every place.
fn payload(hidden: usize, places: usize) -> usize {
    hidden + places * (size_of::<u16>() + size_of::<f32>())
}
