//! Heartbeats on a connection of their own. The requester's side keeps it up, reads what the server says of its device, and
//! stamps it there and then; the server's side says it, every [`HEARTBEAT`], from what the device thread shows. Neither side
//! passes through an inbox, a credit, or a window that data fills.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use m1_exchange::{Beat, HEARTBEAT, PodId};
use m1_proto::dispatch::Frame;
use m1_proto::dispatch::Heartbeat;
use m1_proto::dispatch::frame::Kind;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_stream::StreamExt;
use tonic::Streaming;

use super::grpc_client::{Dialer, LinkError, Pause};
use super::wire::{Purpose, WireError};
use super::{Link, PeerAddress};
use crate::status::SharedStatus;

/// Heartbeats that wait in front of a connection. One that finds no room is left out: the next one says more.
const WAITING: usize = 2;

/// A clock of heartbeats. After a pause it goes on as before, without those that it missed.
pub(super) fn beats() -> tokio::time::Interval {
    let mut beats = tokio::time::interval(HEARTBEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}

/// A heartbeat of this pod's device, which answers one of the requester's.
pub(super) fn heartbeat(status: &SharedStatus, echo_us: u64) -> Kind {
    // The counter first: what was announced later is excused with a later counter only.
    let progress = status.progress();
    let busy_ms = status.announced().as_millis().try_into().unwrap_or(u32::MAX);
    Kind::Heartbeat(Heartbeat { progress, epoch: status.epoch(), sent_us: 0, echo_us, busy_ms })
}

/// A heartbeat of a requester, to measure the round trip.
pub(super) fn question(status: &SharedStatus, clock: &Instant) -> Kind {
    let sent_us = (clock.elapsed().as_micros() as u64).max(1);
    Kind::Heartbeat(Heartbeat { sent_us, epoch: status.epoch(), ..Default::default() })
}

/// Reads a server's heartbeat.
pub(super) fn read(status: &SharedStatus, peer: PodId, heartbeat: &Heartbeat, clock: &Instant) {
    let Heartbeat { progress, epoch, echo_us, busy_ms, .. } = *heartbeat;
    let round_trip = (echo_us > 0).then(|| (clock.elapsed().as_micros() as u64).saturating_sub(echo_us));
    let round_trip = round_trip.map(|micros| u32::try_from(micros).unwrap_or(u32::MAX));
    let beat = Beat { progress, epoch, busy: Duration::from_millis(busy_ms.into()) };
    status.pulses().read(peer, beat, round_trip);
}

impl Dialer {
    /// Keeps the connection of heartbeats up for as long as the decode lane's server says that it has one. `known` is told with
    /// every greeting of that lane: it may be another process, or another version, and is heard at once. `lost` counts the times that it
    /// broke or could not be made, for whoever has no such connection to know it from.
    pub(super) async fn keep_pulse(self, peer: PeerAddress, mut known: watch::Receiver<bool>, lost: watch::Sender<u64>) {
        let (mut said, mut pause) = (String::new(), Pause::default());
        while known.wait_for(|known| *known).await.is_ok() {
            pause.begin();
            tokio::select! {
                Err(error) = self.pulse(&peer) => {
                    if !matches!(error, LinkError::Refused { .. } | LinkError::Wire(_)) {
                        lost.send_modify(|lost| *lost += 1);
                    }
                    let words = error.to_string();
                    if said != words {
                        tracing::info!(peer = peer.pod.0, address = %peer.address, error = %words, "heartbeats are interrupted");
                        said = words;
                    }
                }
                greeted = known.changed() => match greeted {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            }
            tokio::select! {
                () = pause.wait() => {}
                greeted = known.changed() => if greeted.is_err() { return },
            }
        }
    }

    async fn pulse(&self, peer: &PeerAddress) -> Result<Infallible, LinkError> {
        let (link, outgoing) = Link::with_room(0, WAITING);
        let (_, mut answers) = self.open(peer, Purpose::Pulse, &link, outgoing, None).await?;
        let (clock, mut beats) = (Instant::now(), beats());
        loop {
            tokio::select! {
                biased;
                frame = answers.next() => match frame.ok_or(LinkError::Closed)??.kind {
                    Some(Kind::Heartbeat(heartbeat)) => read(&self.status, peer.pod, &heartbeat, &clock),
                    Some(Kind::Refused(refused)) => return Err(refused.into()),
                    Some(_) => return Err(WireError::Order { given: "another frame", allowed: "Heartbeat" }.into()),
                    None => {}
                },
                _ = beats.tick() => {
                    link.send(question(&self.status, &clock));
                }
            }
        }
    }
}

/// Tells a requester of this pod's device until it goes.
pub(super) async fn tell(status: &SharedStatus, link: &Link, mut frames: Streaming<Frame>) -> Result<(), WireError> {
    let mut beats = beats();
    loop {
        tokio::select! {
            biased;
            frame = frames.next() => match frame {
                Some(Ok(Frame { kind: Some(Kind::Heartbeat(asked)) })) => {
                    link.send(heartbeat(status, asked.sent_us));
                }
                Some(Ok(_)) => return Err(WireError::Order { given: "another frame", allowed: "Heartbeat" }),
                Some(Err(_)) | None => return Ok(()),
            },
            _ = beats.tick() => {
                link.send(heartbeat(status, 0));
            }
        }
    }
}
