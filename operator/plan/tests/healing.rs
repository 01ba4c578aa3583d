//! What breaks and what is done about it: pods, nodes, revisions, workers, refused specs; and what the status says meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::world::{World, is, settle, spec};
use common::{changed, check};
use k8s_openapi::jiff::SignedDuration;
use m1_operator_api::{ConditionStatus, ConditionType, Reason, Traffic};
use m1_operator_plan::{
    BesideSeen, CertificateTrouble, ContainerSeen, EndSeen, Kind, NodeSeen, Refusal, WorkerPhase, WorkerSeen, condition, refuse,
    write_refused,
};

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
fn without_certificates_nothing_starts_and_with_old_ones_everything_serves_on() {
    let mut world = World::new();
    let checked = spec("tls: {mode: Managed}");
    world.certificates = Some(CertificateTrouble { message: "no right to Secrets".into(), missing: true });
    world.step(&checked);
    world.group(0).pods[0].volumes = Some("secret m1-members-tls not found".into());
    let decision = world.decide(&checked);
    let ready = condition(&decision.status, ConditionType::Ready).unwrap();
    assert_eq!(ready.reason, Reason::CertificatesUnavailable);
    assert!(ready.message.contains("no right to Secrets"), "{}", ready.message);
    world.group(0).pods[0].volumes = None;
    world.certificates = None;
    settle(&mut world, &checked, 1, 0);
    assert!(world.group(0).placement.as_ref().unwrap().spec.encrypted);
    world.certificates = Some(CertificateTrouble { message: "no right to Secrets".into(), missing: false });
    let status = world.step(&checked).status;
    assert_eq!(is(&status, ConditionType::Ready).0, ConditionStatus::True);
    assert_eq!(is(&status, ConditionType::Degraded), (ConditionStatus::True, Reason::CertificatesUnavailable));
}

#[test]
fn groups_keep_their_place_while_nothing_new_could_start() {
    let mut world = World::new();
    settle(&mut world, &spec("replicas: 2"), 2, 0);
    world.now += SignedDuration::from_secs(60);
    world.certificates = Some(CertificateTrouble { message: "no right to Secrets".into(), missing: true });
    let encrypted = spec("replicas: 2\ntls: {mode: Managed}");
    for _ in 0..10 {
        world.step(&encrypted);
    }
    assert_eq!(world.available(), 2);
    assert_eq!(is(&world.status, ConditionType::Progressing), (ConditionStatus::False, Reason::CertificatesUnavailable));
    world.certificates = None;
    settle(&mut world, &encrypted, 2, 1);
}

#[test]
fn what_starts_has_lost_nothing() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    world.step(&checked);
    for pod in &mut world.group(0).pods {
        pod.worker = Some(WorkerSeen { phase: WorkerPhase::Connecting, epoch: 1, ..WorkerSeen::default() });
    }
    world.step(&checked);
    assert_eq!(world.status.groups[0].epoch, 1);
    assert_eq!(is(&world.decide(&checked).status, ConditionType::Degraded).0, ConditionStatus::False);
    settle(&mut world, &checked, 1, 0);
    world.group(0).pods[0].ready = false;
    assert_eq!(is(&world.decide(&checked).status, ConditionType::Degraded).0, ConditionStatus::True);
}

#[test]
fn without_a_service_nobody_is_served() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    settle(&mut world, &checked, 1, 0);
    world.router.has_service = false;
    let status = world.decide(&checked).status;
    assert_eq!(is(&status, ConditionType::Available), (ConditionStatus::False, Reason::RouterUnavailable));
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
fn what_a_gang_lacks_is_told_by_the_pod_that_says_it() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    world.step(&checked);
    // As scheduler-plugins writes it: the first had a node, the second found none, so the first lost its own.
    let words = [
        "0/1 nodes are available: 1 optimistic rejection in PostFilter.",
        "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
    ];
    for places in [[0, 1], [1, 0]] {
        for (pod, place) in places.into_iter().enumerate() {
            world.group(0).pods[pod].unschedulable = Some(words[place].into());
        }
        let decision = world.decide(&checked);
        let ready = condition(&decision.status, ConditionType::Ready).unwrap();
        assert!(ready.message.contains("2 of 2 pods find no node: 0/2 nodes are available: 2 Insufficient"), "{}", ready.message);
    }
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
fn a_pod_that_leaves_closes_its_group() {
    let mut world = World::new();
    let checked = spec("replicas: 2");
    settle(&mut world, &checked, 2, 0);
    world.group(0).pods[1].deleting = true;
    world.step(&checked);
    assert_eq!(is(&world.status, ConditionType::Degraded), (ConditionStatus::True, Reason::PodLost));
    world.step(&checked);
    assert_eq!(is(&world.status, ConditionType::Degraded).0, ConditionStatus::True, "closed, and no less lost");
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
fn a_placement_says_what_its_pods_have_applied() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    settle(&mut world, &checked, 1, 0);
    let status = |world: &World| world.groups[0].0.placement.as_ref().unwrap().status.clone();
    assert_eq!((status(&world).applied_epoch, status(&world).pods.len()), (1, 2));
    // One comes back and is not heard yet, then runs nothing, then the placement again.
    world.group(0).pods[0].worker = None;
    assert!(world.decide(&checked).applied.is_empty(), "what was known of it holds");
    world.group(0).pods[0].worker = Some(WorkerSeen::default());
    assert!(world.decide(&checked).applied.is_empty(), "pods that come one by one are no news each");
    world.group(0).pods[0].worker = Some(WorkerSeen { epoch: 1, digest: "another".into(), ..WorkerSeen::default() });
    world.step(&checked);
    assert_eq!(status(&world).pods[0].digest, "another");
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
fn somebody_else_at_a_pods_address_is_named() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    world.step(&checked);
    let name = world.group(0).pods[0].name.clone();
    world.group(0).pods[0].stranger = Some("the call is meant for a; this is b".into());
    world.step(&checked);
    let ready = condition(&world.status, ConditionType::Ready).unwrap();
    let words = format!("pod {name}: somebody else answers at its address: the call is meant for a; this is b");
    assert_eq!((ready.reason, ready.message.contains(&words)), (Reason::PodLost, true), "{}", ready.message);
}

