#!/usr/bin/env bash
# Router and workers of adjacent commits understand each other: builds the commit that tests/adjacent/commit names, and lets its router stand before
# today's workers, today's router before its workers, and one worker of each share a model. Needs `make build`; takes some minutes the first time.
set -euo pipefail
cd "$(dirname "$0")/.."

commit=$(cat tests/adjacent/commit)
before="$PWD/target/adjacent/$commit"
if [ ! -x "$before/bin/m1-worker" ]; then
  git cat-file -e "$commit^{commit}" 2>/dev/null || { echo "adjacent: commit $commit is not in this clone (git fetch --unshallow)" >&2; exit 1; }
  rm -rf target/adjacent
  mkdir -p "$before/source" "$before/target/debug" "$before/bin"
  git archive "$commit" | tar -x -C "$before/source"
  # Built as today's are, so that what both have of other crates is the same. Profiles stand last in the file.
  { git show "$commit:Cargo.toml" | sed '/^\[profile/,$d'; sed -n '/^\[profile/,$p' Cargo.toml; } >"$before/source/Cargo.toml"
  # What both have of other crates is built already. Its files are linked, not copied: they are many gigabytes, and nobody writes into them.
  for part in build .fingerprint; do cp -a "target/debug/$part" "$before/target/debug/"; done
  cp -al target/debug/deps "$before/target/debug/"
  # Crates of the project go by their place in it, so today's would pass for those of before.
  (cd "$before/target/debug" && rm -rf .fingerprint/{m1-,m1ctl-,xtask-}* build/m1-* deps/*m1_* deps/*m1ctl* deps/*xtask*)
  # What it needs beside cargo it gets itself; where libtorch really lies outlives this folder.
  (cd "$before/source" && scripts/setup.sh &&
    LIBTORCH=$(readlink -f target/libtorch) CARGO_INCREMENTAL=0 CARGO_TARGET_DIR="$before/target" cargo build --bins)
  for name in m1ctl m1-router m1-worker; do cp "$before/target/debug/$name" "$before/bin/"; done
  rm -rf "$before/target" "$before/source"
fi
python3 tests/adjacent/test_adjacent.py "$before/bin" target/debug
