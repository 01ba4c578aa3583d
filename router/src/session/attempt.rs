//! One worker's try at a sequence: its stream, how long it may be silent, and what its errors mean. Addresses of workers stay in the log.

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use m1_proto::worker::generate_event::Event;
use m1_proto::worker::{self as wire, FinishReason};
use m1_router_core::{Deadlines, Outcome};
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::{Code, Status, Streaming};

use crate::App;
use crate::alarm::Alarm;
use crate::error::ApiError;
use crate::metrics::Meter;
use crate::order::Order;
use crate::workers::{Lease, read_counts};

use super::Finished;

/// How long the last event may wait until the experts of its sequence are counted: five status intervals.
const COUNTED: Duration = Duration::from_secs(1);

/// Why a try ended.
#[derive(Debug)]
pub enum Fault {
    /// Before its first token: another worker may do better.
    Early(Outcome, String),
    /// After it.
    Broken(ApiError),
    /// The request's own fault.
    Final(ApiError),
}

/// A try under way.
pub struct Attempt<'a> {
    app: &'a App,
    lease: &'a Lease,
    stream: Streaming<wire::GenerateEvent>,
    alarm: Alarm,
    deadlines: Deadlines,
    prompt: u32,
    accepted: Instant,
    /// The worker has said anything at all.
    heard: bool,
    begun: bool,
    wants_routing: bool,
}

impl<'a> Attempt<'a> {
    /// Sends the sequence and waits until the worker has taken it in.
    pub async fn open(app: &'a App, order: &Order, number: u32, lease: &'a Lease) -> Result<Self, Fault> {
        let prompt = u32::try_from(order.prompt.len()).unwrap_or(u32::MAX);
        let deadlines = app.config.deadlines;
        let request = order.to_wire(&app.model, number, app.pool.name());
        let mut client = lease.client();
        let asked = client.generate(request);
        let response = match tokio::time::timeout(deadlines.first_token(prompt), asked).await {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => return Err(judge(&status)),
            Err(_) => return Err(Fault::Early(Outcome::Stalled, "it did not take the sequence in".to_owned())),
        };
        let (stream, accepted) = (response.into_inner(), Instant::now());
        let (alarm, wants_routing) = (Alarm::default(), order.want_routing);
        Ok(Self { app, lease, stream, alarm, deadlines, prompt, accepted, heard: false, begun: false, wants_routing })
    }

    /// The first token has come.
    pub fn mark_begun(&mut self) {
        self.begun = true;
    }

    /// The next event.
    pub async fn next(&mut self) -> Result<Event, Fault> {
        let now = Instant::now();
        let silence = self.deadlines.next_event(self.prompt, now - self.accepted, self.begun);
        let (stream, alarm) = (&mut self.stream, &mut self.alarm);
        let next = std::future::poll_fn(|cx| match Pin::new(&mut *stream).poll_next(cx) {
            Poll::Ready(event) => Poll::Ready(Some(event)),
            Poll::Pending => alarm.poll(now + silence, cx).map(|()| None),
        });
        match next.await {
            Some(Some(Ok(event))) => {
                self.heard = true;
                event.event.ok_or_else(|| self.garbage("an empty event"))
            }
            Some(None) => Err(self.fault(Outcome::Failed, "its stream ended early".to_owned())),
            Some(Some(Err(status))) if self.begun => Err(self.fault(Outcome::Lost, status.to_string())),
            Some(Some(Err(status))) => Err(judge(&status)),
            // It waits behind other routers' sequences there, and the worker is not to blame.
            None if !self.heard && self.app.pool.queues(self.lease) => {
                Err(Fault::Early(Outcome::Full, "it did not come to its turn".to_owned()))
            }
            None => Err(self.fault(Outcome::Stalled, format!("it was silent for {} seconds", silence.as_secs()))),
        }
    }

    /// The worker breaks its contract.
    pub fn garbage(&self, what: &str) -> Fault {
        self.fault(Outcome::Failed, format!("it sent {what}"))
    }

