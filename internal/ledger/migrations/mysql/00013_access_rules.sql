-- +goose Up
-- Who is blocked and who is allowed, as operators said it. The last row about a user or
-- an address holds; rows are never changed, so gateways read on from the last they know.
CREATE TABLE IF NOT EXISTS access_rules (
    id         BIGINT         NOT NULL AUTO_INCREMENT,
    kind       VARBINARY(16)  NOT NULL,
    value      VARBINARY(64)  NOT NULL,
    access     VARBINARY(16)  NOT NULL,
    who        VARCHAR(100)   NOT NULL,
    why        VARCHAR(500)   NOT NULL,
    until_at   DATETIME(3)    NULL,
    created_at DATETIME(3)    NOT NULL,
    PRIMARY KEY (id),
    KEY access_rules_value (kind, value, id)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- +goose Down
DROP TABLE access_rules;
