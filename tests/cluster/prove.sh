#!/bin/bash
# Shows that the cluster is a real one: one line a check, and the end is 1 if any
# failed. On a cluster that is up it leaves it up. Otherwise it starts one, ends
# it, and also checks that nothing of it is left on this machine.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
bad=0 space=prove

ok() { echo "ok    $1"; }
fail() { echo "FAIL  $1: ${2:0:300}"; bad=1; }

check() { # check NAME PATTERN COMMAND...: the command's output must match
    local name=$1 pattern=$2 out
    shift 2
    out=$("$@" 2>&1)
    if grep -Eq -- "$pattern" <<<"$out"; then ok "$name"; else fail "$name" "$out"; fi
}

check_soon() { # check_soon SECONDS NAME PATTERN COMMAND...: the same, by then
    local end=$((SECONDS + $1)) name=$2 pattern=$3
    shift 3
    until grep -Eq -- "$pattern" <<<"$("$@" 2>&1)" || [ $SECONDS -ge $end ]; do sleep 0.2; done
    check "$name" "$pattern" "$@"
}

in_pod() { # in_pod POD COMMAND...: of the probe program
    kubectl -n $space exec "$1" -- /probe "${@:2}"
}

field() { # field KIND/NAME JSONPATH
    kubectl -n $space get "$1" -o "jsonpath=$2"
}

# ---- checks -------------------------------------------------------------------

check_nodes() {
    check "all nodes Ready" "^$M1_CLUSTER_NODES\$" \
        sh -c "kubectl get nodes -l type!=kwok --no-headers | grep -cw Ready"
    check "admission policies" "validatingadmissionpolicies" \
        kubectl api-resources --api-group=admissionregistration.k8s.io
    check "keys for extension APIs" "BEGIN CERTIFICATE" kubectl -n kube-system get configmap \
        extension-apiserver-authentication -o 'jsonpath={.data.requestheader-client-ca-file}'
}

check_network() {
    local a b service first second
    first=$(field pod/web-0 '{.spec.nodeName}') second=$(field pod/web-1 '{.spec.nodeName}')
    a=$(field pod/web-0 '{.status.podIP}') b=$(field pod/web-1 '{.status.podIP}')
    service=$(field service/any '{.spec.clusterIP}')
    if [ "$first" != "$second" ]; then ok "pods on two nodes"; else fail "pods on two nodes" "$first"; fi
    check "pod to pod, other node" "pod=web-1 .*from=$a:" in_pod web-0 get "http://$b:8080/"
    check "and back" "pod=web-0 .*from=$b:" in_pod web-1 get "http://$a:8080/"
    check "pod to service address" "pod=web-" in_pod web-0 get "http://$service/"
    check "pod to service name" "pod=web-" in_pod web-1 get "http://any.$space/"
    check "pod by name, other node" "pod=web-1 " in_pod web-0 get "http://web-1.web.$space.svc:8080/"
    check "pod by name, itself" "pod=web-0 " in_pod web-0 get "http://web-0.web.$space.svc:8080/"
    check "headless name has both" "\\[($a $b|$b $a)\\]" in_pod web-0 lookup "web.$space.svc.cluster.local"
    check "host to pod, $first" "pod=web-0 .*from=$host_ip:" curl -s -m 5 "http://$a:8080/"
    check "host to pod, $second" "pod=web-1 .*from=$host_ip:" curl -s -m 5 "http://$b:8080/"
    check "host to service address" "pod=web-" curl -s -m 5 "http://$service/"
    # The way webhooks and extension APIs are called.
    check "API server to service" "pod=web-" kubectl get --raw "/api/v1/namespaces/$space/services/any:80/proxy/"
    check "logs" "listens on :8080" kubectl -n $space logs web-1
}

check_unready() {
    # With the other policy the second pod would wait for the first to be ready.
    check_soon 15 "parallel pods start together" "^Running Running\$" \
        kubectl -n $space get pods -l app=never -o 'jsonpath={.items[*].status.phase}'
    check "and are not ready" "^False False\$" kubectl -n $space get pods -l app=never \
        -o 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}'
    check_soon 5 "name of an unready pod" "^\\[$M1_CLUSTER_PODS" in_pod web-0 lookup "never-1.never.$space.svc"
    check "unless the service wants ready ones" "no such host" in_pod web-0 lookup "ready-only.$space.svc"
}

check_helm() {
    check "helm install" "STATUS: deployed" \
        helm install -n $space demo "$here/prove/chart" --set replicas=1 --wait --timeout 30s
    check "the release's pod" "^1\$" field deployment/demo '{.status.readyReplicas}'
    check "helm uninstall" "uninstalled" helm uninstall -n $space demo
}

