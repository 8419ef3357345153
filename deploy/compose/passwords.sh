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

# hash TEXT: as Redis stores a password.
hash() { printf '%s' "$1" | sha256sum | cut -d ' ' -f 1; }

# The users of Redis, with a password each.
users() {
  sed -e "s/^user yoink on /&#$(hash "$redis_yoink") /" -e "s/^user yoink_read on /&#$(hash "$redis_read") /" \
    -e "s/^user admin on /&#$(hash "$redis_admin") /" "${USERS:-/usr/share/yoink/redis.acl}"
}

# settings REDIS-USER:PASSWORD POSTGRES-ROLE:PASSWORD: the addresses of both stores.
settings() {
  printf 'redis_url = "redis://%s@redis:6379"\n' "$1"
  # Within the network of the compose file, which no other machine reaches; without it, each process warns of this.
  printf 'postgres_url = "postgres://%s@postgres:5432/yoink?sslmode=disable"\n' "$2"
}

redis_yoink=$(random)
redis_read=$(random)
redis_admin=$(random)
owner=$(random)
serve=$(random)
read=$(random)
random | keep postgres-superuser 999
printf '%s' "$owner" | keep postgres-owner 999
printf '%s' "$serve" | keep postgres-serve 999
printf '%s' "$read" | keep postgres-read 999
users | keep redis.acl 999
printf '%s' "$redis_admin" | keep redis-admin 999
random | keep grafana-admin 472
# For `yoink migrate`, which another user runs: the service cannot read it.
settings "yoink:$redis_yoink" "yoink_owner:$owner" | keep owner.toml 10002
# For `yoink audit`, `yoink export` and whatever else only reads.
settings "yoink_read:$redis_read" "yoink_read:$read" | keep read.toml 10003
settings "yoink:$redis_yoink" "yoink_serve:$serve" | keep yoink.toml 10001
