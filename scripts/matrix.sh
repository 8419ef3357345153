#!/usr/bin/env bash
# Runs the integration tests with each row of servers, and prints what each row gave.
#   matrix.sh [name…]   only tests whose names contain one of these words
# In the row `cluster`, tests that need nothing else use a Redis Cluster of three masters. In every row, the tests `topology::`
# start clusters and Sentinels of their own.
# ROWS names the rows to run (`ROWS="valkey-8 valkey-9"`), otherwise all of them. A row whose servers this machine does not have is
# printed as not tried; with STRICT=1 it fails. The log of each row stays under LOGS, otherwise target/matrix.
set -euo pipefail
cd "$(dirname "$0")/.."

# name|version of Redis or Valkey|version of Postgres|directories in front of the PATH|tests that are left out|tests that are run if
# none are named, otherwise all of them.
# The first row is what the distribution has. PyPI's servers are built without TLS for Redis and Valkey.
rows="
redis-7.0|Redis 7.0|Postgres 15|||
redis-8.2|Redis 8.2|Postgres 18|redis-8.2 postgres-18|tls::|
valkey-8|Valkey 8|Postgres 16|valkey-8 postgres-16|tls::|
valkey-9|Valkey 9|Postgres 18|valkey-9 postgres-18|tls::|
cluster|Redis 7.0|Postgres 15|||sale:: idempotency:: poison:: limits:: fault::crash:: fault::fence:: fault::kills:: fault::loops::
"

logs=${LOGS:-target/matrix}
rm -rf "$logs"
mkdir -p "$logs"

# The name and version of a server: Redis 7.0.15, Valkey 9.1.2, Postgres 18.6.
version() {
  "$1" --version 2>/dev/null |
    sed -nE 's/^(Redis|Valkey) server v=([0-9.]+).*/\1 \2/p; s/^postgres \(PostgreSQL\) ([0-9.]+).*/Postgres \1/p'
}
# postgres_of DIRECTORIES: the Postgres that the tests start, the first in the PATH, otherwise the newest of Debian.
postgres_of() {
  local program
  program=$(PATH=$1 command -v postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres' | sort -V | tail -n 1) || true
  if [ -n "$program" ]; then version "$program"; fi
}
redis_of() {
  local program
  if program=$(PATH=$1 command -v redis-server); then version "$program"; fi
}
# Whether `Redis 7.0.15` is a `Redis 7.0`.
is() { [[ "$1" == "$2" || "$1" == "$2".* ]]; }

results=() failed=0
report() {
  results+=("$(printf '| %-9s | %-12s | %-14s | %s |' "$1" "$2" "$3" "$4")")
  if [ "$5" != ok ]; then failed=$((failed + 1)); fi
}

while IFS='|' read -r name redis postgres dirs skipped named; do
  if [ -z "$name" ] || [[ -n "${ROWS:-}" && " $ROWS " != *" $name "* ]]; then continue; fi
  path=
  for dir in $dirs; do path+="$PWD/.tools/rows/$dir:"; done
  path+=$PATH
  found_redis=$(redis_of "$path")
  found_postgres=$(postgres_of "$path")
  if ! is "$found_redis" "$redis" || ! is "$found_postgres" "$postgres"; then
    echo "NOT TRIED: row $name needs $redis and $postgres; found: ${found_redis:-no Redis}, ${found_postgres:-no Postgres}" >&2
    if [ -n "${STRICT:-}" ]; then outcome=failed; else outcome=ok; fi
    report "$name" "$redis" "$postgres" "NOT TRIED" "$outcome"
    continue
  fi
  echo "== $name: $found_redis, $found_postgres"
  log=$logs/$name.log
  skip=()
  for word in $skipped; do skip+=(--skip "$word"); done
  status=0 words=("$@") kind=one
  if [ "$name" = cluster ]; then kind=cluster; fi
  if [ $# -eq 0 ]; then read -r -a words <<< "$named"; fi
  PATH=$path TEST_REDIS=$kind ${CARGO:-cargo} test --locked --test it -- "${skip[@]}" "${words[@]}" 2>&1 | tee "$log" || status=$?
  ran=$(sed -n 's/^test result: .*\. \([0-9]* passed; [0-9]* failed\).*/\1/p' "$log" | tail -n 1)
  # A row without a test would show nothing.
  if [ "$status" -eq 0 ] && [[ "$ran" != "0 passed"* ]] && [ -n "$ran" ]; then
    report "$name" "$found_redis" "$found_postgres" "${ran%;*}" ok
  else
    report "$name" "$found_redis" "$found_postgres" "FAILED: ${ran:-no result}, see $log" failed
  fi
done <<< "$rows"

if [ ${#results[@]} -eq 0 ]; then
  echo "matrix.sh: ROWS=$ROWS names no row" >&2
  exit 2
fi
printf '\n| row       | Redis        | Postgres       | tests |\n|---|---|---|---|\n'
printf '%s\n' "${results[@]}"
[ "$failed" -eq 0 ]
