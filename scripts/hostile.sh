#!/usr/bin/env bash
# The hostile-client suite: the real m1-router before workers that misbehave, raw sockets before it. Arguments are those of tests/hostile/hostile.py.
# Builds with optimisation, unless it is --short: that runs what `make test` has built. M1_BIN names another folder of binaries.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=release
for argument in "$@"; do [ "$argument" = --short ] && profile=debug; done
if [ -z "${M1_BIN:-}" ]; then
  export M1_BIN="$PWD/target/$profile"
  if [ "$profile" = release ]; then
    cargo build --quiet --release -p m1-router -p m1-hostile --bins
  else
    # All at once, as `make build` does: other selections would build what they share anew.
    cargo build --quiet --workspace --bins
  fi
fi
ulimit -n "$(ulimit -Hn)"
exec python3 -B tests/hostile/hostile.py "$@"
