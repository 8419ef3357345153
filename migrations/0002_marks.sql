-- A gateway stands in here, with seq -1, before it takes its first order of an epoch; when the epoch ends it
-- writes the highest seq it saw. As long as one of an epoch's rows says -1, its losses are "at least n".
COMMENT ON COLUMN reported_marks.seq IS '-1 until the gateway has reported';

CREATE INDEX reported_marks_by_epoch ON reported_marks (partition, epoch);

-- What an epoch came to is counted over both states; confirmed rows have an index.
CREATE INDEX reservations_voided ON reservations (partition, epoch) WHERE state = 'voided';
