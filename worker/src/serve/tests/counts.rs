//! What a router that names itself is told of its sequences' experts, over the wire.

use super::*;

async fn next(stream: &mut Streaming<pb::StatusResponse>) -> pb::StatusResponse {
    tokio::time::timeout(LONG, stream.message()).await.expect("a status").unwrap().expect("it goes on")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_routers_stream_counts_its_sequences_at_once_and_no_other() {
    let pod = Pod::start(&demo(), "0", "5").await;
    place(&[&pod]).await;
    // An interval that never passes: what comes, comes because a sequence has ended.
    let watch = |router: &str| pb::WatchStatsRequest { interval_ms: 600_000, router: router.into() };
    let mut mine = pod.client().await.watch_stats(watch("mine")).await.unwrap().into_inner();
    let first = next(&mut mine).await;
    let start = first.experts.unwrap();
    assert_eq!((start.tokens, start.expert_tokens.len(), start.expert_weight.len()), (0, 256, 0));
    assert!(first.kv_block_tokens > 0 && first.routing.is_none_or(|routing| routing.expert_tokens.is_empty()));
    let run = async |router: &str, omit_routing| {
        let request = pb::GenerateRequest { router: router.into(), omit_routing, ..request(8) };
        let mut events = pod.client().await.generate(request).await.unwrap().into_inner();
        loop {
            if let Some(Event::Finished(finished)) = events.message().await.unwrap().unwrap().event {
                break finished;
            }
        }
    };
    let others = run("other", false).await;
    assert_eq!(others.routing.unwrap().expert_tokens.len(), 256, "arrays for who asked");
    assert_eq!(others.counted, 10);
    for n in 1..=3 {
        let finished = run("mine", true).await;
        let routing = finished.routing.unwrap();
        assert_eq!((routing.tokens, routing.expert_tokens.len(), finished.counted), (10, 0, 10 * n));
        let told = next(&mut mine).await;
        let experts = told.experts.unwrap();
        assert_eq!((told.incarnation, experts.tokens), (first.incarnation, finished.counted));
        assert_eq!((experts.executed, experts.expert_tokens.iter().sum::<u64>()), (160 * n, 160 * n));
        assert_eq!(told.state_slots_used, 0, "and what is free again");
    }
    // A stream that comes again goes on from the same counts.
    let mut again = pod.client().await.watch_stats(watch("mine")).await.unwrap().into_inner();
    let told = next(&mut again).await;
    assert_eq!((told.incarnation, told.experts.unwrap().tokens), (first.incarnation, 30));
    // Tokens of a sequence that nobody reads any more count too.
    let endless = pb::GenerateRequest { router: "mine".into(), ..request(30_000) };
    let mut events = pod.client().await.generate(endless).await.unwrap().into_inner();
    while !matches!(events.message().await.unwrap().unwrap().event, Some(Event::Tokens(tokens)) if !tokens.ids.is_empty()) {}
    drop(events);
    let mut watching = pod
        .client()
        .await
        .watch_stats(pb::WatchStatsRequest { interval_ms: 50, router: "mine".into() })
        .await
        .unwrap()
        .into_inner();
    loop {
        let status = next(&mut watching).await;
        if status.experts.is_some_and(|experts| experts.tokens > 32) {
            break;
        }
    }
    let all = pod.client().await.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_ne!(all.incarnation, first.incarnation, "the process began before");
    assert_eq!(all.routing.unwrap().expert_weight.len(), 256);
    pod.signal().await;
    pod.ended().await;
}
