{{- /* Written by `cargo xtask chart` from operator/plan/src/rbac.rs. */}}
{{- define "minimax-m1-operator.rules" -}}
# run: what users ask for
- apiGroups: [serving.minimax-m1.dev]
  resources: [minimaxm1deployments]
  verbs: [get, list, watch]
# report: the status
- apiGroups: [serving.minimax-m1.dev]
  resources: [minimaxm1deployments/status]
  verbs: [get, patch]
# apply: owner references that block deletion, where the cluster checks them
- apiGroups: [serving.minimax-m1.dev]
  resources: [minimaxm1deployments/finalizers]
  verbs: [update]
# apply: who holds which expert; also what routers are granted (get, list, watch)
- apiGroups: [serving.minimax-m1.dev]
  resources: [expertplacements]
  verbs: [get, list, watch, create, patch, delete]
# apply: what pods have applied
- apiGroups: [serving.minimax-m1.dev]
  resources: [expertplacements/status]
  verbs: [patch]
# apply: groups and routers
- apiGroups: [apps]
  resources: [statefulsets, deployments]
  verbs: [get, list, watch, create, patch, delete]
# apply: names and addresses of pods, identities of pods
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
# apply: whole groups survive drains
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
# apply: who may reach whom
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# apply: routers may read the placements of their namespace; nothing can be granted that is not in this list
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, delete]
# cache: what pods do; apply: pods on nodes that are gone are deleted by force
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
# observe: why a pod that does not start does not
- apiGroups: [""]
  resources: [events]
  verbs: [list, watch]
# report: events
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
# apply: scheduling.gang: Coscheduling
- apiGroups: [scheduling.x-k8s.io]
  resources: [podgroups]
  verbs: [get, list, watch, create, patch, delete]
# apply: scheduling.gang: Volcano
- apiGroups: [scheduling.volcano.sh]
  resources: [podgroups]
  verbs: [get, list, watch, create, patch, delete]
# apply: monitoring.podMonitor
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, list, watch, create, patch, delete]
# apply: tls.mode: CertManager
- apiGroups: [cert-manager.io]
  resources: [certificates]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- define "minimax-m1-operator.rules.cluster" -}}
# cache: nodes that are gone or being drained, and the label nvidia.com/gpu.memory
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
{{- end }}
{{- define "minimax-m1-operator.rules.own" -}}
# leader: which of several operators acts
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, create, update]
# leader: the lease goes with the operator's Deployment
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get]
{{- end }}
{{- define "minimax-m1-operator.rules.tls" -}}
# certificates: the members' certificate and the authority that signs it, deleted when nothing is encrypted any more
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
{{- end }}
