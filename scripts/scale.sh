#!/usr/bin/env bash
# What the operator costs with many deployments, on a cluster of its own with fake nodes; beside LeaderWorkerSet's controller.
# Each of the two gets a fresh cluster, one after the other: LeaderWorkerSet's webhooks would be asked about pods, and what one left
# behind would weigh on the other. Needs root.
#
#   scripts/scale.sh [--deployments N] [--pods N] [--singles N]
#
#   M1_SCALE_LWS=1       measures LeaderWorkerSet too (builds it first)
#   M1_SCALE_BIN=FOLDER  m1-operator and m1ctl as they lie there, instead of building them
#   M1_SCALE_OUT=FOLDER  where the figures go as JSON (target/scale)
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${M1_SCALE_BIN:-target/release}
out=${M1_SCALE_OUT:-target/scale}
[ -n "${M1_SCALE_BIN:-}" ] || cargo build --release -p m1-operator -p m1ctl
mkdir -p "$out"
# Beside another cluster, unless told otherwise. Ten thousand starts make nodes late with their word: they must not count as dead.
export M1_CLUSTER_DIR=${M1_CLUSTER_DIR:-/tmp/m1-scale} M1_CLUSTER_LINK=${M1_CLUSTER_LINK:-m1-scale}
export M1_CLUSTER_NET=${M1_CLUSTER_NET:-10.251.0} M1_CLUSTER_PODS=${M1_CLUSTER_PODS:-10.250}
export M1_CLUSTER_SERVICES=${M1_CLUSTER_SERVICES:-10.100} M1_CLUSTER_CGROUP=${M1_CLUSTER_CGROUP:-m1-scale}
export M1_CLUSTER_GRACE=${M1_CLUSTER_GRACE:-120}
trap tests/cluster/down.sh EXIT

cluster() {
    local settings
    settings=$(tests/cluster/up.sh --nodes 1)
    eval "$settings"
    tests/cluster/kwok.sh up 130 0
}

# In the background of nothing: a part that fails ends the script.
measure() { # measure SIDE ARGUMENTS...
    python3 tests/scale/scale.py run "$1" --operator "$bin/m1-operator" --out "$out/$1.json" "${@:2}"
    tests/cluster/down.sh
}

cluster
"$bin/m1ctl" crd apply
# Routers, which ask for no node, go to the fake ones too.
kubectl cordon node-1 >/dev/null
measure ours "$@"
if [ -n "${M1_SCALE_LWS:-}" ]; then
    folder=$(tests/cluster/build.sh lws | tail -1)
    cluster
    tests/cluster/load.sh "$folder/images/lws.tar"
    helm install lws "$folder/chart" -n lws-system --create-namespace --wait \
        --set image.manager.repository=cluster.test/lws,image.manager.tag=0.7.0,image.manager.pullPolicy=IfNotPresent \
        --set resources.requests.cpu=10m,resources.requests.memory=64Mi >/dev/null
    measure lws "$@"
fi
python3 tests/scale/scale.py table "$out"/ours.json ${M1_SCALE_LWS:+"$out/lws.json"}
