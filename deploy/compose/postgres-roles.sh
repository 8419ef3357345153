#!/bin/sh
# Makes the roles of the service in Postgres and gives them their passwords, once per start. A repetition changes nothing. In a
# volume of an earlier version it gives the tables to their new owner.
# PGHOST and PGPORT: the address of Postgres. PASSWORDS, ROLES: other files than those of the image.
set -eu
passwords=${PASSWORDS:-/run/yoink}
PGPASSWORD=$(cat "$passwords/postgres-superuser")
export PGPASSWORD

superuser() {
  psql --no-psqlrc --no-password --quiet --no-align --tuples-only --set ON_ERROR_STOP=1 --username postgres --dbname yoink "$@"
}

if ! failed=$(superuser --command 'SELECT' 2>&1); then
  case "$failed" in
    *"password authentication failed"*)
      echo "Postgres refuses the password of its superuser: the volumes \`passwords\` and \`postgres-data\` do not belong" \
        "together. Restore both from one backup, or give Postgres the password of the volume \`passwords\`" \
        "(docs/operations.md, The compose file)." >&2
      ;;
    *) echo "$failed" >&2 ;;
  esac
  exit 1
fi

# The role that owns the tables of an earlier version, if there is one.
old=$(superuser --command "SELECT pg_get_userbyid(relowner) FROM pg_class
  WHERE oid = to_regclass('public._sqlx_migrations') AND pg_get_userbyid(relowner) <> 'yoink_owner'")
superuser ${old:+--set "old=$old"} --file "${ROLES:-/usr/share/yoink/roles.sql}"

# psql reads the passwords itself, so that they are not on its command line.
cd "$passwords"
superuser <<'SQL'
\set owner `cat postgres-owner`
\set serve `cat postgres-serve`
\set read `cat postgres-read`
ALTER ROLE yoink_owner PASSWORD :'owner';
ALTER ROLE yoink_serve PASSWORD :'serve';
ALTER ROLE yoink_read PASSWORD :'read';
-- Up to the version that had one role for everything, this was its name. Nothing uses it now.
SELECT 'REVOKE yoink_owner FROM yoink; ALTER ROLE yoink NOLOGIN' FROM pg_roles WHERE rolname = 'yoink' AND rolcanlogin
\gexec
SQL
