#!/usr/bin/env bash
# Gets libtorch for the executor that uses it, and says in one line what is missing. Safe to run again; costs nothing when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

need() { command -v "$1" >/dev/null 2>&1 || { echo "libtorch: $1 is missing: $2" >&2; exit 1; }; }
need python3 "install Python 3 with pip (Debian: apt-get install python3 python3-pip python3-venv)"
command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || command -v clang++ >/dev/null 2>&1 ||
  { echo "libtorch: a C++ compiler is missing (Debian: apt-get install g++)" >&2; exit 1; }
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "libtorch: it is pinned for Linux x86_64; this is $(uname -sm)" >&2; exit 1; }

cache="${M1_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/minimax-m1}"
python3 scripts/libtorch.py "$cache/libtorch-2.11.0-cpu"
mkdir -p target
ln -sfn "$cache/libtorch-2.11.0-cpu" target/libtorch
