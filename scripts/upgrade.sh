#!/usr/bin/env bash
# Runs processes of another commit, replaces them by those of this one and these by the others again, one by one under load.
#
#   upgrade.sh COMMIT
#
# Both work on the schema of this commit: `yoink migrate` of the newer release runs first. What was built stays in
# target/upgrade, so that the next build is short.
set -euo pipefail
cd "$(dirname "$0")/.."

tree=target/upgrade/source
git worktree remove --force "$tree" 2> /dev/null || true
git worktree add --quiet --detach "$tree" "$1"
trap 'git worktree remove --force "$tree"' EXIT
CARGO_TARGET_DIR=$PWD/target/upgrade/build "${CARGO:-cargo}" build --locked --bin yoink --manifest-path "$tree/Cargo.toml"
UPGRADE_PROGRAM=$PWD/target/upgrade/build/debug/yoink "${CARGO:-cargo}" test --locked --test it rolling::replacing
