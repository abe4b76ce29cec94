-- +goose Up
-- Who is blocked and who is allowed, as operators said it. The last row about a user or
-- an address holds; rows are never changed, so gateways read on from the last they know.
CREATE TABLE IF NOT EXISTS access_rules (
    id         INTEGER  NOT NULL PRIMARY KEY AUTOINCREMENT,
    kind       TEXT     NOT NULL,
    value      TEXT     NOT NULL,
    access     TEXT     NOT NULL,
    who        TEXT     NOT NULL,
    why        TEXT     NOT NULL,
    until_at   DATETIME NULL,
    created_at DATETIME NOT NULL
);
CREATE INDEX IF NOT EXISTS access_rules_value ON access_rules (kind, value, id);

-- +goose Down
DROP TABLE access_rules;
