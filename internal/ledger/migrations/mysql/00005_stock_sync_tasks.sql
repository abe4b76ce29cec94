-- +goose Up
-- What must still be given back to Redis: one task an order (invariant 6).
CREATE TABLE IF NOT EXISTS stock_sync_tasks (
    id           BIGINT        NOT NULL AUTO_INCREMENT,
    order_id     BIGINT        NOT NULL,
    batch_id     BIGINT        NOT NULL,
    sale_id      VARBINARY(64) NOT NULL,
    user_id      VARBINARY(64) NOT NULL,
    request_key  VARBINARY(64) NOT NULL,
    quantity     INT           NOT NULL,
    amount_cents BIGINT        NOT NULL,
    tries        INT           NOT NULL DEFAULT 0,
    next_try     DATETIME(3)   NOT NULL,
    last_error   VARCHAR(1000) NOT NULL DEFAULT '',
    state        VARCHAR(16)   NOT NULL,
    created_at   DATETIME(3)   NOT NULL,
    PRIMARY KEY (id),
    UNIQUE KEY stock_sync_tasks_order (order_id),
    KEY stock_sync_tasks_due (state, next_try)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- +goose Down
DROP TABLE stock_sync_tasks;
