#!/usr/bin/env bash
# The whole on a real cluster. Without KUBECONFIG it builds and starts a cluster of its own (tests/cluster), loads the images and
# ends it afterwards; with KUBECONFIG it runs the same suite there, where the images must be known to the nodes already.
#   scripts/e2e.sh [pytest arguments]     default: tests/e2e; M1_E2E_KEEP=1 leaves the cluster running
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/test-e2e.sh prepare

if [ -z "${KUBECONFIG:-}" ]; then
  images=${M1_E2E_IMAGES:-target/images}
  # The programs that `make build` made: building them one by one would compile their libraries anew.
  [ -n "${M1_E2E_IMAGES:-}" ] || cargo xtask image operator router worker demo --programs target/debug --output "$images"
  finish() { [ -n "${M1_E2E_KEEP:-}" ] || tests/cluster/down.sh; }
  trap finish EXIT
  settings=$(tests/cluster/up.sh --nodes 2)
  eval "$settings"
  tests/cluster/load.sh "$images"/minimax-m1-{operator,router,worker,demo-model}.tar
  # Before the operator: it asks once, at its start, which kinds the cluster has.
  tests/cluster/gang.sh up
  # How the suite reaches nodes and pods of this cluster; elsewhere it does without.
  export M1_E2E_DIRECT=1 M1_E2E_NODE_EXEC="$PWD/tests/cluster/node.sh" M1_E2E_STOP_NODE="$PWD/tests/cluster/stop-node.sh" \
    M1_E2E_START_NODE="$PWD/tests/cluster/start-node.sh" M1_E2E_FAKE_GPUS="$PWD/tests/cluster/fake-gpus.sh" \
    M1_E2E_MODEL_IMAGE="minimax-m1.dev/demo-model:$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)" M1_E2E_STRICT=1
fi
tests/chart/check.sh
target/venv/bin/python -m pytest -p no:cacheprovider -q -x --tb=short -rA --show-capture=no "${@:-tests/e2e}"
