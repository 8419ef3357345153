#!/usr/bin/env bash
# Builds each of the subtle bugs in `tests/bugs` into a copy of the sources, and runs the test that must find it.
# A patch's first line names that test. With words, only the bugs whose names contain one of them.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=target/bugs/sources
export CARGO_TARGET_DIR="$PWD/target/bugs/target"
mkdir -p target/bugs

fresh() {
  rm -rf "$copy"
  mkdir -p "$copy"
  # What git knows, and what is new and not ignored.
  git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy" 2>/dev/null || true
}
run() { (cd "$copy" && cargo test --locked --test it "$1" -- --exact --test-threads=1) >"$2" 2>&1; }
passes() { grep -q '^test result: ok. 1 passed' "$1"; }
fails() { grep -q '^test result: FAILED. 0 passed; 1 failed' "$1"; }

found=0 all=0 wrong=()
for patch in tests/bugs/*.patch; do
  name=$(basename "$patch" .patch)
  if [ $# -gt 0 ]; then
    wanted=no
    for word in "$@"; do [[ $name == *$word* ]] && wanted=yes; done
    [ $wanted = yes ] || continue
  fi
  all=$((all + 1))
  test=$(sed -n '1s/^test: //p' "$patch")
  log=target/bugs/$name.log
  fresh
  # Without the bug the test passes: else it would find anything.
  if ! { run "$test" "$log.without" && passes "$log.without"; }; then
    wrong+=("$name: $test does not pass without the bug (see $log.without)")
    continue
  fi
  if ! patch --quiet -p1 -d "$copy" <"$patch"; then
    wrong+=("$name: the patch does not apply any more")
    continue
  fi
  if ! (cd "$copy" && cargo test --locked --test it --no-run) >"$log" 2>&1; then
    wrong+=("$name: does not build (see $log)")
    continue
  fi
  if ! run "$test" "$log" && fails "$log"; then
    found=$((found + 1))
    printf 'found      %-45s by %s\n' "$name" "$test"
  else
    printf 'NOT FOUND  %-45s by %s\n' "$name" "$test"
    wrong+=("$name: $test did not find it (see $log)")
  fi
done

echo "$found of $all bugs were found."
if [ ${#wrong[@]} -gt 0 ]; then
  printf '%s\n' "${wrong[@]}" >&2
  exit 1
fi
[ "$all" -gt 0 ]
