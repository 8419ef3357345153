-- The indexes first: the table refers to partitions, which locks out everything that opens or closes one.

-- With the seq, so that an audit finds the voided rows that no checkpoint covers without reading the others.
CREATE INDEX reservations_voided_by_seq ON reservations (partition, epoch, seq) WHERE state = 'voided';

-- Orders are stored almost in the order in which they were accepted, so this index finds those of the last days, whose
-- request ids a rebuild restores. It has an entry for each 128 pages and not for each row.
CREATE INDEX reservations_by_time ON reservations USING brin (reserved_at) WITH (autosummarize = on);

-- What an audit does not read again: sums of stored rows that do not change any more, one row for each partition. The
-- program can compute them from the reservations at any time, so a row may be deleted: the next audit of a worker reads the
-- whole partition and writes a new one.
CREATE TABLE audit_checkpoints (
    partition       int         PRIMARY KEY REFERENCES partitions,
    version         uuid        NOT NULL,
    epochs          bigint[]    NOT NULL,
    first_seqs      bigint[]    NOT NULL,
    last_seqs       bigint[]    NOT NULL,
    products        text[]      NOT NULL,
    units           bigint[]    NOT NULL,
    bucket_width_ms bigint      NOT NULL,
    since_ms        bigint      NOT NULL,
    buckets         bigint[]    NOT NULL,
    request_ids     bigint[]    NOT NULL,
    checksum        bigint      NOT NULL,
    saved_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    verified_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT audit_checkpoints_pairs CHECK (
        cardinality(epochs) = cardinality(first_seqs) AND cardinality(epochs) = cardinality(last_seqs)
        AND cardinality(products) = cardinality(units) AND cardinality(buckets) = cardinality(request_ids)
    )
);

COMMENT ON COLUMN audit_checkpoints.version IS
    'a new random value with each change: a process replaces only the checkpoint that it has read';
COMMENT ON COLUMN audit_checkpoints.epochs IS
    'with first_seqs and last_seqs: the ranges of seqs that the checkpoint covers. Each of these seqs has exactly one row';
COMMENT ON COLUMN audit_checkpoints.units IS 'the confirmed units of each of products in the rows that are covered';
COMMENT ON COLUMN audit_checkpoints.request_ids IS
    'how many of the confirmed rows that are covered have a request id, by bucket; since_ms is the first bucket';
COMMENT ON COLUMN audit_checkpoints.checksum IS 'the exclusive or of a hash of each row that is covered';
COMMENT ON COLUMN audit_checkpoints.verified_at IS
    'when the sums were last computed from all rows that are covered, and were equal';

-- Last: it locks readers out until the end of the transaction.
DROP INDEX reservations_voided;
