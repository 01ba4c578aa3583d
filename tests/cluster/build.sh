#!/bin/bash
# Builds what the cluster runs: Kubernetes and etcd, containerd, CoreDNS, helm,
# kwok and two tiny images. All of it comes from Go modules pinned by go.sum, and lands in
# one folder of the cache, named by a hash of its inputs. The last line printed
# on stdout is that folder; progress goes to stderr.
#
#   build.sh       build, or find what was built before
#   build.sh lws   LeaderWorkerSet, into a folder of its own
#   build.sh gang  the scheduler of scheduler-plugins, likewise; gang.sh installs it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
what=${1:-cluster}
cache=${M1_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/minimax-m1}

# One set of flags for all programs, or Go would compile the packages they share
# once for each. (With -trimpath it does so: that writes the version a module asks
# for, not the one it gets, into the result.) Nothing is read from the user's Go
# settings or from git.
export CGO_ENABLED=0 GOFLAGS= GOWORK=off
flags=(-mod=readonly -buildvcs=false -tags grpcnotrace)
strip="-s -w"

say() { echo "build.sh: $*" >&2; }

# ---- what the machine must have -----------------------------------------------

# Each line is a program and the Debian package that brings it.
programs="runc runc
/usr/lib/cni/bridge containernetworking-plugins
iptables iptables
nft nftables
ip iproute2
conntrack conntrack
ethtool ethtool
ps procps
curl curl
openssl openssl
gcc gcc
/usr/include/stdio.h libc6-dev"

missing() { # prints the packages whose program is not here
    local program package
    while read -r program package; do
        [ -e "$program" ] || command -v "$program" >/dev/null || echo "$package"
    done <<<"$programs"
}

