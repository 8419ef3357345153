-- Each attempt at opening a new partition has an epoch of its own: the first one is 1.
ALTER TABLE partitions DROP CONSTRAINT partitions_epoch_check;
ALTER TABLE partitions ADD CONSTRAINT partitions_epoch_check
    CHECK (epoch >= 0 AND (epoch > 0 OR status = 'new'));

-- The last epoch in which the partition was open. What comes back of an earlier one was given up before.
ALTER TABLE partitions ADD COLUMN opened bigint NOT NULL DEFAULT 0;
UPDATE partitions SET opened = epoch WHERE status = 'open';
