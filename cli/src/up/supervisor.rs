//! Keeps a group and its router alive: restarts within the budget, says what a loss takes away, tells when all is well.

use std::io::Write;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use m1_operator_api::Worker;
use tokio::time::Instant;

use super::restarts::Restarts;
use super::router;
use super::state::StateFile;
use crate::error::Failure;
use crate::local::logs::LineSink;
use crate::local::process::{Exit, Launch, Member, Process};
use crate::local::{Event, LocalError, LocalPlan, Workers, at, placement, stop_all};
use crate::output::Console;
use crate::progress::Loading;

/// A router that is not ready this long after all workers serve never will be: it looks at them many times a second.
const ROUTER_PATIENCE: Duration = Duration::from_secs(60);

/// How much is done for a process before it is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Care {
    /// Restarts within `window`.
    pub restarts: u32,
    /// See `restarts`.
    pub window: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub drain: Duration,
}

impl Care {
    /// As spec.worker says.
    pub fn of(worker: &Worker) -> Self {
        let budget = &worker.restart_budget;
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        Self { restarts: budget.restarts, window: seconds(budget.window_seconds), drain: seconds(worker.drain_seconds) }
    }
}

/// One process's restarts, and when the next one is due.
#[derive(Debug)]
struct Life {
    restarts: Restarts,
    due: Option<Instant>,
    lost: bool,
}

/// A running local deployment.
#[derive(Debug)]
pub struct Supervisor {
    workers: Workers,
    lives: Vec<Life>,
    launch: Launch,
    router: Option<Process>,
    router_life: Life,
    listen: SocketAddr,
    /// Whether the router has said once that a group serves.
    announced: bool,
    /// Since when all workers serve and the router does not say so.
    late: Option<Instant>,
    state: Option<StateFile>,
    loading: Loading,
    console: Console,
}

impl Supervisor {
    /// Starts everything and shows what runs where.
    ///
    /// # Errors
    /// A process does not start; those that did are killed.
    pub fn start(
        care: &Care,
        plan: LocalPlan,
        (launch, listen): (Launch, SocketAddr),
        state: Option<StateFile>,
        console: Console,
    ) -> Result<Self, Failure> {
        let life = || Life { restarts: Restarts::new(care.restarts, care.window), due: None, lost: false };
        let lives = plan.pods.iter().map(|_| life()).collect();
        let loading = Loading::new(Some(&console), plan.names());
        let workers = Workers::start(plan, Some(console.clone()))?;
        let (router, announced, late) = (None, false, None);
        let router_life = life();
        let mut supervisor = Self { workers, lives, launch, router, router_life, listen, announced, late, state, loading, console };
        supervisor.start_router()?;
        supervisor.show()?;
        Ok(supervisor)
    }

    /// Supervises until something fails for good.
    pub async fn run(&mut self) -> Failure {
        let said = Mutex::new(String::new());
        let mut ready = pin!(router::ready(self.listen, &said));
        loop {
            let (due, stuck, late) = (self.next_due(), self.workers.gives_up_at(), self.late.map(|late| late + ROUTER_PATIENCE));
            let step = tokio::select! {
                () = &mut ready, if !self.announced => {
                    (self.announced, self.late) = (true, None);
                    self.announce();
                    Ok(())
                }
                () = at(due) => self.restart_due(Instant::now()),
                () = at(stuck) => self.give_up(),
                () = at(late) => {
                    let words = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let name = self.workers.name(Member::Router).to_owned();
                    Err(LocalError::Stuck { name, why: words, seconds: ROUTER_PATIENCE.as_secs() }.into())
                }
                event = self.workers.next() => match event {
                    Ok(event) => self.take(event),
                    Err(error) => Err(error.into()),
                },
            };
            if let Err(failure) = step {
                return failure;
            }
            self.late = self.late.or(Some(Instant::now())).filter(|_| !self.announced && self.workers.all_ready());
        }
    }

