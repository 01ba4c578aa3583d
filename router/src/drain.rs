//! How the router ends. The first signal: `/ready` is 503 at once, new requests are served for a while more, so that whoever routes to this router has
//! looked elsewhere; then the listener closes and answers under way may end; then they end with an error. The second signal ends them at once.

use std::time::Duration;

use tokio::sync::watch;

use crate::App;

/// How long each part of the end takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace {
    /// New requests are still served for this long.
    pub delay: Duration,
    /// Answers under way may go on for this long after that.
    pub drain: Duration,
}

/// How long clients whose answers were ended have to take the error.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(1);

/// How often this process was asked to end.
#[derive(Clone, Debug)]
pub struct Stops(watch::Receiver<u32>);

impl Stops {
    /// The receiver holds the number of signals so far.
    pub fn new(signals: watch::Receiver<u32>) -> Self {
        Self(signals)
    }

    /// Counts the signals of this process from now on; call it inside a tokio runtime.
    pub fn of_process() -> Self {
        let (sender, receiver) = watch::channel(0);
        let mut signals = m1_runtime::shutdown::signals();
        tokio::spawn(async move {
            while let Some(signal) = signals.recv().await {
                tracing::info!(?signal, "signal");
                sender.send_modify(|signals| *signals += 1);
            }
        });
        Self(receiver)
    }

    /// Completes once there were so many; never, when nobody is left to count.
    pub(crate) async fn reached(&self, count: u32) {
        let mut signals = self.0.clone();
        if signals.wait_for(|signals| *signals >= count).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Completes when the listener should close. Until then `/ready` tells that the end is near.
pub async fn closing(app: &App, stops: Stops) {
    stops.reached(1).await;
    app.leave();
    let Grace { delay, drain } = app.config.grace;
    tracing::info!(?delay, ?drain, "stopping");
    within(delay, &stops).await;
}

/// Completes, after [`closing`], when answers under way are ended.
pub async fn cutting(drain: Duration, stops: Stops) {
    within(drain, &stops).await;
}

async fn within(time: Duration, stops: &Stops) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = stops.reached(2) => {}
    }
}
