//! Replica groups that come, change and go while requests run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{Act, Client, Double, NAME, PATIENCE, Stand, chat};
use m1_arch::ExpertSet;
use m1_router_core::{GroupSpec, PodSpec, Revision, Topology};
use serde_json::{Value, json};
use tonic::Code;

const CHAT: &str = "/v1/chat/completions";

/// A group of one double: revision, open, whose.
fn topology(stand: &Stand, groups: &[(&str, bool, usize)]) -> Topology {
    let group = |(revision, open, double): &(&str, bool, usize)| {
        let address = stand.doubles[*double].address.as_str();
        let pods = vec![PodSpec { address: address.into(), holds: None, member: None }];
        (format!("group-{double}"), GroupSpec { revision: Revision::new(revision), open: *open, pods, ..GroupSpec::default() })
    };
    Topology { groups: groups.iter().map(group).collect() }
}

/// A router without any group, and doubles that may become some.
async fn stand(doubles: u32) -> Stand {
    let doubles = (0..doubles).map(|_| Double::start(0)).collect();
    Stand::over(doubles, Topology::default(), |config| config.patience.limit = 64).await
}

/// Names the groups, and waits until the router has heard every double in them, and no other.
async fn regroup(stand: &Stand, groups: &[(&str, bool, usize)]) {
    stand.topologies.send_replace(topology(stand, groups));
    let plural = |count: usize, word: &str| if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") };
    let phases = [(true, "ready"), (false, "ready in a closed group")];
    let counts = phases.map(|(open, words)| (groups.iter().filter(|(_, is_open, _)| *is_open == open).count(), words));
    let mut counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, words)| format!("{count} {words}")).collect();
    counts.sort();
    let head = format!("{} in {}: ", plural(groups.len(), "worker"), plural(groups.len(), "replica group"));
    let wanted = if groups.is_empty() { vec!["there is no replica group".to_owned()] } else { counts };
    let followed: Vec<bool> = (0..stand.doubles.len()).map(|double| groups.iter().any(|(.., member)| *member == double)).collect();
    stand
        .until(|client| {
            let (wanted, head) = (wanted.clone(), head.clone());
            let follows = stand.doubles.iter().map(|double| double.followers() > 0).eq(followed.iter().copied());
            async move {
                let answer = client.get("/ready").await.json();
                let said = answer["workers"].as_str().unwrap();
                let mut said: Vec<&str> = said.strip_prefix(&head).unwrap_or(said).split(", ").collect();
                said.sort_unstable();
                follows && said == wanted
            }
        })
        .await;
}

fn stream() -> Value {
    chat(json!({"stream": true}))
}

async fn post(client: &Client) -> (u16, String) {
    let answer = client.post(CHAT, &chat(json!({}))).await;
    (answer.status, answer.text)
}

#[tokio::test]
async fn without_a_group_the_model_exists_and_nobody_serves_it() {
    let stand = stand(1).await;
    assert_eq!(stand.client.get("/health").await.status, 200);
    let ready = stand.client.get("/ready").await;
    assert_eq!((ready.status, ready.header("retry-after")), (503, "2"));
    assert!(ready.text.contains("there is no replica group"), "{}", ready.text);
    let answer = stand.client.post(CHAT, &chat(json!({}))).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "2"));
    assert_eq!(answer.json()["error"]["code"], "not_ready");
    assert_eq!(stand.client.get(&format!("/v1/models/{NAME}")).await.status, 200);
    assert_eq!(stand.client.post("/tokenize", &json!({"prompt": "hello"})).await.status, 200);
    regroup(&stand, &[("1", true, 0)]).await;
    assert_eq!(post(&stand.client).await.0, 200);
    regroup(&stand, &[]).await;
    assert_eq!(post(&stand.client).await.0, 503);
    regroup(&stand, &[("1", false, 0)]).await;
    assert_eq!(stand.client.get("/ready").await.status, 503, "a closed group serves nobody");
    assert_eq!(post(&stand.client).await.0, 503);
}

