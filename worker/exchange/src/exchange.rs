//! [`Exchange`]: the facade. It owns the two halves of dispatch, [`requester`] (own steps, asked of peers) and [`clients`]
//! (peers' requests, served here), and hands each event to the half that it concerns. It decides nothing itself.

mod assign;
mod choose;
mod clients;
mod frames;
mod links;
mod peers;
mod requester;
mod rounds;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::action::{Action, Serve};
use crate::config::{Config, ConfigError};
use crate::event::Event;
use crate::ids::{Lane, Micros, PodId};
use crate::table::DispatchTable;

use clients::{Asks, Clients};
use requester::Requester;

pub use peers::Health;

/// Expert dispatch of one pod; see the head of this crate.
#[derive(Debug)]
pub struct Exchange {
    requester: Requester,
    clients: Clients,
}

impl Exchange {
    /// An exchange without connections that holds no expert. `table` is what it goes by until a newer one comes
    /// ([`DispatchTable::empty`] before the first placement).
    pub fn new(config: Config, table: Arc<DispatchTable>) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self { clients: Clients::new(&config, table.version().epoch), requester: Requester::new(config, table) })
    }

    /// Takes one event and appends what it leads to, in the order in which it is to be carried out; among the actions of
    /// one event every `Send` comes before every `Local`. Events about pods that cannot be peers are ignored.
    pub fn handle(&mut self, event: Event<'_>, now: Micros, actions: &mut Vec<Action>) {
        let requester = &mut self.requester;
        match event {
            Event::Open { step, lane, layer, experts } => requester.open(step, lane, layer, experts, now, actions),
            Event::GiveUp { step } => requester.wait_no_longer(step, now, actions),
            Event::Abort { step } => requester.abort(step),
            Event::Unsent { peer, lane, id } => requester.unsent((peer, lane), id, now, actions),
            Event::Answer { peer, lane, id, rows } => requester.answer((peer, lane), id, rows, now, actions),
            Event::NotHere { peer, lane, id, epoch } => requester.not_here((peer, lane), id, epoch, now, actions),
            Event::PeerRefused { peer } => requester.refused(peer, now, actions),
            Event::LinkUp { peer, lane, credits } => requester.link_up((peer, lane), credits, now, actions),
            Event::LinkDown { peer, lane } => requester.link_down((peer, lane), now, actions),
            Event::CreditGranted { peer, lane, frames } => requester.granted((peer, lane), frames, now, actions),
            Event::Life { peer, life } => requester.life(peer, life, now, actions),
            Event::Table(table) => {
                requester.place(table, now, actions);
                self.clients.place(requester.epoch());
            }
            Event::Hold(held) => {
                requester.hold(held.clone(), now, actions);
                self.clients.hold(held, actions);
            }
            Event::ClientUp { peer, lane } => self.clients.up((peer, lane), actions),
            Event::ClientDown { peer, lane } => self.clients.down((peer, lane), actions),
            Event::Request { peer, lane, id, epoch: _, layer, rows, experts } => {
                self.clients.request(Asks { from: (peer, lane), id, layer, rows, experts }, actions);
            }
            Event::Served { peer, lane, id } => self.clients.served((peer, lane), id, actions),
            Event::Tick => requester.tick(now, actions),
        }
    }

    /// The peer's request to compute next: of the most urgent lane the oldest, of no lane less urgent than `least_urgent`.
    /// Every one that is returned is followed by its [`Event::Served`].
    pub fn next_request(&mut self, least_urgent: Lane) -> Option<Serve> {
        self.clients.next(least_urgent)
    }

    /// Another request of the same lane and layer as one that was just returned, the oldest there is: to be computed beside it. The same
    /// goes for it.
    pub fn next_beside(&mut self, first: &Serve) -> Option<Serve> {
        self.clients.next_beside(first)
    }

    /// What is thought of a peer as of the last event. One that was never connected is [`Health::Dead`]: it is not asked.
    pub fn health(&self, peer: PodId) -> Health {
        self.requester.health(peer)
    }

    /// Own steps whose exchange is open.
    pub fn open_steps(&self) -> usize {
        self.requester.open_steps()
    }

    /// Own request frames that no answer came to yet, of all links; those of ended steps count until answer or `LinkDown`.
    pub fn open_requests(&self) -> usize {
        self.requester.open_requests()
    }

    /// Peers' requests that wait for [`next_request`](Self::next_request).
    pub fn queued(&self) -> usize {
        self.clients.queued()
    }

    /// Whether nothing is open in either direction: no step, no request, nothing to serve. A drained pod may go then.
    pub fn is_quiet(&self) -> bool {
        self.open_steps() == 0 && self.open_requests() == 0 && self.clients.is_quiet()
    }
}
