-- +goose Up
-- Messages that failed by their own fault. A message that dies again, or is delivered
-- again before it was acknowledged, is the same row.
CREATE TABLE IF NOT EXISTS dead_batches (
    id          BIGINT         NOT NULL AUTO_INCREMENT,
    message_id  VARBINARY(128) NULL,
    batch_id    BIGINT         NOT NULL,
    sale_id     VARBINARY(64)  NOT NULL,
    body        MEDIUMBLOB     NOT NULL,
    error       VARCHAR(1000)  NOT NULL,
    state       VARCHAR(16)    NOT NULL,
    created_at  DATETIME(3)    NOT NULL,
    replayed_at DATETIME(3)    NULL,
    PRIMARY KEY (id),
    UNIQUE KEY dead_batches_message (message_id),
    KEY dead_batches_state (state)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- +goose Down
DROP TABLE dead_batches;
