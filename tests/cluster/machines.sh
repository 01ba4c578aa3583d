# Machines: the control plane and each node are one process each with pid, mount
# and network namespaces of their own, and with everything else as its children.
# The end of that process is the end of all of it: daemons, pods, mounts,
# addresses, packet-filter rules.
#
# The switch that joins them is a bridge inside the control plane's namespace,
# so that the host has one cable only and its own packet filter (which may well
# drop bridged packets) never sees what nodes say to each other.

cgroup_roots() { # the folders that hold cgroups: one for each v1 controller, or the one of v2
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        echo /sys/fs/cgroup
    else
        ls -d /sys/fs/cgroup/{cpu,cpuacct,cpuset,memory,devices,freezer,blkio,pids,systemd} 2>/dev/null
    fi
}

make_cgroups() { # make_cgroups NODE
    local root group file
    for root in $(cgroup_roots); do
        for group in "$root/$M1_CLUSTER_CGROUP" "$root/$M1_CLUSTER_CGROUP/$1"; do
            mkdir -p "$group"
            # In v1 a cpuset group without CPUs takes no process; in v2 a group
            # has the controllers that its parent passes on.
            for file in cpuset.cpus cpuset.mems; do
                [ ! -e "$root/cpuset.clone_children" ] || cat "${group%/*}/$file" >"$group/$file"
            done
            [ ! -e "$group/cgroup.controllers" ] ||
                sed 's/[a-z]*/+&/g' "${group%/*}/cgroup.controllers" >"${group%/*}/cgroup.subtree_control"
        done
    done
}

remove_cgroups() { # remove_cgroups [NODE]: empty cgroups stay behind a dead process
    local top
    # Beside v1 controllers there may be a v2 tree too, where the kubelet makes some.
    for top in /sys/fs/cgroup/{,*/}"$M1_CLUSTER_CGROUP"; do
        find "$top/${1:-}" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
}

start_machine() { # start_machine NAME [MODE]: starts machine.sh in new namespaces
    local name=$1 outer first
    mkdir -p "$dir/$name/logs"
    # Without the caller's environment: a proxy in it would be for other networks.
    setsid env -i HOME=/root PATH="$PATH" \
        unshare --pid --fork --kill-child --mount-proc --mount --propagation private --net \
        "$here/machine.sh" "$dir" "$name" "${2:-}" >>"$dir/$name/logs/machine.log" 2>&1 </dev/null &
    outer=$!
    wait_for 5 "$name" pgrep -P $outer
    first=$(pgrep -P $outer)
    echo "$first" >"$dir/$name/pid"
    # It must have left the host's network namespace before it gets a cable.
    wait_for 5 "$name" sh -c "[ \$(readlink /proc/$first/ns/net) != \$(readlink /proc/self/ns/net) ]"
    wait_for 5 "$name" first_process "$name"
}

plug_host() { # one cable from the host to the switch, and routes to pods and services
    local control node
    control=$(first_process control)
    ip link add "$M1_CLUSTER_LINK" type veth peer name host netns "$control"
    ip addr add "$host_ip/24" dev "$M1_CLUSTER_LINK"
    ip link set "$M1_CLUSTER_LINK" up
    ip route add "$service_range" via "$control_ip"
    for node in $(nodes); do ip route add "$(pod_range "$node")" via "$(node_ip "$node")"; done
}

plug_node() { # plug_node NODE: a cable from the node to the switch
    local control
    control=$(first_process control)
    # The address of its card stays the same when the node is started again, so
    # that nobody's neighbour table is out of date.
    ip link add eth0 address "02:00:00:00:00:1${1#node-}" netns "$(first_process "$1")" \
        type veth peer name "$1" netns "$control"
    nsenter -t "$control" -n ip link set "$1" master switch up
}

start_node() { # start_node NODE
    make_cgroups "$1"
    start_machine "$1"
    plug_node "$1"
}

stop_machine() { # stop_machine NAME: returns when its last process is gone
    local pid
    pid=$(first_process "$1") || return 0
    kill -KILL "$pid" 2>/dev/null || true
    wait_for 10 "$1" sh -c "! kill -0 $pid"
    rm -f "$dir/$1/pid"
}
