//! Keeps a status stream to every worker of the newest topology: one starts when a worker comes, ends when it leaves, and is made again after it broke.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use m1_proto::worker::WatchStatsRequest;
use m1_router_core::{Topology, WorkerId};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::link::{Link, geometry, overstated, read_counts, read_status};
use super::{Came, Pool};

/// How often a worker may push its status. Also how long a wrong picture lives.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);
/// A worker that does not answer a call for its status this fast is as good as gone.
const ANSWER: Duration = Duration::from_secs(10);
/// A worker tells its status every two seconds, changed or not. One that is silent for so long may be in any state.
const SILENCE: Duration = Duration::from_secs(30);

impl Pool {
    /// Applies every topology that comes, for as long as the router runs. When nobody speaks any more the last one stands.
    pub async fn follow(self: Arc<Self>, mut topologies: watch::Receiver<Topology>) {
        let (mut streams, mut handles) = (JoinSet::new(), HashMap::new());
        loop {
            let topology = topologies.borrow_and_update().clone();
            let (came, left) = self.apply(&topology);
            for worker in left {
                if let Some(stream) = handles.remove(&worker) {
                    let stream: tokio::task::AbortHandle = stream;
                    stream.abort();
                }
            }
            for Came { worker, link } in came {
                handles.insert(worker, streams.spawn(Arc::clone(&self).watch(worker, link)));
            }
            // What was aborted is collected, so that its memory goes.
            while streams.try_join_next().is_some() {}
            if topologies.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Follows one worker until it is aborted.
    async fn watch(self: Arc<Self>, worker: WorkerId, link: Arc<Link>) {
        // What was said of it since it last answered.
        let mut said = String::new();
        loop {
            let error = self.listen(worker, &link, &mut said).await;
            let wait = self.lost(worker);
            if said != error {
                tracing::warn!(worker = &*link.address, error, ?wait, "worker unreachable");
                said = error;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Listens to one worker until its stream ends; says why it did. Forgets what was `said` of it once it is heard.
    async fn listen(self: &Arc<Self>, worker: WorkerId, link: &Link, said: &mut String) -> String {
        let interval_ms = u32::try_from(STATUS_INTERVAL.as_millis()).unwrap_or(u32::MAX);
        let request = WatchStatsRequest { interval_ms, router: self.name().to_owned() };
        let mut stream = match tokio::time::timeout(ANSWER, link.status().watch_stats(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return status.to_string(),
            Err(_) => return "it does not answer".to_owned(),
        };
        let mut phase = None;
        loop {
            let Ok(message) = tokio::time::timeout(SILENCE, stream.message()).await else {
                return format!("it has told nothing for {} s", SILENCE.as_secs());
            };
            match message {
                Ok(Some(mut status)) => {
                    let other = link.member.as_ref().and_then(|member| Some((member, member.instead(&status.member)?)));
                    if let Some((member, other)) = other {
                        return format!("{other} answers there, {member} is meant");
                    }
                    if let Some(what) = overstated(&status) {
                        return format!("it says that it uses more {what} than it has");
                    }
                    if let Some(experts) = status.experts.take() {
                        self.counted(&link.address, status.incarnation, read_counts(experts));
                    }
                    said.clear();
                    let stats = read_status(&status);
                    if phase.replace(stats.phase) != Some(stats.phase) {
                        let (pod, phase) = (stats.pod, stats.phase.as_str());
                        tracing::info!(worker = &*link.address, pod, phase, status.reason, "worker");
                    }
                    self.heard(worker, status.routing.as_ref().map(geometry), stats);
                }
                Ok(None) => return "the status stream ended".to_owned(),
                Err(status) => return status.to_string(),
            }
        }
    }
}
