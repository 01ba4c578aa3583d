# The commands of this project. Each says in one line what is missing on this machine.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build quickstart test torch e2e scale bench-router bench soak check lint clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:
	@scripts/setup.sh

build: setup ## build all programs into target/debug
	cargo build --bins

quickstart: setup ## serve the demo model on two expert-parallel workers at http://127.0.0.1:8000
	cargo build --bins -p m1ctl -p m1-router -p m1-worker
	@echo
	@echo 'In another terminal:   python3 scripts/demo.py        Ctrl-C here ends everything.'
	@echo
	target/debug/m1ctl up -f manifests/examples/demo.yaml --listen 127.0.0.1:8000

test: build ## build and pass all tests
	scripts/test-e2e.sh prepare
	cargo test
	scripts/test-e2e.sh
	scripts/hostile.sh --short
	scripts/adjacent.sh

torch: ## pass the tests of the executor on libtorch (pinned wheels, 543 MB once, then cached)
	@scripts/libtorch.sh
	cargo clippy -p m1-torch -p m1-worker --features m1-worker/torch --all-targets -- -D warnings
	cargo test -p m1-torch -p m1-worker --features m1-worker/torch
	scripts/test-e2e.sh prepare
	cargo build --bins -p m1ctl -p m1-worker --features m1-worker/torch
	M1_EXECUTOR=torch cargo test -p m1-tests --test forward --test geometry --test shapes --test demo
	cargo build --bin m1-worker

e2e: build ## the same on a real cluster: builds one, or uses KUBECONFIG
	scripts/e2e.sh

scale: ## what the operator and LeaderWorkerSet cost with 1,000 deployments and 10,000 pods (an hour; not part of CI)
	M1_SCALE_LWS=1 scripts/scale.sh

bench-router: ## the router's speed beside smg, vllm-router and nginx (docs/benchmarks.md; not part of CI)
	scripts/bench-router.sh

bench: ## the engine's speed beside llama.cpp and transformers (docs/benchmarks.md; not part of CI)
	python3 bench/engine.py $(BENCH)

soak: build ## ten minutes of random requests on two pods, every answer held to an idle machine's (not part of CI)
	python3 tests/soak/soak.py

lint:
	cargo fmt --all --check
	cargo clippy --all-targets -- -D warnings
	cargo xtask tidy
	cargo xtask proto --check
	cargo xtask crd --check
	cargo xtask docs --check
	cargo xtask chart --check
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --quiet

check: setup lint test ## format, lints, docs, tidy, tests: what CI runs before `make torch` and `make e2e`

clean: ## remove build outputs (the cached libtorch stays: see M1_CACHE in CONTRIBUTING.md)
	cargo clean
