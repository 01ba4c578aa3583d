//! Replica choice: `f(candidates, request, rng) -> Decision`. A sequence may run on any ready pod; the least loaded one takes it, ties are drawn.

use crate::rng::Rng;
use crate::topology::Revision;
use crate::worker::WorkerId;

/// What the choice needs to know of one reachable, ready worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub worker: WorkerId,
    /// Sequences this router has there now.
    pub inflight: u32,
    /// Sequences the worker last said it has, of whichever router.
    pub reported: u32,
    /// Sequences it can hold; 0 where it does not say.
    pub slots: u32,
    /// It has just refused a sequence.
    pub refusing: bool,
}

impl Candidate {
    fn has_room(&self) -> bool {
        !self.refusing && (self.slots == 0 || self.inflight < self.slots)
    }

    fn load(&self) -> f64 {
        f64::from(self.inflight.max(self.reported)) / f64::from(self.slots.max(1))
    }
}

/// What the choice needs to know of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Workers that have failed it.
    pub avoid: Vec<WorkerId>,
    /// Where its first attempt went; later ones stay there.
    pub revision: Option<Revision>,
}

impl Request {
    /// Whether some worker that has room may be no use to it.
    pub fn is_bound(&self) -> bool {
        !self.avoid.is_empty() || self.revision.is_some()
    }
}

/// What to do with a request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Send it there.
    Send(WorkerId),
    /// Keep it until a worker has room.
    Wait,
    /// Nobody can serve it.
    Refuse,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// One worker has room.
    OnlyOne,
    /// It has the least load.
    LeastLoaded,
    /// Several have the least load; one was drawn.
    Drawn,
    /// Ready workers are all full.
    AllFull,
    /// No worker is ready.
    NoneReady,
    /// Ready workers have all failed this request.
    AllFailed,
    /// The queue is full.
    QueueFull,
}

impl Reason {
    /// The word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnlyOne => "only_one",
            Self::LeastLoaded => "least_loaded",
            Self::Drawn => "drawn",
            Self::AllFull => "all_full",
            Self::NoneReady => "none_ready",
            Self::AllFailed => "all_failed",
            Self::QueueFull => "queue_full",
        }
    }
}

/// A choice and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub choice: Choice,
    /// Why.
    pub reason: Reason,
}

/// Chooses among the workers that are ready.
pub fn choose(candidates: &[Candidate], request: &Request, rng: &mut Rng) -> Decision {
    if candidates.is_empty() {
        return Decision { choice: Choice::Refuse, reason: Reason::NoneReady };
    }
    let fit: Vec<&Candidate> = candidates.iter().filter(|c| !request.avoid.contains(&c.worker)).collect();
    if fit.is_empty() {
        return Decision { choice: Choice::Refuse, reason: Reason::AllFailed };
    }
    let free: Vec<&Candidate> = fit.into_iter().filter(|c| c.has_room()).collect();
    let Some(least) = free.iter().map(|c| c.load()).min_by(f64::total_cmp) else {
        return Decision { choice: Choice::Wait, reason: Reason::AllFull };
    };
    let best: Vec<WorkerId> = free.iter().filter(|c| c.load() <= least).map(|c| c.worker).collect();
    let reason = match (free.len(), best.len()) {
        (1, _) => Reason::OnlyOne,
        (_, 1) => Reason::LeastLoaded,
        _ => Reason::Drawn,
    };
    match best.get(rng.below(best.len())) {
        Some(worker) => Decision { choice: Choice::Send(*worker), reason },
        None => Decision { choice: Choice::Wait, reason: Reason::AllFull },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(worker: u64, inflight: u32, reported: u32, slots: u32) -> Candidate {
        Candidate { worker: WorkerId(worker), inflight, reported, slots, refusing: false }
    }

    fn decide(candidates: &[Candidate], avoid: &[u64]) -> (Choice, Reason) {
        let request = Request { avoid: avoid.iter().map(|id| WorkerId(*id)).collect(), revision: None };
        let decision = choose(candidates, &request, &mut Rng::new(3));
        (decision.choice, decision.reason)
    }

    #[test]
    fn the_least_loaded_worker_takes_it() {
        let two = [candidate(0, 2, 0, 8), candidate(1, 1, 0, 8)];
        assert_eq!(decide(&two, &[]), (Choice::Send(WorkerId(1)), Reason::LeastLoaded));
        assert_eq!(decide(&two, &[1]), (Choice::Send(WorkerId(0)), Reason::OnlyOne));
        assert_eq!(decide(&two, &[0, 1]), (Choice::Refuse, Reason::AllFailed));
    }

    #[test]
    fn load_is_a_share_of_the_slots_and_counts_other_routers() {
        let uneven = [candidate(0, 2, 0, 4), candidate(1, 3, 0, 16)];
        assert_eq!(decide(&uneven, &[]).0, Choice::Send(WorkerId(1)));
        let foreign = [candidate(0, 0, 5, 8), candidate(1, 1, 1, 8)];
        assert_eq!(decide(&foreign, &[]).0, Choice::Send(WorkerId(1)));
    }

    #[test]
    fn full_or_refusing_workers_make_it_wait() {
        assert_eq!(decide(&[candidate(0, 2, 2, 2)], &[]), (Choice::Wait, Reason::AllFull));
        let refusing = Candidate { refusing: true, ..candidate(0, 0, 0, 2) };
        assert_eq!(decide(&[refusing], &[]), (Choice::Wait, Reason::AllFull));
        assert_eq!(decide(&[], &[]), (Choice::Refuse, Reason::NoneReady));
    }

    #[test]
    fn ties_are_spread() {
        let three = [candidate(0, 1, 0, 4), candidate(1, 1, 0, 4), candidate(2, 1, 0, 4)];
        let mut rng = Rng::new(11);
        let mut seen = [0u32; 3];
        for _ in 0..300 {
            let decision = choose(&three, &Request::default(), &mut rng);
            assert_eq!(decision.reason, Reason::Drawn);
            if let Choice::Send(worker) = decision.choice {
                seen[usize::try_from(worker.0).unwrap()] += 1;
            }
        }
        assert!(seen.iter().all(|n| *n > 60), "{seen:?}");
    }
}
