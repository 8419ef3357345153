#!/usr/bin/env bash
# Imports a catalogue into its own service and lists it through Envoy; prints sizes and times.
#   PRODUCTS  number of products, 10000 by default; their names have 200 characters of four bytes, the longest possible
#   ROUNDS    number of requests for each list, 20 by default
# Exits 1 if an answer was incomplete.
set -euo pipefail
cd "$(dirname "$0")/.."

products=${PRODUCTS:-10000}
rounds=${ROUNDS:-20}
yoink=${YOINK:-target/debug/yoink}
yoink=$(realpath "$yoink")
dir=$(mktemp -d /tmp/yoink-listing.XXXXXX)
pids=()
finish() {
  for pid in "${pids[@]}"; do kill -INT "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$dir"
}
trap finish EXIT

# until_true PID COMMAND...: waits until the command succeeds, as long as the process runs.
until_true() {
  local pid=$1
  shift
  for _ in $(seq 600); do
    if "$@"; then return; fi
    if ! kill -0 "$pid" 2>/dev/null; then
      echo "listing.sh: a process ended before this became true: $*" >&2
      if [ -e "$dir/envoy" ]; then tail -n 5 "$dir/envoy" >&2; fi
      exit 1
    fi
    sleep 0.1
  done
  echo "listing.sh: this never became true: $*" >&2
  exit 1
}

(cd "$dir" && exec "$yoink" --set grpc_listen=127.0.0.1:0 --set http_listen=127.0.0.1:0 --set log_filter=warn dev) \
  > "$dir/dev" &
pids+=($!)
until_true $! grep -q '^Postgres' "$dir/dev"
value() { awk -v name="$1" '$1 == name { print $2 }' "$dir/dev"; }

{
  echo product_id,name,price,currency,units
  name=$(printf '\xf0\x9d\x92\xb3%.0s' $(seq 200))
  for n in $(seq "$products"); do printf 'item-%06d,%s,19.99,EUR,100\n' "$n" "$name"; done
} > "$dir/catalogue.csv"
start=$EPOCHREALTIME
YOINK_REDIS_URL=$(value Redis) YOINK_POSTGRES_URL=$(value Postgres) \
  "$yoink" --set log_filter=warn import "$dir/catalogue.csv"
awk -v start="$start" -v end="$EPOCHREALTIME" 'BEGIN { printf "imported in %.1f s\n\n", end - start }'

# A free port: no process listened on it a moment ago.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
PORT=$port GRPC=$(value gRPC) DIR=$dir/edge YOINK=$yoink scripts/beside.sh edge > "$dir/envoy" 2>&1 &
pids+=($!)
envoy=$!
url=http://127.0.0.1:$port
listed() { [ "$(curl -s "$url/products" | grep -o '"id":"item-' | wc -l)" = "$products" ]; }
until_true "$envoy" listed

echo '| list | whole | bytes | median | slowest |'
echo '|---|---|---|---|---|'
failed=0
# list NAME PATH EXPECTED: requests the list ROUNDS times; EXPECTED is the number of ids in a complete answer.
list() {
  local whole=0 answer bytes=0
  : > "$dir/times"
  for _ in $(seq "$rounds"); do
    answer=$(curl -s -o "$dir/body" -w '%{exitcode} %{http_code} %{size_download} %{time_total}' "$url$2") || true
    read -r exit status bytes seconds <<< "$answer"
    echo "$seconds" >> "$dir/times"
    if [ "$exit $status" = '0 200' ] && [ "$(grep -o '[iI]d":"item-' "$dir/body" | wc -l)" = "$3" ]; then
      whole=$((whole + 1))
    fi
  done
  sort -n "$dir/times" | awk -v row="| $1 | $whole of $rounds | $bytes |" \
    '{ t[NR] = $1 } END { printf "%s %.0f ms | %.0f ms |\n", row, t[int((NR + 1) / 2)] * 1000, t[NR] * 1000 }'
  if [ "$whole" != "$rounds" ]; then failed=1; fi
}
page=$((products < 500 ? products : 500))
list "all $products products, GET /products" /products "$products"
list "a page of $page, GET /v1/products" "/v1/products?pageSize=500" "$page"
exit $failed
