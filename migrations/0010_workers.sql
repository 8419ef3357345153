-- The workers that run now: the partitions are spread over them. It is not logged, so a beat waits for no disk and no
-- standby; a table that is empty after a crash or a failover is filled again within a second.
CREATE UNLOGGED TABLE workers (
    worker text    PRIMARY KEY,
    beat   bigint  NOT NULL,
    audits boolean NOT NULL
);

COMMENT ON TABLE workers IS
    'a row for each process that stores orders; what a process needs to know about the others, and nothing that may not '
    'be lost';
COMMENT ON COLUMN workers.beat IS
    'raised once a second by its worker. Others see whether it changes, so no clock is compared';
COMMENT ON COLUMN workers.audits IS 'whether this worker audits (audit_interval_ms)';
