#!/bin/bash
# Starts a real Kubernetes cluster on this machine and waits until it is ready.
# The last line, alone on stdout, is what a shell needs to use it. Needs root.
#
#   up.sh [--nodes N]   control plane and N nodes (2; at most 4)
#   up.sh --control     etcd and API server only
#
#   eval "$(tests/cluster/up.sh)"
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
"$here/down.sh" --dead # what a run that did not end well left, its settings first of all
. "$here/env.sh"
. "$here/machines.sh"
. "$here/config.sh"

given=$# mode="" asked=$M1_CLUSTER_NODES
while [ $# != 0 ]; do
    case $1 in
    --nodes) asked=${2:-}; shift 2 || die "--nodes needs a number" ;;
    --control) mode=--control; shift ;;
    *) die "usage: up.sh [--nodes N] [--control]" ;;
    esac
done
[[ $asked =~ ^[1-4]$ ]] || die "nodes: 1 to 4, not \"$asked\""
[ "$(id -u)" = 0 ] || die "needs root: it makes namespaces, mounts and routes"

exports() {
    echo "export KUBECONFIG=$conf/admin.kubeconfig PATH=$M1_CLUSTER_BUILD/bin:\$PATH M1_CLUSTER_DIR=$dir"
}

if first_process control >/dev/null; then
    running="up.sh ${M1_CLUSTER_MODE:---nodes $M1_CLUSTER_NODES}"
    [ $given = 0 ] || [ "$asked $mode" = "$M1_CLUSTER_NODES $M1_CLUSTER_MODE" ] ||
        die "another is up in $dir ($running); down.sh ends it"
    for machine in control $([ -n "$M1_CLUSTER_MODE" ] || nodes); do
        say "$machine: $(first_process "$machine" >/dev/null && echo running || echo stopped)"
    done
    exports
    exit
fi

build=$("$here/build.sh")
start=$EPOCHREALTIME
since() { awk "BEGIN {printf \"%.1f s\", $EPOCHREALTIME - $start}"; }
[ -z "$(ls -A "$dir" 2>/dev/null)" ] || die "$dir is not empty and no cluster's"
mkdir -p "$pki" "$conf"
touch "$dir/$mark"

# The tools insist on these folders, on whose place each node mounts its own.
fixed="/var/lib/cni /var/lib/kubelet /var/log/containers /run/containerd"
for folder in $fixed; do
    [ -d "$folder" ] || { mkdir -p "$folder"; echo "$folder" >>"$dir/made-folders"; }
done
M1_CLUSTER_NODES=$asked M1_CLUSTER_MODE=$mode M1_CLUSTER_BUILD=$build M1_CLUSTER_FIXED_FOLDERS=$fixed
for setting in ${!M1_CLUSTER_*}; do
    [ "$setting" = M1_CLUSTER_DIR ] || echo "$setting=${!setting@Q}"
done >"$dir/settings"
write_keys
write_control
for node in $(nodes); do write_node "$node"; done

start_machine control "$mode"
wait_for 5 switch nsenter -t "$(first_process control)" -n ip link show switch
plug_host
[ -n "$mode" ] || for node in $(nodes); do start_node "$node"; done
wait_for 60 "API server" api_ready
say "API server ready: $(since)"
if [ -z "$mode" ]; then
    export KUBECONFIG=$conf/admin.kubeconfig PATH=$build/bin:$PATH
    for node in $(nodes); do wait_for 60 "$node" kubectl get node "$node"; done
    # shellcheck disable=SC2046 # a list of words
    kubectl wait --for=condition=Ready node $(nodes) --timeout=60s >/dev/null
    wait_for 30 "service account" kubectl get serviceaccount default
    say "$M1_CLUSTER_NODES nodes Ready: $(since)"
fi
exports
