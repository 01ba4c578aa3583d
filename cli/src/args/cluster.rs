//! How a cluster and a deployment in it are named on the command line: the flags and the forms of kubectl.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::units;

/// Group of the kinds, as kubectl appends it to their names.
const GROUP: &str = ".serving.minimax-m1.dev";

/// Which cluster, as kubectl has it.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// File with the connection; default: KUBECONFIG, ~/.kube/config, or the pod's own account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; default: its current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Cluster of the kubeconfig; default: the context's.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// User of the kubeconfig; default: the context's.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Act as this user, where one's own may.
    #[arg(long = "as", value_name = "USER")]
    pub impersonate: Option<String>,
    /// With --as: act as a member of this group; may be given several times.
    #[arg(long = "as-group", value_name = "GROUP")]
    pub impersonate_groups: Vec<String>,
    /// Longest wait for an answer of the API server, such as 5s or 1m; a bare number is seconds, 0 is no limit.
    #[arg(long, value_name = "TIME", value_parser = request_timeout)]
    pub request_timeout: Option<Duration>,
    /// Namespace; default: the context's.
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

impl ClusterArgs {
    /// These; what they leave open as `before` has it.
    pub(super) fn or(self, before: Self) -> Self {
        let groups = if self.impersonate_groups.is_empty() { before.impersonate_groups } else { self.impersonate_groups };
        Self {
            kubeconfig: self.kubeconfig.or(before.kubeconfig),
            context: self.context.or(before.context),
            cluster: self.cluster.or(before.cluster),
            user: self.user.or(before.user),
            impersonate: self.impersonate.or(before.impersonate),
            impersonate_groups: groups,
            request_timeout: self.request_timeout.or(before.request_timeout),
            namespace: self.namespace.or(before.namespace),
        }
    }

    /// A flag that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--kubeconfig", self.kubeconfig.is_some()),
            ("--context", self.context.is_some()),
            ("--cluster", self.cluster.is_some()),
            ("--user", self.user.is_some()),
            ("--as", self.impersonate.is_some()),
            ("--as-group", !self.impersonate_groups.is_empty()),
            ("--request-timeout", self.request_timeout.is_some()),
            ("--namespace", self.namespace.is_some()),
        ];
        flags.into_iter().find_map(|(flag, given)| given.then_some(flag))
    }
}

/// The name of a deployment: bare, or behind its kind as `kubectl get -o name` prints it.
///
/// # Errors
/// The kind is another one.
pub fn deployment_name(text: &str) -> Result<String, String> {
    let Some((kind, name)) = text.split_once('/') else { return Ok(text.to_owned()) };
    let kind = kind.to_ascii_lowercase();
    let short = kind.strip_suffix(GROUP).unwrap_or(&kind);
    match ["m1d", "minimaxm1deployment", "minimaxm1deployments"].contains(&short) && !name.is_empty() && !name.contains('/') {
        true => Ok(name.to_owned()),
        false => Err(format!("allowed: NAME, m1d/NAME or minimaxm1deployments{GROUP}/NAME")),
    }
}

fn request_timeout(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    let time = seconds.or_else(|| units::duration(text).ok());
    time.ok_or_else(|| "allowed: seconds, or a time such as 5s or 1m30s; 0 is no limit".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_is_named_as_kubectl_names_it() {
        let kinds = ["", "m1d/", "minimaxm1deployment/", "MiniMaxM1Deployment/", "minimaxm1deployments.serving.minimax-m1.dev/"];
        for kind in kinds {
            assert_eq!(deployment_name(&format!("{kind}chat")), Ok("chat".to_owned()), "{kind}");
        }
        for wrong in ["pod/chat", "m1d/", "m1d/a/b", "m1d.apps/chat"] {
            assert!(deployment_name(wrong).unwrap_err().contains("m1d/NAME"), "{wrong}");
        }
    }

    #[test]
    fn a_timeout_is_written_as_for_kubectl() {
        assert_eq!(request_timeout("30"), Ok(Duration::from_secs(30)));
        assert_eq!(request_timeout("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(request_timeout("0"), Ok(Duration::ZERO));
        assert!(request_timeout("soon").is_err());
    }

    #[test]
    fn what_the_nearer_flags_leave_open_the_others_say() {
        let groups = |groups: &[&str]| groups.iter().map(|group| (*group).to_owned()).collect::<Vec<_>>();
        let before = ClusterArgs { user: Some("ann".into()), impersonate_groups: groups(&["a"]), ..ClusterArgs::default() };
        let near = ClusterArgs { cluster: Some("far".into()), ..ClusterArgs::default() };
        let both = near.clone().or(before.clone());
        assert_eq!(
            (both.user.as_deref(), both.cluster.as_deref(), both.impersonate_groups),
            (Some("ann"), Some("far"), groups(&["a"]))
        );
        assert_eq!((before.given(), near.given(), ClusterArgs::default().given()), (Some("--user"), Some("--cluster"), None));
    }
}
