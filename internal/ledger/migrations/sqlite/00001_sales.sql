-- +goose Up
-- What is sold, to whom and when. Ids that callers choose are TEXT throughout the
-- schema, which SQLite compares byte by byte. Times are UTC, as text of one width.
CREATE TABLE IF NOT EXISTS sales (
    id             TEXT     NOT NULL PRIMARY KEY,
    title          TEXT     NOT NULL,
    price_cents    INTEGER  NOT NULL,
    currency       TEXT     NOT NULL,
    total          INTEGER  NOT NULL,
    per_user_limit INTEGER  NOT NULL,
    starts_at      DATETIME NOT NULL,
    ends_at        DATETIME NOT NULL,
    status         TEXT     NOT NULL,
    epoch          INTEGER  NOT NULL DEFAULT 0,
    created_at     DATETIME NOT NULL
);

-- +goose Down
DROP TABLE sales;
