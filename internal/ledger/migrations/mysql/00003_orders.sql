-- +goose Up
-- dedup_key is the request key, or NULL on an order cancelled as a duplicate.
-- InnoDB appends the primary key to every other: (sale_id), (user_id) and (batch_id)
-- also give their orders by id.
CREATE TABLE IF NOT EXISTS orders (
    id           BIGINT        NOT NULL,
    sale_id      VARBINARY(64) NOT NULL,
    user_id      VARBINARY(64) NOT NULL,
    request_key  VARBINARY(64) NOT NULL,
    dedup_key    VARBINARY(64) NULL,
    quantity     INT           NOT NULL,
    amount_cents BIGINT        NOT NULL,
    status       VARCHAR(16)   NOT NULL,
    reason       VARCHAR(64)   NOT NULL DEFAULT '',
    batch_id     BIGINT        NOT NULL,
    created_at   DATETIME(3)   NOT NULL,
    persisted_at DATETIME(3)   NOT NULL,
    expires_at   DATETIME(3)   NULL,
    paid_at      DATETIME(3)   NULL,
    PRIMARY KEY (id),
    UNIQUE KEY orders_key (sale_id, user_id, dedup_key),
    KEY orders_sale (sale_id),
    KEY orders_user (user_id),
    KEY orders_batch (batch_id),
    CONSTRAINT orders_quantity CHECK (quantity >= 1),
    CONSTRAINT orders_amount CHECK (amount_cents >= 0)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- Every change of an order's status, and the orders that were cancelled from the start;
-- from_status is '' for those.
CREATE TABLE IF NOT EXISTS order_status_log (
    id          BIGINT      NOT NULL AUTO_INCREMENT,
    order_id    BIGINT      NOT NULL,
    from_status VARCHAR(16) NOT NULL,
    to_status   VARCHAR(16) NOT NULL,
    reason      VARCHAR(64) NOT NULL DEFAULT '',
    created_at  DATETIME(3) NOT NULL,
    PRIMARY KEY (id),
    KEY order_status_log_order (order_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- +goose Down
DROP TABLE order_status_log;
DROP TABLE orders;
