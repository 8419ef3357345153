#!/bin/sh
# The Postgres image runs this once, when its volume is set up. The role of the service owns its database and is no
# superuser.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --set "password=$(cat "${PASSWORDS:-/run/yoink}/postgres-yoink")" <<'SQL'
CREATE ROLE yoink LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD :'password';
ALTER DATABASE :"DBNAME" OWNER TO yoink;
SQL
