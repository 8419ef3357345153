-- Descriptions for whoever reads the database. Nothing else changes.
COMMENT ON CONSTRAINT products_sold_within_supply ON products IS
    'the final guard against overselling: whatever Redis lost or delivered again, no more than the supply is stored';
COMMENT ON SEQUENCE catalogue_version IS
    'the version of every change of a product. Versions are assigned under an advisory lock, so a reader that has '
    'seen version n has seen every change below it';
COMMENT ON COLUMN partitions.opened IS
    'the last epoch in which the partition was open; an order of an earlier one that is found again was counted as lost';
COMMENT ON TABLE reported_marks IS
    'the marks of gateways. A gateway inserts its row before it accepts the first reservation of an epoch, and writes '
    'the highest seq that it received when the epoch ends. While any row of an epoch has seq -1, the losses of the '
    'epoch are a minimum';
COMMENT ON COLUMN reported_marks.seq IS 'the highest seq that the gateway received; -1 until it has reported';
COMMENT ON COLUMN dead_actions.action IS
    'release: voided the order, its unit is given back next; finish: gave back the unit of an order that was voided '
    'before; retry: stored the order (before migration 4: tried to store it); refused: tried to store the order, and '
    'the ledger refused it again; discard: removed the dead entry of an order that is stored; unknown: began to finish '
    'or to discard, and the result in Redis is unknown';
