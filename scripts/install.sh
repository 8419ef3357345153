#!/usr/bin/env bash
# Installs what `make test` and `make demo` need besides Rust: redis-server, postgresql and, for the tests,
# strace and pgbouncer. With words, only
# what they name: `servers` (these), `prometheus`, `venv` (Python's).
# Does nothing where they are there. Starts no server, and leaves running ones alone.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1; }
have_postgres() { have postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }

missing=()
for part in "${@:-servers}"; do
  case "$part" in
    servers)
      have redis-server || missing+=(redis-server)
      have_postgres || missing+=(postgresql)
      have cc || missing+=(gcc libc6-dev)
      have setpriv || missing+=(util-linux)
      have strace || missing+=(strace)
      have patch || missing+=(patch)
      have openssl || missing+=(openssl)
      have pgbouncer || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
      ;;
    prometheus) have promtool || missing+=(prometheus) ;;
    venv) python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || missing+=(python3-venv) ;;
    *) echo "install.sh: there is no part $part" >&2; exit 2 ;;
  esac
done

if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if ! have apt-get; then
  echo "Yoink needs ${missing[*]} (redis-server 7.0 or newer, postgresql 15 or newer)." >&2
  echo "This is no Debian or Ubuntu: please install them with your package manager." >&2
  exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if have sudo && sudo -n true 2>/dev/null; then
    as_root=(sudo)
  else
    echo "Yoink needs: ${missing[*]}. Please run:" >&2
    echo "    sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
fi
echo "Installing ${missing[*]} (no server is started)."

# Debian's packages start a server as soon as they are installed; exit code 101 tells them not to.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi
# postgresql-common would create a cluster of its own.
if [[ " ${missing[*]} " == *" postgresql "* ]] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
  "${as_root[@]}" mkdir -p /etc/postgresql-common
  echo 'create_main_cluster = false' | "${as_root[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
fi
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
# Nor shall the next boot start one that nobody asked for.
for server in redis-server pgbouncer prometheus; do
  if [[ " ${missing[*]} " == *" $server "* ]] && have systemctl; then
    "${as_root[@]}" systemctl disable --quiet "$server" 2>/dev/null || true
  fi
done
