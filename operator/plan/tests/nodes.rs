//! Nodes that fall silent or are emptied, and pods that nobody holds any more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::world::{World, is, settle, spec};
use common::{changed, check};
use k8s_openapi::jiff::SignedDuration;
use m1_operator_api::{ConditionStatus, ConditionType, Reason, Traffic};
use m1_operator_plan::{Decision, Kind, NodeSeen, PodSeen, Refusal, condition, refuse};

/// The groups whose pods may be evicted.
fn open(decision: &Decision) -> Vec<String> {
    let budgets = decision.apply.iter().filter(|object| object.kind == Kind::PodDisruptionBudget);
    let groups = budgets.filter(|budget| !budget.name.ends_with("router") && budget.value["spec"]["maxUnavailable"] != 0);
    groups.map(|budget| budget.name.clone()).collect()
}

fn cordon(world: &mut World, place: usize) {
    world.group(place).pods[0].node = Some(NodeSeen { name: "n1".into(), cordoned: true, gone_since: None });
}

#[test]
fn while_most_nodes_seem_gone_none_is_believed_to_be() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    settle(&mut world, &checked, 1, 0);
    let gone = world.now - SignedDuration::from_secs(3600);
    world.group(0).pods[1].node = Some(NodeSeen { name: "n2".into(), cordoned: false, gone_since: Some(gone) });
    world.outage = true;
    let decision = world.decide(&checked);
    assert!(decision.pods.is_empty(), "its pods may well serve");
    assert!(decision.look_again.is_some(), "the last silent node tells nobody when the others are back");
    world.outage = false;
    assert!(world.decide(&checked).pods[0].force);
}

#[test]
fn a_router_on_a_node_that_is_gone_is_deleted_by_force() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    settle(&mut world, &checked, 1, 0);
    let node = NodeSeen { name: "n2".into(), cordoned: false, gone_since: Some(world.now) };
    world.router.pods = vec![PodSeen { name: "m1-router-x".into(), deleting: true, node: Some(node), ..PodSeen::default() }];
    assert!(world.decide(&checked).pods.is_empty());
    world.now += SignedDuration::from_secs(60);
    let pods = world.decide(&checked).pods;
    assert_eq!(pods.iter().map(|pod| (pod.name.as_str(), pod.force)).collect::<Vec<_>>(), [("m1-router-x", true)]);
}

#[test]
fn after_a_refused_edit_nodes_are_drained_as_before() {
    let refusal = Refusal { reason: Reason::InvalidSpec, message: "spec.x: wrong".into() };
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 2"), 2, 0);
    world.now += SignedDuration::from_secs(60);
    cordon(&mut world, 0);
    let decision = refuse(&refusal, &world.observed(), 60);
    let names: Vec<String> = world.groups.iter().map(|(group, _)| group.name.clone()).collect();
    assert_eq!(decision.budgets, [(names[0].clone(), 2), (names[1].clone(), 0)]);
    assert_eq!(is(&decision.status, ConditionType::Degraded).0, ConditionStatus::False);
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 1"), 1, 0);
    cordon(&mut world, 0);
    let decision = refuse(&refusal, &world.observed(), 60);
    assert_eq!(decision.budgets, [(world.groups[0].0.name.clone(), 0)]);
    assert_eq!(is(&decision.status, ConditionType::Degraded), (ConditionStatus::True, Reason::NoHandoverTarget));
}

#[test]
fn pods_without_their_statefulset_are_let_go() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    settle(&mut world, &checked, 1, 0);
    let group = world.group(0);
    (group.deleting, group.orphaned, group.placement) = (true, true, None);
    group.pods[0].deleting = true;
    let name = group.pods[1].name.clone();
    let decision = world.decide(&checked);
    let deleted: Vec<_> = decision.pods.iter().map(|pod| (pod.name.as_str(), pod.force)).collect();
    assert_eq!(deleted, [(name.as_str(), false)], "gracefully, and once");
    settle(&mut world, &checked, 1, 0);
}

#[test]
fn a_drained_node_opens_one_group_where_another_serves() {
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
fn a_drain_leaves_as_many_groups_as_a_rollout_would() {
    let three = spec("replicas: 3");
    let mut world = World::new();
    settle(&mut world, &three, 3, 0);
    world.now += SignedDuration::from_secs(60);
    cordon(&mut world, 0);
    assert_eq!(open(&world.decide(&three)).len(), 1);
    // Another one is away already.
    world.group(2).pods[0].ready = false;
    let decision = world.decide(&three);
    assert!(open(&decision).is_empty(), "two of three would be away");
    let two_may_go = spec("replicas: 3\nrollout: {maxUnavailable: 2}");
    assert_eq!(open(&world.decide(&two_may_go)).len(), 1);
}

#[test]
fn a_closed_group_is_not_opened_while_sequences_run_in_it() {
    let mut world = World::new();
    let one = spec("replicas: 1");
    settle(&mut world, &one, 1, 0);
    cordon(&mut world, 0);
    world.group(0).placement.as_mut().unwrap().spec.traffic = Traffic::Closed;
    world.group(0).pods[0].worker.as_mut().unwrap().sequences = 1;
    assert!(open(&world.decide(&one)).is_empty());
    world.group(0).pods[0].worker.as_mut().unwrap().sequences = 0;
    assert_eq!(open(&world.decide(&one)).len(), 1);
}

#[test]
fn an_old_group_that_no_router_can_know_is_replaced() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 1"), 1, 0);
    world.now += SignedDuration::from_secs(60);
    let edited = spec("replicas: 1\nexperts: {loss: {waitSeconds: 9}}");
    world.step(&edited);
    assert_eq!(is(&world.status, ConditionType::Progressing).1, Reason::NoHandoverTarget);
    world.group(0).placement = None;
    settle(&mut world, &edited, 1, 0);
}

