//! Where the replica groups come from: a command line, once, or Kubernetes, for as long as the router runs. Either way the rest of the router sees a
//! channel with the newest whole [`Topology`].

pub mod kubernetes;
pub mod picture;
pub mod placement;

use std::fmt;

use m1_operator_api::ResourceName;
use m1_router_core::Topology;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use kubernetes::ConnectError;

/// A deployment to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Its name.
    pub name: ResourceName,
    /// Its namespace; none: the one the router itself is in.
    pub namespace: Option<String>,
}

impl fmt::Display for Deployment {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(out, "{namespace}/{}", self.name),
            None => self.name.fmt(out),
        }
    }
}

/// Who says which groups there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Fixed(Topology),
    /// The ExpertPlacements of a deployment.
    Kubernetes(Deployment),
}

impl Source {
    /// Begins to follow the source; `tasks` gets what does so. The channel holds an empty topology until the source has spoken, and the last one it named
    /// while the source cannot be reached.
    ///
    /// # Errors
    /// There is no way to any API server.
    pub async fn open(&self, tasks: &mut JoinSet<()>) -> Result<watch::Receiver<Topology>, ConnectError> {
        match self {
            Self::Fixed(topology) => Ok(watch::channel(topology.clone()).1),
            Self::Kubernetes(deployment) => {
                let (sender, receiver) = watch::channel(Topology::default());
                let (client, namespace) = kubernetes::connect(deployment).await?;
                tasks.spawn(kubernetes::follow(client, namespace, deployment.name.clone(), sender));
                Ok(receiver)
            }
        }
    }
}
