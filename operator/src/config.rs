//! The command line, checked once. The only place that reads arguments and the environment.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{ArgAction, Parser};
use m1_operator_plan::render::Images;

/// Watches MiniMaxM1Deployments and keeps their worker groups, routers and placements as they should be.
#[derive(Debug, Parser)]
#[command(name = "m1-operator", version)]
pub struct Args {
    /// Namespace to watch; may be given several times. Default: all, which needs a ClusterRole.
    #[arg(long = "watch-namespace", value_name = "NAMESPACE", env = "M1_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// Namespace of the operator itself: its lease, and who may talk to workers.
    #[arg(long, env = "POD_NAMESPACE", default_value = "minimax-m1-system", value_name = "NAMESPACE")]
    pub namespace: String,
    /// Name of this process among the candidates for the lease.
    #[arg(long, env = "POD_NAME", default_value = "m1-operator", value_name = "NAME")]
    pub identity: String,
    /// Image of workers where a deployment names none.
    #[arg(long, env = "M1_WORKER_IMAGE", default_value = concat!("minimax-m1.dev/worker:", env!("CARGO_PKG_VERSION")))]
    pub worker_image: String,
    /// Image of routers where a deployment names none.
    #[arg(long, env = "M1_ROUTER_IMAGE", default_value = concat!("minimax-m1.dev/router:", env!("CARGO_PKG_VERSION")))]
    pub router_image: String,
    /// Address of health checks and metrics: /livez, /readyz, /startupz, /metrics.
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "HOST:PORT")]
    pub admin: SocketAddr,
    /// Whether a lease decides which of several operators acts.
    #[arg(long, default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub leader_elect: bool,
    /// Name of the lease.
    #[arg(long, default_value = "minimax-m1-operator", value_name = "NAME")]
    pub lease_name: String,
    /// How long a silent leader keeps the lease, in seconds.
    #[arg(long, default_value_t = 15, value_name = "SECONDS")]
    pub lease_seconds: u32,
    /// Deployment of the operator, in its namespace: the lease goes when it goes.
    #[arg(long, value_name = "NAME")]
    pub lease_owner: Option<String>,
    /// Deployments that are reconciled at the same time.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub concurrency: u16,
}

/// A flag that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{flag}: {given} given, allowed: {allowed}")]
pub struct ConfigError {
    flag: &'static str,
    given: String,
    allowed: &'static str,
}

impl ConfigError {
    /// One word for logs.
    pub fn reason(&self) -> &'static str {
        "BadFlag"
    }
}

/// What the operator runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespaces to watch; empty for all.
    pub watch: Vec<String>,
    /// Its own namespace.
    pub namespace: String,
    /// Its name among candidates.
    pub identity: String,
    /// Default images.
    pub images: Images,
    /// Health checks and metrics.
    pub admin: SocketAddr,
    /// The lease; none where it acts without one.
    pub lease: Option<LeaseConfig>,
    /// Reconciles at the same time.
    pub concurrency: u16,
}

/// The lease that decides who acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseConfig {
    /// Its name.
    pub name: String,
    /// How long it is kept without a renewal.
    pub duration: Duration,
    /// The Deployment in the operator's namespace that owns it.
    pub owner: Option<String>,
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let wrong = |flag, given: &str, allowed| Err(ConfigError { flag, given: format!("{given:?}"), allowed });
        for (flag, image) in [("worker-image", &args.worker_image), ("router-image", &args.router_image)] {
            if image.trim().is_empty() || image.contains(char::is_whitespace) {
                return wrong(flag, image, "an image reference");
            }
        }
        if let Some(namespace) = args.watch_namespaces.iter().find(|namespace| namespace.trim().is_empty()) {
            return wrong("watch-namespace", namespace, "names of namespaces");
        }
        // A leader stops acting after two thirds of it, and its last writes may take 3 s.
        if !(10..=3600).contains(&args.lease_seconds) {
            return wrong("lease-seconds", &args.lease_seconds.to_string(), "10 to 3600");
        }
        if args.concurrency == 0 {
            return wrong("concurrency", "0", "1 to 65535");
        }
        let duration = Duration::from_secs(args.lease_seconds.into());
        let lease = LeaseConfig { name: args.lease_name, duration, owner: args.lease_owner };
        Ok(Self {
            watch: args.watch_namespaces,
            namespace: args.namespace,
            identity: args.identity,
            images: Images { worker: args.worker_image, router: args.router_image },
            admin: args.admin,
            lease: args.leader_elect.then_some(lease),
            concurrency: args.concurrency,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &[&str]) -> Result<Config, String> {
        let line = ["m1-operator"].iter().chain(extra);
        let args = Args::try_parse_from(line).map_err(|error| error.to_string())?;
        Config::try_from(args).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_allowed() {
        let config = config(&[]).unwrap();
        assert!(config.watch.is_empty());
        assert_eq!(config.images.worker, concat!("minimax-m1.dev/worker:", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn wrong_flags_are_named() {
        assert_eq!(config(&["--lease-seconds", "1"]).unwrap_err(), "--lease-seconds: \"1\" given, allowed: 10 to 3600");
        assert!(config(&["--worker-image", "a b"]).unwrap_err().starts_with("--worker-image: \"a b\" given"));
        assert!(config(&["--leader-elect", "false"]).unwrap().lease.is_none());
    }
}
