-- +goose Up
-- dedup_key is the request key, or NULL on an order cancelled as a duplicate.
-- SQLite appends the rowid, here the id, to every index: (sale_id), (user_id) and
-- (batch_id) also give their orders by id.
CREATE TABLE IF NOT EXISTS orders (
    id           INTEGER  NOT NULL PRIMARY KEY,
    sale_id      TEXT     NOT NULL,
    user_id      TEXT     NOT NULL,
    request_key  TEXT     NOT NULL,
    dedup_key    TEXT     NULL,
    quantity     INTEGER  NOT NULL,
    amount_cents INTEGER  NOT NULL,
    status       TEXT     NOT NULL,
    reason       TEXT     NOT NULL DEFAULT '',
    batch_id     INTEGER  NOT NULL,
    created_at   DATETIME NOT NULL,
    persisted_at DATETIME NOT NULL,
    expires_at   DATETIME NULL,
    paid_at      DATETIME NULL,
    CONSTRAINT orders_quantity CHECK (quantity >= 1),
    CONSTRAINT orders_amount CHECK (amount_cents >= 0)
);
CREATE UNIQUE INDEX IF NOT EXISTS orders_key ON orders (sale_id, user_id, dedup_key);
CREATE INDEX IF NOT EXISTS orders_sale ON orders (sale_id);
CREATE INDEX IF NOT EXISTS orders_user ON orders (user_id);
CREATE INDEX IF NOT EXISTS orders_batch ON orders (batch_id);

-- Every change of an order's status, and the orders that were cancelled from the start;
-- from_status is '' for those.
CREATE TABLE IF NOT EXISTS order_status_log (
    id          INTEGER  NOT NULL PRIMARY KEY AUTOINCREMENT,
    order_id    INTEGER  NOT NULL,
    from_status TEXT     NOT NULL,
    to_status   TEXT     NOT NULL,
    reason      TEXT     NOT NULL DEFAULT '',
    created_at  DATETIME NOT NULL
);
CREATE INDEX IF NOT EXISTS order_status_log_order ON order_status_log (order_id);

-- +goose Down
DROP TABLE order_status_log;
DROP TABLE orders;