check_machine() {
    command -v go >/dev/null || { say "go is missing (1.26 or newer)"; exit 1; }
    local packages
    packages=$(missing | xargs)
    [ -n "$packages" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "missing Debian packages: $packages"
        exit 1
    fi
    # shellcheck disable=SC2086 # a list of words
    step "installs $packages" install_packages $packages
}

install_packages() {
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

# ---- steps --------------------------------------------------------------------

step() { # step WHAT COMMAND...: one line with its seconds, the output only on failure
    local name=$1 start=$SECONDS log
    shift
    log=$(mktemp)
    # Not in an if: there, a failing command in a function would not end it.
    set +e
    (set -e; "$@") >"$log" 2>&1
    local rc=$?
    set -e
    if [ $rc != 0 ]; then
        cat "$log" >&2
        say "$name: failed after $((SECONDS - start)) s"
    else
        say "$name: $((SECONDS - start)) s"
    fi
    rm -f "$log"
    return $rc
}

version_of() { # version_of MODULE, in the module of the current folder
    go list "${flags[@]}" -m -f '{{if .Replace}}{{.Replace.Version}}{{else}}{{.Version}}{{end}}' "$1"
}

# Unstamped, the apiserver calls itself v0.0.0-master+$Format, which no client,
# kubelet or chart can compare.
stamp() { # stamp VERSION: linker flags that give client-go and the servers this version
    local package minor=${1#v*.}
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        echo "-X $package.gitVersion=$1 -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}" \
            "-X $package.gitTreeState=clean -X $package.buildDate=1970-01-01T00:00:00Z"
    done | xargs
}

build() { # build FOLDER PACKAGE OUTPUT [LINKER-FLAGS]
    cd "$1"
    go build "${flags[@]}" -ldflags "$strip ${4:-}" -o "$3" "$2"
}

build_kubernetes() {
    cd kubernetes
    build . . "$out/bin/k8s" "$(stamp "$(version_of k8s.io/kubernetes)")"
    # The one program runs as the one whose name it is called by.
    local name
    for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
        ln -s k8s "$out/bin/$name"
    done
}

# Newer than a distribution's, which has no image volumes.
build_containerd() {
    local name
    for name in containerd containerd-shim-runc-v2 ctr; do
        (build tools/containerd "github.com/containerd/containerd/v2/cmd/$name" "$out/bin/$name" \
            "-X github.com/containerd/containerd/v2/version.Version=$(cd tools/containerd && version_of github.com/containerd/containerd/v2)")
    done
}

build_helm() {
    cd tools/helm
    # Charts are checked against this Kubernetes version when no cluster is asked;
    # it is the cluster's, not that of helm's own modules.
    local kube version
    kube=$(cd ../../kubernetes && version_of k8s.io/kubernetes)
    kube=${kube#v1.}
    version=$(version_of helm.sh/helm/v3)
    build . helm.sh/helm/v3/cmd/helm "$out/bin/helm" "-X helm.sh/helm/v3/internal/version.version=$version \
        -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=${kube%%.*}"
}

build_kwok() {
    cd tools/kwok
    build . sigs.k8s.io/kwok/cmd/kwok "$out/bin/kwok"
    # The program has no life cycle of its own: how fake nodes and pods come to
    # life is told by these files.
    local source
    source=$(go list "${flags[@]}" -m -f '{{.Dir}}' sigs.k8s.io/kwok)/kustomize/stage
    mkdir "$out/kwok"
    cp "$source"/node/fast/node-*.yaml "$source"/node/heartbeat-with-lease/node-*.yaml "$source"/pod/fast/pod-*.yaml "$out/kwok"
    chmod u+w "$out/kwok"/*
}

# ---- images -------------------------------------------------------------------

# image REF ROOTFS ENTRYPOINT: packs a folder as a one-layer image in the layout
# of "docker save", the simplest that containerd reads. Fixed times and owners
# make the same input give the same digest.
image() {
    local ref=$1 rootfs=$2 entry=$3 box diff name=${1##*/}
    box=$(mktemp -d -p "$out")
    tar -C "$rootfs" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$box/layer.tar" .
    diff=$(sha256sum "$box/layer.tar" | cut -d' ' -f1)
    cat >"$box/config.json" <<JSON
{"architecture":"$(go env GOARCH)","os":"linux","created":"1970-01-01T00:00:00Z",
 "config":{"Entrypoint":["$entry"],"Env":["PATH=/"],"User":"65532:65532"},
 "rootfs":{"type":"layers","diff_ids":["sha256:$diff"]}}
JSON
    echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"$ref\"],\"Layers\":[\"layer.tar\"]}]" >"$box/manifest.json"
    tar -C "$box" -cf "$out/images/${name%%:*}.tar" manifest.json config.json layer.tar
    rm -rf "$box" "$rootfs"
}

# A host part with a dot keeps containerd from putting docker.io/library/ in
# front; a tag other than "latest" makes the kubelet's pull policy IfNotPresent.
build_images() {
    mkdir "$out/images" "$out/pause" "$out/probe"
    gcc -Os -static -s -o "$out/pause/pause" images/pause.c
    (build images/probe . "$out/probe/probe")
    image cluster.test/pause:1 "$out/pause" /pause
    image cluster.test/probe:1 "$out/probe" /probe
}

# ---- extras -------------------------------------------------------------------

# LeaderWorkerSet's controller as an image, and its chart. Its Kubernetes modules
# are older than those of kubernetes/ and stay so.
build_lws() {
    mkdir "$out/images" "$out/rootfs"
    cd tools/lws
    (build . sigs.k8s.io/lws/cmd "$out/rootfs/manager")
    image cluster.test/lws:0.7.0 "$out/rootfs" /manager
    cp -r "$(go list "${flags[@]}" -m -f '{{.Dir}}' sigs.k8s.io/lws)/charts/lws" "$out/chart"
    chmod -R u+w "$out/chart"
}

# The scheduler that knows gangs (Coscheduling) as an image, its chart, and the CRD
# of its PodGroup. It is of Kubernetes 1.31 and stays so, and thus shares no
# package of Kubernetes with kubernetes/. Its controller only writes the status of
# PodGroups, which neither scheduler nor operator reads: it is left out.
build_gang() {
    mkdir "$out/images" "$out/rootfs"
    cd tools/scheduler-plugins
    local version source
    version=$(version_of k8s.io/kubernetes)
    (build . sigs.k8s.io/scheduler-plugins/cmd/scheduler "$out/rootfs/kube-scheduler" "$(stamp "$version")")
    image cluster.test/scheduler-plugins:0.31.8 "$out/rootfs" /kube-scheduler
    source=$(go list "${flags[@]}" -m -f '{{.Dir}}' sigs.k8s.io/scheduler-plugins)/manifests
    cp -r "$source/install/charts/as-a-second-scheduler" "$out/chart"
    cp "$source/coscheduling/crd.yaml" "$out/crd.yaml"
    chmod -R u+w "$out/chart" "$out/crd.yaml"
}

# ---- the folder ---------------------------------------------------------------

case $what in
cluster) inputs=(kubernetes/* images/*.c images/*/* tools/{containerd,coredns,helm,kwok}/*) ;;
lws) inputs=(tools/lws/*) ;;
gang) inputs=(tools/scheduler-plugins/*) ;;
*)
    say "usage: build.sh [lws|gang]"
    exit 1
    ;;
esac
key=$({ sha256sum "${inputs[@]}"; echo "${flags[*]} $strip" "$(declare -f stamp image)"; } | sha256sum | cut -c1-12)
folder=$cache/$what-$key

if [ ! -d "$folder" ]; then
    mkdir -p "$cache"
    # A second run waits for the first and then finds its result.
    exec 9>"$cache/cluster.lock"
    flock 9
fi
[ "$what" != cluster ] || check_machine
if [ ! -d "$folder" ]; then
    out=$(mktemp -d -p "$cache" "$what-$key.XXXX")
    trap 'rm -rf "$out"' EXIT
    chmod 755 "$out"
    mkdir "$out/bin"
    case $what in
    cluster)
        step "kubernetes" build_kubernetes
        step "containerd" build_containerd
        step "coredns" build tools/coredns . "$out/bin/coredns"
        step "kwok" build_kwok
        step "images" build_images
        step "helm" build_helm
        ;;
    lws) step "lws" build_lws ;;
    gang) step "gang" build_gang ;;
    esac
    mv -T "$out" "$folder"
    say "built $folder: $SECONDS s"
fi
echo "$folder"