#[tokio::test]
async fn groups_come_and_go_under_load_without_a_failed_request() {
    let stand = stand(4).await;
    stand.script(&[Act::Say("some words of an answer"), Act::Eos]);
    regroup(&stand, &[("1", true, 0)]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients = (0..6).map(|_| {
        let (client, stop) = (stand.client.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut served = 0;
            while !stop.load(Ordering::Relaxed) {
                let (status, text) = post(&client).await;
                assert_eq!(status, 200, "{text}");
                let events = client.stream(CHAT, &stream()).await.rest().await;
                assert_eq!(events.last().unwrap().1, "[DONE]", "{events:?}");
                served += 2;
            }
            served
        })
    });
    let clients: Vec<_> = clients.collect();
    for round in 0..8 {
        let (old, new) = (round % 4, (round + 1) % 4);
        let (old_revision, new_revision) = (format!("{round}"), format!("{}", round + 1));
        // As a rollout does it: the new group comes, the old one is closed, and goes.
        regroup(&stand, &[(&old_revision, true, old), (&new_revision, true, new)]).await;
        regroup(&stand, &[(&old_revision, false, old), (&new_revision, true, new)]).await;
        let before = stand.doubles[new].seen().len();
        stand.doubles[new].wait_seen(before + 5).await;
        regroup(&stand, &[(&new_revision, true, new)]).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut served = 0;
    for client in clients {
        served += tokio::time::timeout(PATIENCE, client).await.unwrap().unwrap();
    }
    let seen: Vec<usize> = stand.doubles.iter().map(|double| double.seen().len()).collect();
    assert_eq!(seen.iter().sum::<usize>(), served, "every request was tried once: {seen:?}");
    assert!(seen.iter().all(|seen| *seen > 0), "every group served: {seen:?}");
}

#[tokio::test]
async fn a_closed_group_gets_nothing_new_and_what_runs_there_ends() {
    let stand = stand(2).await;
    regroup(&stand, &[("1", true, 0)]).await;
    stand.script(&[Act::Say("hi"), Act::Hold, Act::Eos]);
    let mut first = stand.client.stream(CHAT, &stream()).await;
    let mut second = stand.client.stream(CHAT, &stream()).await;
    first.json().await;
    second.json().await;
    stand.doubles[1].script(&[Act::Say("hi"), Act::Eos]);
    regroup(&stand, &[("1", false, 0), ("1", true, 1)]).await;
    for _ in 0..5 {
        assert_eq!(post(&stand.client).await.0, 200);
    }
    assert_eq!((stand.doubles[0].seen().len(), stand.doubles[1].seen().len()), (2, 5));
    let metrics = stand.client.get("/metrics").await.text;
    for line in [
        "m1_router_groups{model_name=\"MiniMax-M1-demo\",state=\"open\"} 1",
        "m1_router_groups{model_name=\"MiniMax-M1-demo\",state=\"closed\"} 1",
        "vllm:num_requests_running{model_name=\"MiniMax-M1-demo\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    // Gone from the topology, and still answering.
    regroup(&stand, &[("1", true, 1)]).await;
    stand.doubles[0].release();
    for events in [first, second] {
        assert_eq!(events.rest().await.last().unwrap().1, "[DONE]");
    }
    let idle = "vllm:num_requests_running{model_name=\"MiniMax-M1-demo\"} 0";
    stand.until(|client| async move { client.get("/metrics").await.text.contains(idle) }).await;
}

#[tokio::test]
async fn a_group_that_comes_takes_what_waits() {
    let stand = stand(2).await;
    stand.doubles.iter().for_each(|double| double.status(|status| status.state_slots_total = 1));
    stand.script(&[Act::Say("hi"), Act::Hold, Act::Eos]);
    regroup(&stand, &[("1", true, 0)]).await;
    let first = stand.client.stream(CHAT, &stream()).await;
    let client = stand.client.clone();
    let second = tokio::spawn(async move { post(&client).await });
    let waits = "m1_router_queue_depth{model_name=\"MiniMax-M1-demo\"} 1";
    stand.until(|client| async move { client.get("/metrics").await.text.contains(waits) }).await;
    stand.doubles[1].script(&[Act::Say("hi"), Act::Eos]);
    regroup(&stand, &[("1", true, 0), ("2", true, 1)]).await;
    assert_eq!(tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap().0, 200);
    assert_eq!(stand.doubles[1].seen().len(), 1);
    stand.doubles[0].release();
    first.rest().await;
}

#[tokio::test]
async fn a_retry_stays_in_its_revision() {
    let stand = stand(3).await;
    // The first attempt goes to the idle double 0; double 2, of another revision, has less to do than double 1.
    stand.doubles[1].status(|status| status.running = 3);
    stand.doubles[2].status(|status| status.running = 1);
    let groups = [("1", true, 0), ("1", true, 1), ("2", true, 2)];
    regroup(&stand, &groups).await;
    stand.doubles[0].refuse_once(Code::Unavailable);
    assert_eq!(post(&stand.client).await.0, 200);
    let seen = |double: usize| stand.doubles[double].seen().iter().map(|request| request.attempt).collect::<Vec<_>>();
    assert_eq!((seen(0), seen(1), seen(2).len()), (vec![1], vec![2], 0));
    // Both of its revision fail: rather an error than another revision. Anew, because the first double is in doubt by now.
    let stand = self::stand(3).await;
    stand.doubles[1].status(|status| status.running = 3);
    stand.doubles[2].status(|status| status.running = 1);
    regroup(&stand, &groups).await;
    stand.doubles[0].refuse_once(Code::Unavailable);
    stand.doubles[1].refuse_once(Code::Unavailable);
    let (status, text) = post(&stand.client).await;
    assert_eq!((status, text.contains("attempts_failed")), (500, true), "{text}");
    assert_eq!(stand.doubles[2].seen().len(), 0);
}

#[tokio::test]
async fn status_streams_begin_and_end_with_their_group() {
    let stand = stand(2).await;
    let followers = |double: usize, count: usize| {
        let doubles = &stand.doubles;
        async move {
            let wait = async {
                while doubles[double].followers() != count {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{count} follow double {double}"));
        }
    };
    regroup(&stand, &[("1", true, 0)]).await;
    followers(0, 1).await;
    regroup(&stand, &[("2", false, 0), ("1", true, 1)]).await;
    followers(1, 1).await;
    followers(0, 1).await;
    regroup(&stand, &[("1", true, 1)]).await;
    followers(0, 0).await;
    followers(1, 1).await;
}

#[tokio::test]
async fn the_expert_gauges_go_by_what_the_placements_say() {
    let stand = stand(2).await;
    let mut topology = topology(&stand, &[("1", true, 0), ("1", true, 1)]);
    let holds = |text: &str| Some(Arc::new(ExpertSet::from_hex(3, 4, text).unwrap()));
    topology.groups.get_mut("group-0").unwrap().pods[0].holds = holds("f88");
    topology.groups.get_mut("group-1").unwrap().pods[0].holds = holds("f8c");
    stand.topologies.send_replace(topology);
    let two = "m1_router_workers{model_name=\"MiniMax-M1-demo\",state=\"ready\"} 2";
    stand.until(|client| async move { client.get("/metrics").await.text.contains(two) }).await;
    let text = stand.client.get("/metrics").await.text;
    let value = |name: &str, labels: &str| {
        let mut rows = text.lines().filter(|line| line.starts_with(name) && line.contains(labels));
        rows.next().and_then(|row| row.rsplit_once(' ')).map(|(_, value)| value.to_owned())
    };
    let copies = |layer: u32, expert: u32| value("m1_router_expert_replicas{", &format!("expert=\"{expert}\",layer=\"{layer}\""));
    assert_eq!((copies(0, 3), copies(1, 0), copies(1, 1)), (Some("2".into()), Some("2".into()), Some("0".into())));
    assert_eq!((copies(2, 1), copies(2, 2)), (Some("1".into()), Some("0".into())));
    assert_eq!(value("m1_router_expert_unavailable{", ""), Some("5".into()));
}
