#!/usr/bin/env bash
# Builds the release program twice, from the same commit in two directories, and compares both byte by byte.
#   reproducible.sh [COMMIT]    without one, HEAD
# It prints the SHA-256 of the program, and keeps it. These variables may be set: WORK (where it builds; by default a directory of
# its own under /tmp, which it removes; about 3 GB), OUT (where it keeps the program; by default target/reproducible), CARGO.
# docs/security.md describes what else determines the program.
set -euo pipefail
cd "$(dirname "$0")/.."

commit=$(git rev-parse --short=12 "${1:-HEAD}^{commit}")
cargo_home=${CARGO_HOME:-$HOME/.cargo}
work=${WORK:-}
if [ -z "$work" ]; then
  work=$(mktemp -d /tmp/yoink-reproducible.XXXXXX)
  trap 'rm -rf "$work"' EXIT
fi

# build DIRECTORY: a build of the commit alone, whose paths are replaced.
build() {
  rm -rf "$1"
  mkdir -p "$1"
  git archive "$commit" | tar -x -C "$1"
  (
    cd "$1"
    # Only these flags, whatever the caller or a configuration of cargo sets.
    unset CARGO_ENCODED_RUSTFLAGS CARGO_TARGET_DIR CARGO_BUILD_TARGET CC CXX
    export YOINK_COMMIT=$commit
    export CFLAGS="-ffile-prefix-map=$PWD=/yoink -ffile-prefix-map=$cargo_home=/cargo"
    export RUSTFLAGS="--remap-path-prefix=$PWD=/yoink --remap-path-prefix=$cargo_home=/cargo"
    "${CARGO:-cargo}" build --locked --release --bin yoink
  )
}

# Two names of different length: a path that is left makes a difference, also of sizes.
one=$work/one
two=$work/a-directory-with-another-name/two
build "$one"
build "$two"
one=$one/target/release/yoink
two=$two/target/release/yoink
sha256sum "$one" "$two"
failed=0
for path in "$work" "$cargo_home"; do
  if grep --quiet --fixed-strings --binary-files=text "$path" "$one"; then
    echo "the program has the path $path of this machine" >&2
    failed=1
  fi
done
if ! cmp "$one" "$two" >&2; then
  echo "the two builds of $commit differ" >&2
  failed=1
fi
if [ "$failed" -ne 0 ]; then exit 1; fi
out=${OUT:-target/reproducible}
mkdir -p "$out"
cp "$one" "$out/yoink"
echo "Both builds of $commit are equal: $out/yoink."
