//! Replica choice: `f(candidates, request, turn, rng) -> Decision`. A sequence may run on any ready pod of good standing that has the slot and the KV for it; the
//! least loaded one takes it, ties are drawn. A pod that is due to be tried goes before, one in doubt after.

mod candidate;

use std::time::Duration;

use crate::rng::Rng;
use crate::standing::Standing;
use crate::topology::Revision;
use crate::worker::WorkerId;

pub use candidate::{Candidate, Share};

/// Workers that may touch a request: beyond this the request itself is the likely cause, and it must not visit all.
pub const MOST_WORKERS: usize = 2;

/// What the choice needs to know of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Workers that have failed it; [`crate::Balancer::report`] adds them.
    pub avoid: Vec<WorkerId>,
    /// When the last of them did.
    pub failed_at: Duration,
    /// Workers that had no room for it, and until when it does not ask them again.
    pub refused: Vec<(WorkerId, Duration)>,
    /// Where its first attempt went; later ones stay there.
    pub revision: Option<Revision>,
    /// Tokens that it may come to: prompt and all output. They must fit a worker's window.
    pub tokens: u32,
    /// Tokens whose KV it needs to begin: what is given, and one to say. It takes more as it grows. 0 where it takes no KV.
    pub begins_with: u32,
    /// It has time: in the queue it lets others pass, some times.
    pub batch: bool,
}

impl Request {
    /// One that nobody has tried yet, which needs the KV of all its tokens at once.
    pub fn new(tokens: u32) -> Self {
        Self { tokens, begins_with: tokens, ..Self::default() }
    }

    /// The same of which so many tokens are given, and the rest comes one by one.
    pub fn growing(tokens: u32, given: u32) -> Self {
        Self { begins_with: tokens.min(given.saturating_add(1)), ..Self::new(tokens) }
    }

    /// A worker has no room for it.
    pub fn refused_by(&mut self, worker: WorkerId, until: Duration) {
        self.refused.retain(|(other, _)| *other != worker);
        self.refused.push((worker, until));
    }

    /// Whether a worker may be asked.
    fn may_ask(&self, worker: WorkerId, now: Duration) -> bool {
        !self.refused.iter().any(|(other, until)| *other == worker && *until > now)
    }

    /// Whether a worker has failed it.
    pub fn is_retry(&self) -> bool {
        !self.avoid.is_empty()
    }
}

/// What to do with a request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Send it there.
    Send(WorkerId),
    /// Keep it until a worker has room; what becomes free on this one is for it alone, so that smaller ones cannot keep it out for ever.
    Wait(Option<WorkerId>),
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
    /// The worker was out for failing, and this request tries it.
    Trial,
    /// It waits in the worker, whose queue all routers share.
    WaitsThere,
    /// Ready workers are all full, or too full for it.
    AllFull,
    /// No worker is ready.
    NoneReady,
    /// None is ready now, but one was a moment ago.
    ComesBack,
    /// It needs more tokens than any ready worker can ever hold.
    TooLarge,
    /// All workers that may have tried this request have failed it.
    AllFailed,
    /// A worker failed it, and there have been too many retries to try another one.
    NoRetries,
    /// The queue is full.
    QueueFull,
}

/// A choice and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub choice: Choice,
    /// Why.
    pub reason: Reason,
}

impl Decision {
    fn refuse(reason: Reason) -> Self {
        Self { choice: Choice::Refuse, reason }
    }
}

/// What the choice needs to know of the queue and the time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn<'a> {
    /// Workers whose room is for requests that came earlier.
    pub kept: &'a [WorkerId],
    /// The worker that was kept for this request before.
    pub keeps: Option<WorkerId>,
    /// How long it has waited.
    pub waited: Duration,
    /// Since the router started.
    pub now: Duration,
}

/// A retry that could only go to workers of which nothing is known waits so long for others' attempts to tell: where most workers fail at once, they all
/// have by then. Short beside a first token.
const SETTLES: Duration = Duration::from_millis(50);

/// A request that has waited so long for the KV of a worker which other routers use too goes to wait in that worker, one of each router at a time: they
/// know nothing of what is kept here, and their smaller ones would take what becomes free for ever. Ten statuses long, so that it is not for want of news.
const HANDED_OVER: Duration = Duration::from_secs(2);

