//! Rules of the exchange one by one. Actions are compared as lines: `0[2,_]` is row 0 with expert 2 at place 0 and nothing
//! at place 1; `0@3` is row 0 from row 3 of the answer.

mod asking;
mod faults;
mod serving;

use std::sync::Arc;
use std::time::Duration;

use m1_arch::{ExpertId, ExpertSet, LayerId};

use super::{Exchange, Health};
use crate::{
    Action, Beat, Config, DispatchTable, Event, Lane, Life, Micros, PodId, Pulse, RequestId, StepId, TableVersion, UNUSED,
};

const LAYERS: usize = 2;
const EXPERTS: usize = 8;
/// No expert at this place.
const NO: u16 = UNUSED;

fn set(experts: &[u16]) -> ExpertSet {
    let mut set = ExpertSet::empty(LAYERS, EXPERTS);
    for layer in 0..LAYERS as u16 {
        experts.iter().for_each(|expert| assert!(set.insert(LayerId(layer), ExpertId(*expert))));
    }
    set
}

fn table(epoch: u64, held: &[(u16, &[u16])]) -> Arc<DispatchTable> {
    let held: Vec<_> = held.iter().map(|(pod, experts)| (PodId(*pod), set(experts))).collect();
    let version = TableVersion { lease_transitions: 0, epoch };
    Arc::new(DispatchTable::new(version, LAYERS, EXPERTS, &held).unwrap())
}

/// Pod 0 of a group, with connections to the others and a clock.
struct Pod {
    exchange: Exchange,
    now: Micros,
    progress: u64,
    /// Of peers 1 to 3.
    pulses: [Pulse; 3],
}

impl Pod {
    /// Frames of 3 rows, 4 credits, requests numbered from 100; holds what the table gives it; links to peers 1 to 3.
    fn new(held: &[(u16, &[u16])]) -> Self {
        Self::with(held, |_| {})
    }

    fn with(held: &[(u16, &[u16])], change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(PodId(0), LAYERS, EXPERTS, 2, 8);
        (config.max_frame_bytes, config.credits, config.first_id) = (64 + 3 * 44, 4, 100);
        change(&mut config);
        assert_eq!(config.rows_per_frame(), 3);
        let exchange = Exchange::new(config, table(1, held)).unwrap();
        let mut pod = Pod { exchange, now: Micros(0), progress: 0, pulses: Default::default() };
        let own = held.iter().find(|(pod, _)| *pod == 0).map_or(&[][..], |(_, experts)| experts);
        pod.on(Event::Hold(Arc::new(set(own))));
        for peer in 1..4 {
            pod.on(up(peer, 4));
        }
        pod
    }

    fn on(&mut self, event: Event<'_>) -> Vec<String> {
        let mut actions = Vec::new();
        if let Event::LinkUp { peer, .. } = event
            && let Some(pulse) = usize::from(peer.0).checked_sub(1).and_then(|index| self.pulses.get_mut(index))
        {
            pulse.greeted(self.now);
        }
        self.exchange.handle(event, self.now, &mut actions);
        actions.iter().map(line).collect()
    }

    fn open(&mut self, step: u64, experts: &[u16]) -> Vec<String> {
        self.on(Event::Open { step: StepId(step), lane: Lane::Decode, layer: LayerId(1), experts })
    }

    /// A heartbeat of a peer comes and is looked at.
    fn beat(&mut self, peer: u16, progress: u64, busy: Duration) -> Vec<String> {
        self.pulses[usize::from(peer) - 1].read(Beat { progress, epoch: 1, busy }, self.now);
        self.look(peer)
    }

    /// Looks at what is known of a peer.
    fn look(&mut self, peer: u16) -> Vec<String> {
        let life = self.pulses[usize::from(peer) - 1].life(self.now).unwrap();
        self.on(Event::Life { peer: PodId(peer), life })
    }

