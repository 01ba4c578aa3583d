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
use super::steps::{Step, StepKey, Steps, places};

/// The asking half of an exchange.
#[derive(Debug)]
pub(super) struct Requester {
    config: Config,
    held: Arc<ExpertSet>,
    table: Arc<DispatchTable>,
    peers: Peers,
    links: Links,
    steps: Steps,
    frames: Frames,
}

impl Requester {
    pub(super) fn new(config: Config, table: Arc<DispatchTable>) -> Self {
        Self {
            held: Arc::new(ExpertSet::empty(config.layers, config.experts)),
            table,
            peers: Peers::new(),
            links: Links::new(config.first_id),
            steps: Steps::default(),
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
        self.steps.len()
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
        if let Some(open) = self.steps.find(step) {
            self.steps.close(open);
            return actions.push(Action::Failed { step, error: ExchangeError::StepOpen { step } });
        }
        if let Err(error) = check_routing(&self.config, layer, experts) {
            return actions.push(Action::Failed { step, error });
        }
        let key = self.steps.open(step, (lane, layer), self.table.clone(), self.config.top_k, experts);
        self.assign_one(key, Extent::Whole, now, actions);
        self.settle(key, now, actions);
    }

    pub(super) fn abort(&mut self, step: StepId) {
        if let Some(key) = self.steps.find(step) {
            self.steps.close(key);
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
        let key = asking.step;
        self.accept(link.0, &asking, now, actions);
        let trusted = asking.alone.is_some_and(|of| self.peers.trust(link.0, of));
        self.links.recycle(asking.rows);
        if trusted {
            return self.assign_all(now, actions);
        }
        if self.steps.get_mut(key).is_some_and(|step| step.overlapped || step.parked.is_some()) {
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
            self.assign(now, actions, |step| {
                let extent = if step.parked.is_some() { Extent::Whole } else { Extent::Credited };
                (step.lane == link.1 && step.starved & bit(link.0) != 0).then_some(extent)
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
        self.give_up(actions, |step, config| step.waited(now) >= config.wait_for_expert, now);
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
        let step = self.steps.get_mut(asking.step);
        actions.push(match step.and_then(|step| Some((step.accept(asking, peer)?, step))) {
            Some(((rows, positions), step)) => {
                step.progress(now);
                Action::Accept { step: step.id, id, rows, positions }
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
        let Some(step) = self.steps.get_mut(asking.step) else { return };
        let of_row = |row: u32, set: u16| places(set).map(move |place| (row, place));
        let asked = asking.rows.iter().flat_map(|asked| of_row(asked.row, asked.places));
        let mut experts: Vec<u16> = asked.map(|(row, place)| step.expert(row, place)).collect();
        experts.sort_unstable();
        experts.dedup();
        // Rows without places asked for experts that are not known any more.
        let alone = experts.len() == 1 && asking.rows.iter().all(|asked| asked.places != 0);
        let layer = step.layer;
        for expert in experts {
            self.peers.doubt(peer, (layer, expert), alone, rests_until);
        }
    }

    /// What a request asked is wanted again.
    fn release(&mut self, peer: PodId, asking: Asking) {
        if let Some(step) = self.steps.get_mut(asking.step) {
            asking.rows.iter().for_each(|asked| step.release(peer, *asked));
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
            if let Some(step) = self.steps.get_mut(asking.step) {
                asking.rows.iter().for_each(|asked| step.want_again(*asked));
            }
        }
    }

    /// Lets parked steps go on without the rows that need what is missing. Comes before a look at all steps, because what
    /// these have left is asked and settled there.
    fn give_up(&mut self, actions: &mut Vec<Action>, which: impl Fn(&Step, &Config) -> bool, now: Micros) {
        for index in 0..self.steps.len() {
            let Some(key) = self.steps.key(index) else { break };
            let Some(step) = self.steps.get_mut(key).filter(|step| step.parked.is_some() && which(step, &self.config)) else {
                continue;
            };
            let (step_id, layer, waited) = (step.id, step.layer, step.waited(now));
            let (rows, experts) = step.give_up();
            let error = ExchangeError::ExpertUnavailable { layer, experts, waited };
            actions.push(Action::GivenUp { step: step_id, rows, error });
        }
    }

    /// Looks again at every step that has something to ask.
    fn assign_all(&mut self, now: Micros, actions: &mut Vec<Action>) {
        self.assign(now, actions, |step| {
            (!step.list.is_empty() || step.parked.is_some() || step.overlapped).then_some(Extent::Whole)
        });
    }

    /// Looks again at some steps, the oldest first. All sends come before all that follows from them.
    fn assign(&mut self, now: Micros, actions: &mut Vec<Action>, which: impl Fn(&Step) -> Option<Extent>) {
        for index in 0..self.steps.len() {
            let Some(key) = self.steps.key(index) else { break };
            if let Some(extent) = self.steps.get_mut(key).and_then(|step| which(step)) {
                self.assign_one(key, extent, now, actions);
            }
        }
        let mut index = 0;
        while let Some(key) = self.steps.key(index) {
            index += usize::from(!self.settle(key, now, actions));
        }
    }

    /// Asks for what a step wants. Places that this pod takes itself can make open requests worthless, which makes others
    /// wanted; that ends, because each turn accounts for places.
    fn assign_one(&mut self, key: StepKey, mut extent: Extent, now: Micros, actions: &mut Vec<Action>) {
        let Some(step) = self.steps.get_mut(key) else { return };
        let (config, held, newest) = (&self.config, &self.held, &self.table);
        loop {
            if std::mem::take(&mut step.overlapped) {
                void(step, key, &mut self.links);
            }
            let (peers, links, frames) = (&mut self.peers, &mut self.links, &mut self.frames);
            Assign { config, held, newest, peers, links, frames, now, actions }.pass(step, key, extent);
            if !step.overlapped {
                return;
            }
            extent = Extent::Whole;
        }
    }

    /// Says what became of a step: own rows, parked or resumed, complete. True: it has ended.
    fn settle(&mut self, key: StepKey, now: Micros, actions: &mut Vec<Action>) -> bool {
        let Some(step) = self.steps.get_mut(key) else { return true };
        let (id, layer) = (step.id, step.layer);
        if let Some((rows, experts)) = take_own(step) {
            step.progress(now);
            actions.push(Action::Local { step: id, layer, rows, experts });
        }
        if step.missing.is_empty() {
            if step.resume(now) {
                actions.push(Action::Resumed { step: id });
            }
        } else if step.parked.replace(step.parked.unwrap_or(now)).is_none() {
            let missing = step.missing.iter().map(|expert| ExpertId(*expert)).collect();
            actions.push(Action::Parked { step: id, layer, missing });
        }
        let done = step.is_done();
        if done {
            actions.push(Action::Complete { step: id });
            self.steps.close(key);
        }
        done
    }
}

/// Places came otherwise than by these requests: their sums are worthless for those rows, and what else they were to bring
/// for them is wanted again.
fn void(step: &mut Step, key: StepKey, links: &mut Links) {
    for pod in pods(links.up(step.lane)) {
        for asking in links.open_mut((pod, step.lane)).iter_mut().filter(|asking| asking.step == key) {
            for asked in &mut asking.rows {
                if asked.places & !step.row(asked.row).left != 0 {
                    step.release(pod, *asked);
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
