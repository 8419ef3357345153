-- The roles of Yoink in Postgres, for psql as a superuser in the database of Yoink:
--   psql --dbname yoink --file roles.sql
-- A repetition changes nothing. None of the roles has a password: set them with \password, or log in with certificates.
--
--   yoink_owner  owns the database and its tables: for `yoink migrate` only
--   yoink_serve  for `yoink serve` and for every command that changes something
--   yoink_read   for `yoink audit`, `yoink export` and other readers
--
-- `yoink migrate` gives yoink_serve and yoink_read what they need in each table (docs/operations.md, Least privilege).
\set ON_ERROR_STOP on
SELECT format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION', name)
  FROM unnest(ARRAY['yoink_owner', 'yoink_serve', 'yoink_read']) AS name
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec
ALTER DATABASE :"DBNAME" OWNER TO yoink_owner;
-- Without this, every role may connect and create temporary tables.
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO yoink_serve, yoink_read;
-- Up to version 14 of Postgres, every role may create tables here.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO yoink_owner;
GRANT USAGE ON SCHEMA public TO yoink_serve, yoink_read;