    /// Nothing moves any more. Before anything was served that is the end; afterwards others may still serve, and the one that holds them up begins anew.
    fn give_up(&mut self) -> Result<(), Failure> {
        match self.workers.stuck() {
            Some((_, error)) if !self.announced => Err(error.into()),
            Some((seat, error)) => {
                self.console.say(format_args!("{error}: it is killed"));
                self.workers.kill(seat);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Ends the router, which lets its requests end, then the workers.
    pub async fn stop(self, grace: Duration, hurry: impl Future) {
        self.loading_done();
        let mut hurry = pin!(hurry);
        let mut hurried = false;
        let note = async {
            hurry.as_mut().await;
            hurried = true;
        };
        stop_all(self.router.into_iter().collect(), grace, note).await;
        let grace = if hurried { Duration::ZERO } else { grace };
        self.workers
            .stop(grace, async {
                if !hurried {
                    let _ = hurry.await;
                }
            })
            .await;
    }

    fn loading_done(&self) {
        self.console.bars().clear().ok();
    }

    fn announce(&mut self) {
        self.loading.finish();
        // Whoever started m1ctl may wait for this line, or may have gone away.
        let mut stdout = std::io::stdout().lock();
        let _ = writeln!(stdout, "ready http://{}", self.listen).and_then(|()| stdout.flush());
    }

    fn take(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Exited { member: Member::Worker(seat), exit } => self.worker_died(seat, &exit),
            Event::Exited { member: Member::Router, exit } => self.router_died(&exit),
            Event::Status { seat, status } => {
                self.loading.update(seat, &status);
                self.say_recovery(seat);
                Ok(())
            }
            Event::Unheard { seat, why, stranger } => {
                if stranger {
                    let name = self.workers.name(Member::Worker(seat));
                    self.console.say(format_args!("{name} is not there: {why}; trying again"));
                }
                Ok(())
            }
            Event::Pushed { .. } => Ok(()),
        }
    }

    fn worker_died(&mut self, seat: usize, exit: &Exit) -> Result<(), Failure> {
        self.loading.lost(seat);
        let name = self.workers.name(Member::Worker(seat));
        let life = &mut self.lives[seat];
        life.lost = true;
        let pause = next_life(life, name, exit)?;
        let away = format!("experts away: {}", self.away(seat));
        self.say_death(Member::Worker(seat), exit, &away, pause);
        Ok(())
    }

    fn router_died(&mut self, exit: &Exit) -> Result<(), Failure> {
        self.router = None;
        let pause = next_life(&mut self.router_life, self.workers.name(Member::Router), exit)?;
        self.say_death(Member::Router, exit, &format!("nobody answers on {}", self.listen), pause);
        Ok(())
    }

    fn say_death(&self, member: Member, exit: &Exit, loss: &str, pause: Duration) {
        let restarts = match member {
            Member::Worker(seat) => &self.lives[seat].restarts,
            Member::Router => &self.router_life.restarts,
        };
        self.console.say(format_args!(
            "{} {}; {loss}; restart {} of {} in {} ms; its last line: {}",
            self.workers.name(member),
            exit.how,
            restarts.used(),
            restarts.budget(),
            pause.as_millis(),
            exit.last_words(),
        ));
    }

    fn say_recovery(&mut self, seat: usize) {
        if !self.lives[seat].lost || !self.workers.is_ready(seat) {
            return;
        }
        self.lives[seat].lost = false;
        let name = self.workers.name(Member::Worker(seat));
        self.console.say(format_args!("{name} serves again; experts away: {}", self.away(seat)));
    }

    /// What nobody of this worker's group holds now, in words.
    fn away(&self, seat: usize) -> String {
        let lost: Vec<usize> = (0..self.lives.len()).filter(|&seat| self.lives[seat].lost).collect();
        let pods = self.workers.pods();
        placement::in_words(&placement::away(pods, pods[seat].group, &lost))
    }

    fn next_due(&self) -> Option<Instant> {
        self.lives.iter().chain([&self.router_life]).filter_map(|life| life.due).min()
    }

    fn restart_due(&mut self, now: Instant) -> Result<(), Failure> {
        let is_due = |life: &Life| life.due.is_some_and(|due| due <= now);
        for seat in 0..self.lives.len() {
            if is_due(&self.lives[seat]) {
                self.lives[seat].due = None;
                self.workers.restart(seat)?;
            }
        }
        if is_due(&self.router_life) {
            self.router_life.due = None;
            self.start_router()?;
        }
        self.show()
    }

    fn start_router(&mut self) -> Result<(), Failure> {
        // After the workers' colours.
        let sink = LineSink::new(self.workers.name(Member::Router).to_owned(), self.lives.len(), Some(self.console.clone()));
        let process = Process::start(&self.launch, sink, self.workers.sender()).map_err(LocalError::from)?;
        self.router = Some(process);
        Ok(())
    }

    fn show(&self) -> Result<(), Failure> {
        let router = (self.listen, self.router.as_ref().map_or(0, Process::pid));
        self.console.block(placement::table(self.workers.pods(), &self.workers.pids(), Some(router)));
        self.state.as_ref().map_or(Ok(()), |state| state.write(&self.workers, router))
    }
}

/// When a process that died starts again; an error where it does not.
fn next_life(life: &mut Life, name: &str, exit: &Exit) -> Result<Duration, Failure> {
    if exit.code == Some(2) {
        // Wrong usage: the same command line would fail again.
        return Err(LocalError::died(name, exit).into());
    }
    let Some(pause) = life.restarts.died(Instant::now()) else {
        let (budget, window) = (life.restarts.budget(), life.restarts.window().as_secs());
        let what = format_args!("spec.worker.restartBudget: {budget} restarts in {window} s are used up");
        return Err(Failure::new(what, LocalError::died(name, exit)));
    };
    life.due = Some(Instant::now() + pause);
    Ok(pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: Option<i32>) -> Exit {
        Exit { code, how: "ended with exit code 2".into(), tail: vec!["--threads: 0 given".into()] }
    }

    fn life(budget: u32) -> Life {
        Life { restarts: Restarts::new(budget, Duration::from_secs(60)), due: None, lost: false }
    }

    #[test]
    fn wrong_usage_is_final_and_so_is_a_spent_budget() {
        let failure = next_life(&mut life(5), "pod 1", &exit(Some(2))).unwrap_err();
        assert_eq!(failure.to_string(), "m1ctl: local group: pod 1 ended with exit code 2: --threads: 0 given\n");
        let spent = next_life(&mut life(0), "router", &exit(None)).unwrap_err().to_string();
        assert!(spent.starts_with("m1ctl: spec.worker.restartBudget: 0 restarts in 60 s are used up: router "), "{spent}");
    }

    #[test]
    fn a_killed_process_is_due_again() {
        let mut life = life(1);
        assert!(next_life(&mut life, "pod 0", &exit(None)).is_ok());
        assert!(life.due.is_some());
    }
}
