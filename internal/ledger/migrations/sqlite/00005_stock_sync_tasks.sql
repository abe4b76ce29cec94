-- +goose Up
-- What must still be given back to Redis: one task an order (invariant 6).
CREATE TABLE IF NOT EXISTS stock_sync_tasks (
    id           INTEGER  NOT NULL PRIMARY KEY AUTOINCREMENT,
    order_id     INTEGER  NOT NULL,
    batch_id     INTEGER  NOT NULL,
    sale_id      TEXT     NOT NULL,
    user_id      TEXT     NOT NULL,
    request_key  TEXT     NOT NULL,
    quantity     INTEGER  NOT NULL,
    amount_cents INTEGER  NOT NULL,
    tries        INTEGER  NOT NULL DEFAULT 0,
    next_try     DATETIME NOT NULL,
    last_error   TEXT     NOT NULL DEFAULT '',
    state        TEXT     NOT NULL,
    created_at   DATETIME NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS stock_sync_tasks_order ON stock_sync_tasks (order_id);
CREATE INDEX IF NOT EXISTS stock_sync_tasks_due ON stock_sync_tasks (state, next_try);

-- +goose Down
DROP TABLE stock_sync_tasks;
