//! Round trip of one dispatch frame between two processes over loopback, beside a raw TCP echo of the same bytes in the same run.
//!
//!     cargo run --release -p m1-bench --bin bench-dispatch [ROUNDS]
//!
//! The requester and the server are the worker's own transport (`m1_worker::transport`); in place of the device thread a plain
//! thread waits for requests as that one does, and answers each at once. So the figure holds everything but the experts' computing:
//! encoding, HTTP/2 and loopback.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use m1_arch::{Architecture, LayerId};
use m1_exchange::{Lane, PodId};
use m1_proto::dispatch::expert_dispatch_server::ExpertDispatchServer;
use m1_proto::dispatch::frame::Kind;
use m1_proto::dispatch::{Answer, Credit};
use m1_runtime::tls;
use m1_worker::device::{DeviceHandle, DeviceMessage};
use m1_worker::status::SharedStatus;
use m1_worker::transport::{
    DeviceIo, Dialer, DispatchService, HTTP2_FRAME, HTTP2_WINDOW, Identity, Inbound, Link, PeerAddress, RequestHead, Said,
    Transport, request_frame, serve_driven,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// One row of MiniMax-M1 in bf16: 6144 x 2 bytes, here as 3072 fp32 elements out and back.
const ROW: usize = 12_288;
/// Rows of a frame, and which part of the rounds is made with so many.
const FRAMES: [(usize, usize); 2] = [(1, 1), (64, 4)];
const WARM_UP: usize = 200;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("server") {
        return runtime.block_on(server());
    }
    let rounds = first.map_or(Ok(5000), |n| n.parse()).context("ROUNDS is a number")?;
    let mut child =
        std::process::Command::new(std::env::current_exe()?).arg("server").stdout(std::process::Stdio::piped()).spawn()?;
    let result = runtime.block_on(requester(&mut child, rounds));
    child.kill()?;
    child.wait()?;
    result
}

fn identity(pod: u16) -> Arc<Identity> {
    let mut arch = Architecture::minimax_m1();
    arch.hidden = ROW / 4;
    Arc::new(Identity { pod, digest: "bench".into(), values: String::new(), arch })
}

async fn server() -> anyhow::Result<()> {
    let dispatch = TcpListener::bind("127.0.0.1:0").await?;
    let echo = TcpListener::bind("127.0.0.1:0").await?;
    println!("{} {}", dispatch.local_addr()?, echo.local_addr()?);
    tokio::spawn(echo_server(echo));
    let (events, mut inbox) = DeviceHandle::channel();
    let mut io = DeviceIo::new()?;
    let device = io.handle();
    std::thread::spawn(move || {
        let mut answers: Option<Link> = None;
        while let Some(message) = io.wait(&mut inbox) {
            match message {
                DeviceMessage::Dispatch(Inbound::ClientUp { link, lane: Lane::Decode, .. }) => answers = Some(link),
                DeviceMessage::Dispatch(Inbound::ClientAsks { request, lane: Lane::Decode, .. }) => {
                    if let Some(link) = &answers {
                        link.send(Kind::Answer(Answer { id: request.id, tokens: request.tokens, sums: request.hidden }));
                        link.send(Kind::Credit(Credit { frames: 1 }));
                    }
                }
                _ => {}
            }
        }
    });
    let status = Arc::new(SharedStatus::new(Default::default()));
    status.serve_peers(true);
    let service = DispatchService {
        guard: Default::default(),
        identity: Some(identity(1)),
        events,
        status,
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
        generations: Arc::default(),
        driven: Default::default(),
    };
    let driven = serve_driven(&device, service.clone(), Default::default(), CancellationToken::new());
    let incoming = tls::sorted(dispatch, None, Some(driven));
    tonic::transport::Server::builder()
        .max_frame_size(HTTP2_FRAME)
        .initial_stream_window_size(HTTP2_WINDOW)
        .initial_connection_window_size(HTTP2_WINDOW)
        .add_service(ExpertDispatchServer::new(service))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

async fn echo_server(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let mut frame = vec![0; stream.read_u32().await? as usize];
        while stream.read_exact(&mut frame).await.is_ok() {
            stream.write_all(&frame).await?;
        }
    }
}

