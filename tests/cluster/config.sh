# What up.sh writes before anything runs: keys, and each program's settings.

# ---- keys ---------------------------------------------------------------------

authority() { # authority NAME
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
        -subj "/CN=$1" -keyout "$pki/$1.key" -out "$pki/$1.crt" 2>/dev/null
}

certificate() { # certificate CA NAME SUBJECT [SUBJECT-ALT-NAMES]
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$3" \
        -keyout "$pki/$2.key" -out "$pki/$2.csr" 2>/dev/null
    openssl x509 -req -in "$pki/$2.csr" -CA "$pki/$1.crt" -CAkey "$pki/$1.key" \
        -CAcreateserial -days 3650 -out "$pki/$2.crt" 2>/dev/null -extfile <(
            echo "extendedKeyUsage=clientAuth,serverAuth"
            [ -z "${4:-}" ] || echo "subjectAltName=$4")
    rm "$pki/$2.csr"
}

kubeconfig() { # kubeconfig NAME: a file with everything inside, movable
    cat >"$conf/$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: m1-cluster
  cluster:
    server: $server
    certificate-authority-data: $(base64 -w0 "$pki/ca.crt")
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w0 "$pki/$1.crt")
    client-key-data: $(base64 -w0 "$pki/$1.key")
contexts:
- name: m1-cluster
  context: {cluster: m1-cluster, user: $1}
current-context: m1-cluster
YAML
    chmod 600 "$conf/$1.kubeconfig"
}

write_keys() {
    local user node
    authority ca
    authority front-proxy-ca # signs only the API server's calls to extension APIs
    certificate ca apiserver /CN=kube-apiserver "IP:127.0.0.1,IP:$control_ip,IP:$M1_CLUSTER_SERVICES.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
    certificate ca apiserver-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client
    certificate front-proxy-ca front-proxy /CN=front-proxy-client
    certificate ca admin /O=system:masters/CN=admin
    certificate ca controller-manager /CN=system:kube-controller-manager
    certificate ca scheduler /CN=system:kube-scheduler
    certificate ca proxy /CN=system:kube-proxy
    certificate ca dns /O=system:masters/CN=coredns
    for user in admin controller-manager scheduler proxy dns; do kubeconfig $user; done
    for node in $(nodes); do
        certificate ca "$node" "/O=system:nodes/CN=system:node:$node" "IP:$(node_ip "$node"),DNS:$node"
        kubeconfig "$node"
    done
    openssl ecparam -name prime256v1 -genkey -noout -out "$pki/service-account.key"
    openssl ec -in "$pki/service-account.key" -pubout -out "$pki/service-account.pub" 2>/dev/null
}

# ---- the control plane --------------------------------------------------------

write_control() {
    # The default is 50 requests a second, which alone makes 800 pods take 40 s.
    cat >"$conf/scheduler.yaml" <<YAML
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
clientConnection: {kubeconfig: $conf/scheduler.kubeconfig, qps: 500, burst: 1000}
leaderElection: {leaderElect: false}
YAML
    # It knows the names in the cluster; no other exists. Its address is in each
    # pod's resolv.conf, so it needs no Service.
    cat >"$conf/Corefile" <<COREFILE
cluster.local in-addr.arpa {
    bind $control_ip
    errors
    kubernetes {
        kubeconfig $conf/dns.kubeconfig
        pods insecure
        ttl 1
    }
}
. {
    bind $control_ip
    template ANY ANY {
        rcode NXDOMAIN
    }
}
COREFILE
    # A node's own would name the machine's resolvers, which pods cannot reach.
    echo "nameserver $control_ip" >"$conf/resolv.conf"
    # The control plane has a kube-proxy too: the host and the API server reach
    # services through it while any node may be dead.
    write_proxy control node-1
}

# ---- nodes --------------------------------------------------------------------

write_node() { # write_node NODE
    mkdir -p "$conf/$1"
    write_containerd "$1"
    write_network "$1"
    write_kubelet "$1"
    write_proxy "$1" "$1"
}

# Its own root, state and socket; the pause image is one that machine.sh loads,
# since there is no registry to fetch the default one from. Where a process may
# not lower its oom_score_adj (no CAP_SYS_RESOURCE), an unrestricted sandbox asks
# for -998 and runc dies of it: "can't get final child's PID from pipe: EOF".
write_containerd() {
    cat >"$conf/$1/containerd.toml" <<TOML
version = 3
root = "$dir/$1/containerd"
state = "$dir/$1/containerd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.devmapper", "io.containerd.nri.v1.nri"]
[grpc]
  address = "$dir/$1/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/$1/containerd/opt"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "cluster.test/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "$conf/$1/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
TOML
}

# Each pod has a cable of its own to its node and all traffic is routed, so that
# services work without br_netfilter, which a bridge would need. Nothing is
# masqueraded: pods, nodes and the host see each other's real addresses.
write_network() {
    mkdir -p "$conf/$1/cni"
    cat >"$conf/$1/cni/10-pods.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "ptp",
   "ipam": {"type": "host-local", "dataDir": "$dir/$1/cni",
            "ranges": [[{"subnet": "$(pod_range "$1")"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
JSON
}

# Images cannot be fetched again, so the kubelet must never collect one:
# threshold 100 turns that off. Cgroup v1 is refused by default. A lease of 16 s
# is renewed every 4 s, often enough for the controller manager's 20 s.
write_kubelet() {
    cat >"$conf/$1/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $(node_ip "$1")
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $pki/$1.crt
tlsPrivateKeyFile: $pki/$1.key
containerRuntimeEndpoint: unix://$dir/$1/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$M1_CLUSTER_CGROUP/$1
failCgroupV1: false
failSwapOn: false
clusterDomain: cluster.local
clusterDNS: [$control_ip]
resolvConf: $conf/resolv.conf
podLogsDir: $dir/$1/pod-logs
volumePluginDir: $dir/$1/volume-plugins
maxPods: 250
oomScoreAdj: 0
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
nodeLeaseDurationSeconds: 16
syncFrequency: 10s
YAML
}

# Conntrack limits belong to the first network namespace; 0 leaves them alone.
write_proxy() { # write_proxy MACHINE NODE: as which node it watches the cluster
    mkdir -p "$conf/$1"
    cat >"$conf/$1/proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: $M1_CLUSTER_PROXY_MODE
clientConnection: {kubeconfig: $conf/proxy.kubeconfig}
clusterCIDR: $M1_CLUSTER_PODS.0.0/16
oomScoreAdj: 0
hostnameOverride: $2
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
}
