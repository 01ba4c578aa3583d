//! A double over the wire, as a router sees it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use m1_double::{Double, Fixed, Reply, Settings, Steady, Tally};
use m1_proto::worker::generate_event::Event;
use m1_proto::worker::worker_client::WorkerClient;
use m1_proto::worker::{FinishReason, Finished, GenerateRequest, StatusRequest, WatchStatsRequest};
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;
use tonic::{Code, Streaming};

const PATIENCE: Duration = Duration::from_secs(20);

async fn client(double: &Double) -> WorkerClient<Channel> {
    WorkerClient::connect(format!("http://{}", double.address())).await.unwrap()
}

fn request(max_tokens: u32) -> GenerateRequest {
    GenerateRequest { request_id: "r".into(), prompt: vec![1, 2, 3], max_tokens, ..GenerateRequest::default() }
}

async fn next<T>(stream: &mut Streaming<T>) -> Option<T> {
    timeout(PATIENCE, stream.message()).await.expect("something comes").unwrap()
}

/// The ids of each event, and the end.
async fn all(client: &mut WorkerClient<Channel>, request: GenerateRequest) -> (Vec<Vec<u32>>, Finished) {
    let mut stream = client.generate(request).await.unwrap().into_inner();
    let mut said = Vec::new();
    while let Some(event) = next(&mut stream).await {
        match event.event.unwrap() {
            Event::Tokens(tokens) => said.push(tokens.ids),
            Event::Finished(finished) => {
                assert_eq!(next(&mut stream).await, None, "nothing comes after the end");
                return (said, finished);
            }
            Event::RawLogits(_) => panic!("nobody asked for logits"),
        }
    }
    panic!("the stream ended without an end");
}

async fn until(double: &Double, holds: impl FnMut(&Tally) -> bool) -> Tally {
    let mut tally = double.tally();
    let tally = timeout(PATIENCE, tally.wait_for(holds)).await.expect("it comes to that").unwrap();
    *tally
}

#[tokio::test]
async fn one_event_a_token_at_its_pace() {
    let double = Double::start(Settings::default(), Steady::default()).unwrap();
    let mut client = client(&double).await;
    let started = Instant::now();
    let (said, finished) = all(&mut client, request(9)).await;
    assert!(started.elapsed() >= Duration::from_millis(40), "eight gaps of 5 ms");
    assert_eq!(said.iter().map(Vec::len).collect::<Vec<_>>(), [1; 9]);
    assert_eq!((finished.reason(), finished.prompt_tokens, finished.output_tokens), (FinishReason::FinishLength, 3, 9));
    let routing = finished.routing.unwrap();
    assert_eq!((routing.tokens, routing.executed, routing.expert_tokens.len()), (11, 11 * 2 * 80, 80 * 32));
    assert_eq!(until(&double, |tally| tally.running == 0).await.finished, 1);
}

#[tokio::test]
async fn what_was_said_counts_and_stop_ids_stop() {
    let double = Double::start(Settings::default(), Steady { gap: Duration::ZERO, ..Steady::default() }).unwrap();
    let mut client = client(&double).await;
    let (said, finished) = all(&mut client, GenerateRequest { said: vec![9; 5], ..request(8) }).await;
    assert_eq!((said.len(), finished.output_tokens), (3, 8));
    let (said, finished) = all(&mut client, GenerateRequest { stop_ids: vec![317], ..request(8) }).await;
    assert_eq!((said, finished.reason()), (vec![vec![313], vec![317]], FinishReason::FinishStop));
}

#[tokio::test]
async fn a_router_that_is_named_is_told_by_its_status_stream() {
    let double = Double::start(Settings::default(), Steady { gap: Duration::ZERO, ..Steady::default() }).unwrap();
    let mut client = client(&double).await;
    let watch = WatchStatsRequest { interval_ms: 20, router: "a".into() };
    let mut stats = client.watch_stats(watch).await.unwrap().into_inner();
    let first = next(&mut stats).await.unwrap();
    assert!(first.routing.unwrap().expert_tokens.is_empty() && first.experts.unwrap().tokens == 0);
    let ask = GenerateRequest { omit_routing: true, router: "a".into(), ..request(4) };
    let (_, finished) = all(&mut client, ask).await;
    assert_eq!((finished.routing, finished.counted), (None, 6));
    loop {
        let status = next(&mut stats).await.unwrap();
        if let Some(experts) = status.experts {
            assert_eq!(
                (experts.tokens, experts.expert_tokens.iter().sum::<u64>(), experts.expert_weight.len()),
                (6, 6 * 2 * 80, 0)
            );
            break;
        }
    }
    let status = client.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.routing.unwrap().expert_tokens.len(), 80 * 32, "who names no router is told as before");
}