check_gpus() {
    "$here/fake-gpus.sh" node-1 4 81559
    check "fake GPUs" "^4 81559\$" kubectl get node node-1 \
        -o 'jsonpath={.status.allocatable.nvidia\.com/gpu} {.metadata.labels.nvidia\.com/gpu\.memory}'
    "$here/fake-gpus.sh" node-1 0
    check "no fake GPUs" "^ \$" kubectl get node node-1 \
        -o 'jsonpath={.status.allocatable.nvidia\.com/gpu} {.metadata.labels.nvidia\.com/gpu\.memory}'
    "$here/kwok.sh" up 3
    kubectl -n $space run fake --image=none --overrides='{"spec":{
        "nodeSelector":{"type":"kwok"},"tolerations":[{"key":"kwok.x-k8s.io/node","operator":"Exists"}]}}' >/dev/null
    kubectl -n $space run real --image=none --overrides='{"spec":{"nodeSelector":{"type":"kwok"}}}' >/dev/null
    check_soon 10 "pod on a fake node" "^fake-[123] Running\$" field pod/fake '{.spec.nodeName} {.status.phase}'
    check_soon 5 "none that does not tolerate it" "untolerated taint" \
        field pod/real '{.status.conditions[?(@.type=="PodScheduled")].message}'
    "$here/kwok.sh" down
    check "fake nodes gone" "^node/node-1( node/node-[234])*\$" sh -c "kubectl get nodes -o name | xargs"
}

ready() { kubectl get node node-2 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'; }

check_death() {
    local lost
    lost=$(kubectl -n $space get pods -l app=web -o 'jsonpath={.items[?(@.spec.nodeName=="node-2")].metadata.name}')
    "$here/stop-node.sh" node-2
    check_gpus # while the node is dead but not yet missed
    check_soon 40 "dead node is NotReady" "Unknown" ready
    check_soon 10 "its pod too" "^False\$" field "pod/$lost" '{.status.conditions[?(@.type=="Ready")].status}'
    "$here/start-node.sh" node-2
    check "node is back" "True" ready
    check_soon 20 "its pod too" "^True 1\$" field "pod/$lost" \
        '{.status.conditions[?(@.type=="Ready")].status} {.status.containerStatuses[0].restartCount}'
    check_soon 5 "and answers" "pod=$lost " curl -s -m 5 "http://$(field "pod/$lost" '{.status.podIP}'):8080/"
}

# ---- traces -------------------------------------------------------------------

# traces FILE: what a cluster could leave on the host, one line each.
traces() {
    {
        ip -o link | awk '{print "link", $2}'
        ip route show table all | sed 's/^/route /'
        awk '{print "mount", $5}' /proc/self/mountinfo
        find /sys/fs/cgroup -type d -name "$M1_CLUSTER_CGROUP*" -printf 'cgroup %p\n'
        # A daemon has the cluster's folder among its arguments, and what runs in
        # a pod is in a cgroup of the cluster.
        pgrep -af "$dir/" | sed 's/^/process /'
        grep -l "/$M1_CLUSTER_CGROUP/" /proc/[0-9]*/cgroup 2>/dev/null | sed 's/^/process /'
        ls -d "$dir" /var/lib/{cni,kubelet} /run/containerd /var/log/{containers,pods} 2>/dev/null | sed 's/^/folder /'
        sysctl vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops net.ipv4.ip_forward
        nft list ruleset | sed 's/^/rule /'
    } | sort -u >"$1"
}

check_traces() { # check_traces BEFORE AFTER
    local new
    new=$(diff "$1" "$2" | grep '^[<>]')
    if [ -z "$new" ]; then ok "nothing is left"; else fail "nothing is left" "$new"; fi
}

# ---- all ----------------------------------------------------------------------

box=$(mktemp -d)
trap 'rm -rf "$box"' EXIT
mine=
if ! first_process control >/dev/null; then
    mine=yes
    "$here/build.sh" >/dev/null || exit 1
    traces "$box/before"
fi
exports=$("$here/up.sh") || exit 1
eval "$exports"
. "$here/env.sh"
[ "$M1_CLUSTER_NODES" -ge 2 ] && [ -z "$M1_CLUSTER_MODE" ] || die "needs two nodes"

start=$SECONDS
check_nodes
kubectl delete namespace $space --ignore-not-found >/dev/null
kubectl create namespace $space >/dev/null
kubectl -n $space apply -f "$here/prove/objects.yaml" >/dev/null
check "pods start" "complete" kubectl -n $space rollout status statefulset/web --timeout=30s
check_soon 5 "service has both pods" '^true true$' kubectl -n $space get endpointslices \
    -l kubernetes.io/service-name=any -o 'jsonpath={.items[*].endpoints[*].conditions.ready}'
check_network
check_unready
check_helm
check_death
kubectl delete namespace $space --wait=false >/dev/null
say "checks: $((SECONDS - start)) s"

if [ -n "$mine" ]; then
    "$here/down.sh"
    traces "$box/after"
    check_traces "$box/before" "$box/after"
fi
exit $bad
