#!/usr/bin/env bash
# Installs the tools of the project's checks under .tools/, pinned by hash; does nothing where they are.
set -euo pipefail
cd "$(dirname "$0")/.."

have() { command -v "$1" >/dev/null 2>&1; }
if cmp -s scripts/tools.txt .tools/installed.txt; then
  exit 0
fi
if ! python3 -c 'import venv, ensurepip' >/dev/null 2>&1; then
  if [ "$(id -u)" -eq 0 ] && have apt-get; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends python3-venv
  else
    echo "The checks need python3 with venv: sudo apt-get install python3-venv" >&2
    exit 1
  fi
fi
python3 -m venv .tools/venv
.tools/venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r scripts/tools.txt
cp scripts/tools.txt .tools/installed.txt
