-- An action on a dead entry is recorded before Redis is asked to do it, and the record is completed afterwards.
ALTER TABLE dead_actions ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY;
ALTER TABLE dead_actions DROP CONSTRAINT dead_actions_action_check;
ALTER TABLE dead_actions ADD CONSTRAINT dead_actions_action_check
    CHECK (action IN ('release', 'finish', 'retry', 'refused', 'discard', 'unknown'));

COMMENT ON COLUMN dead_actions.action IS
    'release: voided, its unit to go back; finish: gave back the unit of an order that was voided before; '
    'retry: stored; refused: tried to store, and the ledger refused it again; '
    'discard: removed the dead entry of an order that is stored; '
    'unknown: began to finish or to discard, and got no answer: it may have been done';

-- The oldest program that works with this schema, by the newest migration that it knows. A migration that
-- only adds leaves it as it is; any other sets it to its own version.
CREATE TABLE schema_compatibility (oldest_program bigint NOT NULL);
CREATE UNIQUE INDEX schema_compatibility_is_one_row ON schema_compatibility ((true));
INSERT INTO schema_compatibility VALUES (5);
