#!/bin/bash
# Ends what up.sh started and removes all of it (KEEP=1 leaves the folder, for
# its logs). Does nothing where no cluster is.
#
#   down.sh
#   down.sh --dead   only if the control plane does not run any more
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
. "$here/machines.sh"
# Only a folder that up.sh made is removed.
[ -e "$dir/$mark" ] || exit 0
[ "${1:-}" != --dead ] || ! first_process control >/dev/null || exit 0

# The control plane, which holds the switch, goes last.
for machine in $(nodes) control; do stop_machine "$machine"; done
ip link del "$M1_CLUSTER_LINK" 2>/dev/null || true # its routes go with it
remove_cgroups
if [ -r "$dir/made-folders" ]; then
    while read -r folder; do rmdir "$folder" 2>/dev/null || true; done <"$dir/made-folders"
fi
rm -f "$dir/made-folders" "$dir/settings"
[ -n "${KEEP:-}" ] || rm -rf "$dir"
