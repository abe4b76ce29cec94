-- +goose Up
-- What is sold, to whom and when. Ids that callers choose are VARBINARY throughout the
-- schema: a collation would make 'Bob', 'bob' and 'bob ' one value. Times are UTC.
CREATE TABLE IF NOT EXISTS sales (
    id             VARBINARY(64) NOT NULL,
    title          VARCHAR(200)  NOT NULL,
    price_cents    BIGINT        NOT NULL,
    currency       CHAR(3)       NOT NULL,
    total          BIGINT        NOT NULL,
    per_user_limit INT           NOT NULL,
    starts_at      DATETIME(3)   NOT NULL,
    ends_at        DATETIME(3)   NOT NULL,
    status         VARCHAR(16)   NOT NULL,
    epoch          BIGINT        NOT NULL DEFAULT 0,
    created_at     DATETIME(3)   NOT NULL,
    PRIMARY KEY (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- +goose Down
DROP TABLE sales;
