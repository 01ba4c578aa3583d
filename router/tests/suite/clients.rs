//! Clients that are slow, wrong, half gone or wholly gone, over bare sockets.

use std::io::Write;
use std::time::Duration;

use crate::common::raw::{Raw, post};
use crate::common::{Act, PATIENCE, Stand, chat, completion};
use m1_router::http::cors::Cors;
use serde_json::json;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn stream() -> serde_json::Value {
    chat(json!({"stream": true}))
}

async fn answered(stand: &Stand, bytes: &[u8]) -> String {
    let mut raw = Raw::to(stand.address).await;
    raw.send(bytes).await;
    raw.rest().await
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let stand = Stand::with(1, |config| config.times.head = Duration::from_millis(300)).await;
    let mut raw = Raw::to(stand.address).await;
    raw.send("GET /health HTTP/1.1\r\nhost:").await;
    assert_eq!(raw.rest().await, "");
}

#[tokio::test]
async fn a_connection_without_a_request_ends_and_one_with_many_does_not() {
    let stand = Stand::with(1, |config| config.times.idle = Duration::from_millis(300)).await;
    let mut raw = Raw::to(stand.address).await;
    for _ in 0..3 {
        raw.send("GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
        raw.until("ok\n").await;
    }
    assert_eq!(raw.rest().await, "");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_a_408() {
    let stand = Stand::with(1, |config| config.bodies.time = Duration::from_millis(300)).await;
    let answer = answered(&stand, b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"code\":\"request_timeout\""), "{answer}");
}

#[tokio::test]
async fn heads_that_are_wrong_are_named_in_openais_shape() {
    let stand = Stand::ready(1).await;
    let long = format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(70 << 10));
    let many = format!("GET /health HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200));
    let target = format!("GET /{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "a".repeat(9 << 10));
    let both = "POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let lengths = "POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde";
    for (bytes, status, code) in [
        (long.as_str(), "431", "head_too_large"),
        (&many, "431", "head_too_large"),
        (&target, "414", "url_too_long"),
        (both, "400", "body_length"),
        (lengths, "400", "malformed_head"),
        ("GET / HTTP/1.1\r\nbad header\r\n\r\n", "400", "malformed_head"),
        ("\x16\x03\x01\x02\x00\x01\r\n\r\n", "400", "malformed_head"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505", "http_version"),
    ] {
        let answer = answered(&stand, bytes.as_bytes()).await;
        let shown: String = bytes.chars().take(60).collect();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {answer}");
        assert!(answer.contains(&format!("\"code\":\"{code}\"")) && answer.contains("\"error\":{"), "{shown:?}: {answer}");
    }
}

#[tokio::test]
async fn bodies_that_are_too_long_are_refused_before_they_come() {
    let stand = Stand::ready(1).await;
    for length in ["99000000000", "65537"] {
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n");
        let answer = answered(&stand, head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "no 100 before it: {answer}");
    }
    let mut raw = Raw::to(stand.address).await;
    let body = chat(json!({})).to_string();
    raw.send(format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n", body.len())).await;
    raw.until("HTTP/1.1 100 Continue\r\n\r\n").await;
    raw.send(body).await;
    raw.until("HTTP/1.1 200 OK").await;
    // One that comes in chunks is cut where it is too long; the client that still sends sees the answer.
    let mut raw = Raw::to(stand.address).await;
    raw.send(format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")).await;
    let chunk = format!("{:x}\r\n{}\r\n", 8 << 10, " ".repeat(8 << 10));
    for _ in 0..20 {
        raw.send(&chunk).await;
    }
    assert!(raw.rest().await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn packed_bodies_are_unpacked_and_other_encodings_named() {
    let stand = Stand::ready(1).await;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(chat(json!({})).to_string().as_bytes()).unwrap();
    let packed = encoder.finish().unwrap();
    let send = |encoding: &str, body: &[u8]| {
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-encoding: {encoding}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    assert!(answered(&stand, &send("gzip", &packed)).await.starts_with("HTTP/1.1 200 "));
    let other = answered(&stand, &send("br", &packed)).await;
    assert!(other.starts_with("HTTP/1.1 415 ") && other.contains("given \\\"br\\\""), "{other}");
    let damaged = answered(&stand, &send("gzip", &packed[..packed.len() / 2])).await;
    assert!(damaged.starts_with("HTTP/1.1 400 ") && damaged.contains("gzip"), "{damaged}");
}

#[tokio::test]
async fn pages_may_ask_where_they_are_allowed_to() {
    let stand = Stand::with(1, |config| config.cors = Cors::Local).await;
    let ask = |origin: &str| {
        format!(
            "OPTIONS {CHAT} HTTP/1.1\r\nhost: x\r\norigin: {origin}\r\naccess-control-request-method: POST\r\naccess-control-request-headers: x-stainless-os\r\nconnection: close\r\n\r\n"
        )
    };
    let mine = answered(&stand, ask("http://localhost:3000").as_bytes()).await;
    assert!(mine.starts_with("HTTP/1.1 204 ") && mine.contains("access-control-allow-origin: http://localhost:3000\r\n"), "{mine}");
    assert!(mine.contains("access-control-allow-headers: x-stainless-os\r\n"), "{mine}");
    let other = answered(&stand, ask("https://evil.example").as_bytes()).await;
    assert!(other.starts_with("HTTP/1.1 405 ") && !other.contains("access-control"), "{other}");
}

#[tokio::test]
async fn half_a_head_behind_a_request_ends_the_connection_too() {
    let stand = Stand::with(1, |config| config.times.head = Duration::from_millis(300)).await;
    let half = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-sl";
    let whole = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    let body = post("/detokenize", &json!({"tokens": [1]}));
    for first in [whole, &body, &whole.repeat(3), &format!("{whole}{body}")] {
        let answer = answered(&stand, format!("{first}{half}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    // Whoever waits between whole requests may do so.
    let mut raw = Raw::to(stand.address).await;
    for request in [whole, &body, whole] {
        raw.send(request).await;
        raw.until("HTTP/1.1 200 ").await;
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
}

#[tokio::test]
async fn a_request_has_one_host() {
    let stand = Stand::ready(1).await;
    for hosts in ["", "host: x\r\nhost: y\r\n"] {
        let answer = answered(&stand, format!("GET /health HTTP/1.1\r\n{hosts}connection: close\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("malformed_head"), "{answer}");
    }
    let old = answered(&stand, b"GET /health HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 ") || old.starts_with("HTTP/1.1 200 "), "{old}");
}

#[tokio::test]
async fn pages_that_may_not_ask_cannot_start_anything_either() {
    let stand = Stand::ready(1).await;
    let body = completion(json!({})).to_string();
    let ask = |origin: &str, content: &str| {
        format!(
            "POST {TEXT} HTTP/1.1\r\nhost: x\r\norigin: {origin}\r\ncontent-type: {content}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    for content in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let answer = answered(&stand, ask("https://evil.example", content).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("origin_not_allowed"), "{answer}");
    }
    assert!(stand.doubles[0].seen().is_empty());
    for (origin, content) in [("https://evil.example", "application/json; charset=utf-8"), ("http://localhost:3000", "text/plain")]
    {
        let answer = answered(&stand, ask(origin, content).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn whoever_sends_a_body_where_none_is_read_is_told_so() {
    let stand = Stand::ready(1).await;
    for path in ["/nowhere", "/v1/models"] {
        let mut raw = Raw::to(stand.address).await;
        raw.send(format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 20000000\r\n\r\n")).await;
        // Sent to its end before anything is read, as simple clients do.
        raw.send(vec![b' '; 20_000_000]).await;
        raw.finish().await;
        let answer = raw.rest().await;
        assert!(answer.starts_with("HTTP/1.1 40"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn every_answer_names_its_request() {
    let stand = Stand::ready(1).await;
    let own = answered(&stand, b"GET /health HTTP/1.1\r\nhost: x\r\nx-request-id: my-id\r\nconnection: close\r\n\r\n").await;
    assert!(own.contains("x-request-id: my-id\r\n"), "{own}");
    let long = format!("GET /nothing HTTP/1.1\r\nhost: x\r\nx-request-id: {}\r\nconnection: close\r\n\r\n", "a".repeat(999));
    let made = answered(&stand, long.as_bytes()).await;
    assert!(made.contains("x-request-id: req-") && !made.contains("aaaa"), "{made}");
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let stand = Stand::with(1, |config| config.max_connections = 2).await;
    let held = [Raw::to(stand.address).await, Raw::to(stand.address).await];
    let told = async {
        loop {
            let answer = answered(&stand, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            if answer.starts_with("HTTP/1.1 503 ") && answer.contains("too_many_connections") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the third is refused");
    drop(held);
    stand.until(|client| async move { client.is_answered().await }).await;
}

/// A stream under way on a double that waits, and its connection.
async fn under_way(stand: &Stand, more: &str) -> Raw {
    stand.script(&[Act::Say("hi"), Act::Hold, Act::Say(" there"), Act::Eos]);
    let mut raw = Raw::to(stand.address).await;
    raw.send(post(CHAT, &stream()) + more).await;
    // Two tokens, and whether they come as one piece is chance.
    raw.until("\"content\":\"h").await;
    raw
}

#[tokio::test]
async fn a_client_that_has_finished_sending_gets_its_stream() {
    let stand = Stand::ready(1).await;
    let mut raw = under_way(&stand, "").await;
    raw.finish().await;
    raw.until(": wait\n\n").await;
    stand.doubles[0].release();
    assert!(raw.rest().await.contains("[DONE]"));
}

#[tokio::test]
async fn a_client_that_is_gone_frees_its_stream_whatever_it_had_sent() {
    for more in ["", "and more", &post(TEXT, &completion(json!({}))).repeat(100)] {
        let stand = Stand::ready(1).await;
        // It closes, and what it had not read makes that a reset.
        drop(under_way(&stand, more).await);
        stand.doubles[0].wait_cancelled().await;
        let stand = Stand::ready(1).await;
        under_way(&stand, more).await.reset();
        stand.doubles[0].wait_cancelled().await;
    }
}

#[tokio::test]
async fn a_client_that_is_gone_frees_its_whole_answer_whatever_it_had_sent() {
    // The last is more than is read ahead.
    let much = "x".repeat(2 << 20);
    for more in ["", "and more", &post(TEXT, &completion(json!({}))).repeat(100), &much] {
        for reset in [false, true] {
            let stand = Stand::ready(1).await;
            stand.script(&[Act::Hold, Act::Eos]);
            let mut raw = Raw::to(stand.address).await;
            raw.send(post(CHAT, &chat(json!({}))) + more).await;
            stand.doubles[0].wait_seen(1).await;
            if reset {
                raw.reset()
            } else {
                drop(raw)
            }
            stand.doubles[0].wait_cancelled().await;
            assert_eq!(stand.doubles[0].seen().len(), 1, "what was pipelined is not served");
        }
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let stand = Stand::ready(1).await;
    let mut raw = Raw::to(stand.address).await;
    let ids = |n: usize| format!("{{\"tokens\":[{n}]}}");
    let mut all = String::new();
    for n in 0..100 {
        let body = ids(n);
        let close = if n == 99 { "connection: close\r\n" } else { "" };
        all += &format!(
            "POST /detokenize HTTP/1.1\r\nhost: x\r\nx-request-id: n-{n}\r\n{close}content-length: {}\r\n\r\n{body}",
            body.len()
        );
    }
    raw.send(all).await;
    let answers = raw.rest().await;
    let places: Vec<usize> = (0..100).map(|n| answers.find(&format!("x-request-id: n-{n}\r\n")).expect("it is answered")).collect();
    assert!(places.is_sorted(), "{places:?}");
}

#[tokio::test]
async fn readers_that_stop_hold_no_place_on_a_worker() {
    let stand = Stand::with(1, |config| config.times.write = Duration::from_secs(2)).await;
    stand.doubles[0].status(|status| status.state_slots_total = 2);
    stand.wait_ready().await;
    let words: &'static str = Box::leak("word ".repeat(200).into_boxed_str());
    stand.script(&[Act::Say(words), Act::Say(words), Act::Say(words), Act::Eos]);
    let mut stalled = Vec::new();
    // Small buffers on the way, and nobody reads: more of them than the worker has slots.
    for _ in 0..6 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut raw = Raw(socket.connect(stand.address).await.unwrap());
        raw.post(CHAT, &chat(json!({"stream": true, "logprobs": true, "top_logprobs": 5, "max_tokens": 900}))).await;
        stalled.push(raw);
    }
    stand.doubles[0].wait_seen(6).await;
    let answer = tokio::time::timeout(PATIENCE, stand.client.post(CHAT, &chat(json!({})))).await.expect("others are served");
    assert_eq!(answer.status, 200);
    // They are cut once they have taken nothing for long.
    stand
        .until(|client| async move {
            client.get("/metrics").await.text.contains("m1_router_connections{model_name=\"MiniMax-M1-demo\"} 1\n")
        })
        .await;
}

#[tokio::test]
async fn a_whole_answer_that_is_read_slowly_comes_whole() {
    let stand = Stand::with(1, |config| {
        config.times.idle = Duration::from_millis(700);
        config.bodies.bytes = 1 << 20;
    })
    .await;
    let ids = json!({"tokens": vec![300; 100_000]});
    let whole = stand.client.post("/detokenize", &ids).await.text.len();
    assert!(whole > 200_000, "{whole}");
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut raw = Raw(socket.connect(stand.address).await.unwrap());
    raw.post("/detokenize", &ids).await;
    let began = std::time::Instant::now();
    let mut read = 0;
    while read < whole {
        let mut part = [0u8; 4096];
        let count = tokio::time::timeout(PATIENCE, tokio::io::AsyncReadExt::read(&mut raw.0, &mut part)).await.unwrap().unwrap();
        assert!(count > 0, "{read} of {whole} bytes after {:?}", began.elapsed());
        read += count;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(began.elapsed() > Duration::from_millis(1200), "slower than the time between requests: {:?}", began.elapsed());
}

#[tokio::test]
async fn a_stream_that_waits_speaks() {
    let stand = Stand::with(1, |config| {
        config.pace.head = Duration::from_millis(200);
        config.pace.comment = Duration::from_millis(200);
    })
    .await;
    stand.doubles[0].status(|status| status.state_slots_total = 1);
    stand.wait_ready().await;
    let first = under_way(&stand, "").await;
    // The only slot is taken: the head leaves all the same, and comments follow.
    let mut second = Raw::to(stand.address).await;
    second.post(CHAT, &stream()).await;
    let seen = second.until(": wait\n\n").await;
    assert!(seen.starts_with("HTTP/1.1 200 OK") && seen.contains("x-accel-buffering: no\r\n"), "{seen}");
    stand.doubles[0].release();
    second.until("[DONE]").await;
    drop(first);
}
