//! What reaches the device thread, and the handle by which the async side sends it.

use std::sync::Arc;

use m1_arch::ExpertSet;
use m1_engine::SequenceSpec;
use m1_exchange::{PodId, TableVersion};
use m1_proto::worker::GenerateEvent;
use m1_weights::source::SourceError;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::pulses::Pulses;
use crate::tallies::Tally;
use crate::text::TextRules;
use crate::transport::Inbound;

/// Number of a sequence in this worker, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceKey(pub u64);

/// One pod of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupPod {
    /// Its index.
    pub id: PodId,
    /// host:port of its gRPC address.
    pub address: String,
    /// What it should hold.
    pub holds: ExpertSet,
}

/// A placement: who is in the group and who holds what.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Of the writer's lease; with `epoch` it orders placements.
    pub lease_transitions: u64,
    /// Grows with every change.
    pub epoch: u64,
    /// All pods, this one among them.
    pub pods: Vec<GroupPod>,
}

/// A sequence to run.
#[derive(Debug)]
pub struct NewSequence {
    /// Its number.
    pub key: SequenceKey,
    /// Checked.
    pub spec: SequenceSpec,
    /// Rules that need the text.
    pub text: Option<TextRules>,
    /// Whom its experts are counted for, beside the worker.
    pub tally: Option<Arc<Tally>>,
    /// Where its events go. Holds every event that must arrive, so sending never waits; a sign of progress that finds no room is left out.
    pub events: mpsc::Sender<Result<GenerateEvent, Status>>,
    /// Hears once whether it was taken in.
    pub accepted: oneshot::Sender<Result<(), Status>>,
}

/// Everything that reaches the device thread.
#[derive(Debug)]
pub enum DeviceMessage {
    /// From connections.
    Dispatch(Inbound),
    /// A sequence to run, or to refuse.
    Generate(Box<NewSequence>),
    /// Nobody reads this sequence any more.
    Cancel(SequenceKey),
    /// A placement; answered when accepted or refused.
    Place {
        /// Who holds what.
        group: Group,
        /// Empty, or why not.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// A fetch of shards has ended.
    Fetched {
        /// Of the placement that needs them.
        version: TableVersion,
        /// How.
        result: Result<(), SourceError>,
    },
    /// Admit no more.
    Drain,
    /// The last own sequence of a draining pod has ended: ask peers for nothing more, serve them on.
    Leave,
    /// Time passes. Says no more than that there is something to look at.
    Tick,
    /// End now.
    Stop,
}

/// Sends to the device thread; bounded, so a busy device slows its senders instead of growing.
#[derive(Debug, Clone)]
pub struct DeviceHandle(mpsc::Sender<DeviceMessage>);

/// Messages in front of the device thread. Dispatch frames are bounded by credits; this bounds the rest.
const INBOX: usize = 1024;

/// The device thread is gone.
#[derive(Debug, thiserror::Error)]
#[error("the worker is stopping")]
pub struct Gone;

impl From<Gone> for Status {
    fn from(gone: Gone) -> Self {
        Self::unavailable(gone.to_string())
    }
}

impl DeviceHandle {
    /// The channel of one device thread.
    pub fn channel() -> (Self, mpsc::Receiver<DeviceMessage>) {
        let (sender, receiver) = mpsc::channel(INBOX);
        (Self(sender), receiver)
    }

    /// Sends one message.
    pub async fn send(&self, message: DeviceMessage) -> Result<(), Gone> {
        self.0.send(message).await.map_err(|_| Gone)
    }

    /// Sends what a connection has to say.
    pub async fn dispatch(&self, inbound: Inbound) -> Result<(), Gone> {
        self.send(DeviceMessage::Dispatch(inbound)).await
    }

    /// Wakes the device, unless a tick stands in its inbox already. One that finds no room is not missed: the device is awake,
    /// and looks.
    pub fn tick(&self, pulses: &Pulses) {
        if pulses.look() && self.0.try_send(DeviceMessage::Tick).is_err() {
            pulses.unqueue_tick();
        }
    }

    /// A handle that sends `message` from a place that cannot wait (a destructor), waiting in a task if need be.
    pub fn send_detached(&self, message: DeviceMessage) {
        if let Err(mpsc::error::TrySendError::Full(message)) = self.0.try_send(message) {
            let sender = self.0.clone();
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { sender.send(message).await });
            }
        }
    }
}
