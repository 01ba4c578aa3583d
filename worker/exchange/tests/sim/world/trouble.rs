//! What goes wrong, and how it heals.

use m1_exchange::PodId;

use super::{MILLI, Next, SETTLE, World};
use crate::sim::Profile;
use crate::sim::pod::Inbound;

impl World {
    pub(super) fn trouble(&mut self) {
        if self.healed_at.is_some() {
            return;
        }
        let pod = PodId(self.rng.index(self.slots.len()) as u16);
        let paths = self.paths(|_| true);
        let path = self.rng.one_of(&paths);
        let now = self.now;
        let trouble = match self.profile {
            Profile::Stalls => self.rng.index(4),
            Profile::Announced => 0,
            Profile::Calm | Profile::Storm => self.rng.within(1..9) as usize,
        };
        match trouble {
            0 | 1 => self.stall(pod),
            2 => {
                let until = now + self.rng.within(100..1500) * MILLI;
                self.connections.entry(path).and_modify(|connection| connection.stalled_until = until);
            }
            3 => self.cut(path),
            4 => {
                let until = now + self.rng.within(100..1500) * MILLI;
                for path in self.paths(|path| path.requester == pod || path.server == pod) {
                    self.connections.entry(path).and_modify(|connection| connection.cut_until = until);
                    self.cut(path);
                }
            }
            5 => self.crash(pod),
            6 | 7 => {
                self.placement = self.draw_placement();
                self.place();
            }
            _ => {
                // A table of a writer that lost its lease comes late.
                let table = self.rng.index(self.tables.len());
                self.tell(pod, Inbound::Table(self.tables[table].clone()));
            }
        }
        let after = self.rng.within(20..400) * MILLI;
        self.plan(after, Next::Trouble);
    }

    pub(super) fn stall(&mut self, id: PodId) {
        let (until, life) = (self.now + self.rng.within(100..2000) * MILLI, self.slots[id.index()].life);
        let announced = self.profile == Profile::Announced || self.rng.percent(30);
        if let Some(pod) = self.pod(id, life) {
            let until = until.max(pod.stalled_until);
            if announced {
                // An announcement is progress, and what was announced before it ends with it.
                pod.progress += 1;
                pod.announced_until = until;
            }
            pod.stalled_until = until;
            self.plan(until - self.now, Next::Turn { pod: id, life });
        }
    }

    pub(super) fn heal(&mut self) {
        self.healed_at = Some(self.now);
        self.connections.values_mut().for_each(|connection| (connection.stalled_until, connection.cut_until) = (0, 0));
        for pod in self.pods() {
            self.restart(pod);
            let life = self.slots[pod.index()].life;
            // Who said how long it will be is not interrupted.
            if let Some(pod) = self.pod(pod, life).filter(|pod| pod.announced_until == 0) {
                pod.stalled_until = 0;
            }
            self.turn(pod, life);
        }
        self.place();
        self.plan(SETTLE, Next::LastRound);
    }
}
