//! Who is there: deployments that start together on one machine, addresses that outlive their processes, and workers that belong to somebody else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use m1_tests::{Up, alive, binary, demo, eventually, kill};
use serde_json::{Value, json};

const MODEL: &str = "MiniMax-M1-demo";
/// Nothing here takes as long.
const LONG: Duration = Duration::from_secs(60);

fn question() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "What is a Pod?"}], "temperature": 0, "max_tokens": 4})
}

/// Six at once; `M1_TEST_UPS=40 cargo test -p m1-tests --test members together` is forty.
#[test]
fn deployments_that_start_together_all_serve() {
    let count: usize = std::env::var("M1_TEST_UPS").map_or(6, |count| count.parse().unwrap());
    let ups: Vec<Up> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..count).map(|_| scope.spawn(|| Up::start(&demo(), 1))).collect();
        starting.into_iter().map(|up| up.join().unwrap()).collect()
    });
    let mut addresses = BTreeSet::new();
    for up in &ups {
        addresses.insert(up.url.strip_prefix("http://").unwrap().to_owned());
        addresses.extend(up.workers());
        let (status, answer) = up.post("/v1/chat/completions", &question());
        assert_eq!(status, 200, "{answer}");
    }
    assert_eq!(addresses.len(), 2 * count, "a router and a worker each");
    for up in &ups {
        // Each has answered by its own worker: nobody else's has told it anything.
        assert_eq!(up.metric("vllm:generation_tokens_total"), 4.0, "{}", up.url);
        assert!(!up.read_log().contains("in its place"), "{}", up.read_log());
    }
    std::thread::scope(|scope| ups.into_iter().for_each(|up| drop(scope.spawn(|| up.stop()))));
}

#[test]
fn an_address_outlives_its_process() {
    let up = Up::start(&demo(), 2);
    let before = up.state();
    for process in [&before["pods"][1]["pid"], &before["router"]["pid"]] {
        kill(process.as_u64().unwrap() as u32);
    }
    for address in up.workers() {
        assert!(TcpListener::bind(&address).is_err(), "{address} is free while its process is away");
    }
    eventually("both are there again", LONG, || {
        let now = up.state();
        let other = |place: &str| now.pointer(place) != before.pointer(place) && now.pointer(place) != Some(&json!(0));
        other("/pods/1/pid") && other("/router/pid")
    });
    let address = |state: &Value, place: &str| state.pointer(place).cloned().unwrap();
    for place in ["/pods/0/address", "/pods/1/address", "/router/address"] {
        assert_eq!(address(&up.state(), place), address(&before, place));
    }
    // Whoever asks meanwhile waits in the kernel's queue for the next router.
    eventually("it answers again", LONG, || up.post("/v1/chat/completions", &question()).0 == 200);
}

#[test]
fn a_killed_m1ctl_leaves_neither_process_nor_address() {
    let up = Up::start(&demo(), 1);
    let (processes, mut addresses) = (up.processes(), up.workers());
    addresses.push(up.url.strip_prefix("http://").unwrap().to_owned());
    kill(up.pid());
    eventually("no process is left", LONG, || processes.iter().all(|process| !alive(*process)));
    eventually("no address is held", LONG, || addresses.iter().all(|address| TcpListener::bind(address).is_ok()));
}

#[test]
fn a_router_is_refused_by_somebody_elses_worker_by_name() {
    let up = Up::start(&demo(), 1);
    let scratch = tempfile::tempdir().unwrap();
    let log = scratch.path().join("router.log");
    let mut router = Command::new(binary("m1-router"))
        .args(["--listen", "127.0.0.1:0", "--max-context", "4096", "--deployment-id", "local/m1-test/another", "--workers"])
        .arg(&up.workers()[0])
        .arg("--model")
        .arg(demo())
        .env("RUST_LOG", "debug")
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&log).unwrap())
        .stderr(std::fs::File::create(scratch.path().join("stderr")).unwrap())
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(&log).unwrap() + &std::fs::read_to_string(scratch.path().join("stderr")).unwrap();
    eventually("the router says who refuses it", LONG, || {
        let said = said();
        said.contains("meant for local/m1-test/another/0/0") && said.contains("this is local/m1-test/")
    });
    kill(router.id());
    router.wait().unwrap();
    assert_eq!(up.post("/v1/chat/completions", &question()).0, 200, "its own router is served as before");
}
