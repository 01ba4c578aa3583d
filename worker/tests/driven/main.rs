//! The decode lane between two devices that drive it themselves, over loopback: the worker's own service and dialer, and a thread in the place of either
//! device, which answers at once or computes for as long as it is told to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod pods;
#[path = "../support"]
mod support {
    pub mod dialer;
    pub mod service;
}

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use m1_runtime::tls::urgent;
use m1_worker::transport::Inbound;
use pods::{LONG, Requester, SERVER, Server, TICK, eventually, member, threads};

#[test]
fn rows_go_out_and_sums_come_back_where_devices_look() {
    for tls in [None, Some(member())] {
        let server = Server::new(tls.clone());
        let mut requester = Requester::up(server.address, tls);
        // The largest frames take more than any buffer holds at once.
        for (id, rows) in [(1, 1), (2, 1536), (3, 1024), (4, 1)] {
            requester.round_trip(id, rows);
        }
        requester.ask(5, 1);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(server.answered(), 4, "nobody else sends it");
        requester.io.look();
        eventually("a request that went out in one look", || server.answered() == 5);
        requester.answer(5, 1);
    }
}

#[test]
fn large_frames_pass_within_a_few_looks() {
    let server = Server::new(None);
    let mut requester = Requester::up(server.address, None);
    server.told.busy.store(true, Ordering::Relaxed);
    // A connection that has just begun, and 768 KB.
    for id in 1..5 {
        requester.ask(id, 1536);
        let mut looks = 0;
        while server.answered() < id {
            requester.io.look();
            std::thread::sleep(Duration::from_millis(2));
            looks += 1;
            assert!(looks < 50, "it is still on its way after {looks} looks");
        }
        requester.answer(id, 1536);
    }
}

#[test]
fn a_peer_whose_device_drives_nothing_is_asked_all_the_same() {
    for tls in [None, Some(member())] {
        let server = Server::at("127.0.0.1:0".parse().unwrap(), tls.clone(), false);
        let mut requester = Requester::up(server.address, tls);
        requester.round_trip(1, 4);
        requester.ask(2, 4);
        // Nobody looks here: the IO threads do all of it, heartbeats too.
        eventually("an answer", || server.answered() == 2);
        requester.answer(2, 4);
    }
}

#[test]
fn a_peer_that_serves_nobody_yet_is_found_when_it_does() {
    let server = Server::new(None);
    server.status.serve_peers(false);
    // Its device does not look meanwhile, and who asks is told so at once.
    server.computes(Duration::from_secs(3));
    let began = Instant::now();
    let mut requester = Requester::dial(server.address, None);
    assert!(matches!(requester.heard(), Inbound::LinkDown { .. }));
    assert!(began.elapsed() < Duration::from_secs(1), "told after {:?}", began.elapsed());
    server.status.serve_peers(true);
    requester.link_up();
    requester.round_trip(1, 1);
}

#[test]
fn links_outlive_devices_that_compute_for_long() {
    const COMPUTES: Duration = Duration::from_secs(5);
    let server = Server::new(None);
    let mut requester = Requester::up(server.address, None);
    requester.round_trip(1, 1);
    let alive = |requester: &Requester| requester.status.pulses().life(SERVER).filter(|life| life.epoch.is_some());
    eventually("heartbeats", || alive(&requester).is_some());
    server.computes(COMPUTES);
    requester.ask(2, 16);
    requester.io.look();
    let (began, mut quiet, mut last) = (Instant::now(), Duration::ZERO, Duration::MAX);
    while began.elapsed() < COMPUTES - Duration::from_millis(500) {
        // What is left of what was announced comes with every heartbeat.
        let busy = alive(&requester).unwrap().busy;
        quiet = if busy == last { quiet + TICK } else { Duration::ZERO };
        last = busy;
        assert!(quiet < Duration::from_secs(1), "no heartbeat after {:?}", began.elapsed());
        requester.io.look();
        std::thread::sleep(TICK);
    }
    assert_eq!(server.answered(), 1, "it computes");
    requester.answer(2, 16);
    // And the other way round: neither the answer's rest nor any clock makes up for the time in which nobody looked here.
    for id in 3..6 {
        requester.ask(id, 1536);
        requester.io.look();
        std::thread::sleep(COMPUTES / 2);
        requester.answer(id, 1536);
    }
    // Both at once, with a look now and then.
    server.computes(COMPUTES);
    requester.ask(6, 1);
    for _ in 0..3 {
        std::thread::sleep(COMPUTES / 2);
        requester.io.look();
    }
    requester.answer(6, 1);
}

#[test]
fn a_peer_that_dies_in_the_middle_is_asked_again_when_it_is_back() {
    let server = Server::new(None);
    let address = server.address;
    let mut requester = Requester::up(address, None);
    server.computes(Duration::from_millis(300));
    requester.ask(1, 1536);
    requester.io.look();
    let before = requester.generation();
    drop(server);
    loop {
        match requester.heard() {
            // It may still have answered.
            Inbound::LinkSays { .. } => {}
            Inbound::LinkDown { generation, .. } if generation == before => break,
            other => panic!("{other:?}"),
        }
    }
    let _server = Server::at(address, None, true);
    requester.link_up();
    assert!(requester.generation() > before);
    requester.round_trip(2, 1536);
}

