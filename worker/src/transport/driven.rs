//! The server's side of connections that the device drives: which of them are taken, one of each peer, and their service.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use m1_exchange::{LONGEST_ANNOUNCED, PodId};
use m1_proto::dispatch::expert_dispatch_server::ExpertDispatchServer;
use m1_runtime::member::Guard;
use m1_runtime::tls::{Stream, TakeUrgent};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::InterceptorLayer;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::device_io::{DeviceIoHandle, looked_for};
use super::device_stream::{DeviceStream, Driven};
use super::grpc_server::DispatchService;
use super::{HTTP2_FRAME, HTTP2_WINDOW};

/// What an answer's head carries where the server's device drives the connection.
pub(super) const DRIVEN: &str = "m1-driven";
/// A greeting may take so long: a device at either end looks at it between two pieces of work.
pub(super) const DRIVEN_GREETING: Duration = LONGEST_ANNOUNCED;
/// A connection whose stream has ended is ended after this.
pub(super) const GONE: Duration = Duration::from_secs(1);
/// Connections that the device has not seen yet.
const WAITING: usize = 2 * m1_exchange::MAX_PODS;

/// The connection of each peer that the device drives. The newest takes the place of the one before it.
#[derive(Debug, Clone, Default)]
pub struct DrivenPeers(Arc<Mutex<HashMap<PodId, CancellationToken>>>);

impl DrivenPeers {
    pub(super) fn takes_place(&self, peer: PodId, connection: &Driven) {
        connection.greeted.cancel();
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = peers.insert(peer, connection.end.clone()) {
            before.cancel();
        }
    }
}

/// Serves on connections that the device drives, until `stop`. Returns who takes them; it takes none while peers are not served, because the device does not
/// look while it brings in its weights, nor more than there is room for.
pub fn serve_driven(io: &DeviceIoHandle, dispatch: DispatchService, guard: Guard, stop: CancellationToken) -> TakeUrgent {
    let (taken, connections) = mpsc::channel(WAITING);
    let (status, room, device) = (dispatch.status.clone(), io.clone(), io.clone());
    let connections = ReceiverStream::new(connections).filter_map(move |(stream, room)| begin(stream, &device, room));
    let server = Server::builder()
        .layer(InterceptorLayer::new(guard))
        .max_frame_size(HTTP2_FRAME)
        .max_concurrent_streams(1)
        .initial_stream_window_size(HTTP2_WINDOW)
        .initial_connection_window_size(HTTP2_WINDOW)
        .add_service(ExpertDispatchServer::new(dispatch))
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned());
    io.spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the device serves peers' connections no more");
        }
    });
    Arc::new(move |stream| match room.room().filter(|_| status.serves_peers()) {
        Some(room) => taken.try_send((stream, room)).map_err(|refused| refused.into_inner().0),
        None => Err(stream),
    })
}

/// Takes a connection over, which must have a greeted stream before long.
fn begin(stream: Stream, io: &DeviceIoHandle, room: OwnedSemaphorePermit) -> Option<io::Result<DeviceStream>> {
    let stream = match DeviceStream::new(stream, io, Some(room)) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "a peer's connection cannot be taken over");
            return None;
        }
    };
    let Driven { end, greeted, .. } = stream.connect_info();
    io.spawn(async move {
        tokio::select! {
            () = end.cancelled() => {}
            () = greeted.cancelled() => {}
            () = looked_for(DRIVEN_GREETING) => end.cancel(),
        }
    });
    Some(Ok(stream))
}