/// Chooses among the workers that are ready.
pub fn choose(candidates: &[Candidate], request: &Request, turn: Turn<'_>, rng: &mut Rng) -> Decision {
    if candidates.is_empty() {
        return Decision::refuse(Reason::NoneReady);
    }
    let able: Vec<&Candidate> = candidates.iter().filter(|c| c.can_hold(request)).collect();
    if able.is_empty() {
        return Decision::refuse(Reason::TooLarge);
    }
    let fit: Vec<&Candidate> = able.into_iter().filter(|c| !request.avoid.contains(&c.worker)).collect();
    if fit.is_empty() || request.avoid.len() >= MOST_WORKERS {
        return Decision::refuse(Reason::AllFailed);
    }
    let tiers = Tiers::of(&fit, request, turn.now);
    let open = |c: &&Candidate| !turn.kept.contains(&c.worker);
    for tier in tiers.sending() {
        let free =
            fit.iter().copied().filter(open).filter(|c| tier(c) && c.has_room(request) && request.may_ask(c.worker, turn.now));
        let free: Vec<&Candidate> = free.collect();
        if let Some(decision) = least_loaded(&free, request, rng) {
            return decision;
        }
    }
    let usable = fit.iter().copied().filter(open).filter(|c| tiers.waiting()(c));
    match keep(usable, request, turn.keeps) {
        Some(kept) if turn.waited >= HANDED_OVER && kept.may_queue() && request.may_ask(kept.worker, turn.now) => {
            Decision { choice: Choice::Send(kept.worker), reason: Reason::WaitsThere }
        }
        kept => Decision { choice: Choice::Wait(kept.map(|c| c.worker)), reason: Reason::AllFull },
    }
}

type Tier = fn(&Candidate) -> bool;

/// Which workers a request may have, best first.
struct Tiers {
    retry: bool,
    /// A retry that has just failed elsewhere.
    hot: bool,
    best: Standing,
}

impl Tiers {
    fn of(fit: &[&Candidate], request: &Request, now: Duration) -> Self {
        let any = |standing| fit.iter().any(|c| c.standing == standing);
        let best = [Standing::Good, Standing::Doubted].into_iter().find(|standing| any(*standing)).unwrap_or(Standing::Out);
        Self { retry: request.is_retry(), hot: now < request.failed_at + SETTLES, best }
    }

    /// A first attempt tries who is due, because another worker can still serve it; a retry goes where the last request went well, and waits for a good
    /// worker rather than spend its last attempt on a doubted one. Where nobody is good the doubted ones are as any, and where nobody is in the ones that
    /// are out.
    fn sending(&self) -> &'static [Tier] {
        match (self.best, self.retry) {
            (Standing::Good, false) => &[is_due, is_good, is_probe],
            (Standing::Good, true) if self.hot => &[is_proven],
            (Standing::Good, true) => &[is_proven, is_good],
            (Standing::Doubted, false) => &[is_due, is_doubted],
            (Standing::Doubted, true) => &[is_doubted, is_due],
            (Standing::Due | Standing::Out, _) => &[is_due, is_any],
        }
    }

    /// Whose room a request waits for.
    fn waiting(&self) -> Tier {
        match self.best {
            Standing::Good => is_good,
            Standing::Doubted => is_doubted,
            Standing::Due | Standing::Out => is_any,
        }
    }
}

fn is_due(c: &Candidate) -> bool {
    c.standing == Standing::Due
}

fn is_good(c: &Candidate) -> bool {
    c.standing == Standing::Good
}

fn is_proven(c: &Candidate) -> bool {
    is_good(c) && c.proven
}

fn is_doubted(c: &Candidate) -> bool {
    c.standing == Standing::Doubted
}

fn is_probe(c: &Candidate) -> bool {
    is_doubted(c) && !c.hushed
}

fn is_any(_: &Candidate) -> bool {
    true
}

fn least_loaded(free: &[&Candidate], request: &Request, rng: &mut Rng) -> Option<Decision> {
    let least = free.iter().map(|c| c.load_with(request)).min_by(f64::total_cmp)?;
    let best: Vec<&&Candidate> = free.iter().filter(|c| c.load_with(request) <= least).collect();
    let chosen = best.get(rng.below(best.len()))?;
    let reason = match (chosen.standing, free.len(), best.len()) {
        (Standing::Due | Standing::Out, ..) => Reason::Trial,
        (_, 1, _) => Reason::OnlyOne,
        (_, _, 1) => Reason::LeastLoaded,
        _ => Reason::Drawn,
    };
    Some(Decision { choice: Choice::Send(chosen.worker), reason })
}

/// The worker to keep for a request that waits: the same as before, else the one that is nearest to having room. Whoever comes later makes no worker that
/// is kept any fuller, so it empties.
fn keep<'a>(usable: impl Iterator<Item = &'a Candidate>, request: &Request, before: Option<WorkerId>) -> Option<&'a Candidate> {
    let usable: Vec<&Candidate> = usable.collect();
    let same = usable.iter().find(|c| Some(c.worker) == before);
    let nearest = || usable.iter().min_by(|a, b| a.load_with(request).total_cmp(&b.load_with(request)));
    same.or_else(nearest).copied()
}

#[cfg(test)]
mod tests;
