#!/usr/bin/env bash
# Says in one line what a build lacks. Costs nothing when all is there.
set -euo pipefail

need() { command -v "$1" >/dev/null 2>&1 || { echo "setup: $1 is missing: $2" >&2; exit 1; }; }
need cargo "install Rust from https://rustup.rs (the toolchain version is pinned in rust-toolchain.toml)"
command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || command -v clang >/dev/null 2>&1 ||
  { echo "setup: a C compiler is missing (Debian: apt-get install gcc libc6-dev)" >&2; exit 1; }
[ "$(uname -s)" = Linux ] || { echo "setup: Linux is needed; this is $(uname -s)" >&2; exit 1; }
