#!/bin/sh
# Makes the passwords of a deployment when it starts for the first time. Each file belongs to the user that reads it; the
# names of the accounts are those of docker-compose.yml. No password has a default.
#   passwords.sh [DIRECTORY]
set -eu
cd "${1:-/run/yoink}"
umask 077

# This file is written last. If it exists, the others exist.
if [ -e yoink.toml ]; then exit 0; fi

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# keep NAME OWNER: writes standard input to the file, completely or not at all. Owners are numbers, as in the images.
keep() {
  cat > "$1.new"
  if [ "$(id -u)" -eq 0 ]; then chown "$2" "$1.new"; fi
  mv "$1.new" "$1"
}

redis=$(random)
yoink=$(random)
random | keep postgres-superuser 999
printf '%s' "$yoink" | keep postgres-yoink 999
printf 'requirepass %s\n' "$redis" | keep redis.conf 999
random | keep grafana-admin 472
keep yoink.toml 10001 <<TOML
redis_url = "redis://:$redis@redis:6379"
postgres_url = "postgres://yoink:$yoink@postgres:5432/yoink"
TOML
