//! What is, as the operator saw it: the part of a cluster that decisions about one deployment need.

use k8s_openapi::jiff::Timestamp;
use m1_operator_api::{DeploymentStatus, ExpertPlacementSpec, ExpertPlacementStatus, GroupStatus};

use crate::Revision;
use crate::render::GroupRef;

/// After this a router has connected to a pod that came back: its longest pause between attempts and its connect timeout (2 s each),
/// and the whole seconds that Kubernetes' times have.
pub const NOTICED_SECONDS: i64 = 5;

/// Everything that belongs to one deployment.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Generation of the spec.
    pub generation: i64,
    /// The status as it was last written.
    pub status: DeploymentStatus,
    /// The restart that is asked for: the annotation `restartedAt`.
    pub restarted_at: Option<String>,
    /// Until when restarts are forgiven: the annotation `resumedAt`.
    pub resumed_at: Option<Timestamp>,
    /// Its groups, of all revisions.
    pub groups: Vec<GroupSeen>,
    /// Its routers.
    pub router: RouterSeen,
    /// What is wrong with the certificates of its members.
    pub certificates: Option<CertificateTrouble>,
    /// Bytes per second that all its pods read together.
    pub pace: Option<f64>,
    /// Most nodes give no sign of life: rather the control plane is cut off than the nodes are gone.
    pub outage: bool,
    /// Now.
    pub now: Timestamp,
}

/// One replica group of one revision: its StatefulSet, its placement and its pods.
#[derive(Clone, Debug)]
pub struct GroupSeen {
    /// Name of its objects.
    pub name: String,
    /// Index.
    pub index: u32,
    /// Revision.
    pub revision: Revision,
    /// Pods that make it whole.
    pub size: u32,
    /// Pods that its StatefulSet is told to have: `size`, or 0 where it gave its place to another.
    pub replicas: u32,
    /// When it was made.
    pub created: Timestamp,
    /// It is on its way out.
    pub deleting: bool,
    /// It has pods and no StatefulSet.
    pub orphaned: bool,
    /// Why its pods are not made, in the cluster's words.
    pub refusal: Option<String>,
    /// Its ExpertPlacement.
    pub placement: Option<PlacementSeen>,
    /// Its pods, by index.
    pub pods: Vec<PodSeen>,
}

/// What is wrong with the certificates of a deployment's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateTrouble {
    /// The sentence.
    pub message: String,
    /// There are none, so no pod can start; else those that are there cannot be renewed.
    pub missing: bool,
}

/// The ExpertPlacement of a group.
#[derive(Clone, Debug)]
pub struct PlacementSeen {
    /// What it says.
    pub spec: ExpertPlacementSpec,
    /// What its pods are known to have applied.
    pub status: ExpertPlacementStatus,
    /// The version that a change must be based on.
    pub resource_version: String,
    /// Since when the group takes no requests.
    pub closed_since: Option<Timestamp>,
}

/// One worker pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodSeen {
    /// Name.
    pub name: String,
    /// Index in its group.
    pub index: u32,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// It is on its way out.
    pub deleting: bool,
    /// When it should have been gone, where it is on its way out and late.
    pub overdue: Option<Timestamp>,
    /// The scheduler that it asks for, where none has looked at it for long.
    pub unclaimed: Option<String>,
    /// All its containers are ready.
    pub ready: bool,
    /// Since when.
    pub ready_since: Option<Timestamp>,
    /// The node it was given.
    pub node: Option<NodeSeen>,
    /// Why no node takes it, in the scheduler's words.
    pub unschedulable: Option<String>,
    /// What its container does.
    pub container: ContainerSeen,
    /// Why its volumes are not there, in the kubelet's words.
    pub volumes: Option<String>,
    /// How its container last ended.
    pub last_end: Option<EndSeen>,
    /// Another of its containers that does not come up.
    pub beside: Option<BesideSeen>,
    /// What the worker in it says.
    pub worker: Option<WorkerSeen>,
    /// Who answers at its address instead, in words.
    pub stranger: Option<String>,
}

/// A node, as far as a pod on it cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSeen {
    /// Name.
    pub name: String,
    /// Nothing new may be placed there: it is being emptied.
    pub cordoned: bool,
    /// Since when it gives no sign of life.
    pub gone_since: Option<Timestamp>,
}

/// What a container does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ContainerSeen {
    /// Nothing is known yet.
    #[default]
    Unknown,
    /// It waits, for a reason.
    Waiting {
        /// The kubelet's word.
        reason: String,
        /// The kubelet's sentence.
        message: String,
    },
    /// It runs.
    Running,
    /// It has ended.
    Ended,
}

/// A container that somebody put beside ours, before it or with it, and that waits for a reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BesideSeen {
    /// Its name.
    pub container: String,
    /// The kubelet's word.
    pub reason: String,
    /// The kubelet's sentence.
    pub message: String,
    /// How it last ended.
    pub last_end: Option<EndSeen>,
}

