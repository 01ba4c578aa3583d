//! The watch on ExpertPlacements, against an API server that fails in every way it can: what it says becomes topologies, what it fails to say changes nothing.

use crate::common::cluster::Cluster;
use crate::common::{Double, PATIENCE, chat, config};
use m1_operator_api::{ExpertPlacementSpec, PodHolding, ResourceName, Traffic};
use m1_router::drain::Stops;
use m1_router::groups::kubernetes::follow;
use m1_router_core::Topology;
use serde_json::{Value, json};
use tokio::sync::watch;

const PATH: &str = "/apis/serving.minimax-m1.dev/v1alpha1/namespaces/serving/expertplacements?";
const WATCH: &str = "watch=true";

/// A group of one pod as the operator writes it.
fn spec(address: &str, traffic: Traffic) -> Value {
    let pod = PodHolding { pod: "p".into(), address: address.into(), holds: "f00f".into() };
    let spec = ExpertPlacementSpec {
        deployment: "m1".into(),
        epoch: 1,
        layers: 2,
        experts: 8,
        revision: "abc".into(),
        traffic,
        pods: vec![pod],
        ..ExpertPlacementSpec::default()
    };
    serde_json::to_value(spec).unwrap()
}

fn open(address: &str) -> Value {
    spec(address, Traffic::Open)
}

/// A follower of `cluster`, as the router starts one.
fn follower(cluster: &Cluster) -> watch::Receiver<Topology> {
    let (sender, receiver) = watch::channel(Topology::default());
    tokio::spawn(follow(cluster.client(), "serving".to_owned(), ResourceName::new("m1").unwrap(), sender));
    receiver
}

/// Waits until the groups are these: `name address`, a closed one in brackets.
async fn until(topologies: &mut watch::Receiver<Topology>, wanted: &[&str]) {
    let told = |topology: &Topology| -> Vec<String> {
        let group = |(name, group): (&String, &m1_router_core::GroupSpec)| {
            let told = format!("{name} {}", group.pods[0].address);
            if group.open { told } else { format!("({told})") }
        };
        topology.groups.iter().map(group).collect()
    };
    let wait = topologies.wait_for(|topology| told(topology) == wanted);
    let found = tokio::time::timeout(PATIENCE, wait).await.map(|found| found.is_ok());
    assert_eq!(found, Ok(true), "{wanted:?} did not come: {:?}", told(&topologies.borrow()));
}

#[tokio::test]
async fn objects_that_come_change_and_go_are_groups() {
    let cluster = Cluster::start().await;
    cluster.apply("m1-0-abc", open("a:1"));
    let mut topologies = follower(&cluster);
    until(&mut topologies, &["m1-0-abc a:1"]).await;
    let group = topologies.borrow().groups["m1-0-abc"].clone();
    assert_eq!((group.revision.as_str(), group.pods[0].holds.as_ref().unwrap().to_hex()), ("abc", "f00f".to_owned()));
    cluster.apply("m1-1-abc", open("b:1"));
    until(&mut topologies, &["m1-0-abc a:1", "m1-1-abc b:1"]).await;
    cluster.apply("m1-0-abc", spec("a:1", Traffic::Closed));
    until(&mut topologies, &["(m1-0-abc a:1)", "m1-1-abc b:1"]).await;
    cluster.finalize("m1-1-abc", open("b:1"));
    until(&mut topologies, &["(m1-0-abc a:1)", "(m1-1-abc b:1)"]).await;
    cluster.apply("m1-0-abc", open("a:2"));
    until(&mut topologies, &["m1-0-abc a:2", "(m1-1-abc b:1)"]).await;
    cluster.delete("m1-1-abc");
    until(&mut topologies, &["m1-0-abc a:2"]).await;
    let calls = cluster.calls();
    assert!(calls.iter().all(|call| call.starts_with(PATH)), "{calls:?}");
    assert!(calls.iter().all(|call| call.contains("labelSelector=serving.minimax-m1.dev%2Fname%3Dm1")), "{calls:?}");
}

#[tokio::test]
async fn an_object_that_does_not_read_disturbs_no_other() {
    let cluster = Cluster::start().await;
    cluster.apply("m1-0-abc", open("a:1"));
    cluster.apply("m1-1-abc", json!({"layers": "many", "pods": 7}));
    let mut topologies = follower(&cluster);
    until(&mut topologies, &["m1-0-abc a:1"]).await;
    cluster.apply("m1-2-abc", open("no address"));
    cluster.apply("m1-0-abc", json!({"deployment": "m1"}));
    cluster.apply("m1-3-abc", open("d:1"));
    until(&mut topologies, &["m1-0-abc a:1", "m1-3-abc d:1"]).await;
    cluster.apply("m1-1-abc", open("b:1"));
    until(&mut topologies, &["m1-0-abc a:1", "m1-1-abc b:1", "m1-3-abc d:1"]).await;
}

