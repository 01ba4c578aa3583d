//! Groups in a small world without a cluster: what is decided is carried out, pods take their time, and the promises of a rollout are
//! held at every step.
#![allow(dead_code, reason = "every test file uses a part")]

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use m1_operator_api::{ConditionStatus, ConditionType, DeploymentStatus, ExpertPlacementStatus, Reason};
use m1_operator_plan::render::{Images, Scene};
use m1_operator_plan::{
    CertificateTrouble, Checked, ContainerSeen, Decision, GroupSeen, Kind, Observed, PlacementSeen, PodSeen, Revision, RouterSeen,
    WorkerPhase, WorkerSeen, condition, decide, plan,
};

use super::{added, check, m1};

/// Steps until the pods of a new group are ready.
const START: u32 = 3;
/// Steps until the pods of a deleted group are gone.
const END: u32 = 2;

/// A small world with one deployment in it: what is decided is carried out, and pods take their time.
pub struct World {
    pub now: Timestamp,
    pub status: DeploymentStatus,
    pub groups: Vec<(GroupSeen, u32)>,
    pub restarted: Option<String>,
    pub resumed: Option<Timestamp>,
    pub certificates: Option<CertificateTrouble>,
    pub router: RouterSeen,
    pub outage: bool,
}

impl World {
    pub fn new() -> Self {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let router = RouterSeen { available: 1, settled: true, certified: true, has_service: true, ..RouterSeen::default() };
        Self {
            now,
            status: DeploymentStatus::default(),
            groups: Vec::new(),
            restarted: None,
            resumed: None,
            certificates: None,
            router,
            outage: false,
        }
    }

    pub fn observed(&self) -> Observed {
        Observed {
            generation: 1,
            status: self.status.clone(),
            restarted_at: self.restarted.clone(),
            resumed_at: self.resumed,
            groups: self.groups.iter().map(|(group, _)| group.clone()).collect(),
            router: self.router.clone(),
            certificates: self.certificates.clone(),
            pace: None,
            outage: self.outage,
            now: self.now,
        }
    }

    pub fn decide(&self, checked: &Checked) -> Decision {
        let plan = plan(checked, &m1()).unwrap();
        let images = Images { worker: "w".into(), router: "r".into() };
        let scene = Scene {
            checked,
            plan: &plan,
            namespace: "models",
            uid: "u",
            images: &images,
            operator_namespace: "system",
            version: "0",
        };
        decide(&scene, &self.revision(checked), &self.observed(), 1)
    }

    pub fn revision(&self, checked: &Checked) -> Revision {
        Revision::of(checked, "w", self.restarted.as_deref())
    }

    /// One look of the operator, and a second of the world.
    pub fn step(&mut self, checked: &Checked) -> Decision {
        let decision = self.decide(checked);
        self.carry_out(checked, &decision);
        self.now += SignedDuration::from_secs(1);
        self.age();
        decision
    }

    pub fn carry_out(&mut self, checked: &Checked, decision: &Decision) {
        self.status = decision.status.clone();
        for write in &decision.placements {
            let group = self.groups.iter_mut().find(|(group, _)| group.name == write.name);
            let seen = PlacementSeen {
                spec: write.spec.clone(),
                status: ExpertPlacementStatus::default(),
                resource_version: "2".into(),
                closed_since: write.closed_since,
            };
            match group {
                Some((group, _)) => {
                    let status = group.placement.take().map(|known| known.status).unwrap_or_default();
                    group.placement = Some(PlacementSeen { status, ..seen });
                }
                None => {
                    let group = GroupSeen {
                        name: write.name.clone(),
                        index: write.group.index,
                        revision: self.revision(checked),
                        size: write.group.size,
                        replicas: write.group.size,
                        created: self.now,
                        deleting: false,
                        orphaned: false,
                        refusal: None,
                        placement: Some(seen),
                        pods: (0..write.group.size).map(|index| pod(&write.name, index)).collect(),
                    };
                    self.groups.push((group, 0));
                }
            }
        }
        for (name, status) in &decision.applied {
            let group = self.groups.iter_mut().find(|(group, _)| group.name == *name);
            if let Some(placement) = group.and_then(|(group, _)| group.placement.as_mut()) {
                placement.status = status.clone();
            }
        }
        let sets: Vec<&str> =
            decision.apply.iter().filter(|object| object.kind == Kind::StatefulSet).map(|object| object.name.as_str()).collect();
        for (group, age) in &mut self.groups {
            let kept = sets.contains(&group.name.as_str()) || decision.keep.contains(&(Kind::StatefulSet, group.name.clone()));
            if !kept && !group.deleting {
                (group.deleting, *age) = (true, 0);
            }
        }
    }

    pub fn age(&mut self) {
        for (group, age) in &mut self.groups {
            *age += 1;
            if group.deleting {
                group.pods.iter_mut().for_each(|pod| (pod.deleting, pod.ready) = (true, false));
            } else if *age == START {
                group.pods.iter_mut().for_each(|pod| ready(pod, self.now));
            }
        }
        self.groups.retain(|(group, age)| !(group.deleting && *age >= END));
        self.groups.sort_by_key(|(group, _)| (group.index, group.created));
    }

    pub fn available(&self) -> usize {
        self.groups.iter().filter(|(group, _)| group.is_available()).count()
    }

    pub fn group(&mut self, place: usize) -> &mut GroupSeen {
        &mut self.groups[place].0
    }
}

fn pod(group: &str, index: u32) -> PodSeen {
    PodSeen { name: format!("{group}-{index}"), index, ..PodSeen::default() }
}

fn ready(pod: &mut PodSeen, now: Timestamp) {
    (pod.ready, pod.ready_since) = (true, Some(now));
    pod.container = ContainerSeen::Running;
    pod.worker =
        Some(WorkerSeen { phase: WorkerPhase::Ready, epoch: 1, bytes_total: 10, bytes_loaded: 10, ..WorkerSeen::default() });
}

/// Steps until nothing changes, with the promises held at every step; returns how many steps.
#[track_caller]
pub fn settle(world: &mut World, checked: &Checked, most: usize, least: usize) -> usize {
    for step in 0..100 {
        let decision = world.step(checked);
        assert!(world.groups.len() <= most, "step {step}: {} groups, {most} allowed", world.groups.len());
        assert!(world.available() >= least, "step {step}: {} serve, {least} promised", world.available());
        if is(&decision.status, ConditionType::Ready).0 == ConditionStatus::True {
            let again = world.decide(checked);
            let nothing = again.placements.is_empty() && again.applied.is_empty() && again.pods.is_empty();
            assert!(nothing, "an applied decision decides nothing: {again:?}");
            assert_eq!(again.status, world.status, "a second look says the same");
            return step;
        }
    }
    panic!("not settled: {:#?}", world.status.conditions);
}

/// A condition's status and reason.
pub fn is(status: &DeploymentStatus, kind: ConditionType) -> (ConditionStatus, Reason) {
    condition(status, kind).map(|condition| (condition.status, condition.reason)).unwrap()
}

/// The good manifest with lines under `spec`.
pub fn spec(lines: &str) -> Checked {
    check(&added(lines)).unwrap()
}
