#!/bin/bash
# Adds fake nodes, on which pods only seem to run: for the scheduler and the
# operator with more nodes than this machine can hold. Only pods that tolerate
# the taint kwok.x-k8s.io/node land there. Their addresses are the cluster's own
# but lead nowhere: what is sent to them is dropped without a word.
#
#   kwok.sh up N [GPUS]   fake-1 to fake-N, each with 8 GPUs or GPUS; 0 for none
#   kwok.sh down          remove them
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
need_cluster
export KUBECONFIG=$conf/admin.kubeconfig PATH=$M1_CLUSTER_BUILD/bin:$PATH

# The program runs beside the control plane and so ends with it.
beside() { "$here/node.sh" control "$@"; }

gpus=${3:-8}
[[ $gpus =~ ^[0-9]+$ ]] || die "GPUS: a number, not \"$gpus\""
gpu_label="" gpu_room=""
if [ "$gpus" != 0 ]; then
    gpu_label=", nvidia.com/gpu.memory: \"81559\"" gpu_room=", nvidia.com/gpu: \"$gpus\""
fi

fake_node() {
    cat <<YAML
---
apiVersion: v1
kind: Node
metadata:
  name: fake-$1
  annotations: {kwok.x-k8s.io/node: fake}
  labels: {type: kwok, kubernetes.io/hostname: fake-$1, kubernetes.io/os: linux$gpu_label}
spec:
  taints: [{key: kwok.x-k8s.io/node, value: fake, effect: NoSchedule}]
status:
  capacity: &room {cpu: "64", memory: 512Gi, pods: "110"$gpu_room}
  allocatable: *room
YAML
}

case ${1:-} in
up)
    [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || die "usage: kwok.sh up N [GPUS]"
    if ! beside pgrep -x kwok >/dev/null; then
        # Kwok's own range might be that of real machines, and somebody would call them.
        range=$M1_CLUSTER_PODS.128.0/17
        beside ip route replace blackhole "$range"
        ip route replace "$range" via "$control_ip"
        stages=()
        for file in "$M1_CLUSTER_BUILD"/kwok/*.yaml; do stages+=(--config "$file"); done
        setsid "$here/node.sh" control kwok --kubeconfig "$KUBECONFIG" "${stages[@]}" \
            --cidr "$range" --manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake --node-lease-duration-seconds 40 \
            >"$dir/control/logs/kwok.log" 2>&1 </dev/null &
    fi
    for i in $(seq "$2"); do fake_node "$i"; done | kubectl apply -f - >/dev/null
    kubectl wait --for=condition=Ready node -l type=kwok --timeout=120s >/dev/null
    ;;
down)
    kubectl delete node -l type=kwok --timeout=60s >/dev/null
    beside pkill -x kwok || true
    ;;
*) die "usage: kwok.sh up N [GPUS] | down" ;;
esac