    fn fault(&self, early: Outcome, words: String) -> Fault {
        if !self.begun {
            return Fault::Early(early, words);
        }
        tracing::warn!(worker = self.lease.address(), words, "lost while it generated");
        Fault::Broken(match early {
            Outcome::Stalled => ApiError::WorkerLost("the worker that generated this answer stands still".to_owned()),
            _ => ApiError::WorkerLost("the worker that generated this answer was lost; the request may be sent again".to_owned()),
        })
    }

    /// Reads the last event of an answer of so many tokens. What the experts did is booked by then.
    pub async fn finish(self, finished: wire::Finished, output_tokens: u32, meter: &mut Meter) -> Result<Finished, Fault> {
        let reason = finished.reason();
        if reason == FinishReason::FinishUnspecified {
            return Err(self.garbage("an end without a reason"));
        }
        if reason == FinishReason::FinishError {
            tracing::warn!(
                worker = self.lease.address(),
                reason = finished.error_reason,
                message = finished.error_message,
                "a sequence failed"
            );
            if !self.begun {
                return Err(Fault::Early(Outcome::Failed, finished.error_reason));
            }
            let message = format!("the worker failed: {}", without_addresses(&finished.error_message));
            return Err(Fault::Broken(ApiError::Engine { reason: crate::error::cut(&finished.error_reason), message }));
        }
        if finished.counted > 0 {
            // Only the answer that tells of them must not be seen before they are counted.
            if self.wants_routing {
                let booked = self.app.pool.booked(self.lease, finished.counted);
                if tokio::time::timeout(COUNTED, booked).await.is_err() {
                    tracing::debug!(worker = self.lease.address(), "an answer goes out before its experts are counted");
                }
            }
        }
        let routing = self.routing(finished.routing, finished.counted > 0);
        // What was sent and what came are known here, whatever the worker counted.
        meter.done(self.prompt);
        Ok(Finished { by_length: reason == FinishReason::FinishLength, prompt_tokens: self.prompt, output_tokens, routing })
    }

    /// Counts of one answer. A worker that does not count for its routers has its answers booked here.
    fn routing(&self, routing: Option<wire::Routing>, counted: bool) -> Result<m1_router_core::Counts, String> {
        let Some(routing) = routing.filter(|routing| !routing.expert_tokens.is_empty()) else {
            return Err("the worker sent no routing counts".to_owned());
        };
        let counts = read_counts(routing);
        let checked = if counted { counts.check() } else { self.app.metrics.book(&counts) };
        match checked {
            Ok(()) => Ok(counts),
            Err(error) => {
                tracing::error!(worker = self.lease.address(), reason = error.reason(), %error, "routing counts refused");
                self.app.metrics.routing_rejected.inc();
                Err(error.to_string())
            }
        }
    }
}

