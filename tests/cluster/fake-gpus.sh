#!/bin/bash
# Gives a node GPUs that do not exist, as the device plugin and the feature
# discovery of a GPU operator would announce them. They stay through the
# kubelet's updates and a restart of the node. COUNT 0 takes them away.
#
#   fake-gpus.sh NODE COUNT [MEMORY_MIB]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
usage="usage: fake-gpus.sh NODE COUNT [MEMORY_MIB]"
[[ ${1:-} && ${2:-} =~ ^[0-9]+$ && ${3:-1} =~ ^[0-9]+$ ]] || die "$usage"
need_cluster
export KUBECONFIG=$conf/admin.kubeconfig
kubectl=$M1_CLUSTER_BUILD/bin/kubectl

# null removes a key.
count="\"$2\"" memory="\"${3:-81559}\""
[ "$2" != 0 ] || count=null memory=null
"$kubectl" patch node "$1" --type=merge -p "{\"metadata\":{\"labels\":{\"nvidia.com/gpu.memory\":$memory}}}" >/dev/null
"$kubectl" patch node "$1" --subresource=status --type=merge -p \
    "{\"status\":{\"capacity\":{\"nvidia.com/gpu\":$count},\"allocatable\":{\"nvidia.com/gpu\":$count}}}" >/dev/null
