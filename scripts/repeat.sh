#!/usr/bin/env bash
# Runs the integration tests repeatedly while two other processes use the processor, and prints the failures by test.
#   repeat.sh [name…]   only tests whose names contain one of these
# N is the number of runs, 20 by default. The log of each failed run stays under target/repeat.
set -euo pipefail
cd "$(dirname "$0")/.."

n=${N:-20}
logs=target/repeat
rm -rf "$logs"
mkdir -p "$logs"

# Each background job has its own process group, so that all of its processes can be ended.
set -m
busy=() test=
# Ends every process that was started, however this script ends.
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
  # In the background, so that a signal ends this script at once and not after the run.
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
  # The log of a run that did not start names no test.
  { grep -hE '^test .* \.\.\. FAILED$' "$logs"/*.log || true; } |
    sed 's/^test \(.*\) \.\.\. FAILED$/\1/' | sort | uniq -c | sort -rn
  exit 1
fi
echo "$n runs while two other processes used the processor: nothing failed."
