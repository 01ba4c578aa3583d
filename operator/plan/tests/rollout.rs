//! Groups in a small world without a cluster: what is decided is carried out, pods take their time, and the promises of a rollout
//! are held at every step.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{added, changed, check, m1};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use m1_operator_api::{ConditionStatus, ConditionType, DeploymentStatus, Reason, Traffic};
use m1_operator_plan::render::{Images, Scene};
use m1_operator_plan::{
    Checked, ContainerSeen, Decision, EndSeen, GroupSeen, Kind, NodeSeen, Observed, PlacementSeen, PodSeen, Refusal, Revision,
    RouterSeen, WorkerPhase, WorkerSeen, condition, decide, plan, refuse,
};

/// Steps until the pods of a new group are ready.
const START: u32 = 3;
/// Steps until the pods of a deleted group are gone.
const END: u32 = 2;

struct World {
    now: Timestamp,
    status: DeploymentStatus,
    groups: Vec<(GroupSeen, u32)>,
    restarted: Option<String>,
    resumed: Option<Timestamp>,
}

impl World {
    fn new() -> Self {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        Self { now, status: DeploymentStatus::default(), groups: Vec::new(), restarted: None, resumed: None }
    }

    fn observed(&self) -> Observed {
        Observed {
            generation: 1,
            status: self.status.clone(),
            resumed_at: self.resumed,
            groups: self.groups.iter().map(|(group, _)| group.clone()).collect(),
            router: RouterSeen { available: 1, settled: true, trouble: None },
            pace: None,
            now: self.now,
        }
    }

