-- +goose Up
-- The batches that are in the ledger: each is applied once (invariant 3).
-- settled_at is NULL until Redis has answered that it settled the batch.
CREATE TABLE IF NOT EXISTS consumed_batches (
    batch_id    INTEGER  NOT NULL PRIMARY KEY,
    sale_id     TEXT     NOT NULL,
    consumed_at DATETIME NOT NULL,
    settled_at  DATETIME NULL
);
CREATE INDEX IF NOT EXISTS consumed_batches_owed ON consumed_batches (settled_at, consumed_at);

-- +goose Down
DROP TABLE consumed_batches;
