# Settings that the scripts here share, and the few functions that more than one
# of them needs. Each setting may be given in the environment; those of a running
# cluster are kept in its folder, so only M1_CLUSTER_DIR must be given again.

: "${M1_CLUSTER_DIR:=${TMPDIR:-/tmp}/m1-cluster}" # all state: keys, logs, etcd, images
# shellcheck disable=SC1091 # written by up.sh
[ ! -r "$M1_CLUSTER_DIR/settings" ] || . "$M1_CLUSTER_DIR/settings"
: "${M1_CLUSTER_NODES:=2}"                 # how many nodes, 1 to 4: node-1, node-2, ...
: "${M1_CLUSTER_LINK:=m1-cluster}"         # the host's end of the cable (15 characters at most)
: "${M1_CLUSTER_NET:=10.245.0}"            # machines: .1 host, .2 control plane, .11 node-1, ...
: "${M1_CLUSTER_PODS:=10.244}"             # pods: .1.0/24 on node-1, .2.0/24 on node-2, ...
: "${M1_CLUSTER_SERVICES:=10.96}"          # services: .0.0/16; .0.1 is "kubernetes.default"
: "${M1_CLUSTER_CGROUP:=m1-cluster}"       # every pod's cgroup lies below this one
: "${M1_CLUSTER_PROXY_MODE:=nftables}"     # or iptables
: "${M1_CLUSTER_GRACE:=20}"                # seconds of silence after which a node is NotReady

dir=$M1_CLUSTER_DIR pki=$M1_CLUSTER_DIR/pki conf=$M1_CLUSTER_DIR/conf
mark=.m1-cluster # a file that says that up.sh made the folder
host_ip=$M1_CLUSTER_NET.1
control_ip=$M1_CLUSTER_NET.2 # the API server and the cluster's DNS
server=https://$control_ip:6443
service_range=$M1_CLUSTER_SERVICES.0.0/16

node_ip() { echo "$M1_CLUSTER_NET.1${1#node-}"; }             # node_ip node-1
pod_range() { echo "$M1_CLUSTER_PODS.${1#node-}.0/24"; }      # pod_range node-1
nodes() { seq -f 'node-%.0f' "$M1_CLUSTER_NODES"; }           # the names of all nodes

say() { echo "${0##*/}: $*" >&2; }
die() { say "$*"; exit 1; }

wait_for() { # wait_for SECONDS WHAT COMMAND...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { say "$what: not in time; see $dir/*/logs"; return 1; }
        sleep 0.1
    done
}

api_ready() { curl -sf --max-time 2 --cacert "$dir/pki/ca.crt" "$server/readyz"; }

# first_process MACHINE: pid 1 of a running machine as the host counts, or
# nothing. A pid from an older run may be another process by now.
first_process() {
    local pid
    pid=$(cat "$dir/$1/pid" 2>/dev/null) && [ -n "$pid" ] || return 1
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "machine.sh $dir $1" && echo "$pid"
}

need_cluster() { first_process control >/dev/null || die "no cluster is up in $dir"; }

need_node() { # need_node NAME: ends the script if there is no such node
    nodes | grep -qx -- "$1" || die "no such node: $1 (there are: $(nodes | xargs))"
}
