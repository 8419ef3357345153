#!/usr/bin/env bash
# Compares the API (proto/) with that of the last tag. A change that breaks clients of a release fails, unless
# ALLOW_BREAKING=1. Without a tag nothing is released: the API is compared with main, and such a change is only reported;
# CHANGELOG.md must name it.
set -euo pipefail
cd "$(dirname "$0")/.."

against=
tag=$(git describe --tags --abbrev=0 2>/dev/null || true)
for ref in "$tag" main origin/main; do
  if [ -n "$ref" ] && git rev-parse --quiet --verify "$ref^{commit}" >/dev/null; then
    against=$ref
    break
  fi
done
if [ -z "$against" ]; then
  echo "buf breaking: SKIPPED: this clone has neither a tag nor a branch main to compare proto/ with" >&2
  exit 0
fi

before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
git archive "$against" proto | tar -x -C "$before"
echo "buf breaking: comparing proto/ with $against"
if .tools/venv/bin/buf breaking --against "$before" --against-config buf.yaml; then exit 0; fi
if [ -z "$tag" ]; then
  echo "buf breaking: nothing is released yet, so these changes are allowed; CHANGELOG.md must name them" >&2
  exit 0
fi
if [ "${ALLOW_BREAKING:-}" = 1 ]; then
  echo "buf breaking: these changes are allowed by ALLOW_BREAKING=1" >&2
  exit 0
fi
echo "buf breaking: clients of $against break; ALLOW_BREAKING=1 allows it" >&2
exit 1
