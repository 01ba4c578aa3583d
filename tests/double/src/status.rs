//! What a double tells of itself: once, or as a stream that speaks when something changed.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use m1_proto::worker::{StatusResponse, WatchStatsRequest};
use tokio::time::{Interval, MissedTickBehavior};
use tonic::Status;

use crate::board::Board;
use crate::deal::{Detail, deal};

/// Shortest interval; a smaller one asked for is raised to it.
const SHORTEST: Duration = Duration::from_millis(20);
/// Where none is asked for.
const DEFAULT: Duration = Duration::from_millis(500);

/// The status now. `router` is who asks; `experts` whether its counts are told.
pub fn status(board: &Board, router: &str, experts: bool) -> StatusResponse {
    let settings = &board.settings;
    let state = board.read();
    let detail = if router.is_empty() { Detail::All } else { Detail::Sums };
    let counts = experts.then(|| deal(settings, state.routed_for.get(router).copied().unwrap_or(0), false, Detail::Counts));
    StatusResponse {
        pod: settings.pod,
        phase: state.phase.into(),
        epoch: state.epoch,
        running: state.running(),
        state_slots_used: state.running(),
        state_slots_total: settings.slots,
        kv_blocks_used: state.kv_used,
        kv_blocks_total: settings.kv_total(),
        max_context_tokens: settings.max_context,
        weights_digest: "double".to_owned(),
        routing: Some(deal(settings, state.routed, false, detail)),
        member: settings.member.as_ref().map(ToString::to_string).unwrap_or_default(),
        incarnation: board.incarnation,
        experts: counts,
        kv_block_tokens: settings.kv_block_tokens,
        ..StatusResponse::default()
    }
}

/// A status stream.
pub struct Watching {
    board: Arc<Board>,
    router: String,
    interval: Interval,
    told: Option<u64>,
    told_tokens: Option<u64>,
}

impl Watching {
    /// Follows a board for who asked.
    pub fn new(board: Arc<Board>, request: WatchStatsRequest) -> Self {
        let asked = Duration::from_millis(request.interval_ms.into());
        let mut interval = tokio::time::interval(if asked.is_zero() { DEFAULT } else { asked.max(SHORTEST) });
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        board.follow(1);
        Self { board, router: request.router, interval, told: None, told_tokens: None }
    }
}

impl Stream for Watching {
    type Item = Result<StatusResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            std::task::ready!(self.interval.poll_tick(context));
            let (version, tokens) = {
                let state = self.board.read();
                (state.version, state.routed_for.get(&self.router).copied().unwrap_or(0))
            };
            if self.told == Some(version) {
                continue;
            }
            let experts = !self.router.is_empty() && self.told_tokens != Some(tokens);
            (self.told, self.told_tokens) = (Some(version), Some(tokens));
            return Poll::Ready(Some(Ok(status(&self.board, &self.router, experts))));
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.board.follow(-1);
    }
}
