//! The cluster that a command talks to, chosen as kubectl chooses it.

use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use m1_operator_api::MiniMaxM1Deployment;

use crate::args::ClusterArgs;
use crate::error::Failure;

/// A connection and a namespace.
pub struct Cluster {
    /// The API server.
    pub client: Client,
    /// Where deployments are looked for.
    pub namespace: String,
}

impl Cluster {
    /// Connects; asks nothing yet.
    ///
    /// # Errors
    /// There is no kubeconfig, it names nothing of that context, or its certificates cannot be used.
    pub async fn connect(args: &ClusterArgs) -> Result<Self, Failure> {
        let failed = |error: &dyn std::error::Error| Failure::new("kubeconfig", crate::local::chain(error));
        let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        let config = match (&args.kubeconfig, &args.context) {
            (Some(file), _) => {
                let kubeconfig = Kubeconfig::read_from(file).map_err(|error| failed(&error))?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| failed(&error))?
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await.map_err(|error| failed(&error))?,
            (None, None) => Config::infer().await.map_err(|error| failed(&error))?,
        };
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| failed(&error))?;
        Ok(Self { client, namespace })
    }

    /// Deployments of the namespace.
    pub fn deployments(&self) -> Api<MiniMaxM1Deployment> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A deployment.
    ///
    /// # Errors
    /// The API server does not answer, refuses, or has no such deployment.
    pub async fn deployment(&self, name: &str) -> Result<MiniMaxM1Deployment, Failure> {
        self.deployments().get(name).await.map_err(|error| refused(&format!("{}/{name}", self.namespace), &error))
    }
}

/// What the API server answered, with the thing it was about.
pub fn refused(what: &str, error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => Failure::new(what, &status.message),
        other => Failure::new(what, crate::local::chain(other)),
    }
}
