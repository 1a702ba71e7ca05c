# `make run` and `make test` do their own set-up on a fresh Debian or Ubuntu machine.

export PATH := $(PATH):$(HOME)/.cargo/bin
CARGO ?= cargo

.PHONY: help run test cost bench bench-peers deny setup fmt

help:
	@echo "make run    build, and start a demo: gateway, two simulated backends, usage records"
	@echo "make test   formatting, lints, documentation, all tests, and the guard of costs"
	@echo "make cost   instructions and allocations of a request against the committed numbers"
	@echo "make bench  build for release and measure against bare Pingora and other proxies"
	@echo "make bench-peers  install other proxies for make bench"
	@echo "make deny   licences, bans and sources of the dependencies (needs cargo-deny)"

setup:
	@scripts/setup.sh

run:
	@scripts/setup.sh build
	@echo "building llmproxy; the first build takes a few minutes"
	$(CARGO) run --profile demo --locked --bin llmproxy -- demo

# Many tests wait for something: on few cores there is room for more of them.
TEST_THREADS = $(shell expr $$(nproc) + 1)

# cargo-nextest runs the tests when it is there; it is not needed.
test: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked --quiet
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		echo "$(CARGO) nextest run"; $(CARGO) nextest run --locked --test-threads $(TEST_THREADS); \
	else \
		echo "$(CARGO) test"; $(CARGO) test --locked; \
	fi
	$(COST)

# Counted by valgrind: the same on a loaded machine.
COST = $(CARGO) bench --profile guard --locked --bench cost

cost: setup
	$(COST)

bench:
	@scripts/setup.sh build
	$(CARGO) build --release --locked --bin llmproxy --example bare_pingora
	$(CARGO) bench --locked --bench gateway

bench-peers:
	@scripts/bench-peers.sh

# The advisory database is fetched by the workflow, where it can be reached.
deny: setup
	$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --all-features check licenses bans sources

fmt:
	$(CARGO) fmt --all
