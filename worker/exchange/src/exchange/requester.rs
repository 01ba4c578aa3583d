//! [`Requester`]: own steps against peers' links. It owns what is asked of whom and answers the events of both; which pod
//! gets a place is decided in [`assign`](super::assign), and peers' requests to this pod are not its business.

use std::sync::Arc;

use m1_arch::{ExpertId, ExpertSet, LayerId};

use crate::action::Action;
use crate::config::Config;
use crate::error::ExchangeError;
use crate::ids::{Lane, Micros, PodId, RequestId, StepId, UNUSED};
use crate::pulse::Life;
use crate::table::{DispatchTable, PodSet, bit, pods};

use super::assign::{Assign, Extent, is_peer, take_own};
use super::frames::Frames;
use super::links::{Asking, LinkKey, Links};
use super::peers::{Health, Peers};
use super::rounds::{Round, RoundKey, Rounds, places};

/// The asking half of an exchange.
#[derive(Debug)]
pub(super) struct Requester {
    config: Config,
    held: Arc<ExpertSet>,
    table: Arc<DispatchTable>,
    peers: Peers,
    links: Links,
    rounds: Rounds,
    frames: Frames,
}

impl Requester {
    pub(super) fn new(config: Config, table: Arc<DispatchTable>) -> Self {
        Self {
            held: Arc::new(ExpertSet::empty(config.layers, config.experts)),
            table,
            peers: Peers::new(),
            links: Links::new(config.first_id),
            rounds: Rounds::default(),
            frames: Frames::new(config.rows_per_frame()),
            config,
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.table.version().epoch
    }

    pub(super) fn health(&self, peer: PodId) -> Health {
        self.peers.health(peer)
    }

    pub(super) fn open_steps(&self) -> usize {
        self.rounds.len()
    }

    pub(super) fn open_requests(&self) -> usize {
        self.links.standing().map(|key| self.links.open(key).len()).sum()
    }

    pub(super) fn open(
        &mut self,
        step: StepId,
        lane: Lane,
        layer: LayerId,
        experts: &[u16],
        now: Micros,
        actions: &mut Vec<Action>,
    ) {
        if let Some(open) = self.rounds.find(step) {
            self.rounds.close(open);
            return actions.push(Action::Failed { step, error: ExchangeError::StepOpen { step } });
        }
        if let Err(error) = check_routing(&self.config, layer, experts) {
            return actions.push(Action::Failed { step, error });
        }
        let key = self.rounds.open(step, (lane, layer), self.table.clone(), self.config.top_k, experts);
        self.assign_one(key, Extent::Whole, now, actions);
        self.settle(key, now, actions);
    }

    pub(super) fn abort(&mut self, step: StepId) {
        if let Some(key) = self.rounds.find(step) {
            self.rounds.close(key);
        }
    }

    pub(super) fn answer(&mut self, link: LinkKey, id: RequestId, rows: usize, now: Micros, actions: &mut Vec<Action>) {
        let Some(allowed) = self.asked(link, id).map(|asking| asking.rows.len()) else {
            return actions.push(Action::Discard { id });
        };
        if rows != allowed {
            actions.push(Action::Discard { id });
            return self.drop_link(link, ExchangeError::AnswerRows { id, given: rows, allowed }, now, actions);
        }
        let Some(asking) = self.links.take(link, id) else { return };
        let key = asking.round;
        self.accept(link.0, &asking, now, actions);
        let trusted = asking.alone.is_some_and(|of| self.peers.trust(link.0, of));
        self.links.recycle(asking.rows);
        if trusted {
            return self.assign_all(now, actions);
        }
        if self.rounds.get_mut(key).is_some_and(|round| round.overlapped || round.parked.is_some()) {
            self.assign_one(key, Extent::Whole, now, actions);
        }
        self.settle(key, now, actions);
    }

    pub(super) fn unsent(&mut self, link: LinkKey, id: RequestId, now: Micros, actions: &mut Vec<Action>) {
        if self.asked(link, id).is_none() {
            return;
        }
        let Some(asking) = self.links.take(link, id) else { return };
        self.release(link.0, asking);
        self.granted(link, 1, now, actions);
    }

    pub(super) fn not_here(&mut self, link: LinkKey, id: RequestId, epoch: u64, now: Micros, actions: &mut Vec<Action>) {
        if self.asked(link, id).is_none() {
            return;
        }
        let Some(asking) = self.links.take(link, id) else { return };
        self.peers.says_epoch(link.0, epoch);
        self.doubt(link.0, &asking, now);
        self.release(link.0, asking);
        self.assign_all(now, actions);
    }

    pub(super) fn refused(&mut self, peer: PodId, now: Micros, actions: &mut Vec<Action>) {
        for lane in Lane::ALL {
            self.lose((peer, lane));
        }
        self.assign_all(now, actions);
    }

    pub(super) fn link_up(&mut self, link: LinkKey, credits: u32, now: Micros, actions: &mut Vec<Action>) {
        if !is_peer(&self.config, link.0) {
            return;
        }
        self.lose(link);
        self.links.raise(link, credits);
        self.peers.greeted(link.0);
        self.assign_all(now, actions);
    }

    pub(super) fn link_down(&mut self, link: LinkKey, now: Micros, actions: &mut Vec<Action>) {
        self.lose(link);
        self.assign_all(now, actions);
    }

    pub(super) fn granted(&mut self, link: LinkKey, frames: u32, now: Micros, actions: &mut Vec<Action>) {
        if is_peer(&self.config, link.0) {
            self.links.grant(link, frames);
            self.assign(now, actions, |round| {
                let extent = if round.parked.is_some() { Extent::Whole } else { Extent::Credited };
                (round.lane == link.1 && round.starved & bit(link.0) != 0).then_some(extent)
            });
        }
    }

    pub(super) fn life(&mut self, peer: PodId, life: Life, now: Micros, actions: &mut Vec<Action>) {
        if is_peer(&self.config, peer) && self.peers.hears(&self.config, peer, life, now) {
            self.assign_all(now, actions);
        }
    }

    pub(super) fn place(&mut self, table: Arc<DispatchTable>, now: Micros, actions: &mut Vec<Action>) {
        let (given, current) = (table.version(), self.table.version());
        if given < current {
            return actions.push(Action::TableRefused { given, current });
        }
        if given > current {
            self.table = table;
            self.peers.forgive(PodSet::MAX);
            self.assign_all(now, actions);
        }
    }

    pub(super) fn hold(&mut self, held: Arc<ExpertSet>, now: Micros, actions: &mut Vec<Action>) {
        self.held = held;
        self.assign_all(now, actions);
    }

    pub(super) fn tick(&mut self, now: Micros, actions: &mut Vec<Action>) {
        for link in self.links.standing() {
            let oldest = self.links.open(link).front().filter(|asking| self.is_overdue(link.0, asking, now));
            if let Some((id, waited)) = oldest.map(|asking| (asking.id, now.since(asking.sent))) {
                let (peer, lane) = link;
                let error = ExchangeError::AnswerOverdue { peer, id, waited };
                actions.push(Action::DropLink { peer, lane, error });
                self.lose(link);
            }
            self.double(link, now);
        }
        self.give_up(actions, |round, config| round.waited(now) >= config.wait_for_expert, now);
        self.assign_all(now, actions);
    }

    pub(super) fn wait_no_longer(&mut self, step: StepId, now: Micros, actions: &mut Vec<Action>) {
        self.give_up(actions, |parked, _| parked.id == step, now);
        self.assign_all(now, actions);
    }

    /// Whether a request is taken for lost. While the server's device does something that it announced, none is.
    fn is_overdue(&self, peer: PodId, asking: &Asking, now: Micros) -> bool {
        let since = self.peers.busy_at(peer).map_or(asking.sent, |busy| asking.sent.max(busy));
        now.since(since) >= self.config.answer_within || now.since(asking.sent) >= self.config.answer_at_last
    }

    fn asked(&self, link: LinkKey, id: RequestId) -> Option<&Asking> {
        is_peer(&self.config, link.0).then(|| self.links.find(link, id)).flatten()
    }

    fn accept(&mut self, peer: PodId, asking: &Asking, now: Micros, actions: &mut Vec<Action>) {
        let id = asking.id;
        let round = self.rounds.get_mut(asking.round);
        actions.push(match round.and_then(|round| Some((round.accept(asking, peer)?, round))) {
            Some(((rows, positions), round)) => {
                round.progress(now);
                Action::Accept { step: round.id, id, rows, positions }
            }
            None => Action::Discard { id },
        });
    }

    /// Remembers what a request that was not served says about its server.
    fn doubt(&mut self, peer: PodId, asking: &Asking, now: Micros) {
        let rests_until = now.after(self.config.ask_again_after);
        if let Some(of) = asking.alone {
            return self.peers.doubt(peer, of, true, rests_until);
        }
        let Some(round) = self.rounds.get_mut(asking.round) else { return };
        let of_row = |row: u32, set: u16| places(set).map(move |place| (row, place));
        let asked = asking.rows.iter().flat_map(|asked| of_row(asked.row, asked.places));
        let mut experts: Vec<u16> = asked.map(|(row, place)| round.expert(row, place)).collect();
        experts.sort_unstable();
        experts.dedup();
        // Rows without places asked for experts that are not known any more.
        let alone = experts.len() == 1 && asking.rows.iter().all(|asked| asked.places != 0);
        let layer = round.layer;
        for expert in experts {
            self.peers.doubt(peer, (layer, expert), alone, rests_until);
        }
    }

    /// What a request asked is wanted again.
    fn release(&mut self, peer: PodId, asking: Asking) {
        if let Some(round) = self.rounds.get_mut(asking.round) {
            asking.rows.iter().for_each(|asked| round.release(peer, *asked));
        }
        self.links.recycle(asking.rows);
    }

    fn drop_link(&mut self, link: LinkKey, error: ExchangeError, now: Micros, actions: &mut Vec<Action>) {
        actions.push(Action::DropLink { peer: link.0, lane: link.1, error });
        self.lose(link);
        self.assign_all(now, actions);
    }

    /// A link is gone with all that was asked on it.
    fn lose(&mut self, link: LinkKey) {
        if is_peer(&self.config, link.0) && self.links.is_up(link) {
            for asking in self.links.take_down(link) {
                self.release(link.0, asking);
            }
        }
    }

    /// Wants of others too what a peer owes that does not answer now, or owes for long.
    fn double(&mut self, link: LinkKey, now: Micros) {
        let answers = self.peers.prompt() & bit(link.0) != 0;
        let resend_after = self.config.resend_after;
        let late = |asking: &&mut Asking| !asking.doubled && (!answers || now.since(asking.sent) >= resend_after);
        for asking in self.links.open_mut(link).iter_mut().filter(late) {
            asking.doubled = true;
            if let Some(round) = self.rounds.get_mut(asking.round) {
                asking.rows.iter().for_each(|asked| round.want_again(*asked));
            }
        }
    }

    /// Lets parked steps go on without the rows that need what is missing. Comes before a look at all steps, because what
    /// these have left is asked and settled there.
    fn give_up(&mut self, actions: &mut Vec<Action>, which: impl Fn(&Round, &Config) -> bool, now: Micros) {
        for index in 0..self.rounds.len() {
            let Some(key) = self.rounds.key(index) else { break };
            let Some(round) = self.rounds.get_mut(key).filter(|round| round.parked.is_some() && which(round, &self.config)) else {
                continue;
            };
            let (step_id, layer, waited) = (round.id, round.layer, round.waited(now));
            let (rows, experts) = round.give_up();
            let error = ExchangeError::ExpertUnavailable { layer, experts, waited };
            actions.push(Action::GivenUp { step: step_id, rows, error });
        }
    }

    /// Looks again at every step that has something to ask.
    fn assign_all(&mut self, now: Micros, actions: &mut Vec<Action>) {
        self.assign(now, actions, |round| {
            (!round.list.is_empty() || round.parked.is_some() || round.overlapped).then_some(Extent::Whole)
        });
    }

    /// Looks again at some steps, the oldest first. All sends come before all that follows from them.
    fn assign(&mut self, now: Micros, actions: &mut Vec<Action>, which: impl Fn(&Round) -> Option<Extent>) {
        for index in 0..self.rounds.len() {
            let Some(key) = self.rounds.key(index) else { break };
            if let Some(extent) = self.rounds.get_mut(key).and_then(|round| which(round)) {
                self.assign_one(key, extent, now, actions);
            }
        }
        let mut index = 0;
        while let Some(key) = self.rounds.key(index) {
            index += usize::from(!self.settle(key, now, actions));
        }
    }

    /// Asks for what a step wants. Places that this pod takes itself can make open requests worthless, which makes others
    /// wanted; that ends, because each turn accounts for places.
    fn assign_one(&mut self, key: RoundKey, mut extent: Extent, now: Micros, actions: &mut Vec<Action>) {
        let Some(round) = self.rounds.get_mut(key) else { return };
        let (config, held, newest) = (&self.config, &self.held, &self.table);
        loop {
            if std::mem::take(&mut round.overlapped) {
                void(round, key, &mut self.links);
            }
            let (peers, links, frames) = (&mut self.peers, &mut self.links, &mut self.frames);
            Assign { config, held, newest, peers, links, frames, now, actions }.pass(round, key, extent);
            if !round.overlapped {
                return;
            }
            extent = Extent::Whole;
        }
    }

    /// Says what became of a step: own rows, parked or resumed, complete. True: it has ended.
    fn settle(&mut self, key: RoundKey, now: Micros, actions: &mut Vec<Action>) -> bool {
        let Some(round) = self.rounds.get_mut(key) else { return true };
        let (id, layer) = (round.id, round.layer);
        if let Some((rows, experts)) = take_own(round) {
            round.progress(now);
            actions.push(Action::Local { step: id, layer, rows, experts });
        }
        if round.missing.is_empty() {
            if round.resume(now) {
                actions.push(Action::Resumed { step: id });
            }
        } else if round.parked.replace(round.parked.unwrap_or(now)).is_none() {
            let missing = round.missing.iter().map(|expert| ExpertId(*expert)).collect();
            actions.push(Action::Parked { step: id, layer, missing });
        }
        let done = round.is_done();
        if done {
            actions.push(Action::Complete { step: id });
            self.rounds.close(key);
        }
        done
    }
}

/// Places came otherwise than by these requests: their sums are worthless for those rows, and what else they were to bring
/// for them is wanted again.
fn void(round: &mut Round, key: RoundKey, links: &mut Links) {
    for pod in pods(links.up(round.lane)) {
        for asking in links.open_mut((pod, round.lane)).iter_mut().filter(|asking| asking.round == key) {
            for asked in &mut asking.rows {
                if asked.places & !round.row(asked.row).left != 0 {
                    round.release(pod, *asked);
                    asked.places = 0;
                }
            }
        }
    }
}

fn check_routing(config: &Config, layer: LayerId, experts: &[u16]) -> Result<(), ExchangeError> {
    let top_k = config.top_k;
    if !experts.len().is_multiple_of(top_k) {
        return Err(ExchangeError::Places { given: experts.len(), rows: experts.len().div_ceil(top_k), top_k });
    }
    check_numbers(config, layer, experts)
}

/// Layer and experts are of the model.
pub(super) fn check_numbers(config: &Config, layer: LayerId, experts: &[u16]) -> Result<(), ExchangeError> {
    let range = |field, given, count: usize| ExchangeError::Range { field, given, low: 0, high: count - 1 };
    if layer.index() >= config.layers {
        return Err(range("layer", layer.index(), config.layers));
    }
    match experts.iter().find(|expert| **expert != UNUSED && usize::from(**expert) >= config.experts) {
        Some(expert) => Err(range("expert", usize::from(*expert), config.experts)),
        None => Ok(()),
    }
}
