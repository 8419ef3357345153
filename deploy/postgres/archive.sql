-- Moves old reservations to a table of their own (docs/operations.md, Archiving). Run it once as the owner of the tables, or as
-- a superuser:
--
--   psql --dbname yoink --username yoink_owner --file deploy/postgres/archive.sql
--
-- Then, as often as there is something to move, until it returns 0:
--
--   SELECT archive_reservations(now() - interval '90 days', 50000);

-- A child of reservations: every read of reservations reads it as well. It has the same indexes. To keep it on another
-- disk, with a tablespace slow_disk, move the table and its indexes, which do not follow it (psql executes what the query
-- returns):
--
--   ALTER TABLE reservations_archive SET TABLESPACE slow_disk;
--   SELECT format('ALTER INDEX %s SET TABLESPACE slow_disk', indexrelid::regclass)
--     FROM pg_index WHERE indrelid = 'reservations_archive'::regclass \gexec
CREATE TABLE IF NOT EXISTS reservations_archive (LIKE reservations INCLUDING ALL) INHERITS (reservations);

-- Moves at most so many reservations that were accepted before this time, and returns how many. Only those of epochs that
-- have ended: no order of such an epoch is stored any more (rule R8), so the primary key of reservations does not need
-- to have them. A rebuild ends an epoch.
CREATE OR REPLACE FUNCTION archive_reservations(accepted_before timestamptz, most int) RETURNS bigint
LANGUAGE sql SET search_path FROM CURRENT AS $$
    WITH moved AS (
        DELETE FROM ONLY reservations WHERE reservation_id = ANY (ARRAY (
            SELECT r.reservation_id FROM ONLY reservations r JOIN partitions p USING (partition)
             WHERE r.reserved_at < accepted_before AND r.epoch < p.opened LIMIT most))
        RETURNING *
    ), archived AS (
        INSERT INTO reservations_archive SELECT * FROM moved RETURNING 1
    )
    SELECT count(*) FROM archived
$$;

-- Both belong to the owner of reservations, also if a superuser has made them.
DO $$
DECLARE
    table_owner name := (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'reservations'::regclass);
BEGIN
    EXECUTE format('ALTER TABLE reservations_archive OWNER TO %I', table_owner);
    EXECUTE format('ALTER FUNCTION archive_reservations(timestamptz, int) OWNER TO %I', table_owner);
END $$;
