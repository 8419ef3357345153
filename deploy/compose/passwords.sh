#!/bin/sh
# Makes the passwords of a deployment that are missing, and the files that have several of them. A password that exists is kept,
# so a repetition changes nothing, and the volume of an earlier version gets what this version needs. Each file belongs to the
# user that reads it; the names of the accounts are those of docker-compose.yml. No password has a default.
#   passwords.sh [DIRECTORY]
# In its container it runs as root with two capabilities: CHOWN gives a file to its user, and DAC_READ_SEARCH reads it again.
set -eu
cd "${1:-/run/yoink}"
umask 077

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# keep NAME OWNER: writes standard input to the file, completely or not at all. Owners are numbers, as in the images.
keep() {
  # A run that was killed may have left a file that belongs to its reader already: it cannot be written again.
  rm -f "$1.new"
  cat > "$1.new"
  if [ "$(id -u)" -eq 0 ]; then chown "$2" "$1.new"; fi
  mv -f "$1.new" "$1"
}

# password NAME OWNER: the password in the file, which is made if it is missing.
password() {
  if [ ! -s "$1" ]; then random | keep "$1" "$2"; fi
  cat "$1"
}

# redis_password FILE USER: the password of a user of Redis in a file of settings, or a new one.
redis_password() {
  found=
  if [ -s "$1" ]; then found=$(sed -n "s|^redis_url = \"redis://$2:\([^@]*\)@.*|\1|p" "$1"); fi
  if [ -z "$found" ]; then found=$(random); fi
  printf '%s' "$found"
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

# The volume of Postgres was set up with this password: it is never replaced.
password postgres-superuser 999 > /dev/null
password grafana-admin 472 > /dev/null
redis_admin=$(password redis-admin 999)
owner=$(password postgres-owner 999)
serve=$(password postgres-serve 999)
read=$(password postgres-read 999)
redis_yoink=$(redis_password yoink.toml yoink)
redis_read=$(redis_password read.toml yoink_read)

# The files of settings are the only place of the passwords of Redis in clear, so they are written before the users of Redis.
settings "yoink:$redis_yoink" "yoink_serve:$serve" | keep yoink.toml 10001
# For `yoink audit`, `yoink export` and whatever else only reads.
settings "yoink_read:$redis_read" "yoink_read:$read" | keep read.toml 10003
# For `yoink migrate`, which another user runs: the service cannot read it.
settings "yoink:$redis_yoink" "yoink_owner:$owner" | keep owner.toml 10002
users | keep redis.acl 999

# What earlier versions used: the password of the role `yoink`, and a password without a user of Redis.
rm -f postgres-yoink redis.conf
