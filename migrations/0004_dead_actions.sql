-- Who did what to a dead entry: each thing that was done, once, by whoever did it. In records from before,
-- 'retry' says that somebody tried.
ALTER TABLE dead_actions DROP CONSTRAINT dead_actions_action_check;
ALTER TABLE dead_actions ADD CONSTRAINT dead_actions_action_check
    CHECK (action IN ('release', 'finish', 'retry', 'refused', 'discard'));

COMMENT ON COLUMN dead_actions.action IS
    'release: voided, its unit to go back; finish: gave back the unit of an order that was voided before; '
    'retry: stored; refused: tried to store, and the ledger refused it again; '
    'discard: removed the dead entry of an order that is stored';