#[test]
fn a_peer_that_is_gone_without_a_word_is_missed_though_rows_are_on_their_way_to_it() {
    let server = Server::new(None);
    // What lies between two machines, until it does not.
    let cut = Arc::new(AtomicBool::new(false));
    let runtime = threads();
    let (through, target) = (cut.clone(), server.address);
    let address = runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = tokio::net::TcpStream::connect(target).await.unwrap();
                let (near, far) = (near.into_split(), far.into_split());
                tokio::spawn(pass(near.0, far.1, through.clone()));
                tokio::spawn(pass(far.0, near.1, through.clone()));
            }
        });
        address
    });
    let mut requester = Requester::up(address, None);
    requester.round_trip(1, 1);
    eventually("heartbeats", || requester.status.pulses().life(SERVER).is_some_and(|life| life.epoch.is_some()));
    cut.store(true, Ordering::Release);
    requester.ask(2, 1536);
    let (began, before) = (Instant::now(), requester.generation());
    match requester.heard() {
        Inbound::LinkDown { generation, .. } => assert_eq!(generation, before),
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() < Duration::from_secs(10), "missed after {:?}", began.elapsed());
    cut.store(false, Ordering::Release);
    requester.link_up();
    requester.round_trip(3, 1);
}

/// Passes bytes on while nothing is cut.
async fn pass(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, cut: Arc<AtomicBool>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut bytes = vec![0; 1 << 16];
    while let Ok(read) = from.read(&mut bytes).await {
        if read == 0 {
            return;
        }
        if cut.load(Ordering::Acquire) {
            // Neither end is told.
            return std::future::pending().await;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

#[test]
fn the_newest_connection_of_a_peer_takes_the_place_of_the_one_before() {
    let server = Server::new(None);
    let mut before = Requester::up(server.address, None);
    before.round_trip(1, 1);
    // The same pod, as if it had been started anew before the loss of the other was seen.
    let _after = Requester::up(server.address, None);
    match before.heard() {
        Inbound::LinkDown { generation, .. } => assert_eq!(generation, before.generation()),
        other => panic!("{other:?}"),
    }
}

/// The first bytes of an urgent connection without TLS.
fn first_bytes() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x06".to_vec();
    bytes.extend(urgent::HEADER_LIST.to_be_bytes());
    bytes
}

#[test]
fn a_flood_leaves_the_device_its_time() {
    let server = Server::new(None);
    let mut requester = Requester::up(server.address, None);
    requester.round_trip(1, 1);
    let over = Arc::new(AtomicBool::new(false));
    let floods: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(server.address).unwrap();
            let mut answers = stream.try_clone().unwrap();
            answers.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            let (over, reading) = (over.clone(), over.clone());
            // Acknowledges settings, then pings without end; each ping wants an answer, which is read.
            let mut bytes = b"\x00\x00\x00\x04\x01\x00\x00\x00\x00".to_vec();
            stream.write_all(&first_bytes()).unwrap();
            stream.write_all(&bytes).unwrap();
            bytes = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00floods!!".repeat(4000);
            let writer = std::thread::spawn(move || while !over.load(Ordering::Relaxed) && stream.write_all(&bytes).is_ok() {});
            let reader = std::thread::spawn(move || {
                let (mut heard, mut bytes) = (0, vec![0; 1 << 16]);
                while !reading.load(Ordering::Relaxed) {
                    heard += answers.read(&mut bytes).unwrap_or(0);
                }
                heard
            });
            (writer, reader)
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    server.told.busy.store(true, Ordering::Relaxed);
    let (began, before) = (Instant::now(), server.told.turns.load(Ordering::Relaxed));
    std::thread::sleep(Duration::from_secs(1));
    let (turns, took) = (server.told.turns.load(Ordering::Relaxed) - before, began.elapsed());
    // A peer is served meanwhile.
    let asked = Instant::now();
    requester.round_trip(2, 1);
    let waited = asked.elapsed();
    over.store(true, Ordering::Relaxed);
    let heard: usize = floods.into_iter().map(|(writer, reader)| (writer.join().unwrap(), reader.join().unwrap()).1).sum();
    assert!(heard > 100_000, "the flood is one: {heard} bytes of answers");
    // Pieces of 1 ms, and a look of at most 1 ms and as much again as it overstays before every other of them; other tests run beside.
    assert!(turns > 100, "{turns} turns in {took:?}");
    assert!(waited < Duration::from_secs(1), "an answer after {waited:?}");
}

#[test]
fn only_so_many_connections_are_the_devices_and_the_rest_is_served_elsewhere() {
    let server = Server::new(None);
    let connections: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(server.address).unwrap();
            stream.set_read_timeout(Some(LONG)).unwrap();
            stream.write_all(&first_bytes()).unwrap();
            // Settings of the server: this one is served.
            let mut head = [0; 9];
            stream.read_exact(&mut head).unwrap();
            assert_eq!(head[3], 4);
            stream
        })
        .collect();
    // One that finds no room is served all the same.
    let mut requester = Requester::up(server.address, None);
    requester.ask(1, 1);
    eventually("an answer without a look", || server.answered() == 1);
    requester.answer(1, 1);
    drop(connections);
    // And the next one finds room again.
    let mut requester = Requester::up(server.address, None);
    requester.ask(2, 1);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(server.answered(), 1);
    requester.answer(2, 1);
}
