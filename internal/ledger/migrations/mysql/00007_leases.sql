-- +goose Up
-- Who leads, by the clock of the database. token grows with every change of holder.
CREATE TABLE IF NOT EXISTS leases (
    name       VARBINARY(64)  NOT NULL,
    holder     VARBINARY(128) NOT NULL,
    token      BIGINT         NOT NULL,
    expires_at DATETIME(3)    NOT NULL,
    PRIMARY KEY (name)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- The node numbers that ids carry. holder is '' on a number that was given back.
CREATE TABLE IF NOT EXISTS nodes (
    node       INT            NOT NULL,
    holder     VARBINARY(128) NOT NULL,
    expires_at DATETIME(3)    NOT NULL,
    renewed_at DATETIME(3)    NOT NULL,
    PRIMARY KEY (node)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- +goose Down
DROP TABLE nodes;
DROP TABLE leases;
