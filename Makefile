# What a developer types. `make help` lists it; scripts/ does the work.
# Needs Debian 12, root, and Rust; `make setup` installs everything else.
SHELL := /bin/bash
TARGET := x86_64-unknown-linux-gnu
export PATH := $(CURDIR)/.lab/bin:$(PATH):/usr/sbin:/sbin

# Static and non-PIE: PSS and start-up time are budgets (DESIGN §10). With an explicit
# target the flags reach neither build scripts nor procedural macros.
RELEASE_FLAGS := -C target-feature=+crt-static -C relocation-model=static
RELEASE := target/$(TARGET)/release
SHIM := target/debug/containerd-shim-vigil-v2

.DEFAULT_GOAL := help
.PHONY: help setup build build-release demo test conformance faults test-cgroup2 check lint deny docs bench soak soak-both soak-shim soak-reaper soak-alternating crash crash-release faults-release fuzz clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | column -t -s '|'

setup: ## install what is missing (apt, .lab/); quick when nothing is
	@scripts/setup

build: ## build both programs (debug)
	cargo build --locked -p containerd-shim-vigil-v2 -p vigil

build-release: ## build both programs as they are shipped (static, small)
	RUSTFLAGS="$(RELEASE_FLAGS)" cargo build --locked --release --target $(TARGET) -p containerd-shim-vigil-v2 -p vigil
	@scripts/split-symbols $(RELEASE)/containerd-shim-vigil-v2 $(RELEASE)/vigil

demo: ## run a real container under Vigil and show its story
	@scripts/setup packages && scripts/setup image
	@$(MAKE) --no-print-directory build-release
	@scripts/demo $(RELEASE)

test: ## all tests, then the conformance and fault suites on real containers
	@scripts/setup packages && scripts/setup containerd && scripts/setup image
	@$(MAKE) --no-print-directory build
	VIGIL_SHIM=$(CURDIR)/$(SHIM) scripts/unit-tests
	@$(MAKE) --no-print-directory conformance
	VIGIL_SHIM=$(CURDIR)/$(SHIM) cargo test --locked -q --workspace --test faults

# --workspace: with the features that everything else here is built with, so that nothing is built twice.
conformance: build ## behaviours of the Task API: Go's shims first, then ours
	VIGIL_SHIM=$(CURDIR)/$(SHIM) cargo test --locked -q --workspace --test conformance

faults: ## every fault of the catalogue and every crash point: Go's shims and ours, side by side
	@scripts/setup packages && scripts/setup containerd && scripts/setup image
	@$(MAKE) --no-print-directory build
	VIGIL_FAULTS=all VIGIL_FAULTS_TABLE=$(CURDIR)/target/faults.md VIGIL_SHIM=$(CURDIR)/$(SHIM) cargo test --locked -q --workspace --test faults

test-cgroup2: ## conformance and faults on a cgroup v2 host: Debian's kernel, emulated (10 minutes)
	@scripts/setup packages && scripts/setup containerd && scripts/setup image && scripts/setup vm
	@$(MAKE) --no-print-directory build
	VIGIL_SHIM=$(CURDIR)/$(SHIM) tests/cgroup2/run

check: ## everything CI asks for; fails if anything is left on the machine
	@scripts/check

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p vigil-fuzz --all-targets --features libfuzzer -- -D warnings

deny:
	@scripts/deny

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

bench: ## compare with the Go shims, side by side
	@scripts/setup packages && scripts/setup containerd && scripts/setup image
	@$(MAKE) --no-print-directory build-release
	VIGIL_SHIM=$(CURDIR)/$(RELEASE)/containerd-shim-vigil-v2 cargo run --locked --release -q -p vigil-bench
	VIGIL_SHIM=$(CURDIR)/$(RELEASE)/containerd-shim-vigil-v2 cargo run --locked --release -q -p vigil-bench -- --stalls

soak: soak-both soak-shim soak-reaper soak-alternating ## kill 2,000 pairs, 10,000 shims, 5,000 reapers, 5,000 of both in turn, at random moments (two hours)

soak-both: ## kill reaper and shim of 2,000 containers; ARGS="--lives N --seed S"
	@scripts/setup packages && scripts/setup containerd && scripts/setup image
	@$(MAKE) --no-print-directory build-release
	VIGIL_SHIM=$(CURDIR)/$(RELEASE)/containerd-shim-vigil-v2 cargo run --locked -q -p vigil-soak -- --victims both $(ARGS)

soak-shim: ## kill 10,000 shims, whose containers live on; ARGS="--lives N --seed S"
	@scripts/setup packages && scripts/setup containerd && scripts/setup image
	@$(MAKE) --no-print-directory build-release
	VIGIL_SHIM=$(CURDIR)/$(RELEASE)/containerd-shim-vigil-v2 cargo run --locked -q -p vigil-soak -- --victims shim $(ARGS)

soak-reaper: ## kill 5,000 reapers, whose containers live on; ARGS="--lives N --seed S"
	@scripts/setup packages && scripts/setup containerd && scripts/setup image
	@$(MAKE) --no-print-directory build-release
	VIGIL_SHIM=$(CURDIR)/$(RELEASE)/containerd-shim-vigil-v2 cargo run --locked -q -p vigil-soak -- --victims reaper $(ARGS)

soak-alternating: ## kill 5,000 reapers and shims in turn, whose containers live on; ARGS="--lives N --seed S"
	@scripts/setup packages && scripts/setup containerd && scripts/setup image
	@$(MAKE) --no-print-directory build-release
	VIGIL_SHIM=$(CURDIR)/$(RELEASE)/containerd-shim-vigil-v2 cargo run --locked -q -p vigil-soak -- --victims alternating $(ARGS)

crash: ## kill the shim at each of its crash points 20 times, and shim or reaper before and after each of their system calls; ARGS="--rounds N --every N --reapers N --only LIFE"
	@scripts/setup packages
	@$(MAKE) --no-print-directory build
	VIGIL_SHIM=$(CURDIR)/$(SHIM) cargo run --locked -q -p vigil-crash -- $(ARGS)

crash-release: ## the same on the program as it is shipped, which has no crash points: system calls alone
	@scripts/setup packages
	@$(MAKE) --no-print-directory build-release
	VIGIL_SHIM=$(CURDIR)/$(RELEASE)/containerd-shim-vigil-v2 cargo run --locked -q -p vigil-crash -- --rounds 0 $(ARGS)

# Classes whose cases need no crash point.
faults-release: ## a sample of the fault suite on the program as it is shipped; ARGS="FILTER…"
	@scripts/setup packages && scripts/setup containerd && scripts/setup image
	@$(MAKE) --no-print-directory build-release
	VIGIL_SHIM=$(CURDIR)/$(RELEASE)/containerd-shim-vigil-v2 cargo test --locked -q --workspace --test faults -- $(or $(ARGS),f01 f02 f05 f06 f09 f12 f16 f21 f22 f23 f28 f38 f46)

fuzz: ## each decoder a minute under libFuzzer; ARGS="SECONDS TARGET…"
	@scripts/setup packages
	@scripts/fuzz $(ARGS)

clean: ## remove what was built; keeps .lab
	cargo clean