#[tokio::test]
async fn a_status_that_changes_is_no_news() {
    let cluster = Cluster::start().await;
    cluster.apply("m1-0-abc", open("a:1"));
    let mut topologies = follower(&cluster);
    until(&mut topologies, &["m1-0-abc a:1"]).await;
    topologies.mark_unchanged();
    let mut moved = open("a:1");
    moved["epoch"] = json!(2);
    cluster.apply("m1-0-abc", moved);
    cluster.apply("m1-1-abc", open("b:1"));
    topologies.changed().await.unwrap();
    assert_eq!(topologies.borrow_and_update().groups.len(), 2, "the first change since is the second one");
}

#[tokio::test]
async fn a_watch_that_is_too_old_becomes_a_list() {
    let cluster = Cluster::start().await;
    cluster.apply("m1-0-abc", open("a:1"));
    cluster.apply("m1-1-abc", open("b:1"));
    let mut topologies = follower(&cluster);
    until(&mut topologies, &["m1-0-abc a:1", "m1-1-abc b:1"]).await;
    cluster.wait_calls(WATCH, 1).await;
    cluster.compact(|cluster| {
        cluster.delete("m1-0-abc");
        cluster.apply("m1-2-abc", open("c:1"));
    });
    until(&mut topologies, &["m1-1-abc b:1", "m1-2-abc c:1"]).await;
    cluster.wait_calls(WATCH, 2).await;
    assert_eq!(cluster.calls().iter().filter(|call| !call.contains(WATCH)).count(), 2, "it listed again");
    cluster.delete("m1-1-abc");
    until(&mut topologies, &["m1-2-abc c:1"]).await;
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again_where_it_was() {
    let cluster = Cluster::start().await;
    cluster.apply("m1-0-abc", open("a:1"));
    let mut topologies = follower(&cluster);
    until(&mut topologies, &["m1-0-abc a:1"]).await;
    for round in 1..=2 {
        cluster.wait_calls(WATCH, round).await;
        cluster.cut();
        let (name, address) = (format!("m1-{round}-abc"), format!("b:{round}"));
        cluster.apply(&name, open(&address));
        let wanted = ["m1-0-abc a:1", "m1-1-abc b:1", "m1-2-abc b:2"];
        until(&mut topologies, &wanted[..=round]).await;
    }
    assert_eq!(cluster.calls().iter().filter(|call| !call.contains(WATCH)).count(), 1, "nothing was listed again");
}

#[tokio::test]
async fn while_the_api_server_fails_the_last_picture_stands() {
    let cluster = Cluster::start().await;
    cluster.refuse(2);
    cluster.apply("m1-0-abc", open("a:1"));
    let mut topologies = follower(&cluster);
    until(&mut topologies, &["m1-0-abc a:1"]).await;
    cluster.wait_calls(WATCH, 1).await;
    topologies.mark_unchanged();
    cluster.refuse(3);
    cluster.compact(|cluster| cluster.apply("m1-1-abc", open("b:1")));
    topologies.changed().await.unwrap();
    assert_eq!(topologies.borrow_and_update().groups.len(), 2, "there was no picture in between");
}

#[tokio::test]
async fn a_router_serves_what_the_cluster_says() {
    let cluster = Cluster::start().await;
    let topologies = follower(&cluster);
    let double = Double::start(0);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = crate::common::Client::new(listener.local_addr().unwrap());
    let (_stops, signals) = watch::channel(0);
    tokio::spawn(m1_router::serve(config(), listener, topologies, Stops::new(signals)));
    assert_eq!(client.get("/ready").await.status, 503);
    cluster.apply("m1-0-abc", open(&double.address));
    let is = |status: u16| {
        let client = client.clone();
        let wait = async move { while client.get("/ready").await.status != status {} };
        async move { tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("/ready is {status}")) }
    };
    is(200).await;
    assert_eq!(client.post("/v1/chat/completions", &chat(json!({}))).await.status, 200);
    cluster.finalize("m1-0-abc", open(&double.address));
    is(503).await;
    cluster.delete("m1-0-abc");
    assert_eq!(client.post("/v1/chat/completions", &chat(json!({}))).await.status, 503);
}
