#!/usr/bin/env bash
# Runs a program beside the service, on loopback, with the configuration that is deployed:
#   beside.sh edge    Envoy: REST, gRPC-Web and gRPC on port 8080
#   beside.sh watch   Prometheus on port 9090
# These variables may be set: PORT; GRPC and HTTP (the service's addresses; HTTP may be several, separated by commas); DIR (for
# the files that are written); ROUTE_TIMEOUT (Envoy's limit for an answer; without it, as deployed); TLS_CA (the authority of
# the service's certificate; without it, Envoy and Prometheus reach the service without TLS); OPERATORS (where Envoy serves
# operators' calls, address:port; without it, it does not serve them; beyond loopback, everyone who reaches it can send calls, and
# credentials can be read on the way, so that needs OPERATORS_ANY_ADDRESS=1); ENVOY_CONFIG (another file than
# deploy/envoy/envoy.yaml that was made from it).
set -euo pipefail
cd "$(dirname "$0")/.."

dir=${DIR:-.yoink/beside}
grpc=${GRPC:-127.0.0.1:50051}
http=${HTTP:-127.0.0.1:9464}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

case "${1:-}" in
  edge)
    port=${PORT:-8080}
    ${YOINK:-cargo run --locked --} descriptor > "$dir/yoink.binpb"
    if [ -n "${TLS_CA:-}" ]; then tls="s|/run/tls/ca.pem|$TLS_CA|"; else tls='/# TLS to the service/,/# End of TLS/d'; fi
    if [ -n "${OPERATORS:-}" ]; then
      case "$OPERATORS" in
        127.*:*) ;;
        *)
          if [ "${OPERATORS_ANY_ADDRESS:-}" != 1 ]; then
            echo "OPERATORS=$OPERATORS is not a loopback address: calls of operators would be served without TLS to other" \
              "machines. Use 127.0.0.1, or set OPERATORS_ANY_ADDRESS=1." >&2
            exit 2
          fi
          ;;
      esac
      operators="s|address: 127.0.0.1, port_value: 8081|address: ${OPERATORS%:*}, port_value: ${OPERATORS##*:}|"
    else
      operators="/# Calls of operators, over REST/,/# End of the operators' listener/d"
    fi
    sed -e "s|/etc/envoy/yoink.binpb|$dir/yoink.binpb|" -e "$tls" -e "$operators" \
      -e "s|address: 0.0.0.0, port_value: 8080|address: 127.0.0.1, port_value: $port|" \
      -e "s|address: yoink, port_value: 50051|address: ${grpc%:*}, port_value: ${grpc##*:}|" \
      -e "s/\(timeout\|grpc_timeout_header_max\): 15s\b/\1: ${ROUTE_TIMEOUT:-15s}/" \
      "${ENVOY_CONFIG:-deploy/envoy/envoy.yaml}" > "$dir/envoy.yaml"
    echo "Envoy on http://127.0.0.1:$port, in front of $grpc."
    exec .tools/venv/bin/envoy -c "$dir/envoy.yaml" --use-dynamic-base-id --concurrency 2 --log-level warn
    ;;
  watch)
    port=${PORT:-9090}
    # Known addresses instead of those that DNS returns.
    sed -e "s|rules/|$PWD/deploy/prometheus/rules/|" -e '/dns_sd_configs:/,$d' \
      deploy/prometheus/prometheus.yml > "$dir/prometheus.yml"
    if [ -n "${TLS_CA:-}" ]; then
      printf '    scheme: https\n    tls_config: { ca_file: "%s" }\n' "$TLS_CA" >> "$dir/prometheus.yml"
    fi
    echo "    static_configs: [{ targets: [\"${http//,/\", \"}\"] }]" >> "$dir/prometheus.yml"
    echo "Prometheus on http://127.0.0.1:$port, alerts at /alerts; it scrapes $http."
    exec prometheus --config.file="$dir/prometheus.yml" --storage.tsdb.path="$dir/prometheus" \
      --web.listen-address="127.0.0.1:$port" --log.level=warn
    ;;
  *)
    sed -n '2,10s/^# //p' "$0" >&2
    exit 2
    ;;
esac
