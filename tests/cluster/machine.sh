#!/bin/bash
# The first process of a machine (see machines.sh), which starts the daemons of
# the control plane or of a node and then collects dead orphans until it is
# killed. Not for use by hand: up.sh and start-node.sh run it.
#
#   machine.sh DIR NAME [--control]   DIR: the cluster's folder; --control: etcd and API server only
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export M1_CLUSTER_DIR=$1
name=$2 mode=${3:-}
. "$here/env.sh"
bin=$M1_CLUSTER_BUILD/bin me=$dir/$name

daemon() { # daemon NAME COMMAND...: its output goes to logs/NAME.log
    local daemon=$1
    shift
    "$@" >>"$me/logs/$daemon.log" 2>&1 </dev/null &
}

network() { # network CARD ADDRESS
    wait_for 10 cable ip link show "$1"
    ip addr add "$2/24" dev "$1"
    ip link set "$1" up
    ip route add default via "$host_ip"
    for node in $(nodes); do
        [ "$node" = "$name" ] || ip route add "$(pod_range "$node")" via "$(node_ip "$node")"
    done
}

# ---- the control plane --------------------------------------------------------

switch() {
    ip link add switch address 02:00:00:00:00:02 type bridge
    # The switch only switches: kube-proxy's rules are not for what passes it.
    [ ! -e /proc/sys/net/bridge ] || sysctl -qw net.bridge.bridge-nf-call-iptables=0
    # What the host asks of a Service passes here. A machine that does not forward itself hands that down.
    sysctl -qw net.ipv4.ip_forward=1
    network switch "$control_ip"
    wait_for 10 cable ip link show host
    ip link set host master switch up
}

apiserver() {
    daemon etcd "$bin/etcd" --data-dir "$me/etcd" --unsafe-no-fsync --log-level warn
    daemon kube-apiserver "$bin/kube-apiserver" \
        --etcd-servers=http://127.0.0.1:2379 \
        --advertise-address="$control_ip" --secure-port=6443 \
        --service-cluster-ip-range="$service_range" \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
        --client-ca-file="$pki/ca.crt" \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
        --allow-privileged=true \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file="$pki/service-account.pub" \
        --service-account-signing-key-file="$pki/service-account.key" \
        --kubelet-client-certificate="$pki/apiserver-kubelet.crt" \
        --kubelet-client-key="$pki/apiserver-kubelet.key" \
        --kubelet-certificate-authority="$pki/ca.crt" \
        --kubelet-preferred-address-types=InternalIP \
        --requestheader-client-ca-file="$pki/front-proxy-ca.crt" \
        --requestheader-allowed-names=front-proxy-client \
        --requestheader-username-headers=X-Remote-User \
        --requestheader-group-headers=X-Remote-Group \
        --requestheader-extra-headers-prefix=X-Remote-Extra- \
        --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key"
}

controllers() {
    # The controller manager ends at once if the API server has not yet written
    # its own default roles; readyz waits for those.
    wait_for 60 "API server" api_ready
    # A node counts as NotReady 20 s after its last word, not 50, or tests would
    # mostly wait; where thousands of pods start at once, it may be late by more.
    # The default of 20 requests a second is too few for 800 pods.
    daemon kube-controller-manager "$bin/kube-controller-manager" \
        --kubeconfig="$conf/controller-manager.kubeconfig" --leader-elect=false --bind-address=127.0.0.1 \
        --authentication-kubeconfig="$conf/controller-manager.kubeconfig" \
        --authorization-kubeconfig="$conf/controller-manager.kubeconfig" \
        --use-service-account-credentials --root-ca-file="$pki/ca.crt" \
        --service-account-private-key-file="$pki/service-account.key" \
        --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" \
        --node-monitor-grace-period="${M1_CLUSTER_GRACE}s" --node-monitor-period=2s \
        --horizontal-pod-autoscaler-sync-period=2s --kube-api-qps=500 --kube-api-burst=1000
    daemon kube-scheduler "$bin/kube-scheduler" --config="$conf/scheduler.yaml" \
        --authentication-kubeconfig="$conf/scheduler.kubeconfig" \
        --authorization-kubeconfig="$conf/scheduler.kubeconfig" \
        --bind-address=127.0.0.1
    daemon coredns "$bin/coredns" -conf "$conf/Corefile"
    daemon kube-proxy "$bin/kube-proxy" --config="$conf/control/proxy.yaml"
}

# ---- a node -------------------------------------------------------------------

private_files() {
    local folder key
    # Folders that the tools insist on, kept away from the host's and the other
    # nodes' own. up.sh has made those that did not exist.
    for folder in $M1_CLUSTER_FIXED_FOLDERS; do
        mkdir -p "$me/private$folder"
        mount --bind "$me/private$folder" "$folder"
    done
    # The kubelet writes these settings of the whole machine unless it finds the
    # values that it wants; it finds them in files that lie over the real ones.
    mkdir -p "$me/private/sysctl"
    while read -r key value; do
        echo "$value" >"$me/private/sysctl/${key//\//-}"
        mount --bind "$me/private/sysctl/${key//\//-}" "/proc/sys/$key"
    done <<'KEYS'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
KEYS
}

node() {
    local archive
    sysctl -qw net.ipv4.ip_forward=1
    private_files
    # What a machine has in /run is gone after a power cut.
    rm -rf "$me/containerd-state"
    # It finds its shim beside itself.
    daemon containerd "$bin/containerd" --config "$conf/$name/containerd.toml"
    wait_for 20 containerd "$bin/ctr" -a "$me/containerd.sock" version
    for archive in "$M1_CLUSTER_BUILD"/images/*.tar; do
        "$bin/ctr" -a "$me/containerd.sock" -n k8s.io images import "$archive" >>"$me/logs/images.log" 2>&1
    done
    wait_for 60 "API server" api_ready
    daemon kubelet "$bin/kubelet" --config="$conf/$name/kubelet.yaml" --kubeconfig="$conf/$name.kubeconfig" \
        --hostname-override="$name" --node-ip="$(node_ip "$name")" --root-dir="$me/kubelet"
    daemon kube-proxy "$bin/kube-proxy" --config="$conf/$name/proxy.yaml"
}

ip link set lo up
if [ "$name" = control ]; then
    switch
    apiserver
    [ "$mode" = --control ] || controllers
else
    network eth0 "$(node_ip "$name")"
    node
fi
while :; do wait -n || true; sleep 1; done
