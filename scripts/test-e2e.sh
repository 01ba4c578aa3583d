#!/usr/bin/env bash
# The suites that need Python packages: the official OpenAI client against `m1ctl up`. Sets up a virtual environment below
# target/ from pinned, hashed packages. Run by `make test` after the Rust suites; `prepare` only makes what those need.
# What `make bench` makes of its figures is checked here too.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/venv
stamp="$venv/$(sha256sum scripts/requirements-test.txt | cut -c1-16)"
if [ ! -e "$stamp" ]; then
  python3 -m venv --clear "$venv" || { echo "test: python3 has no venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
  "$venv/bin/pip" --quiet --disable-pip-version-check install --require-hashes --only-binary=:all: -r scripts/requirements-test.txt
  touch "$stamp"
fi
# Generated models, made anew when their script changes.
made="target/generated/$(cat tests/geometry/*.py | sha256sum | cut -c1-16)"
if [ ! -e "$made" ]; then
  rm -rf target/generated
  "$venv/bin/python" tests/geometry/make_geometry.py target/generated/geometry
  "$venv/bin/python" tests/geometry/make_shapes.py target/generated/shapes
  touch "$made"
fi
[ "${1:-}" = prepare ] && exit 0

python3 -m unittest discover --quiet bench

scratch=$(mktemp -d)
ups=()
finish() { for pid in "${ups[@]}"; do kill "$pid" 2>/dev/null || true; done; wait; rm -rf "$scratch"; }
trap finish EXIT

# Starts the demo model on $1 workers; its URL goes to $scratch/url-$1.
up() {
  sed -e "s/expert: 2/expert: $1/" -e "s#path: .*demo/m1-demo#path: $PWD/demo/m1-demo#" manifests/examples/demo.yaml >"$scratch/$1.yaml"
  target/debug/m1ctl up -f "$scratch/$1.yaml" --listen 127.0.0.1:0 >"$scratch/out-$1" 2>"$scratch/log-$1" &
  ups+=($!)
  for _ in $(seq 600); do
    if grep -q '^ready ' "$scratch/out-$1"; then sed -n 's/^ready //p' "$scratch/out-$1" >"$scratch/url-$1"; return; fi
    kill -0 "${ups[-1]}" 2>/dev/null || break
    sleep 0.1
  done
  cat "$scratch/log-$1" >&2
  echo "test: m1ctl up on $1 workers did not become ready" >&2
  exit 1
}
up 2
up 1
"$venv/bin/python" tests/openai/test_openai.py "$(cat "$scratch/url-2")" "$(cat "$scratch/url-1")"
