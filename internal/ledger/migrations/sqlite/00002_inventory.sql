-- +goose Up
-- A sale's units. The checks are the last guard of invariants 1 and 4.
CREATE TABLE IF NOT EXISTS inventory (
    sale_id   TEXT    NOT NULL PRIMARY KEY,
    total     INTEGER NOT NULL,
    available INTEGER NOT NULL,
    locked    INTEGER NOT NULL,
    sold      INTEGER NOT NULL,
    version   INTEGER NOT NULL,
    CONSTRAINT inventory_available CHECK (available >= 0),
    CONSTRAINT inventory_locked CHECK (locked >= 0),
    CONSTRAINT inventory_sold CHECK (sold >= 0),
    CONSTRAINT inventory_conserved CHECK (available + locked + sold = total)
);

-- Why the row changed: CREATE and TOTAL carry the total before and after, LOCK the batch.
CREATE TABLE IF NOT EXISTS inventory_log (
    id           INTEGER  NOT NULL PRIMARY KEY AUTOINCREMENT,
    sale_id      TEXT     NOT NULL,
    kind         TEXT     NOT NULL,
    batch_id     INTEGER  NULL,
    units        INTEGER  NOT NULL,
    total_before INTEGER  NULL,
    total_after  INTEGER  NULL,
    version      INTEGER  NULL,
    reason       TEXT     NOT NULL DEFAULT '',
    created_at   DATETIME NOT NULL
);
CREATE INDEX IF NOT EXISTS inventory_log_sale ON inventory_log (sale_id);

-- +goose Down
DROP TABLE inventory_log;
DROP TABLE inventory;
