//! Scale and rollout in whole groups, with the promises held at every step.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::world::{World, is, settle, spec};
use common::{changed, check};
use k8s_openapi::jiff::SignedDuration;
use m1_operator_api::{ConditionStatus, ConditionType, Reason, Traffic};
use m1_operator_plan::{Decision, Kind, NodeSeen};

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
fn a_plain_group_stays_until_every_router_can_speak_to_encrypted_ones() {
    let mut world = World::new();
    let surge = "rollout: {maxUnavailable: 0, maxSurge: 1}";
    settle(&mut world, &spec(surge), 1, 0);
    let encrypted = spec(&format!("{surge}\ntls: {{mode: Managed}}"));
    world.router.settled = false;
    for _ in 0..20 {
        world.step(&encrypted);
    }
    let traffic =
        |world: &World| world.groups.iter().map(|(group, _)| (group.is_encrypted(), group.is_available())).collect::<Vec<_>>();
    let both = [(false, true), (true, true)];
    assert_eq!(traffic(&world), both);
    assert_eq!(is(&world.status, ConditionType::Progressing), (ConditionStatus::True, Reason::RollingOut));
    world.router.trouble = Some("pod r: ErrImagePull".into());
    world.step(&encrypted);
    assert_eq!(is(&world.status, ConditionType::Progressing), (ConditionStatus::False, Reason::RollingOut));
    (world.router.settled, world.router.trouble) = (true, None);
    // One that still finishes its streams may be sent a request on a connection that stands.
    world.router.left_by = Some(world.now + SignedDuration::from_secs(5));
    assert_eq!(world.step(&encrypted).look_again, Some(std::time::Duration::from_secs(5)));
    assert_eq!(traffic(&world), both);
    // One that should be gone and is not holds nothing up, and is not asked after without a pause.
    (world.router.left_by, world.router.settled) = (Some(world.now), false);
    assert!(world.step(&encrypted).look_again.is_none_or(|pause| !pause.is_zero()));
    (world.router.settled, world.router.certified) = (true, false);
    for _ in 0..10 {
        world.step(&encrypted);
    }
    assert_eq!(traffic(&world), both, "its template could not be written");
    // A node that is emptied does not make a plain group go either.
    world.group(0).pods[0].node = Some(NodeSeen { name: "n".into(), cordoned: true, gone_since: None });
    let opened = |decision: &Decision| {
        let mut budgets = decision.apply.iter().filter(|object| object.kind == Kind::PodDisruptionBudget);
        budgets.any(|budget| budget.value["spec"]["maxUnavailable"] != 0)
    };
    assert!(!opened(&world.decide(&encrypted)));
    world.router.certified = true;
    assert!(opened(&world.decide(&encrypted)));
    world.group(0).pods[0].node = None;
    settle(&mut world, &encrypted, 2, 1);
    assert_eq!(traffic(&world), [(true, true)]);
    // Every router speaks plain.
    world.router.settled = false;
    for _ in 0..20 {
        world.step(&spec(surge));
    }
    assert_eq!(traffic(&world), [(false, true)]);
}

#[test]
fn fewer_groups_of_another_revision_are_reached_without_a_gap() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 2"), 2, 0);
    world.now += SignedDuration::from_secs(60);
    // One goes, its successor comes in its place, then the other goes.
    settle(&mut world, &spec("replicas: 1\nexperts: {loss: {waitSeconds: 9}}"), 3, 1);
    assert_eq!(world.groups.len(), 1);
}

#[test]
fn an_edit_that_waits_reads_no_weights() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 1"), 1, 0);
    let waits = world.decide(&spec("replicas: 1\nrollout: {paused: true}\nexperts: {loss: {waitSeconds: 9}}")).status;
    assert_eq!(is(&waits, ConditionType::Progressing).1, Reason::RolloutPaused);
    assert_eq!(is(&waits, ConditionType::WeightsReady), (ConditionStatus::True, Reason::WeightsLoaded));
}