    /// Time passes while these peers make progress; what the last tick and beat led to.
    fn wait(&mut self, millis: u64, living: &[u16]) -> Vec<String> {
        let (end, mut lines) = (self.now.after(Duration::from_millis(millis)), Vec::new());
        while self.now < end {
            self.now = self.now.after(Duration::from_millis(100)).min(end);
            self.progress += 1;
            for peer in living {
                lines.extend(self.beat(*peer, self.progress, Duration::ZERO));
            }
            (1..4).for_each(|peer| lines.extend(self.look(peer)));
            lines.extend(self.on(Event::Tick));
        }
        lines
    }

    fn request(&mut self, peer: u16, lane: Lane, id: u64, experts: &[u16]) -> Vec<String> {
        let (peer, id, rows) = (PodId(peer), RequestId(id), experts.len() / 2);
        self.on(Event::Request { peer, lane, id, epoch: 9, layer: LayerId(1), rows, experts })
    }
}

fn up(peer: u16, credits: u32) -> Event<'static> {
    Event::LinkUp { peer: PodId(peer), lane: Lane::Decode, credits }
}

fn down(peer: u16) -> Event<'static> {
    Event::LinkDown { peer: PodId(peer), lane: Lane::Decode }
}

fn answer(peer: u16, id: u64, rows: usize) -> Event<'static> {
    Event::Answer { peer: PodId(peer), lane: Lane::Decode, id: RequestId(id), rows }
}

fn not_here(peer: u16, id: u64) -> Event<'static> {
    Event::NotHere { peer: PodId(peer), lane: Lane::Decode, id: RequestId(id), epoch: 1 }
}

fn grant(peer: u16, frames: u32) -> Event<'static> {
    Event::CreditGranted { peer: PodId(peer), lane: Lane::Decode, frames }
}

fn line(action: &Action) -> String {
    match action {
        Action::Local { step, rows, experts, .. } => format!("local s{step}:{}", routing(rows, experts)),
        Action::Send { step, peer, id, epoch, rows, experts, .. } => {
            let old = if *epoch == 1 { String::new() } else { format!(" epoch {epoch}") };
            format!("send p{peer} #{id} s{step}{old}:{}", routing(rows, experts))
        }
        Action::Accept { step, id, rows, positions } => {
            let at = |i: usize| positions.as_ref().map_or(String::new(), |p| format!("@{}", p[i]));
            let rows: String = rows.iter().enumerate().map(|(i, row)| format!(" {row}{}", at(i))).collect();
            format!("accept #{id} s{step}:{rows}")
        }
        Action::Discard { id } => format!("discard #{id}"),
        Action::Complete { step } => format!("complete s{step}"),
        Action::Parked { step, missing, .. } => format!("parked s{step}: {missing:?}").replace("ExpertId", ""),
        Action::Resumed { step } => format!("resumed s{step}"),
        Action::GivenUp { step, rows, error } => format!("given up s{step} {rows:?}: {error}"),
        Action::Failed { step, error } => format!("failed s{step}: {error}"),
        Action::DropLink { peer, lane, error } => format!("drop link p{peer} {lane}: {error}"),
        Action::DropClient { peer, lane, error } => format!("drop client p{peer} {lane}: {error}"),
        Action::Grant { peer, lane, frames } => format!("grant p{peer} {lane}: {frames}"),
        Action::Reply { peer, lane, id } => format!("reply p{peer} {lane} #{id}"),
        Action::ReplyNotHere { peer, lane, id, epoch } => format!("not here p{peer} {lane} #{id} epoch {epoch}"),
        Action::Forget { peer, lane, id } => format!("forget p{peer} {lane} #{id}"),
        Action::TableRefused { given, current } => format!("refused {given}, present {current}"),
    }
}

fn routing(rows: &[u32], experts: &[u16]) -> String {
    let place = |expert: &u16| if *expert == UNUSED { "_".to_owned() } else { expert.to_string() };
    let row = |(row, experts): (&u32, &[u16])| format!(" {row}[{}]", experts.iter().map(place).collect::<Vec<_>>().join(","));
    rows.iter().zip(experts.chunks(2)).map(row).collect()
}

const NOTHING: [&str; 0] = [];
