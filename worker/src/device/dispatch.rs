//! Between connections and the exchange: what connections say becomes an event, what the exchange wants is carried out.
//! Decides nothing.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use m1_engine::{Command, Failure, StepId};
use m1_exchange::{Action, Event, Lane, PodId, RequestId};
use m1_proto::dispatch as pb;
use m1_proto::dispatch::frame::Kind;

use super::Device;
use super::own_step::{OwnStep, Sending, find, of_exchange};
use super::serving::Asked;
use crate::pulses::Known;
use crate::traffic::Direction;
use crate::transport::{Inbound, RequestFrame, RequestHead, Said, request_frame};

/// How often those who wait for a sequence that is set aside hear of it: a router that hears nothing takes its worker for stalled.
const REASSURE: Duration = Duration::from_secs(5);

/// What travels with an event, for the action that needs it.
#[derive(Debug)]
pub(super) enum Payload {
    None,
    /// Sums that a peer has answered.
    Answer(Bytes),
    /// What a peer asks for; taken where the exchange does not keep it.
    Request(Asked, RequestFrame),
    /// Sums of the request just computed.
    Sums(Bytes),
}

impl Device {
    /// Takes what a connection says; nothing of one that was replaced.
    pub(super) fn heard(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::LinkUp { peer, lane, link, credits } => {
                self.peers.forgive(peer);
                if self.links.link_up(peer, lane, link) {
                    self.link_down(peer, lane);
                }
                self.tell(Event::LinkUp { peer, lane, credits });
                self.report();
            }
            Inbound::LinkDown { peer, lane, generation } => {
                if self.links.link_down(peer, lane, generation) {
                    self.link_down(peer, lane);
                    self.report();
                }
            }
            Inbound::PeerRefused { peer, reason, message } => {
                self.peers.refused(peer, reason, message);
                self.tell(Event::PeerRefused { peer });
                self.report();
            }
            Inbound::ClientUp { peer, lane, link } => {
                if self.links.client_up(peer, lane, link) {
                    self.client_down(peer, lane);
                }
                self.tell(Event::ClientUp { peer, lane });
                self.status.set_clients(self.links.clients());
            }
            Inbound::ClientDown { peer, lane, generation } => {
                if self.links.client_down(peer, lane, generation) {
                    self.client_down(peer, lane);
                    self.status.set_clients(self.links.clients());
                }
            }
            Inbound::ClientAsks { peer, lane, generation, request } if self.links.serves(peer, lane, generation) => {
                let bytes = payload(request.hidden.len(), request.experts.len());
                self.status.traffic().count(peer, lane, Direction::Received, bytes);
                self.requested(peer, lane, request);
            }
            Inbound::LinkSays { peer, lane, generation, said } if self.links.asks(peer, lane, generation) => {
                self.link_says(peer, lane, said);
            }
            Inbound::ClientAsks { .. } | Inbound::LinkSays { .. } => {}
        }
    }

    fn link_says(&mut self, peer: PodId, lane: Lane, said: Said) {
        match said {
            Said::Answer { id, tokens, sums } => {
                self.status.traffic().count(peer, lane, Direction::Received, sums.len());
                let event = Event::Answer { peer, lane, id: RequestId(id), rows: tokens as usize };
                self.tell_with(event, Payload::Answer(sums));
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
        if self.reassured.elapsed() >= REASSURE {
            self.reassured = Instant::now();
            self.sequences.reassure();
        }
        self.report();
    }

    fn client_down(&mut self, peer: PodId, lane: Lane) {
        self.requests.forget_client(peer, lane);
        self.tell(Event::ClientDown { peer, lane });
    }

    /// What was asked on this link is asked anew, so what was not sent yet is not sent.
    pub(super) fn link_down(&mut self, peer: PodId, lane: Lane) {
        self.forget_sending(peer, lane);
        self.tell(Event::LinkDown { peer, lane });
    }

    fn forget_sending(&mut self, peer: PodId, lane: Lane) {
        let sending = self.steps.iter_mut().flat_map(|own| &mut own.sending);
        sending.filter(|sending| (sending.peer, sending.lane) == (peer, lane)).for_each(|sending| sending.stale = true);
    }

    /// Tells the exchange and carries out what it wants.
    pub(super) fn tell(&mut self, event: Event<'_>) {
        self.tell_with(event, Payload::None);
    }

    /// The same with what the event brings; comes back where no action has taken it.
    pub(super) fn tell_with(&mut self, event: Event<'_>, payload: Payload) -> Payload {
        let now = self.now();
        self.exchange.handle(event, now, &mut self.actions);
        self.carry_out(payload)
    }

    /// Carries out the actions of the last event.
    pub(super) fn carry_out(&mut self, mut payload: Payload) -> Payload {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            self.act(action, &mut payload);
        }
        self.actions = actions;
        payload
    }

    fn act(&mut self, action: Action, payload: &mut Payload) {
        match action {
            Action::Local { step, rows, experts, .. } => self.local(of_exchange(step), rows, experts),
            Action::Send { .. } => self.gather(action),
            Action::Accept { step, rows, positions, .. } => {
                if let Payload::Answer(sums) = std::mem::replace(payload, Payload::None) {
                    self.accept(of_exchange(step), rows, positions.as_deref(), sums);
                }
            }
            Action::Complete { step } => self.combine(of_exchange(step)),
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
            Action::GivenUp { step, rows, error } => self.go_on_without(of_exchange(step), &rows, &error),
            Action::DropLink { peer, lane, error } => {
                tracing::warn!(peer = peer.0, %lane, reason = error.reason(), error = %error, "a link is dropped");
                self.links.drop_link(peer, lane);
                self.forget_sending(peer, lane);
            }
            Action::DropClient { peer, lane, error } => {
                take_request(payload, |asked| (asked.0, asked.1) == (peer, lane));
                self.drop_client(peer, lane, error.reason(), &error.to_string());
            }
            Action::Grant { peer, lane, frames } => self.answer_client(peer, lane, Kind::Credit(pb::Credit { frames })),
            Action::Reply { peer, lane, id } => {
                if let Payload::Sums(sums) = std::mem::replace(payload, Payload::None) {
                    let row = self.arch.hidden * size_of::<f32>();
                    let tokens = (sums.len() / row.max(1)) as u32;
                    self.status.traffic().count(peer, lane, Direction::Sent, sums.len());
                    self.answer_client(peer, lane, Kind::Answer(pb::Answer { id: id.0, tokens, sums }));
                }
            }
            Action::ReplyNotHere { peer, lane, id, epoch } => {
                self.forget((peer, lane, id), payload);
                self.answer_client(peer, lane, Kind::NotHere(pb::NotHere { id: id.0, epoch }));
            }
            Action::Forget { peer, lane, id } => self.forget((peer, lane, id), payload),
            Action::TableRefused { given, current } => {
                tracing::warn!(%given, %current, "an older placement was not taken");
            }
            Action::Discard { .. } => {}
        }
    }

    /// The payload of a request can go: the one that came just now, the sums of the one just computed, or one that waits.
    fn forget(&mut self, asked: Asked, payload: &mut Payload) {
        let came = take_request(payload, |other| *other == asked);
        let computed = matches!(payload, Payload::Sums(_));
        if computed {
            *payload = Payload::None;
        } else if !came {
            self.requests.forget(asked);
        }
    }

    fn of_step(&mut self, step: m1_exchange::StepId, change: impl FnOnce(&mut OwnStep)) {
        if let Some(own) = find(&mut self.steps, of_exchange(step)) {
            change(own);
        }
    }

    /// Wants the rows of one request frame from the executor.
    fn gather(&mut self, action: Action) {
        let Action::Send { step, peer, lane, id, epoch, layer, rows, experts } = action else { return };
        let step = of_exchange(step);
        let Some(own) = find(&mut self.steps, step) else { return };
        let weights = own.weights_of(&rows);
        let sending = Sending { peer, lane, id, epoch, layer, rows: rows.len() as u32, experts, weights, stale: false };
        own.sending.push_back(sending);
        self.submit(Command::Gather { step, rows });
    }

    /// Sends one request frame, of which the rows have come.
    pub(super) fn send(&mut self, step: StepId, hidden: Bytes) {
        let Some(own) = find(&mut self.steps, step) else { return };
        let Some(sending) = own.sending.pop_front().filter(|sending| !sending.stale) else { return };
        let Sending { peer, lane, id, epoch, layer, rows, experts, weights, .. } = sending;
        let bytes = payload(hidden.len(), experts.len());
        let frame = request_frame(RequestHead { id: id.0, epoch, layer, tokens: rows }, &experts, &weights, hidden);
        self.status.traffic().count(peer, lane, Direction::Sent, bytes);
        if !self.links.request(peer, lane, Kind::Request(frame)) {
            self.links.drop_link(peer, lane);
            self.link_down(peer, lane);
        }
    }

    /// Adds the sums of an answer to a step in flight.
    fn accept(&mut self, step: StepId, rows: Vec<u32>, positions: Option<&[u32]>, answer: Bytes) {
        let sums = match positions {
            None => answer,
            Some(positions) => {
                let width = self.arch.hidden * size_of::<f32>();
                let mut wanted = BytesMut::with_capacity(positions.len() * width);
                for at in positions.iter().map(|at| *at as usize * width) {
                    wanted.extend_from_slice(answer.get(at..at + width).unwrap_or_default());
                }
                wanted.freeze()
            }
        };
        self.submit(Command::Accumulate { step, rows, sums });
    }

    /// Answers a peer; a connection that does not take it is closed, and says so itself.
    fn answer_client(&mut self, peer: PodId, lane: Lane, kind: Kind) {
        if !self.links.answer(peer, lane, kind) {
            self.links.close_client(peer, lane);
        }
    }

    /// Tells a peer why it is served no more and closes its connection.
    pub(super) fn drop_client(&mut self, peer: PodId, lane: Lane, reason: &str, message: &str) {
        tracing::warn!(peer = peer.0, %lane, reason, message, "a peer's connection is dropped");
        self.requests.forget_client(peer, lane);
        let refused = pb::Refused { reason: reason.to_owned(), message: message.to_owned() };
        // A connection that is gone already needs no words.
        let _ = self.links.answer(peer, lane, Kind::Refused(refused));
        self.links.close_client(peer, lane);
    }
}

/// Takes a request that has just come out of the payload.
fn take_request(payload: &mut Payload, is: impl FnOnce(&Asked) -> bool) -> bool {
    let taken = matches!(payload, Payload::Request(asked, _) if is(asked));
    if taken {
        *payload = Payload::None;
    }
    taken
}

/// Bytes of a request's rows: hidden states, and an expert and a weight for every place.
fn payload(hidden: usize, places: usize) -> usize {
    hidden + places * (size_of::<u16>() + size_of::<f32>())
}
