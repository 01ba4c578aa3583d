//! The connection to one worker, and how its messages read. A connection is made when it is first needed and made again after it broke; each time the
//! host is looked up anew, so that a name stays good while the pod behind it changes.

use std::sync::Arc;
use std::time::Duration;

use axum::http::uri::Authority;
use m1_proto::worker::worker_client::WorkerClient;
use m1_proto::worker::{self as wire, StatusResponse};
use m1_router_core::{Geometry, Phase, WorkerStats};
use m1_runtime::tls::{self, Tls};
use tonic::transport::{Channel, Endpoint};

/// A pod that does not accept a connection this fast is treated as gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A silent connection is probed after this and given up after as much again, so a pod lost with its node is noticed in four seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Room for the ids of a long answer whose reader is slow: they wait here, not in a state slot.
const STREAM_WINDOW: u32 = 4 << 20;
/// A routing message of 80 layers x 32 experts takes 50 KB; raw logits are never asked for.
const MESSAGE_LIMIT: usize = 64 << 20;

/// The way to one worker.
#[derive(Debug)]
pub struct Link {
    /// `HOST:PORT`.
    pub address: Arc<str>,
    client: WorkerClient<Channel>,
}

impl Link {
    /// Prepares a connection, encrypted with an identity; none is made before it is needed.
    ///
    /// # Errors
    /// An address that is no authority of a URI.
    pub fn new(address: Arc<str>, tls: Option<&Tls>) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW.saturating_mul(16));
        let client = WorkerClient::new(tls::connect_lazy(&endpoint, tls));
        let client = client.max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT);
        Ok(Self { address, client })
    }

    /// The worker's service.
    pub fn client(&self) -> WorkerClient<Channel> {
        self.client.clone()
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
        slots_total: status.state_slots_total,
        kv_used: status.kv_blocks_used,
        kv_total: status.kv_blocks_total,
        max_context: status.max_context_tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
