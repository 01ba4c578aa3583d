#!/bin/bash
# Stops a node as a power cut would: every process ends at once, nobody is told.
# What it had on disk (images, pod folders) stays.
#
#   stop-node.sh NODE
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
. "$here/machines.sh"
need_cluster
need_node "${1:-}"
first_process "$1" >/dev/null || die "$1 does not run"
stop_machine "$1"
remove_cgroups "$1"