    fn decide(&self, checked: &Checked) -> Decision {
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

    fn revision(&self, checked: &Checked) -> Revision {
        Revision::of(checked, "w", self.restarted.as_deref())
    }

    /// One look of the operator, and a second of the world.
    fn step(&mut self, checked: &Checked) -> Decision {
        let decision = self.decide(checked);
        self.carry_out(checked, &decision);
        self.now += SignedDuration::from_secs(1);
        self.age();
        decision
    }

    fn carry_out(&mut self, checked: &Checked, decision: &Decision) {
        self.status = decision.status.clone();
        for write in &decision.placements {
            let group = self.groups.iter_mut().find(|(group, _)| group.name == write.name);
            let seen = PlacementSeen { spec: write.spec.clone(), resource_version: "2".into(), closed_since: write.closed_since };
            match group {
                Some((group, _)) => group.placement = Some(seen),
                None => {
                    let group = GroupSeen {
                        name: write.name.clone(),
                        index: write.group.index,
                        revision: self.revision(checked),
                        size: write.group.size,
                        replicas: write.group.size,
                        created: self.now,
                        deleting: false,
                        refusal: None,
                        placement: Some(seen),
                        pods: (0..write.group.size).map(|index| pod(&write.name, index)).collect(),
                    };
                    self.groups.push((group, 0));
                }
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

    fn age(&mut self) {
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

    fn available(&self) -> usize {
        self.groups.iter().filter(|(group, _)| group.is_available()).count()
    }

    fn group(&mut self, place: usize) -> &mut GroupSeen {
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
fn settle(world: &mut World, checked: &Checked, most: usize, least: usize) -> usize {
    for step in 0..100 {
        let decision = world.step(checked);
        assert!(world.groups.len() <= most, "step {step}: {} groups, {most} allowed", world.groups.len());
        assert!(world.available() >= least, "step {step}: {} serve, {least} promised", world.available());
        if is(&decision.status, ConditionType::Ready).0 == ConditionStatus::True {
            let again = world.decide(checked);
            assert!(again.placements.is_empty() && again.pods.is_empty(), "an applied decision decides nothing: {again:?}");
            assert_eq!(again.status, world.status, "a second look says the same");
            return step;
        }
    }
    panic!("not settled: {:#?}", world.status.conditions);
}

fn is(status: &DeploymentStatus, kind: ConditionType) -> (ConditionStatus, Reason) {
    condition(status, kind).map(|condition| (condition.status, condition.reason)).unwrap()
}

fn spec(lines: &str) -> Checked {
    check(&added(lines)).unwrap()
}

#[test]
fn a_first_start_makes_all_groups_at_once() {
    let mut world = World::new();
    let checked = spec("replicas: 3");
    let first = world.step(&checked);
    assert_eq!(world.groups.len(), 3);
    assert_eq!(is(&first.status, ConditionType::Available), (ConditionStatus::False, Reason::NoGroupReady));
    settle(&mut world, &checked, 3, 0);
    assert_eq!((world.status.ready_replicas, world.status.updated_replicas), (3, 3));
}

#[test]
fn a_rollout_replaces_one_group_at_a_time() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 3"), 3, 0);
    let changed = spec("replicas: 3\nexperts: {loss: {waitSeconds: 9}}");
    settle(&mut world, &changed, 3, 2);
    let target = world.revision(&changed);
    assert!(world.groups.iter().all(|(group, _)| group.revision == target));
}

#[test]
fn a_surge_makes_the_new_group_first() {
    let mut world = World::new();
    settle(&mut world, &spec("rollout: {maxUnavailable: 0, maxSurge: 1}"), 1, 0);
    let changed = spec("rollout: {maxUnavailable: 0, maxSurge: 1}\nexperts: {loss: {waitSeconds: 9}}");
    for _ in 0..2 {
        let decision = world.step(&changed);
        assert_eq!(is(&decision.status, ConditionType::Progressing).0, ConditionStatus::True, "the surge is on its way");
    }
    settle(&mut world, &changed, 2, 1);
}

#[test]
fn a_group_whose_workers_have_not_been_heard_is_not_taken_for_idle() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 1"), 1, 0);
    world.group(0).pods[0].worker = None;
    let none = spec("replicas: 0");
    for _ in 0..10 {
        world.step(&none);
    }
    assert!(!world.groups[0].0.deleting, "a new leader has not heard from this worker yet");
    let quiet = WorkerSeen { phase: WorkerPhase::Ready, epoch: 1, ..WorkerSeen::default() };
    world.group(0).pods[0].worker = Some(quiet);
    settle(&mut world, &none, 1, 0);
}

#[test]
fn the_last_group_is_not_replaced_unless_downtime_is_allowed() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 1"), 1, 0);
    let changed = "replicas: 1\nexperts: {loss: {waitSeconds: 9}}";
    for _ in 0..10 {
        world.step(&spec(changed));
        assert_eq!(world.available(), 1);
    }
    assert_eq!(is(&world.status, ConditionType::Progressing), (ConditionStatus::False, Reason::NoHandoverTarget));
    assert_eq!(is(&world.status, ConditionType::Ready).0, ConditionStatus::False);
    assert_eq!(is(&world.status, ConditionType::Available).0, ConditionStatus::True);
    settle(&mut world, &spec(&format!("{changed}\nrollout: {{allowDowntime: true}}")), 1, 0);
}

#[test]
fn a_group_that_runs_sequences_is_drained_before_it_goes() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 2"), 2, 0);
    world.group(1).pods[0].worker.as_mut().unwrap().sequences = 3;
    let one = spec("replicas: 1");
    for _ in 0..5 {
        world.step(&one);
    }
    // The idle one went, not the one that runs something.
    assert_eq!(world.groups.len(), 1);
    assert_eq!(world.groups[0].0.sequences(), 3);
    let none = spec("replicas: 0");
    for _ in 0..30 {
        world.step(&none);
    }
    assert_eq!(world.groups[0].0.placement.as_ref().unwrap().spec.traffic, Traffic::Closed);
    assert!(!world.groups[0].0.deleting, "three sequences still run");
    world.group(0).pods[0].worker.as_mut().unwrap().sequences = 0;
    settle(&mut world, &none, 1, 0);
    assert!(world.groups.is_empty());
    assert_eq!(is(&world.status, ConditionType::Available), (ConditionStatus::False, Reason::ScaledToZero));
}

#[test]
fn a_drain_that_takes_too_long_is_cut() {
    let mut world = World::new();
    let short = changed("memoryPerGpu: 80G", "memoryPerGpu: 80G, drainSeconds: 10");
    settle(&mut world, &check(&short).unwrap(), 1, 0);
    world.group(0).pods[0].worker.as_mut().unwrap().sequences = 1;
    let none = check(&format!("{short}  replicas: 0\n")).unwrap();
    let decision = world.step(&none);
    assert!(decision.look_again.is_some());
    for _ in 0..9 {
        world.step(&none);
        assert!(!world.groups[0].0.deleting);
    }
    world.step(&none);
    assert!(world.groups.is_empty() || world.groups[0].0.deleting);
}

#[test]
fn a_pause_stops_a_rollout_but_not_scaling_down() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 3"), 3, 0);
    let paused = "rollout: {paused: true}\nexperts: {loss: {waitSeconds: 9}}";
    for _ in 0..5 {
        world.step(&spec(&format!("replicas: 3\n{paused}")));
        assert_eq!(world.available(), 3);
    }
    assert_eq!(is(&world.status, ConditionType::Progressing), (ConditionStatus::False, Reason::RolloutPaused));
    for _ in 0..10 {
        world.step(&spec(&format!("replicas: 2\n{paused}")));
    }
    assert_eq!(world.available(), 2);
}

#[test]
fn going_back_to_the_old_spec_is_a_rollback() {
    let mut world = World::new();
    let old = spec("replicas: 3");
    settle(&mut world, &old, 3, 0);
    let new = spec("replicas: 3\nexperts: {loss: {waitSeconds: 9}}");
    for _ in 0..5 {
        world.step(&new);
    }
    settle(&mut world, &old, 3, 1);
    let target = world.revision(&old);
    assert!(world.groups.iter().all(|(group, _)| group.revision == target));
}

#[test]
fn a_restart_is_a_rollout() {
    let mut world = World::new();
    let checked = spec("replicas: 2");
    settle(&mut world, &checked, 2, 0);
    let before: Vec<String> = world.groups.iter().map(|(group, _)| group.name.clone()).collect();
    world.restarted = Some("2026-01-01T00:00:00Z".into());
    settle(&mut world, &checked, 2, 1);
    assert!(world.groups.iter().all(|(group, _)| !before.contains(&group.name)));
}

#[test]
fn a_broken_revision_is_replaced_without_asking() {
    let mut world = World::new();
    let broken = spec("replicas: 1");
    world.step(&broken);
    world.group(0).pods[0].container =
        ContainerSeen::Waiting { reason: "ImagePullBackOff".into(), message: "image w: not found".into() };
    let decision = world.step(&broken);
    assert_eq!(is(&decision.status, ConditionType::Ready).1, Reason::ImageUnavailable);
    assert_eq!(is(&decision.status, ConditionType::Progressing), (ConditionStatus::False, Reason::ImageUnavailable));
    settle(&mut world, &spec("replicas: 1\nexperts: {loss: {waitSeconds: 9}}"), 1, 0);
}

#[test]
fn the_younger_of_two_groups_that_find_no_node_gives_way() {
    let mut world = World::new();
    let checked = spec("replicas: 2");
    world.step(&checked);
    world.group(1).created += SignedDuration::from_secs(1);
    for place in 0..2 {
        world.group(place).pods[1].unschedulable = Some("0/2 nodes are available: 2 Insufficient nvidia.com/gpu".into());
    }
    let decision = world.decide(&checked);
    let replicas = |name: &str| {
        let set = decision.apply.iter().find(|object| object.kind == Kind::StatefulSet && object.name.contains(name)).unwrap();
        set.value["spec"]["replicas"].as_u64().unwrap()
    };
    assert_eq!((replicas("m1-0-"), replicas("m1-1-")), (2, 0));
    let ready = condition(&decision.status, ConditionType::Ready).unwrap();
    assert_eq!(ready.reason, Reason::Unschedulable);
    assert!(
        ready.message.contains("1 of 2 pods find no node: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu"),
        "{}",
        ready.message
    );
    // The older one got its nodes: the younger one tries again.
    world.group(1).replicas = 0;
    world.group(1).pods.clear();
    world.group(0).pods[1].unschedulable = None;
    let decision = world.decide(&checked);
    assert!(decision.apply.iter().filter(|object| object.kind == Kind::StatefulSet).all(|set| set.value["spec"]["replicas"] == 2));
}

#[test]
fn a_pod_on_a_node_that_is_gone_is_deleted_by_force_after_the_stated_time() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    settle(&mut world, &checked, 1, 0);
    let gone = world.now;
    world.group(0).pods[1].node = Some(NodeSeen { name: "n2".into(), cordoned: false, gone_since: Some(gone) });
    // First its words end, then the cluster notices.
    world.group(0).pods[1].worker = None;
    world.step(&checked);
    world.group(0).pods[1].ready = false;
    let decision = world.step(&checked);
    assert!(decision.pods.is_empty());
    assert!(decision.look_again.unwrap().as_secs() <= 60);
    assert_eq!(is(&decision.status, ConditionType::Degraded), (ConditionStatus::True, Reason::PodLost));
    world.now += SignedDuration::from_secs(60);
    let decision = world.decide(&checked);
    assert_eq!(is(&decision.status, ConditionType::Degraded), (ConditionStatus::True, Reason::PodLost));
    assert_eq!(decision.pods.len(), 1);
    assert_eq!(decision.pods[0].why, "node n2 has given no sign of life for 60 s");
}

#[test]
fn a_drained_node_opens_one_group_where_another_serves() {
    let open = |decision: &Decision| -> Vec<String> {
        let budgets =
            decision.apply.iter().filter(|object| object.kind == Kind::PodDisruptionBudget && !object.name.ends_with("router"));
        budgets.filter(|budget| budget.value["spec"]["maxUnavailable"] != 0).map(|budget| budget.name.clone()).collect()
    };
    let cordon = |world: &mut World, place: usize| {
        let node = NodeSeen { name: "n1".into(), cordoned: true, gone_since: None };
        world.group(place).pods[0].node = Some(node);
    };
    let mut world = World::new();
    let two = spec("replicas: 2");
    settle(&mut world, &two, 2, 0);
    world.now += SignedDuration::from_secs(60);
    assert!(open(&world.decide(&two)).is_empty());
    cordon(&mut world, 0);
    cordon(&mut world, 1);
    assert_eq!(open(&world.decide(&two)).len(), 1, "one at a time");
    let mut world = World::new();
    let one = spec("replicas: 1");
    settle(&mut world, &one, 1, 0);
    cordon(&mut world, 0);
    let decision = world.decide(&one);
    assert!(open(&decision).is_empty());
    assert_eq!(is(&decision.status, ConditionType::Degraded), (ConditionStatus::True, Reason::NoHandoverTarget));
    assert_eq!(open(&world.decide(&spec("replicas: 1\nrollout: {allowDowntime: true}"))).len(), 1);
}

#[test]
fn a_pod_that_leaves_closes_its_group() {
    let mut world = World::new();
    let checked = spec("replicas: 2");
    settle(&mut world, &checked, 2, 0);
    world.group(0).pods[1].deleting = true;
    world.step(&checked);
    assert_eq!(world.groups[0].0.placement.as_ref().unwrap().spec.traffic, Traffic::Closed);
    assert_eq!(world.groups[1].0.placement.as_ref().unwrap().spec.traffic, Traffic::Open);
    world.group(0).pods[1].deleting = false;
    settle(&mut world, &checked, 2, 1);
    assert_eq!(world.groups[0].0.placement.as_ref().unwrap().spec.traffic, Traffic::Open);
}

#[test]
fn a_budget_of_restarts_runs_out_and_can_be_given_anew() {
    let mut world = World::new();
    let yaml = changed("memoryPerGpu: 80G", "memoryPerGpu: 80G, restartBudget: {restarts: 2, windowSeconds: 600}");
    let checked = check(&yaml).unwrap();
    settle(&mut world, &checked, 1, 0);
    for _ in 0..3 {
        let end = EndSeen { time: world.now, code: 137, reason: "OOMKilled".into(), message: String::new() };
        world.group(0).pods[0].last_end = Some(end);
        world.step(&checked);
    }
    assert_eq!(world.status.groups[0].restarts.len(), 3);
    assert_eq!(world.status.groups[0].restarts[0].how, "exit code 137 (OOMKilled)");
    assert_eq!(is(&world.status, ConditionType::Degraded), (ConditionStatus::True, Reason::RestartBudgetExhausted));
    world.resumed = Some(world.now);
    world.step(&checked);
    assert_eq!(is(&world.status, ConditionType::Degraded).0, ConditionStatus::False);
}

#[test]
fn conditions_keep_the_time_of_their_last_change() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    settle(&mut world, &checked, 1, 0);
    let before = condition(&world.status, ConditionType::Ready).unwrap().clone();
    world.now += SignedDuration::from_secs(3600);
    world.step(&checked);
    assert_eq!(*condition(&world.status, ConditionType::Ready).unwrap(), before);
}

