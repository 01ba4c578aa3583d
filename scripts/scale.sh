#!/usr/bin/env bash
# What the operator costs with many deployments, on a cluster of its own with fake nodes; compared with LeaderWorkerSet's controller.
#   scripts/scale.sh [--deployments N] [--pods N]       M1_SCALE_LWS=1 measures LeaderWorkerSet too (builds it first)
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release -p m1-operator -p m1ctl
trap tests/cluster/down.sh EXIT
eval "$(tests/cluster/up.sh --nodes 1)"
tests/cluster/kwok.sh up 130 0
target/release/m1ctl crd apply
lws=()
if [ -n "${M1_SCALE_LWS:-}" ]; then
  folder=$(tests/cluster/build.sh lws | tail -1)
  tests/cluster/load.sh "$folder"/images/lws.tar
  helm install lws "$folder/chart" -n lws-system --create-namespace --wait --set enablePrometheus=false
  lws=(--lws-process lws-controller)
fi
# Routers and everything else that asks for no node go to the fake ones too: nothing but LeaderWorkerSet runs for real.
kubectl cordon node-1
python3 tests/scale/scale.py "${lws[@]}" "$@"
