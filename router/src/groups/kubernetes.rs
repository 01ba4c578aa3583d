//! Follows the `ExpertPlacement` objects of one deployment: list, then watch, again and again. What the API server says becomes a [`Picture`]; while it
//! says nothing, or cannot be reached, the last picture stands.
//!
//! Needs `list` and `watch` on `expertplacements` in the deployment's namespace, and nothing else.

use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::time::Duration;

use kube::core::{ApiResource, DynamicObject};
use kube::runtime::watcher;
use kube::{Api, Client, Config};
use m1_operator_api::{ExpertPlacement, ResourceName, labels};
use m1_router_core::{Backoff, Rng, Topology};
use tokio::sync::watch;
use tokio_stream::StreamExt;

use super::Deployment;
use super::picture::Picture;

/// The API server ends a watch after this, and one that is silent for a little longer is given up: so long may a picture be stale after the server was
/// lost without a word. Each new watch costs it one cheap request.
const WATCH: Duration = Duration::from_secs(120);
/// A response may be silent for this long: a watch, and some more.
const READ_TIMEOUT: Duration = Duration::from_secs(150);
/// Waits after failures: soon, because a rollout may be under way; never longer than an operator's patience, because many routers are still few clients.
const RETRY: Backoff = Backoff { first: Duration::from_millis(500), most: Duration::from_secs(10) };

/// Why there is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a kubeconfig nor a service account.
    #[error("--deployment: neither a kubeconfig nor the service account of a pod says where the API server is")]
    Nowhere(#[source] Box<kube::config::InferConfigError>),
    /// What they say cannot be used.
    #[error("--deployment: cannot make a client of the API server")]
    Client(#[source] Box<kube::Error>),
}

impl ConnectError {
    /// One word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Nowhere(_) => "NoCluster",
            Self::Client(_) => "BadCluster",
        }
    }
}

/// A client, and the namespace to look at: the deployment's, or the one the pod or the kubeconfig's context is in. Nothing is asked yet.
///
/// # Errors
/// Nobody says where the API server is, or how to log in.
pub async fn connect(deployment: &Deployment) -> Result<(Client, String), ConnectError> {
    let mut config = Config::infer().await.map_err(|error| ConnectError::Nowhere(Box::new(error)))?;
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // The client would hide a server that is overloaded behind retries of its own, minutes apart.
    config.default_retry = false;
    let namespace = deployment.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))?;
    Ok((client, namespace))
}

/// Sends every new picture, until it is dropped.
pub async fn follow(client: Client, namespace: String, name: ResourceName, topologies: watch::Sender<Topology>) {
    let selector = format!("{}={name}", labels::NAME);
    // Untyped, so that one object that does not read is one object, and not the whole list.
    let kind = ApiResource::erase::<ExpertPlacement>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client, &namespace, &kind);
    let seconds = u32::try_from(WATCH.as_secs()).unwrap_or(u32::MAX);
    let config = watcher::Config::default().labels(&selector).timeout(seconds);
    let mut events = pin!(watcher(api, config));
    let mut picture = Picture::default();
    let mut rng = Rng::new(RandomState::new().hash_one(crate::now_seconds()));
    let mut failures = 0u32;
    tracing::info!(namespace, selector, "following ExpertPlacements");
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                // Each new list begins with an event of the watcher's own, so only a whole picture proves that the server answers.
                if let Some(topology) = picture.take(event) {
                    if std::mem::take(&mut failures) > 0 {
                        tracing::info!(namespace, "the API server answers again");
                    }
                    publish(&topologies, topology);
                }
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                let wait = RETRY.wait(failures, &mut rng);
                tracing::warn!(namespace, selector, %error, ?wait, "cannot follow ExpertPlacements; the last picture stands");
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// Objects change often without a word for the router: their status does.
fn publish(topologies: &watch::Sender<Topology>, topology: &Topology) {
    topologies.send_if_modified(|last| {
        let changed = last != topology;
        if changed {
            *last = topology.clone();
        }
        changed
    });
}