/// The end of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndSeen {
    /// When.
    pub time: Timestamp,
    /// Exit code.
    pub code: i32,
    /// The kubelet's word.
    pub reason: String,
    /// Its last words.
    pub message: String,
}

/// What a worker says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerSeen {
    /// What it does.
    pub phase: WorkerPhase,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
    /// Epoch of the placement it has applied.
    pub epoch: u64,
    /// Digest of its checkpoint.
    pub digest: String,
    /// Bytes it has read.
    pub bytes_loaded: u64,
    /// Bytes it has to read.
    pub bytes_total: u64,
    /// Sequences that run or wait in it.
    pub sequences: u32,
    /// Why it refuses its placement, in its words.
    pub refusal: Option<String>,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkerPhase {
    /// It knows no placement yet.
    #[default]
    Waiting,
    /// It reads weights.
    Loading,
    /// It looks for its peers.
    Connecting,
    /// It serves.
    Ready,
    /// It takes nothing new.
    Draining,
    /// It cannot serve.
    Failed,
}

/// The routers of a deployment.
#[derive(Clone, Debug, Default)]
pub struct RouterSeen {
    /// Pods that can be reached, whatever their template.
    pub available: u32,
    /// Whether as many as were asked for run the newest template, and nothing else does.
    pub settled: bool,
    /// When the last of those on their way out is gone at the latest; none where nobody leaves.
    pub left_by: Option<Timestamp>,
    /// Whether none starts without the members' certificate.
    pub certified: bool,
    /// Whether a Service leads to them.
    pub has_service: bool,
    /// Their pods.
    pub pods: Vec<PodSeen>,
    /// Why none can, in the cluster's words.
    pub trouble: Option<String>,
}

impl Observed {
    /// What the last status said of a group, in this revision.
    pub fn known(&self, group: &GroupSeen) -> Option<&GroupStatus> {
        let same = |known: &&GroupStatus| known.index == group.index && known.revision.as_deref() == Some(group.revision.as_str());
        self.status.groups.iter().find(same)
    }
}

impl RouterSeen {
    /// Whether every router that may still send a request has the members' certificate.
    pub fn have_certificate(&self, now: Timestamp) -> bool {
        self.certified && self.settled && self.left_by.is_none_or(|left| left <= now)
    }

    /// Why routers are not as they should be, or what they are doing where nothing is wrong.
    pub fn why(&self, otherwise: &str) -> String {
        self.trouble.clone().unwrap_or_else(|| otherwise.to_owned())
    }
}

impl GroupSeen {
    /// As its objects are named.
    pub fn reference(&self) -> GroupRef {
        GroupRef { index: self.index, revision: self.revision.clone(), size: self.size }
    }

    /// Since when it takes no requests.
    pub fn closed_since(&self) -> Option<Timestamp> {
        self.placement.as_ref()?.closed_since
    }

    /// Pods that are ready and stay.
    pub fn ready_pods(&self) -> u32 {
        self.pods.iter().filter(|pod| pod.ready && !pod.deleting).count() as u32
    }

    /// Whether all of it serves.
    pub fn is_ready(&self) -> bool {
        !self.deleting && self.replicas == self.size && self.ready_pods() == self.size
    }

    /// Whether routers send it requests.
    pub fn is_open(&self) -> bool {
        self.placement.as_ref().is_some_and(|placement| placement.spec.traffic == m1_operator_api::Traffic::Open)
    }

    /// Whether its members speak encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.placement.as_ref().is_some_and(|placement| placement.spec.encrypted)
    }

    /// Whether it can take requests now.
    pub fn is_available(&self) -> bool {
        self.is_ready() && self.is_open()
    }

    /// Whether another group's requests can be left to it: it serves, and has done so long enough that every router has noticed.
    pub fn takes_over(&self, now: Timestamp) -> bool {
        let long = |since: Timestamp| now.duration_since(since).as_secs() >= NOTICED_SECONDS;
        self.is_available() && self.pods.iter().all(|pod| pod.ready_since.is_some_and(long))
    }

    /// Whether another group's requests can be left to it by all routers: those without the certificate know an encrypted group and
    /// cannot speak to it.
    pub fn stands_in_for(&self, other: &Self, routers: &RouterSeen, now: Timestamp) -> bool {
        let reached = !self.is_encrypted() || other.is_encrypted() || routers.have_certificate(now);
        self.name != other.name && self.takes_over(now) && reached
    }

    /// Whether it is known that nothing runs in it. A ready pod that has not been heard yet may run anything.
    pub fn is_idle(&self) -> bool {
        self.sequences() == 0 && self.pods.iter().all(|pod| !pod.ready || pod.worker.is_some())
    }

    /// Sequences that would be lost with it.
    pub fn sequences(&self) -> u32 {
        self.pods.iter().filter_map(|pod| pod.worker.as_ref()).map(|worker| worker.sequences).sum()
    }
}
