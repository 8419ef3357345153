-- The ledger: what was granted and what was sold. CHECK (sold <= supply) is the last word against
-- overselling: whatever Redis lost or replayed, no more than the supply can be recorded.

CREATE TABLE deployment (
    id         uuid NOT NULL DEFAULT gen_random_uuid(),
    partitions int  NOT NULL CHECK (partitions BETWEEN 1 AND 4096)
);
CREATE UNIQUE INDEX deployment_is_one_row ON deployment ((true));

CREATE TABLE partitions (
    partition int    PRIMARY KEY,
    epoch     bigint NOT NULL CHECK (epoch > 0),
    status    text   NOT NULL CHECK (status IN ('new', 'open', 'closed'))
);

-- One sequence for all products, drawn under an advisory lock: whoever has seen version n has seen
-- every change below it.
CREATE SEQUENCE catalogue_version;

CREATE TABLE products (
    product_id     text          PRIMARY KEY,
    partition      int           NOT NULL REFERENCES partitions,
    name           text          NOT NULL,
    price          numeric(19,4) NOT NULL CHECK (price >= 0),
    currency       char(3)       NOT NULL,
    opens_at       timestamptz,
    closes_at      timestamptz,
    per_user_limit int           CHECK (per_user_limit > 0),
    status         text          NOT NULL CHECK (status IN ('on_sale', 'stopped', 'retired')),
    version        bigint        NOT NULL,
    supply         bigint        NOT NULL,
    sold           bigint        NOT NULL DEFAULT 0,
    CONSTRAINT products_sold_within_supply CHECK (0 <= sold AND sold <= supply)
);
CREATE INDEX products_by_version ON products (version);

-- In a voided row product, user and request are NULL: what made an order impossible to store cannot
-- stop its void.
CREATE TABLE reservations (
    reservation_id uuid        PRIMARY KEY,
    state          text        NOT NULL CHECK (state IN ('confirmed', 'voided')),
    product_id     text        REFERENCES products,
    user_id        text,
    units          int         CHECK (units > 0),
    request_id     text,
    partition      int         NOT NULL,
    epoch          bigint      NOT NULL,
    seq            bigint      NOT NULL,
    reserved_at    timestamptz NOT NULL,
    recorded_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    void_reason    text,
    entry          bytea,
    CONSTRAINT reservations_whole CHECK (
        CASE state
            WHEN 'confirmed' THEN product_id IS NOT NULL AND user_id IS NOT NULL AND units IS NOT NULL
            ELSE product_id IS NULL AND user_id IS NULL AND request_id IS NULL AND void_reason IS NOT NULL
        END
    )
);
CREATE UNIQUE INDEX reservations_seq_once ON reservations (partition, epoch, seq) WHERE state = 'confirmed';
CREATE INDEX reservations_by_user ON reservations (user_id, request_id);
CREATE INDEX reservations_by_product ON reservations (product_id, user_id);

CREATE TABLE supply_changes (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    product_id text        NOT NULL REFERENCES products,
    units      bigint      NOT NULL CHECK (units > 0),
    request_id text        NOT NULL UNIQUE,
    actor      text        NOT NULL,
    reason     text        NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE reported_marks (
    gateway   text        NOT NULL,
    partition int         NOT NULL,
    epoch     bigint      NOT NULL,
    seq       bigint      NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (gateway, partition, epoch)
);

CREATE TABLE dead_actions (
    at             timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor          text        NOT NULL,
    action         text        NOT NULL CHECK (action IN ('release', 'retry')),
    reservation_id uuid        NOT NULL,
    reason         text        NOT NULL
);
CREATE INDEX dead_actions_by_reservation ON dead_actions (reservation_id);
