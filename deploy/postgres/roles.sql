-- The roles of Yoink in Postgres, for psql as a superuser in the database of Yoink:
--   psql --dbname yoink --file roles.sql
--   psql --dbname yoink --set old=ann --file roles.sql     if the tables belong to the role ann until now
-- It is one transaction, and a repetition changes nothing. None of the roles has a password: set them with \password, or log in
-- with certificates.
--
--   yoink_owner  owns the database and its tables: for `yoink migrate` only
--   yoink_serve  for `yoink serve` and for every command that changes something
--   yoink_read   for `yoink audit`, `yoink export` and other readers
--
-- `yoink migrate` gives yoink_serve and yoink_read what they need in each table (docs/operations.md, Least privilege).
\set ON_ERROR_STOP on
\if :{?old}
\else
  \set old ''
\endif
BEGIN;
-- While this waits for a lock of a table, transactions of running processes wait behind it.
SET LOCAL lock_timeout = '10s';
SELECT format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION', name)
  FROM unnest(ARRAY['yoink_owner', 'yoink_serve', 'yoink_read']) AS name
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec
-- A psql variable is not replaced in the text of a block.
SELECT set_config('yoink.old', :'old', true) AS old
\gset

DO $$
DECLARE
  old text := current_setting('yoink.old');
  tables_owner text;
  statement text;
BEGIN
  IF old <> '' AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = old) THEN
    RAISE EXCEPTION 'the role % (--set old=%) does not exist', old, old;
  END IF;
  -- Processes that connect as the old role continue as a member of the owner, until they are restarted with another role.
  -- A superuser needs no membership.
  IF old NOT IN ('', 'yoink_owner') AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = old) THEN
    EXECUTE format('GRANT yoink_owner TO %I', old);
    IF NOT pg_has_role(old, 'yoink_owner', 'USAGE') THEN
      RAISE EXCEPTION 'the role % does not inherit what its roles may do: run ALTER ROLE % INHERIT first', old, old;
    END IF;
  END IF;
  -- Each object by itself: REASSIGN OWNED is refused for the superuser that set up the server. Left out is what belongs to an
  -- extension, and a sequence of a column, which follows its table.
  FOR statement IN
    SELECT format('ALTER %s %s OWNER TO yoink_owner', kind, name)
      FROM (SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'TABLE' END,
                   oid::regclass::text, oid, 'pg_class'::regclass, relowner
              FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'S', 'v', 'm')
             UNION ALL
            SELECT 'ROUTINE', oid::regprocedure::text, oid, 'pg_proc'::regclass, proowner
              FROM pg_proc WHERE pronamespace = 'public'::regnamespace) AS object (kind, name, id, catalogue, owner)
     WHERE pg_get_userbyid(owner) = old AND old <> 'yoink_owner'
       AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = catalogue AND objid = id
                          AND (deptype = 'e' OR kind = 'SEQUENCE' AND deptype IN ('a', 'i')))
  LOOP
    EXECUTE statement;
  END LOOP;
  SELECT pg_get_userbyid(relowner) INTO tables_owner
    FROM pg_class WHERE oid = to_regclass('public._sqlx_migrations');
  IF tables_owner <> 'yoink_owner' THEN
    RAISE EXCEPTION 'the tables of this database belong to the role %: run this again with --set old=%', tables_owner, tables_owner
      USING HINT = 'docs/operations.md, "Least privilege", has the steps for a database that is in use.';
  END IF;
END
$$;

ALTER DATABASE :"DBNAME" OWNER TO yoink_owner;
-- Without this, every role may connect and create temporary tables.
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO yoink_serve, yoink_read;
-- Up to version 14 of Postgres, every role may create tables here.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO yoink_owner;
GRANT USAGE ON SCHEMA public TO yoink_serve, yoink_read;

DO $$
DECLARE
  refused text;
BEGIN
  SELECT string_agg(DISTINCT usename::text, ', ') INTO refused FROM pg_stat_activity
   WHERE datname = current_database() AND usename IS NOT NULL
     AND NOT has_database_privilege(usesysid, current_database(), 'CONNECT');
  IF refused IS NOT NULL THEN
    RAISE EXCEPTION 'processes are connected to this database as %, and could not connect again', refused
      USING HINT = 'Name the owner of the tables with --set old=NAME, and GRANT CONNECT ON DATABASE to other roles first.';
  END IF;
END
$$;
COMMIT;
