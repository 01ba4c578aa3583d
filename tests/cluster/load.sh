#!/bin/bash
# Loads image archives into every node that runs, all nodes at once. An archive
# is an OCI layout or what "docker save" writes, as one tar file.
#
#   load.sh IMAGE.tar...
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
[ $# != 0 ] || die "usage: load.sh IMAGE.tar..."
need_cluster
for archive; do [ -f "$archive" ] || die "$archive: no such file"; done

load() { # load NODE ARCHIVE...
    local node=$1 archive output names name
    shift
    for archive; do
        output=$("$M1_CLUSTER_BUILD/bin/ctr" -a "$dir/$node/containerd.sock" -n k8s.io images import --local "$archive" 2>&1) ||
            die "$node: $archive: $output"
        names=$(sed -n 's/^unpacking \([^ ]*\) .*/\1/p' <<<"$output")
        # The kubelet looks for a pod's image under its full name: a host with a
        # dot, and a tag. In an OCI layout this is the annotation
        # io.containerd.image.name, or org.opencontainers.image.ref.name if that
        # is a full name too (a bare tag becomes import-DATE:TAG).
        [ -n "$names" ] || die "$node: $archive: names no image"
        for name in $names; do
            [[ $name =~ ^[^/]+\.[^/]+/.+:[^/:]+$ ]] || die "$archive: \"$name\" is no full name (host.name/image:tag)"
            say "$node: $name"
        done
    done
}

loads=()
for node in $(nodes); do
    first_process "$node" >/dev/null || continue
    load "$node" "$@" &
    loads+=($!)
done
[ ${#loads[@]} != 0 ] || die "no node runs in $dir"
failed=0
for pid in "${loads[@]}"; do wait "$pid" || failed=1; done
exit $failed
