#!/usr/bin/env bash
# Runs the integration tests again and again beside two busy processes, and prints what failed, by test.
#   repeat.sh [words…]   only the tests whose names contain one of the words
# N (20 unless set) is how often. The log of each run that failed is kept under target/repeat.
set -euo pipefail
cd "$(dirname "$0")/.."

n=${N:-20}
logs=target/repeat
rm -rf "$logs"
mkdir -p "$logs"

# What runs in the background has a process group of its own, so that all of it can be ended.
set -m
busy=() test=
# However this ends, what it started ends with it.
finish() {
  for pid in "${busy[@]}" ${test:+"$test"}; do kill -- "-$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

${CARGO:-cargo} test --locked --test it --no-run
for _ in 1 2; do
  (while :; do :; done) &
  busy+=($!)
done

failed=0
for run in $(seq "$n"); do
  log=$logs/$run.log
  # In the background: a signal then ends this at once, and not after the run.
  ${CARGO:-cargo} test --locked --test it -- "$@" >"$log" 2>&1 &
  test=$!
  status=0
  wait "$test" || status=$?
  test=
  for pid in "${busy[@]}"; do
    kill -0 "$pid" 2>/dev/null || { echo "a busy process has ended: the machine was not busy" >&2; exit 1; }
  done
  if [ "$status" -eq 0 ]; then
    printf 'run %s of %s: ok\n' "$run" "$n"
    rm "$log"
  else
    failed=$((failed + 1))
    printf 'run %s of %s: FAILED, see %s\n' "$run" "$n" "$log"
  fi
done

if [ "$failed" -gt 0 ]; then
  printf '%s of %s runs failed:\n' "$failed" "$n"
  # One that did not even start names no test.
  { grep -hE '^test .* \.\.\. FAILED$' "$logs"/*.log || true; } |
    sed 's/^test \(.*\) \.\.\. FAILED$/\1/' | sort | uniq -c | sort -rn
  exit 1
fi
echo "$n runs beside two busy processes: nothing failed."
