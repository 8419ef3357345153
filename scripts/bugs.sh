#!/usr/bin/env bash
# Builds each seeded bug of `tests/bugs` into a copy of the sources, and runs the test that must find it.
# A patch begins with two lines:
#   test:   that test, as `cargo test` names it
#   fails:  part of the message of its failure; a test that fails with another message has not found the bug
# With arguments, it takes only the bugs whose names contain one of them.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=target/bugs/sources
export CARGO_TARGET_DIR="$PWD/target/bugs/target"
export RUST_BACKTRACE=0
mkdir -p "$copy"

patches=()
for patch in tests/bugs/*.patch; do
  name=$(basename "$patch" .patch)
  wanted=$([ $# -eq 0 ] && echo yes || echo no)
  for word in "$@"; do if [[ $name == *$word* ]]; then wanted=yes; fi; done
  if [ "$wanted" = yes ]; then patches+=("$patch"); fi
done
if [ ${#patches[@]} -eq 0 ]; then
  echo "bugs.sh: no bug has a name with one of the arguments" >&2
  exit 2
fi

header() { sed -n "s/^$2: //p;/^--- /q" "$1"; }
# Copies tracked files, and new files that are not ignored. An unchanged file keeps its time, so that little is
# rebuilt. A file that was deleted is deleted in the copy, too.
refresh() {
  git ls-files -z --cached --others --exclude-standard >target/bugs/files
  while IFS= read -r -d '' file; do
    if [ -e "$file" ] && ! cmp -s "$file" "$copy/$file"; then
      mkdir -p "$copy/$(dirname "$file")"
      cp "$file" "$copy/$file"
    fi
  done <target/bugs/files
  (cd "$copy" && find . -type f -printf '%P\0') | while IFS= read -r -d '' file; do
    if [ ! -e "$file" ]; then rm "$copy/$file"; fi
  done
}
run() {
  local log=$1
  shift
  (cd "$copy" && cargo test --locked --test it -- --exact --test-threads=2 "$@") >"$log" 2>&1
}

# The tests must pass without the bugs: a test that always fails finds nothing.
refresh
tests=()
for patch in "${patches[@]}"; do tests+=("$(header "$patch" test)"); done
distinct=$(printf '%s\n' "${tests[@]}" | sort -u | wc -l)
if ! run target/bugs/without.log "${tests[@]}" ||
  ! grep -q "^test result: ok. $distinct passed" target/bugs/without.log; then
  echo "Not all of the tests pass without a bug: see target/bugs/without.log" >&2
  exit 1
fi

found=0 wrong=()
for patch in "${patches[@]}"; do
  name=$(basename "$patch" .patch)
  test=$(header "$patch" test)
  fails=$(header "$patch" fails)
  log=target/bugs/$name.log
  refresh
  if ! patch --quiet --no-backup-if-mismatch -p1 -d "$copy" <"$patch" >"$log" 2>&1; then
    wrong+=("$name: the patch does not apply any more (see $log)")
    continue
  fi
  if run "$log" "$test"; then
    wrong+=("$name: $test passes with it (see $log)")
  elif ! grep -q '^test result: FAILED. 0 passed; 1 failed' "$log"; then
    wrong+=("$name: does not build, or the test did not end (see $log)")
  elif [ -z "$fails" ] || ! grep -qF -- "$fails" "$log"; then
    wrong+=("$name: $test fails without the message '$fails' (see $log)")
  else
    found=$((found + 1))
    printf 'found      %-45s by %s\n' "$name" "$test"
    continue
  fi
  printf 'NOT FOUND  %-45s by %s\n' "$name" "$test"
done
refresh

echo "$found of ${#patches[@]} bugs were found."
if [ ${#wrong[@]} -gt 0 ]; then
  printf '%s\n' "${wrong[@]}" >&2
  exit 1
fi
