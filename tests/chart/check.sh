#!/usr/bin/env bash
# The chart's rendering: goldens that fail on drift, values that the schema must refuse, and manifests/install.yaml, which is the
# default rendering. Needs helm in PATH.   UPDATE_GOLDENS=1 tests/chart/check.sh writes them anew.
set -euo pipefail
# The last part of a pipe is this shell, so that what it finds wrong is remembered.
shopt -s lastpipe
cd "$(dirname "$0")/../.."
chart=charts/minimax-m1-operator
failed=0

render() { helm template minimax-m1-operator "$chart" -n minimax-m1-system "$@"; }

compare() { # compare FILE: standard input is what it should hold
  if [ -n "${UPDATE_GOLDENS:-}" ]; then cat >"$1"; return; fi
  if ! diff -u "$1" - >&2; then
    echo "chart: $1 differs; if it should: UPDATE_GOLDENS=1 tests/chart/check.sh" >&2
    failed=1
  fi
}

helm lint --quiet "$chart" >&2
{
  echo "# The operator without helm: kubectl create namespace minimax-m1-system; kubectl apply --server-side -f manifests/install.yaml"
  echo "# Written by UPDATE_GOLDENS=1 tests/chart/check.sh from the chart's defaults."
  render --set crds.enabled=true --skip-tests | grep -v -e 'helm.sh/chart:' -e 'app.kubernetes.io/managed-by: Helm'
} | compare manifests/install.yaml
for values in tests/chart/values/*.yaml; do
  name=$(basename "$values" .yaml)
  render --set crds.enabled=false -f "$values" | compare "tests/chart/goldens/$name.yaml"
done
# Rendering twice gives the same text: nothing is random, so GitOps tools see no difference.
[ "$(render | sha256sum)" = "$(render | sha256sum)" ] || { echo "chart: two renderings differ" >&2; failed=1; }

refuse() { # refuse WORDS SET: the schema must name the value
  if out=$(render --set "$2" 2>&1); then
    echo "chart: $2 was accepted" >&2
    failed=1
  elif ! grep -q "$1" <<<"$out"; then
    echo "chart: $2: the error does not name $1: $out" >&2
    failed=1
  fi
}
refuse replicaCount replicaCount=many
refuse image.pullPolicy image.pullPolicy=Sometimes
refuse logFormat logFormat=xml
refuse leaseSeconds leaderElection.leaseSeconds=1
refuse namespaces tls.namespaces=all
refuse replicas replicas=2
refuse digest image.digest=latest
refuse leaderElection.enabled replicaCount=2,leaderElection.enabled=false
refuse metrics.service.enabled metrics.serviceMonitor.enabled=true,metrics.service.enabled=false
[ "$failed" = 0 ] && echo "chart: rendering and schema are as they should be"
exit "$failed"