#[test]
fn a_blocked_rollout_stays_blocked_through_a_blip() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 1"), 1, 0);
    let edit = spec("replicas: 1\nexperts: {loss: {waitSeconds: 9}}");
    world.step(&edit);
    // One pod is away, so no pod reaches every expert.
    world.group(0).pods.iter_mut().for_each(|pod| pod.ready = false);
    for _ in 0..5 {
        world.step(&edit);
    }
    world.group(0).pods.iter_mut().for_each(|pod| pod.ready = true);
    for _ in 0..5 {
        world.step(&edit);
    }
    assert_eq!(world.available(), 1);
    assert_eq!(is(&world.status, ConditionType::Progressing), (ConditionStatus::False, Reason::NoHandoverTarget));
    // What stays away does not hold the edit back.
    world.group(0).pods.iter_mut().for_each(|pod| pod.ready = false);
    world.step(&edit);
    world.now += SignedDuration::from_secs(90);
    settle(&mut world, &edit, 1, 0);
}

#[test]
fn a_refused_edit_opens_what_was_closed_for_a_pod_that_left() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    settle(&mut world, &checked, 1, 0);
    world.group(0).pods[1].deleting = true;
    world.step(&checked);
    assert!(!world.groups[0].0.is_open());
    world.group(0).pods[1].deleting = false;
    let refusal = Refusal { reason: Reason::InvalidSpec, message: "spec.x: wrong".into() };
    let decision = refuse(&refusal, &world.observed(), 60);
    assert_eq!(decision.placements.len(), 1);
    assert_eq!(decision.placements[0].spec.traffic, Traffic::Open);
    assert!(!decision.prune && decision.apply.is_empty());
    assert_eq!(is(&decision.status, ConditionType::Accepted), (ConditionStatus::False, Reason::InvalidSpec));
}

