-- Draft of the migrations of docs/decisions/0034-holds.md. It is not applied by any program: the steps that need it move
-- it to migrations/. There are two files, because the first one locks readers out, for a moment, and the second one reads
-- the whole table.

-- ---------------------------------------------------------------------------------------------------------------------
-- migrations/0012_holds.sql
--
-- Holds: reservations of several units that wait to be confirmed, and numbers of changes. Programs from before work with
-- this schema until the upgrade is finished (partitions.holds_epoch). No statement reads the rows of reservations.

ALTER TABLE products
    ADD COLUMN held            bigint  NOT NULL DEFAULT 0,
    ADD COLUMN kept            bigint  NOT NULL DEFAULT 0,
    ADD COLUMN returned        bigint  NOT NULL DEFAULT 0,
    ADD COLUMN hold_ended      bigint  NOT NULL DEFAULT 0,
    ADD COLUMN units_max       int     NOT NULL DEFAULT 1,
    ADD COLUMN hold_default_ms bigint  NOT NULL DEFAULT 0,
    ADD COLUMN hold_max_ms     bigint  NOT NULL DEFAULT 0,
    ADD COLUMN counted_before  boolean NOT NULL DEFAULT false,
    -- Its name is after products_sold_within_supply, so that a program that knows only that one gets that one.
    ADD CONSTRAINT products_within_supply
        CHECK (held >= 0 AND sold >= 0 AND kept >= 0 AND held + sold + kept <= supply),
    ADD CONSTRAINT products_totals CHECK (returned >= 0 AND hold_ended >= 0),
    ADD CONSTRAINT products_units_max CHECK (units_max BETWEEN 1 AND 1000),
    ADD CONSTRAINT products_hold_times
        CHECK (0 <= hold_default_ms AND hold_default_ms <= hold_max_ms AND hold_max_ms <= 31536000000);

-- Units that users have given back, of reservations that counted for a limit.
CREATE TABLE user_returns (
    product_id text   NOT NULL,
    user_id    text   NOT NULL,
    units      bigint NOT NULL CHECK (units > 0),
    PRIMARY KEY (product_id, user_id)
);

ALTER TABLE partitions
    ADD COLUMN changes           bigint NOT NULL DEFAULT 0,
    ADD COLUMN returns_applied   bigint NOT NULL DEFAULT 0,
    ADD COLUMN expiry_checked_at timestamptz,
    ADD COLUMN expiry_resumes_at timestamptz,
    ADD COLUMN holds_epoch       bigint,
    -- A program from before raises the epoch alone: it cannot open or rebuild a partition any more.
    ADD CONSTRAINT partitions_holds_epoch CHECK (holds_epoch IS NULL OR holds_epoch = epoch),
    ADD CONSTRAINT partitions_returns_applied CHECK (returns_applied <= changes);

ALTER TABLE reservations
    ADD COLUMN hold_ms       bigint,
    ADD COLUMN expires_at    timestamptz,
    ADD COLUMN changed_at    timestamptz,
    ADD COLUMN reference     text,
    ADD COLUMN counted       boolean,
    ADD COLUMN kept          boolean NOT NULL DEFAULT false,
    ADD COLUMN change        bigint  NOT NULL DEFAULT 0,
    ADD COLUMN cancel_reason text,
    DROP CONSTRAINT reservations_state_check,
    DROP CONSTRAINT reservations_whole,
    -- NOT VALID: earlier rows satisfy them, and are not read.
    ADD CONSTRAINT reservations_state_check
        CHECK (state IN ('held', 'confirmed', 'cancelled', 'expired', 'voided')) NOT VALID,
    ADD CONSTRAINT reservations_whole CHECK (
        CASE state
            WHEN 'voided' THEN product_id IS NULL AND user_id IS NULL AND request_id IS NULL AND void_reason IS NOT NULL
            ELSE product_id IS NOT NULL AND user_id IS NOT NULL AND units IS NOT NULL
        END
    ) NOT VALID,
    ADD CONSTRAINT reservations_hold CHECK (
        (state NOT IN ('held', 'expired') OR (hold_ms IS NOT NULL AND hold_ms > 0 AND expires_at IS NOT NULL))
        AND (state = 'cancelled' OR NOT kept)
    ) NOT VALID;

