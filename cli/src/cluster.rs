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
        let config = config(args).await?;
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

/// The connection that the command line asks for.
async fn config(args: &ClusterArgs) -> Result<Config, Failure> {
    let (context, cluster, user) = (args.context.clone(), args.cluster.clone(), args.user.clone());
    let chosen = context.is_some() || cluster.is_some() || user.is_some();
    let options = KubeConfigOptions { context, cluster, user };
    let mut config = match &args.kubeconfig {
        Some(file) => {
            let kubeconfig = Kubeconfig::read_from(file).map_err(|error| failed(&error))?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| failed(&error))?
        }
        None if chosen => Config::from_kubeconfig(&options).await.map_err(|error| failed(&error))?,
        None => Config::infer().await.map_err(|error| failed(&error))?,
    };
    adjust(&mut config, args);
    Ok(config)
}

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::new("kubeconfig", crate::local::chain(error))
}

/// Who acts, and how long an answer may take, where the command line says so.
fn adjust(config: &mut Config, args: &ClusterArgs) {
    if let Some(user) = &args.impersonate {
        config.auth_info.impersonate = Some(user.clone());
    }
    if !args.impersonate_groups.is_empty() {
        config.auth_info.impersonate_groups = Some(args.impersonate_groups.clone());
    }
    if let Some(time) = args.request_timeout {
        let limit = (!time.is_zero()).then_some(time);
        (config.connect_timeout, config.read_timeout, config.write_timeout) = (limit, limit, limit);
    }
}

/// What the API server answered, with the thing it was about.
pub fn refused(what: &str, error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => Failure::new(what, &status.message),
        other => Failure::new(what, crate::local::chain(other)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TWO_OF_EACH: &str = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "near", "user": "ann", "namespace": "models"}}],
        "clusters": [{"name": "near", "cluster": {"server": "http://near:1"}}, {"name": "far", "cluster": {"server": "http://far:1"}}],
        "users": [{"name": "ann", "user": {"token": "a"}}, {"name": "bob", "user": {"token": "b"}}]}"#;

    #[tokio::test]
    async fn cluster_and_user_are_chosen_beside_the_context() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        std::fs::write(&file, TWO_OF_EACH).unwrap();
        let (cluster, user) = (Some("far".to_owned()), Some("bob".to_owned()));
        let args = ClusterArgs { kubeconfig: Some(file), cluster, user, ..ClusterArgs::default() };
        let config = config(&args).await.unwrap();
        assert_eq!((config.cluster_url.host(), config.default_namespace.as_str()), (Some("far"), "models"));
    }

    #[test]
    fn who_acts_and_how_long_an_answer_takes_are_the_command_lines() {
        let mut config = Config::new("http://near:1".parse().unwrap());
        let before = (config.connect_timeout, config.read_timeout);
        adjust(&mut config, &ClusterArgs::default());
        assert_eq!((config.connect_timeout, config.read_timeout, &config.auth_info.impersonate), (before.0, before.1, &None));
        let args = ClusterArgs {
            impersonate: Some("ann".into()),
            impersonate_groups: vec!["a".into(), "b".into()],
            request_timeout: Some(Duration::from_secs(5)),
            ..ClusterArgs::default()
        };
        adjust(&mut config, &args);
        assert_eq!(config.auth_info.impersonate.as_deref(), Some("ann"));
        assert_eq!(config.auth_info.impersonate_groups, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(config.read_timeout, Some(Duration::from_secs(5)));
        adjust(&mut config, &ClusterArgs { request_timeout: Some(Duration::ZERO), ..ClusterArgs::default() });
        assert_eq!(config.read_timeout, None);
    }
}
