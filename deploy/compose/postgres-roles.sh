#!/bin/sh
# The Postgres image runs this once, when its volume is set up. It makes the roles of the service, each with its password.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --file "${ROLES:-/usr/share/yoink/roles.sql}"
for role in owner serve read; do
  psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set "role=yoink_$role" --set "password=$(cat "${PASSWORDS:-/run/yoink}/postgres-$role")" <<'SQL'
ALTER ROLE :"role" PASSWORD :'password';
SQL
done