#[test]
fn a_container_that_somebody_put_beside_ours_is_named() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    world.step(&checked);
    let end = EndSeen { time: world.now, code: 2, reason: "Error".into(), message: "no mesh".into() };
    let mut said = |reason: &str, last_end: Option<EndSeen>| {
        let beside = BesideSeen { container: "istio-proxy".into(), reason: reason.into(), message: "back-off".into(), last_end };
        world.group(0).pods[0].beside = Some(beside);
        let status = world.decide(&checked).status;
        let ready = condition(&status, ConditionType::Ready).unwrap();
        (ready.reason, ready.message.split("pod ").nth(1).unwrap_or_default().to_owned())
    };
    let (reason, words) = said("ImagePullBackOff", None);
    assert_eq!(reason, Reason::ImageUnavailable);
    assert!(words.ends_with("-0: container istio-proxy: ImagePullBackOff: back-off"), "{words}");
    let (reason, words) = said("CrashLoopBackOff", Some(end));
    assert_eq!(reason, Reason::CrashLooping);
    assert!(words.ends_with("-0: container istio-proxy: ended with exit code 2: no mesh"), "{words}");
}

#[test]
fn a_volume_that_is_missing_is_called_by_what_is_in_it() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    world.step(&checked);
    let mut called = |words: &str| {
        world.group(0).pods[0].volumes = Some(words.into());
        is(&world.decide(&checked).status, ConditionType::Ready).1
    };
    let failed = |volume: &str, why: &str| format!("MountVolume.SetUp failed for volume \"{volume}\" : {why}");
    assert_eq!(called(&failed("model", "hostPath type check failed")), Reason::WeightsUnavailable);
    assert_eq!(called(&failed("hub-token", "secret \"token\" not found")), Reason::WeightsUnavailable);
    assert_eq!(
        called(&failed("pvc-0a1b", "the disk is gone")),
        Reason::WeightsUnavailable,
        "a claim's volume has a name of its own"
    );
    assert_eq!(called(&failed("tls", "secret \"m1-members-tls\" not found")), Reason::CertificatesUnavailable);
    assert_eq!(called(&failed("mine", "configmap \"nope\" not found")), Reason::ContainerNotCreated);
}

#[test]
fn pods_that_hold_their_weights_and_never_meet_are_called_stalled() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    world.step(&checked);
    for pod in &mut world.group(0).pods {
        let message = "no answer from m1-1".to_owned();
        pod.worker = Some(WorkerSeen { phase: WorkerPhase::Connecting, message, epoch: 1, ..WorkerSeen::default() });
    }
    let decide = |world: &mut World| {
        let decision = world.decide(&checked);
        world.status = decision.status.clone();
        (is(&decision.status, ConditionType::Progressing), decision.look_again)
    };
    assert_eq!(decide(&mut world).0, (ConditionStatus::True, Reason::ExpertsUnavailable));
    world.now += SignedDuration::from_secs(599);
    let (progressing, again) = decide(&mut world);
    assert_eq!((progressing.0, again.map(|again| again.as_secs())), (ConditionStatus::True, Some(1)));
    world.now += SignedDuration::from_secs(1);
    let (progressing, again) = decide(&mut world);
    assert_eq!(progressing, (ConditionStatus::False, Reason::Stalled));
    assert!(again.is_none_or(|again| !again.is_zero()), "it is not looked at without an end");
    let message = &condition(&world.status, ConditionType::Progressing).unwrap().message;
    assert!(message.contains("no answer from m1-1"), "{message}");
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

#[test]
fn being_refused_again_is_no_change() {
    let mut world = World::new();
    let checked = spec("replicas: 1");
    settle(&mut world, &checked, 1, 0);
    let first = write_refused(&world.status, &world.status.conditions, "a quota", world.now);
    assert_eq!(is(&first, ConditionType::Ready), (ConditionStatus::False, Reason::WriteRefused));
    let later = world.now + SignedDuration::from_secs(60);
    assert_eq!(
        write_refused(&world.status, &first.conditions, "a quota", later),
        first,
        "or each try would be written, and be a new look"
    );
}