async fn requester(child: &mut std::process::Child, rounds: usize) -> anyhow::Result<()> {
    let stdout = child.stdout.take().context("the server's output is piped")?;
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
    let Some((dispatch, echo)) = line.trim().split_once(' ') else { bail!("the server said {line:?}") };
    let (dispatch, echo) = (dispatch.to_owned(), echo.to_owned());
    for (rows, share) in FRAMES {
        let (bytes, rounds) = (rows * ROW, rounds.div_ceil(share));
        println!("| {bytes} B out and back | p50 us | p90 us | p99 us |\n|---|---|---|---|");
        let mut ratios = vec![];
        for _ in 0..2 {
            let echoed = raw(&echo, bytes, rounds).await?;
            let address = dispatch.clone();
            let dispatched = tokio::task::spawn_blocking(move || exchange(address, rows, rounds)).await??;
            for (name, times) in [("raw TCP echo", &echoed), ("dispatch", &dispatched)] {
                println!("| {name} | {:.0} | {:.0} | {:.0} |", micros(times, 0.5), micros(times, 0.9), micros(times, 0.99));
            }
            ratios.push(micros(&dispatched, 0.5) / micros(&echoed, 0.5));
        }
        println!("ratio of medians: {:.1} and {:.1}", ratios[0], ratios[1]);
    }
    Ok(())
}

/// Of sorted times, the one that this share does not exceed.
fn micros(times: &[Duration], share: f64) -> f64 {
    times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6
}

async fn raw(address: &str, bytes: usize, rounds: usize) -> anyhow::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_u32(bytes as u32).await?;
    let (out, mut back) = (vec![1; bytes], vec![0; bytes]);
    let mut times = Vec::with_capacity(rounds);
    for round in 0..WARM_UP + rounds {
        let began = Instant::now();
        stream.write_all(&out).await?;
        stream.read_exact(&mut back).await?;
        if round >= WARM_UP {
            times.push(began.elapsed());
        }
    }
    times.sort();
    Ok(times)
}

fn exchange(address: String, rows: usize, rounds: usize) -> anyhow::Result<Vec<Duration>> {
    let (events, mut inbox) = DeviceHandle::channel();
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let status = Arc::new(SharedStatus::new(Default::default()));
    let mut io = DeviceIo::new()?;
    let device = Some(io.handle());
    let dialer =
        Dialer { identity: identity(0), events, status, tasks, generations: Arc::default(), tls: None, device, member: None };
    dialer.dial(&PeerAddress { pod: PodId(1), address }, &stop);
    let link = loop {
        match io.wait(&mut inbox).context("the dialer ended")? {
            DeviceMessage::Dispatch(Inbound::LinkUp { lane: Lane::Decode, link, .. }) => break link,
            _ => continue,
        }
    };
    let frame = Bytes::from(vec![1; rows * ROW]);
    let (experts, weights) = ([1, 2].repeat(rows), [0.5, 0.5].repeat(rows));
    let mut times = Vec::with_capacity(rounds);
    for round in 0..WARM_UP + rounds {
        let began = Instant::now();
        let head = RequestHead { id: round as u64, epoch: 1, layer: LayerId(0), tokens: rows as u32 };
        link.send(Kind::Request(request_frame(head, &experts, &weights, frame.clone())));
        loop {
            match io.wait(&mut inbox).context("the connection ended")? {
                DeviceMessage::Dispatch(Inbound::LinkSays { said: Said::Answer { id, .. }, .. }) if id == round as u64 => break,
                _ => continue,
            }
        }
        if round >= WARM_UP {
            times.push(began.elapsed());
        }
    }
    stop.cancel();
    times.sort();
    Ok(times)
}