/// Words of a worker may name its peers; a client has no use for where they are.
fn without_addresses(words: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || ".-_:[]/@%?#=&~".contains(c);
    let (mut hidden, mut rest) = (String::new(), words);
    while let Some(start) = rest.find(is_part) {
        let piece = rest.get(start..).unwrap_or_default();
        let end = piece.find(|c| !is_part(c)).unwrap_or(piece.len());
        let (piece, behind) = piece.split_at(end);
        hidden.push_str(rest.get(..start).unwrap_or_default());
        hide(piece, &mut hidden);
        rest = behind;
    }
    hidden.push_str(rest);
    crate::error::cut(&hidden.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Adds a word without the place that it names, alone or behind a colon.
fn hide(word: &str, out: &mut String) {
    let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != ']');
    let host = bare.split_once("://").map_or(bare, |(_, rest)| rest);
    let host = host.split(['/', '?', '#']).next().unwrap_or(host);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let behind = word.get(bare.len()..).unwrap_or_default();
    match bare.split_once([':', '=']) {
        _ if is_place(host) => out.push_str(&format!("a worker{behind}")),
        Some((before, rest)) if !rest.is_empty() => {
            out.push_str(before);
            out.push_str(bare.get(before.len()..=before.len()).unwrap_or_default());
            hide(&word[before.len() + 1..], out);
        }
        _ => out.push_str(word),
    }
}

/// Whether this says where somebody is: HOST:PORT, an IP address, or a name within the cluster.
fn is_place(text: &str) -> bool {
    let within =
        |name: &str| name.ends_with(".svc") || name.contains(".svc.") || name.ends_with(".local") || name.ends_with(".internal");
    crate::workers::is_address(text) || text.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok() || within(text)
}

/// What a status means that came in place of a stream, or before its first token.
fn judge(status: &Status) -> Fault {
    let reason = status.metadata().get("m1-reason").and_then(|reason| reason.to_str().ok()).unwrap_or_default();
    let words = || format!("{}: {}", status.code().description(), status.message());
    match (status.code(), reason) {
        (Code::ResourceExhausted, _) => Fault::Early(Outcome::Full, words()),
        (_, "NotReady" | "Draining" | "Stopping" | "WrongMember") => Fault::Early(Outcome::NotReady, words()),
        // Too large for a message is the request's own fault too: no other worker takes it.
        (Code::InvalidArgument | Code::OutOfRange, _) => Fault::Final(ApiError::Invalid {
            param: "request".to_owned(),
            message: crate::error::cut_to(&format!("the worker refuses the request: {}", without_addresses(status.message())), 240),
        }),
        // What tonic says where the connection broke or could not be made.
        (Code::Unavailable | Code::Unknown | Code::Cancelled, "") => Fault::Early(Outcome::Lost, words()),
        _ => Fault::Early(Outcome::Failed, words()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stay_inside() {
        assert_eq!(without_addresses("pod 3 (10.0.0.7:9000) is lost"), "pod 3 (a worker) is lost");
        assert_eq!(without_addresses("m1-0-1.m1-0.models.svc:7000, [::1]:3: gone"), "a worker, a worker: gone");
        assert_eq!(without_addresses("given 3, allowed: 0 to 2"), "given 3, allowed: 0 to 2");
        assert_eq!(without_addresses("lost (host:m1-0-1.m1-0:7000)"), "lost (host:a worker)");
        assert_eq!(without_addresses("m1-0-1.m1-0.ns.svc:7000->10.1.2.3:5 broke"), "a worker->a worker broke");
        assert_eq!(
            without_addresses("peer=m1-0-1:7000;user:x@10.0.0.7;to=[fd00::7]:80, a,b,10.0.0.7"),
            "a worker;a worker;a worker, a,b,a worker"
        );
        assert_eq!(without_addresses("ip-10-0-0-7.eu.compute.internal timed out"), "a worker timed out");
        assert_eq!(without_addresses("layer 3: expert 17: nobody holds it"), "layer 3: expert 17: nobody holds it");
        assert_eq!(
            without_addresses("see http://10.0.0.7:7000/x?y and\n10.0.0.7, or fd00::7"),
            "see a worker and a worker, or a worker"
        );
        assert_eq!(without_addresses("m1-0-1.m1-0.models.svc.cluster.local fails"), "a worker fails");
        assert_eq!(without_addresses("temperature: 0.5 given, e.g. v1.2.3"), "temperature: 0.5 given, e.g. v1.2.3");
    }

    #[test]
    fn refusals_for_want_of_room_blame_nobody() {
        let with = |code, reason: &'static str| {
            let mut status = Status::new(code, "x");
            status.metadata_mut().insert("m1-reason", tonic::metadata::MetadataValue::from_static(reason));
            judge(&status)
        };
        assert!(matches!(with(Code::ResourceExhausted, "QueueFull"), Fault::Early(Outcome::Full, _)));
        assert!(matches!(with(Code::Unavailable, "NotReady"), Fault::Early(Outcome::NotReady, _)));
        assert!(matches!(with(Code::FailedPrecondition, "WrongMember"), Fault::Early(Outcome::NotReady, _)));
        assert!(matches!(judge(&Status::unavailable("x")), Fault::Early(Outcome::Lost, _)));
        assert!(matches!(judge(&Status::internal("x")), Fault::Early(Outcome::Failed, _)));
        assert!(matches!(with(Code::InvalidArgument, "BadPrompt"), Fault::Final(_)));
    }
}