#[test]
fn a_pod_that_does_not_end_is_named() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 2"), 2, 0);
    let (one, since) = (spec("replicas: 1"), world.now);
    for _ in 0..8 {
        world.step(&one);
    }
    settle(&mut world, &one, 2, 0);
    let mut stuck = World::new();
    settle(&mut stuck, &spec("replicas: 2"), 2, 0);
    stuck.group(1).deleting = true;
    stuck.group(1).pods[0].overdue = Some(since);
    let name = stuck.groups[1].0.pods[0].name.clone();
    let status = stuck.decide(&one).status;
    let progressing = condition(&status, ConditionType::Progressing).unwrap();
    let words = format!("pod {name} should have been gone by {}", m1_operator_plan::seconds(since));
    assert!(progressing.message.contains(&words), "{}", progressing.message);
}

#[test]
fn a_pod_that_no_scheduler_takes_up_is_named_with_its_scheduler() {
    let mut world = World::new();
    let checked = spec("scheduling: {gang: Kai}");
    world.step(&checked);
    world.group(0).pods[1].unclaimed = Some("kai-scheduler".into());
    let status = world.step(&checked).status;
    assert_eq!(is(&status, ConditionType::Progressing), (ConditionStatus::False, Reason::Unschedulable));
    let ready = condition(&status, ConditionType::Ready).unwrap();
    assert!(ready.message.contains("no scheduler has looked at it; it asks for kai-scheduler"), "{}", ready.message);
}

#[test]
fn a_pause_leaves_the_group_that_a_rollout_has_added() {
    let lines = "replicas: 1\nrollout: {maxUnavailable: 0, maxSurge: 1}";
    let mut world = World::new();
    settle(&mut world, &spec(lines), 1, 0);
    let edit = |paused: bool| {
        spec(&format!("{}\nexperts: {{loss: {{waitSeconds: 9}}}}", lines.replace("}", &format!(", paused: {paused}}}"))))
    };
    world.step(&edit(false));
    assert_eq!(world.groups.len(), 2);
    for _ in 0..5 {
        world.step(&edit(true));
    }
    assert!(world.groups.iter().all(|(group, _)| !group.deleting && group.closed_since().is_none()), "it loads on");
    settle(&mut world, &edit(false), 2, 1);
}

#[test]
fn what_an_old_group_lost_is_told_while_a_rollout_is_paused() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 1"), 1, 0);
    let paused = spec("replicas: 1\nrollout: {paused: true}\nexperts: {loss: {waitSeconds: 9}}");
    world.step(&paused);
    assert_eq!(is(&world.status, ConditionType::Degraded).0, ConditionStatus::False);
    world.group(0).pods[0].ready = false;
    let status = world.step(&paused).status;
    assert_eq!(is(&status, ConditionType::Degraded).0, ConditionStatus::True);
    let available = condition(&status, ConditionType::Available).unwrap();
    assert!(available.message.contains("1 of 2 pods are ready"), "{}", available.message);
}

#[test]
fn a_refused_edit_still_says_what_is_lost_and_who_cannot_be_reached() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 1"), 1, 0);
    let refusal = Refusal { reason: Reason::InvalidSpec, message: "spec.x: wrong".into() };
    let status = |world: &World| refuse(&refusal, &world.observed(), 60).status;
    assert_eq!(is(&status(&world), ConditionType::Degraded), (ConditionStatus::False, Reason::AllThere));
    assert_eq!(is(&status(&world), ConditionType::WeightsReady).0, ConditionStatus::True);
    world.router.available = 0;
    assert_eq!(is(&status(&world), ConditionType::Available), (ConditionStatus::False, Reason::RouterUnavailable));
    world.router.available = 1;
    world.group(0).pods[0].ready = false;
    assert_eq!(is(&status(&world), ConditionType::Degraded).0, ConditionStatus::True);
}

#[test]
fn without_memory_pods_are_planned_for_cpus_whatever_nodes_have() {
    let yaml = changed("memoryPerGpu: 80G", "memoryPerGpu: 0").replace("tensor: 8", "tensor: 1");
    let gpus = m1_operator_plan::Environment { memory_per_gpu: Some(m1_arch::Bytes(80_000_000_000)), ..common::m1() };
    let plan = m1_operator_plan::plan(&check(&yaml).unwrap(), &gpus).unwrap();
    assert_eq!(plan.template().unwrap().gpus, 0);
}

#[test]
fn a_placement_that_no_object_holds_is_refused() {
    let yaml = changed("memoryPerGpu: 80G", "memoryPerGpu: 0").replace("tensor: 8, expert: 2", "tensor: 1, expert: 256");
    let mut large = m1_arch::Architecture::minimax_m1();
    large.experts = 1024;
    let error = m1_operator_plan::plan(&check(&yaml).unwrap(), &m1_operator_plan::Environment::new(large)).unwrap_err();
    assert!(
        error.to_string().contains("spec.parallelism.expert: 256: who holds which of 80 x 1024 experts takes 5242880 digits"),
        "{error}"
    );
}