-- R12, also for a program with a bug: a row that is returned, kept or voided never changes, the content of an order never
-- does, and each change has a number of its own (R13). The condition is evaluated without calling the function.
CREATE FUNCTION refuse_change_of_reservation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE check_violation
        USING MESSAGE = 'a reservation may not change from ' || OLD.state || ' to ' || NEW.state || ' in this way',
              CONSTRAINT = 'reservations_change_allowed';
END $$;
CREATE TRIGGER reservations_change_allowed BEFORE UPDATE ON reservations FOR EACH ROW
    WHEN (NOT (OLD.state = 'held' AND NEW.state IN ('held', 'confirmed', 'cancelled', 'expired')
               OR OLD.state = 'confirmed' AND NEW.state = 'cancelled')
          OR NEW.change <= OLD.change
          OR (OLD.reservation_id, OLD.product_id, OLD.user_id, OLD.units, OLD.request_id, OLD.counted, OLD.hold_ms)
             IS DISTINCT FROM
             (NEW.reservation_id, NEW.product_id, NEW.user_id, NEW.units, NEW.request_id, NEW.counted, NEW.hold_ms))
    EXECUTE FUNCTION refuse_change_of_reservation();

-- A program from before stores and voids without numbers. Once the upgrade of a partition is finished, it may not.
CREATE FUNCTION refuse_program_without_holds() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM stored_rows s
                WHERE s.change = 0
                  AND (SELECT p.holds_epoch FROM partitions p WHERE p.partition = s.partition) IS NOT NULL) THEN
        RAISE insufficient_privilege
            USING MESSAGE = 'the upgrade to schema version 12 is finished: end this process, which is of an earlier version';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER reservations_are_numbered AFTER INSERT ON reservations
    REFERENCING NEW TABLE AS stored_rows FOR EACH STATEMENT EXECUTE FUNCTION refuse_program_without_holds();

COMMENT ON COLUMN products.held IS 'units of reservations in state held';
COMMENT ON COLUMN products.sold IS 'units of reservations in state confirmed';
COMMENT ON COLUMN products.kept IS 'units of cancelled reservations that were not put back on sale (reservations.kept)';
COMMENT ON COLUMN products.returned IS 'units that were ever put back on sale; it only grows (R11)';
COMMENT ON COLUMN products.hold_ended IS 'units that were ever on hold and are no longer: confirmed, cancelled or expired';
COMMENT ON COLUMN products.hold_max_ms IS 'the longest hold; 0: no holds';
COMMENT ON COLUMN products.counted_before IS
    'whether the product had a limit when the upgrade to holds was finished: the value of reservations.counted in rows of '
    'earlier programs';
COMMENT ON COLUMN reservations.counted IS 'whether the units count for the limit of the user; NULL: products.counted_before';
COMMENT ON COLUMN reservations.change IS 'the number of the last change of the row in its partition (R13); 0: none has a number';
COMMENT ON COLUMN partitions.changes IS 'the highest number of a change; it grows under the lock of this row';
COMMENT ON COLUMN partitions.returns_applied IS 'every return with a number up to this one was applied to Redis';
COMMENT ON COLUMN partitions.expiry_resumes_at IS 'no hold expires before this time (R12)';
COMMENT ON COLUMN partitions.holds_epoch IS
    'equal to epoch since the upgrade of this partition to holds is finished; NULL before. A program that does not know '
    'holds cannot raise the epoch any more';

-- ---------------------------------------------------------------------------------------------------------------------
-- migrations/0013_hold_indexes.sql
--
-- The indexes of holds. Reservations can be read while they are built; storing waits, and selling goes on.

CREATE UNIQUE INDEX new_reservations_seq_once ON reservations (partition, epoch, seq) WHERE state <> 'voided';
CREATE INDEX reservations_due ON reservations (partition, expires_at) WHERE state = 'held';
CREATE INDEX reservations_returned ON reservations (partition, change) WHERE state IN ('cancelled', 'expired');
CREATE INDEX reservations_changed ON reservations (partition, change) WHERE change > 0;
DROP INDEX reservations_seq_once;
ALTER INDEX new_reservations_seq_once RENAME TO reservations_seq_once;
