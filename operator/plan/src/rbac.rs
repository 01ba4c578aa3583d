//! What carrying out a plan needs to be allowed, each right with the code that needs it. The chart's roles are written from this list, so that code and
//! rights cannot drift apart. No wildcard, Secrets only where somebody binds the right to them, nothing about nodes but looking.

/// Rights to one kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// API group; empty for the core.
    pub group: &'static str,
    /// Resources.
    pub resources: &'static [&'static str],
    /// Verbs.
    pub verbs: &'static [&'static str],
    /// Which code needs it, and for what.
    pub reason: &'static str,
}

const OWN: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

/// In every namespace that is watched.
pub const RULES: &[Rule] = &[
    Rule {
        group: "serving.minimax-m1.dev",
        resources: &["minimaxm1deployments"],
        verbs: &["get", "list", "watch"],
        reason: "run: what users ask for",
    },
    Rule {
        group: "serving.minimax-m1.dev",
        resources: &["minimaxm1deployments/status"],
        verbs: &["get", "patch"],
        reason: "report: the status",
    },
    Rule {
        group: "serving.minimax-m1.dev",
        resources: &["minimaxm1deployments/finalizers"],
        verbs: &["update"],
        reason: "apply: owner references that block deletion, where the cluster checks them",
    },
    Rule {
        group: "serving.minimax-m1.dev",
        resources: &["expertplacements"],
        verbs: OWN,
        reason: "apply: who holds which expert; also what routers are granted (get, list, watch)",
    },
    Rule {
        group: "serving.minimax-m1.dev",
        resources: &["expertplacements/status"],
        verbs: &["patch"],
        reason: "apply: what pods have applied",
    },
    Rule { group: "apps", resources: &["statefulsets", "deployments"], verbs: OWN, reason: "apply: groups and routers" },
    Rule {
        group: "",
        resources: &["services", "serviceaccounts"],
        verbs: OWN,
        reason: "apply: names and addresses of pods, identities of pods",
    },
    Rule { group: "policy", resources: &["poddisruptionbudgets"], verbs: OWN, reason: "apply: whole groups survive drains" },
    Rule { group: "networking.k8s.io", resources: &["networkpolicies"], verbs: OWN, reason: "apply: who may reach whom" },
    Rule {
        group: "rbac.authorization.k8s.io",
        resources: &["roles", "rolebindings"],
        verbs: OWN,
        reason: "apply: routers may read the placements of their namespace; nothing can be granted that is not in this list",
    },
    Rule {
        group: "",
        resources: &["pods"],
        verbs: &["get", "list", "watch", "delete"],
        reason: "cache: what pods do; apply: pods on nodes that are gone are deleted by force",
    },
    Rule {
        group: "",
        resources: &["events"],
        verbs: &["list", "watch"],
        reason: "observe: why a pod that does not start does not",
    },
    Rule { group: "events.k8s.io", resources: &["events"], verbs: &["create", "patch"], reason: "report: events" },
    Rule { group: "scheduling.x-k8s.io", resources: &["podgroups"], verbs: OWN, reason: "apply: scheduling.gang: Coscheduling" },
    Rule { group: "scheduling.volcano.sh", resources: &["podgroups"], verbs: OWN, reason: "apply: scheduling.gang: Volcano" },
    Rule { group: "monitoring.coreos.com", resources: &["podmonitors"], verbs: OWN, reason: "apply: monitoring.podMonitor" },
    Rule { group: "cert-manager.io", resources: &["certificates"], verbs: OWN, reason: "apply: tls.mode: CertManager" },
];

/// Only where it is bound: in the namespaces of deployments with `tls.mode` other than Off. Names of Secrets cannot be known before
/// deployments are, so Kubernetes could narrow it no further.
pub const TLS_RULES: &[Rule] = &[Rule {
    group: "",
    resources: &["secrets"],
    verbs: &["get", "create", "patch", "delete"],
    reason: "certificates: the members' certificate and the authority that signs it, deleted when nothing is encrypted any more",
}];

/// Of the whole cluster, in either mode.
pub const CLUSTER_RULES: &[Rule] = &[Rule {
    group: "",
    resources: &["nodes"],
    verbs: &["list", "watch"],
    reason: "cache: nodes that are gone or being drained, and the label nvidia.com/gpu.memory",
}];

/// In the operator's own namespace.
pub const OWN_RULES: &[Rule] = &[
    Rule {
        group: "coordination.k8s.io",
        resources: &["leases"],
        verbs: &["get", "create", "update"],
        reason: "leader: which of several operators acts",
    },
    Rule {
        group: "apps",
        resources: &["deployments"],
        verbs: &["get"],
        reason: "leader: the lease goes with the operator's Deployment",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_a_wildcard_and_no_secret_is_read() {
        for rule in RULES.iter().chain(CLUSTER_RULES).chain(OWN_RULES) {
            let words = rule.resources.iter().chain(rule.verbs).chain([&rule.group]);
            assert!(words.clone().all(|word| !word.contains('*')), "{rule:?}");
            assert!(words.clone().all(|word| !word.contains("secret")), "{rule:?}");
            assert!(!rule.reason.is_empty());
        }
    }

    #[test]
    fn every_kind_that_is_written_may_be() {
        for kind in crate::Kind::ALL {
            let (group, _, _, plural) = kind.names();
            let rule = RULES.iter().find(|rule| rule.group == group && rule.resources.contains(&plural));
            assert!(rule.is_some_and(|rule| rule.verbs == OWN), "{kind:?}");
        }
    }
}
