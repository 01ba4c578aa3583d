#!/bin/bash
# Starts a node that stop-node.sh stopped, and waits until it is Ready again.
#
#   start-node.sh NODE
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
. "$here/machines.sh"
need_cluster
need_node "${1:-}"
! first_process "$1" >/dev/null || die "$1 runs already"

export KUBECONFIG=$conf/admin.kubeconfig
kubectl=$M1_CLUSTER_BUILD/bin/kubectl
# The old condition may still say Ready; what counts is a word from the new run.
heartbeat() { "$kubectl" get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].lastHeartbeatTime}'; }
before=$(heartbeat "$1")
heard() { [ "$(heartbeat "$1")" != "$before" ]; }
start_node "$1"
wait_for 60 "$1" heard "$1"
"$kubectl" wait --for=condition=Ready "node/$1" --timeout=60s >/dev/null
