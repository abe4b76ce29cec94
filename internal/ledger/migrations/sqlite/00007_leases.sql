-- +goose Up
-- Who leads, by the clock of the database. token grows with every change of holder.
CREATE TABLE IF NOT EXISTS leases (
    name       TEXT     NOT NULL PRIMARY KEY,
    holder     TEXT     NOT NULL,
    token      INTEGER  NOT NULL,
    expires_at DATETIME NOT NULL
);

-- The node numbers that ids carry. holder is '' on a number that was given back.
CREATE TABLE IF NOT EXISTS nodes (
    node       INTEGER  NOT NULL PRIMARY KEY,
    holder     TEXT     NOT NULL,
    expires_at DATETIME NOT NULL,
    renewed_at DATETIME NOT NULL
);

-- +goose Down
DROP TABLE nodes;
DROP TABLE leases;
