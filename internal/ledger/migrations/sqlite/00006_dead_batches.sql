-- +goose Up
-- Messages that failed by their own fault. A message that dies again, or is delivered
-- again before it was acknowledged, is the same row.
CREATE TABLE IF NOT EXISTS dead_batches (
    id          INTEGER  NOT NULL PRIMARY KEY AUTOINCREMENT,
    message_id  TEXT     NULL,
    batch_id    INTEGER  NOT NULL,
    sale_id     TEXT     NOT NULL,
    body        BLOB     NOT NULL,
    error       TEXT     NOT NULL,
    state       TEXT     NOT NULL,
    created_at  DATETIME NOT NULL,
    replayed_at DATETIME NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS dead_batches_message ON dead_batches (message_id);
CREATE INDEX IF NOT EXISTS dead_batches_state ON dead_batches (state);

-- +goose Down
DROP TABLE dead_batches;
