-- +goose Up
-- The batches that are in the ledger: each is applied once (invariant 3).
-- settled_at is NULL until Redis has answered that it settled the batch.
CREATE TABLE IF NOT EXISTS consumed_batches (
    batch_id    BIGINT        NOT NULL,
    sale_id     VARBINARY(64) NOT NULL,
    consumed_at DATETIME(3)   NOT NULL,
    settled_at  DATETIME(3)   NULL,
    PRIMARY KEY (batch_id),
    KEY consumed_batches_owed (settled_at, consumed_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- +goose Down
DROP TABLE consumed_batches;