#[test]
fn an_old_group_without_a_placement_can_go() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 2"), 2, 0);
    world.group(0).placement = None;
    settle(&mut world, &spec("replicas: 2\nexperts: {loss: {waitSeconds: 9}}"), 2, 0);
}

#[test]
fn a_rollout_of_two_groups_never_calls_itself_stuck() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 2"), 2, 0);
    let edit = spec("replicas: 2\nexperts: {loss: {waitSeconds: 9}}");
    for _ in 0..40 {
        let decision = world.step(&edit);
        assert_ne!(is(&decision.status, ConditionType::Progressing).1, Reason::NoHandoverTarget);
    }
    assert_eq!(is(&world.status, ConditionType::Ready).0, ConditionStatus::True);
}

#[test]
fn a_worker_of_another_model_is_named() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    world.step(&checked);
    let words = "layers x experts: 80 x 32 given, this model has 8 x 32";
    world.group(0).pods[0].worker = Some(WorkerSeen { refusal: Some(words.into()), ..WorkerSeen::default() });
    world.step(&checked);
    assert_eq!(is(&world.status, ConditionType::Ready).1, Reason::ArchitectureMismatch);
}

#[test]
fn a_group_that_just_came_back_takes_nothing_over_yet() {
    let mut world = World::new();
    let two = spec("replicas: 2");
    settle(&mut world, &two, 2, 0);
    world.now += SignedDuration::from_secs(60);
    let now = world.now;
    world.group(0).pods[0].ready_since = Some(now);
    let node = NodeSeen { name: "n1".into(), cordoned: true, gone_since: None };
    world.group(1).pods[0].node = Some(node);
    let opens = |world: &World| {
        let decision = world.decide(&two);
        assert_eq!(is(&decision.status, ConditionType::Degraded).0, ConditionStatus::False, "it only waits for its turn");
        let mut budgets = decision.apply.iter().filter(|object| object.kind == Kind::PodDisruptionBudget);
        (budgets.any(|budget| budget.value["spec"]["maxUnavailable"] == 2), decision.look_again.is_some())
    };
    assert_eq!(opens(&world), (false, true), "routers may not have noticed group 0 yet");
    world.now += SignedDuration::from_secs(5);
    assert!(opens(&world).0);
}