#[tokio::test]
async fn a_client_that_goes_frees_its_slot() {
    let double =
        Double::start(Settings { slots: 1, ..Settings::default() }, Steady { hold_after: Some(1), ..Steady::default() }).unwrap();
    let mut client = client(&double).await;
    let mut stream = client.generate(request(4)).await.unwrap().into_inner();
    assert!(next(&mut stream).await.is_some());
    let full = client.generate(GenerateRequest { attempt: 1, ..request(4) }).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    drop(stream);
    assert_eq!(until(&double, |tally| tally.running == 0).await.cancelled, 1);
    let mut stream = client.generate(request(2)).await.unwrap().into_inner();
    assert!(next(&mut stream).await.is_some());
    double.release();
    assert!(matches!(next(&mut stream).await.unwrap().event, Some(Event::Tokens(_))), "a hold ends when it is released");
}

#[tokio::test]
async fn scripts_break_what_they_should() {
    let double = Double::start(Settings::default(), "refuse UNAVAILABLE".parse::<Fixed>().unwrap()).unwrap();
    let mut client = client(&double).await;
    assert_eq!(client.generate(request(9)).await.unwrap_err().code(), Code::Unavailable);
    double.script("say 1, break DATA_LOSS".parse::<Fixed>().unwrap());
    let mut stream = client.generate(request(9)).await.unwrap().into_inner();
    assert!(next(&mut stream).await.is_some());
    assert_eq!(timeout(PATIENCE, stream.message()).await.unwrap().unwrap_err().code(), Code::DataLoss);
    double.script("say 1, end".parse::<Fixed>().unwrap());
    let mut stream = client.generate(request(9)).await.unwrap().into_inner();
    assert!(next(&mut stream).await.is_some());
    assert_eq!(next(&mut stream).await, None);
    double.script("say 1, fail OutOfIdeas".parse::<Fixed>().unwrap());
    assert_eq!(all(&mut client, request(9)).await.1.error_reason, "OutOfIdeas");
    double
        .script(|_: &GenerateRequest, nth: u64| if nth == 4 { Reply::Silence } else { Reply::Play(Box::new(std::iter::empty())) });
    assert!(timeout(Duration::from_millis(100), client.generate(request(9))).await.is_err(), "it says nothing");
    until(&double, |tally| tally.running == 0).await;
    assert_eq!(all(&mut client, request(9)).await.1.output_tokens, 0);
}

#[tokio::test]
async fn it_dies_at_once() {
    let mut double = Double::start(Settings::default(), Steady { hold_after: Some(0), ..Steady::default() }).unwrap();
    let mut client = client(&double).await;
    let mut stream = client.generate(request(4)).await.unwrap().into_inner();
    let dying = tokio::task::spawn_blocking(move || double.kill());
    assert!(timeout(PATIENCE, stream.message()).await.expect("the stream breaks").is_err());
    dying.await.unwrap();
    assert!(client.generate(request(4)).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn the_http_stand_in_says_an_event_a_token() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = m1_double::openai::OpenAi { steady: Steady::default(), model: "m".into() };
    let address = m1_double::http::spawn("127.0.0.1:0", server).await.unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (started, mut read) = (Instant::now(), String::new());
    for tokens in [9, 2] {
        let body = format!(r#"{{"max_tokens":{tokens}}}"#);
        let request = format!("POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        read.clear();
        while !read.ends_with("\r\n0\r\n\r\n") {
            let mut buffer = [0; 4096];
            let count = timeout(PATIENCE, stream.read(&mut buffer)).await.expect("it goes on").unwrap();
            assert!(count > 0, "the connection is kept");
            read.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        assert_eq!(read.matches("\"content\":\" ").count(), tokens);
        assert!(read.contains("data: [DONE]"));
    }
    assert!(started.elapsed() >= Duration::from_millis(40), "eight gaps of 5 ms");
}
