//! One sequence: its acts become events. It is polled by the connection itself, with no task and no channel of its own, and has one timer, which it keeps.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use m1_proto::worker::generate_event::Event;
use m1_proto::worker::{FinishReason, Finished, GenerateEvent, GenerateRequest, TokenLogprobs, Tokens};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use crate::board::Seat;
use crate::deal::{Detail, deal};
use crate::script::{Act, Acts};

type Item = Result<GenerateEvent, Status>;

/// The stream of one sequence. Dropping it frees its slot.
pub struct Playing {
    seat: Option<Seat>,
    acts: Acts,
    rules: Rules,
    output: u32,
    /// When the last wait should have ended: waits are counted from it, so that lateness does not add up.
    due: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
    wait: Wait,
    next: Option<Act>,
}

/// What of the request is needed until its end.
struct Rules {
    prompt: u32,
    said: u32,
    max_tokens: u32,
    stop_ids: Vec<u32>,
    logprobs: u32,
    omit_routing: bool,
    skip: bool,
}

enum Wait {
    Not,
    Sleep,
    Hold(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl Playing {
    /// Begins the acts of a request that has a seat.
    pub fn new(seat: Seat, request: GenerateRequest, acts: Acts) -> Self {
        let length = |ids: &[u32]| u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let rules = Rules {
            prompt: length(&request.prompt),
            said: length(&request.said),
            max_tokens: request.max_tokens,
            stop_ids: request.stop_ids,
            logprobs: request.logprobs,
            omit_routing: request.omit_routing,
            skip: request.expert_threshold > 0.0 && request.expert_threshold < 1.0,
        };
        let output = rules.said;
        Self { seat: Some(seat), acts, rules, output, due: Instant::now(), sleep: None, wait: Wait::Not, next: None }
    }

    fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.wait {
            Wait::Not => {}
            Wait::Sleep => {
                if let Some(sleep) = &mut self.sleep {
                    ready!(sleep.as_mut().poll(context));
                }
            }
            Wait::Hold(hold) => {
                ready!(hold.as_mut().poll(context));
                // Time that was held does not count: it goes on at its old pace.
                self.due = Instant::now();
            }
        }
        self.wait = Wait::Not;
        Poll::Ready(())
    }

    /// Does one act; gives what the stream says next, if anything.
    fn act(&mut self, act: Act) -> Option<Option<Item>> {
        match act {
            Act::Say(ids) => Some(Some(Ok(self.say(ids)))),
            Act::Wait(time) => {
                self.due += time;
                if self.due > Instant::now() {
                    match &mut self.sleep {
                        Some(sleep) => sleep.as_mut().reset(self.due),
                        None => self.sleep = Some(Box::pin(sleep_until(self.due))),
                    }
                    self.wait = Wait::Sleep;
                }
                None
            }
            Act::Hold => {
                if let Some(seat) = &self.seat {
                    let mut released = seat.board().released();
                    self.wait = Wait::Hold(Box::pin(async move {
                        let _ = released.wait_for(|released| *released).await;
                    }));
                }
                None
            }
            Act::Event(event) => Some(Some(Ok(*event))),
            Act::Early => Some(Some(Ok(event(Event::Finished(self.finished(FinishReason::FinishStop)))))),
            Act::Finish(reason) => Some(self.finish(|_| (), reason)),
            Act::Fail(word) => Some(self.finish(
                |finished| (finished.error_reason, finished.error_message) = (word, "scripted".to_owned()),
                FinishReason::FinishError,
            )),
            Act::Miscount => Some(self.finish(
                |finished| {
                    let routing = finished.routing.get_or_insert_default();
                    routing.executed += 1;
                },
                FinishReason::FinishStop,
            )),
            Act::Break(code) => {
                self.leave();
                Some(Some(Err(Status::new(code, "scripted"))))
            }
            Act::End => {
                self.leave();
                Some(None)
            }
            Act::Die => die(),
        }
    }

    /// As many of the ids as the rules let through; what ends the sequence is done next.
    fn say(&mut self, ids: Vec<u32>) -> GenerateEvent {
        let mut tokens = Tokens::default();
        for id in ids {
            self.output += 1;
            tokens.ids.push(id);
            if self.rules.logprobs > 0 {
                tokens.logprobs.push(TokenLogprobs::new(-0.5, (0..self.rules.logprobs - 1).map(|n| (id.wrapping_add(n), -0.5))));
            }
            if self.rules.stop_ids.contains(&id) {
                self.next = Some(Act::Finish(FinishReason::FinishStop));
                break;
            }
            if self.output >= self.rules.max_tokens {
                self.next = Some(Act::Finish(FinishReason::FinishLength));
                break;
            }
        }
        event(Event::Tokens(tokens))
    }

    fn finish(&mut self, change: impl FnOnce(&mut Finished), reason: FinishReason) -> Option<Item> {
        let mut finished = self.finished(reason);
        change(&mut finished);
        self.leave();
        Some(Ok(event(Event::Finished(finished))))
    }

    /// The last event, with what the experts did: the last token is never fed back.
    fn finished(&self, reason: FinishReason) -> Finished {
        let tokens = u64::from(self.rules.prompt) + u64::from(self.output.saturating_sub(1));
        let mut finished =
            Finished { reason: reason.into(), prompt_tokens: self.rules.prompt, output_tokens: self.output, ..Finished::default() };
        let Some(seat) = &self.seat else { return finished };
        finished.counted = seat.count(tokens);
        if !self.rules.omit_routing {
            finished.routing = Some(deal(&seat.board().settings, tokens, self.rules.skip, Detail::All));
        }
        finished
    }

    fn leave(&mut self) {
        if let Some(mut seat) = self.seat.take() {
            seat.end();
        }
    }
}

impl Stream for Playing {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        let this = &mut *self;
        loop {
            if this.seat.is_none() {
                return Poll::Ready(None);
            }
            ready!(this.poll_wait(context));
            let act = this.next.take().or_else(|| this.acts.next()).unwrap_or(Act::Finish(FinishReason::FinishStop));
            if let Some(item) = this.act(act) {
                return Poll::Ready(item);
            }
        }
    }
}

fn event(event: Event) -> GenerateEvent {
    GenerateEvent { event: Some(event) }
}

/// Ends the process as `kill -9` would: no destructor, no goodbye.
pub fn die() -> ! {
    m1_runtime::process::exit_now(137)
}

/// Keeps a caller waiting for ever.
pub async fn silence(seat: Seat) -> ! {
    let _held = seat;
    std::future::pending().await
}
