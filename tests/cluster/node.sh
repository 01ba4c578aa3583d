#!/bin/bash
# Runs a command inside a node, or inside "control": its processes, mounts and
# network are the node's. Examples, each for one thing a test may want:
#
#   node.sh node-2 pkill -KILL -x m1-worker   a process in a pod ends without a word
#   node.sh node-2 pkill -STOP -x kubelet     a node falls silent, its pods live on (-CONT ends it)
#   node.sh node-2 ip link set eth0 down      a node is cut off
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
[ $# -gt 1 ] || die "usage: node.sh NODE COMMAND..."
need_cluster
machine=$1
shift
[ "$machine" = control ] || need_node "$machine"
pid=$(first_process "$machine") || die "$machine does not run"
exec nsenter -t "$pid" -p -m -n -- "$@"
