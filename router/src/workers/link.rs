//! The connections to one worker, and how its messages read: one of each loop for answers and one for its status, so that neither waits for the other's bytes. A
//! connection is made when it is first needed and made again after it broke; each time the host is looked up anew, so that a name stays good while the
//! pod behind it changes. Every call names the member that is meant.

use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use m1_proto::worker::worker_client::WorkerClient;
use m1_proto::worker::{self as wire, StatusResponse};
use m1_router_core::{Counts, Geometry, Phase, WorkerStats};
use m1_runtime::member::{MeantFor, Member};
use m1_runtime::tls::{self, Tls};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::loops::{self, Loops};

/// A pod that does not accept a connection this fast is treated as gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A silent connection is probed after this and given up after as much again, so a pod lost with its node is noticed in four seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Bytes of one answer on the way: its session reads at once, so this is for bursts.
const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes of all answers of a worker on the way: as many bursts at once.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// Bytes of statuses on the way: the counts of 80 layers x 32 experts take 30 KB.
const STATUS_WINDOW: u32 = 1 << 20;
/// A prompt of ten million ids takes 31 MB.
const MESSAGE_LIMIT: usize = 64 << 20;

/// A worker's service.
pub type Client = WorkerClient<InterceptedService<Channel, MeantFor>>;

/// The way to one worker.
#[derive(Debug)]
pub struct Link {
    /// `HOST:PORT`.
    pub address: Arc<str>,
    /// Who should answer there, where that is known.
    pub member: Option<Member>,
    /// One for each loop.
    answers: Box<[Client]>,
    status: Client,
}

impl Link {
    /// Prepares the connections, encrypted with an identity; none is made before it is needed.
    ///
    /// # Errors
    /// An address that is no authority of a URI.
    pub fn new(
        address: Arc<str>,
        member: Option<Arc<str>>,
        tls: Option<&Tls>,
        loops: &Loops,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let member = member.and_then(|member| member.parse::<Member>().ok());
        let meant = MeantFor::new(member.as_ref());
        let client = |stream_window, connection_window| {
            let endpoint =
                endpoint.clone().initial_stream_window_size(stream_window).initial_connection_window_size(connection_window);
            let client = WorkerClient::with_interceptor(tls::connect_lazy(&endpoint, tls), meant.clone());
            client.max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT)
        };
        let answers = loops.each(|| client(STREAM_WINDOW, CONNECTION_WINDOW));
        let status = client(STATUS_WINDOW, STATUS_WINDOW);
        Ok(Self { address, member, answers, status })
    }

    /// The worker's service, for answers on the loop that runs this.
    pub fn client(&self) -> Client {
        // Beside the loops, where no request is served, the other connection will do.
        self.answers.get(loops::here()).unwrap_or(&self.status).clone()
    }

    /// The worker's service, for its status.
    pub fn status(&self) -> Client {
        self.status.clone()
    }
}

/// Whether a text is the `HOST:PORT` of a worker.
pub fn is_address(text: &str) -> bool {
    let authority = text.parse::<Authority>();
    authority.is_ok_and(|it| !it.host().is_empty() && it.port_u16().is_some_and(|port| port > 0) && !text.contains('@'))
}

/// The model's shape as a routing message has it.
pub fn geometry(routing: &wire::Routing) -> Geometry {
    Geometry { layers: routing.layers as usize, experts: routing.experts as usize, top_k: routing.top_k as usize }
}

/// What the experts did, as a message has it.
pub fn read_counts(routing: wire::Routing) -> Counts {
    Counts {
        geometry: geometry(&routing),
        tokens: routing.tokens,
        executed: routing.executed,
        skipped: routing.skipped,
        lost: routing.lost,
        expert_tokens: routing.expert_tokens,
        expert_weight: routing.expert_weight,
        expert_skipped: routing.expert_skipped,
        expert_lost: routing.expert_lost,
    }
}

/// What a worker has less of than it says it uses; what it does not say it has counts for nothing.
pub fn overstated(status: &StatusResponse) -> Option<&'static str> {
    let is_more = |used, total| total > 0 && used > total;
    if is_more(status.state_slots_used, status.state_slots_total) || is_more(status.running, status.state_slots_total) {
        return Some("state slots");
    }
    is_more(status.kv_blocks_used, status.kv_blocks_total).then_some("KV blocks")
}

/// The part of a status that decisions need.
pub fn read_status(status: &StatusResponse) -> WorkerStats {
    WorkerStats {
        pod: status.pod,
        phase: match status.phase() {
            wire::Phase::Unspecified | wire::Phase::Waiting => Phase::Waiting,
            wire::Phase::Loading => Phase::Loading,
            wire::Phase::Connecting => Phase::Connecting,
            wire::Phase::Ready => Phase::Ready,
            wire::Phase::Draining => Phase::Draining,
            wire::Phase::Failed => Phase::Failed,
        },
        epoch: status.epoch,
        running: status.running,
        waiting: status.waiting,
        slots_used: status.state_slots_used,
        slots_total: status.state_slots_total,
        kv_used: status.kv_blocks_used,
        kv_waiting: status.kv_blocks_waiting,
        kv_total: status.kv_blocks_total,
        kv_block_tokens: status.kv_block_tokens,
        max_context: status.max_context_tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_uses_more_than_there_is() {
        let status = |slots, kv| StatusResponse {
            state_slots_used: slots,
            state_slots_total: 4,
            kv_blocks_used: kv,
            kv_blocks_total: 10,
            ..StatusResponse::default()
        };
        assert_eq!(overstated(&status(4, 10)), None);
        assert_eq!((overstated(&status(5, 10)), overstated(&status(4, 11))), (Some("state slots"), Some("KV blocks")));
        assert_eq!(overstated(&StatusResponse { running: 9, kv_blocks_used: 9, ..StatusResponse::default() }), None);
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["a:1", "m1-0-1.m1-0.serving.svc:7000", "[::1]:3", "10.0.0.1:65535"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "a", ":1", "a:", "a:0", "a:65536", "a b:1", "a/b:1", "http://a:1", "u@a:1"] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
