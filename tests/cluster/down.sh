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

# The folders that up.sh made for the nodes to mount their own on. If a folder
# goes, so do the mounts on it, in every namespace: while another cluster runs,
# it inherits them.
remove_made_folders() {
    local other folder
    [ -r "$dir/made-folders" ] || return 0
    other=$({ pgrep -af 'machine\.sh [^ ]+ control' || true; } | sed -n 's/.*machine\.sh \([^ ]*\) control.*/\1/p' | head -1)
    if [ -n "$other" ]; then
        cat "$dir/made-folders" >>"$other/made-folders"
    else
        while read -r folder; do rmdir "$folder" 2>/dev/null || true; done <"$dir/made-folders"
    fi
}

# The control plane, which holds the switch, goes last.
for machine in $(nodes) control; do stop_machine "$machine"; done
ip link del "$M1_CLUSTER_LINK" 2>/dev/null || true # its routes go with it
remove_cgroups
remove_made_folders
rm -f "$dir/made-folders" "$dir/settings"
[ -n "${KEEP:-}" ] || rm -rf "$dir"
