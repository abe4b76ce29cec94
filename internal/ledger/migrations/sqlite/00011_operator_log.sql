-- +goose Up
-- What operators decided about a task or a dead batch, who and why. body is a mended
-- message, when one was replayed in place of the stored one.
CREATE TABLE IF NOT EXISTS operator_log (
    id         INTEGER  NOT NULL PRIMARY KEY AUTOINCREMENT,
    subject    TEXT     NOT NULL,
    subject_id INTEGER  NOT NULL,
    action     TEXT     NOT NULL,
    who        TEXT     NOT NULL,
    why        TEXT     NOT NULL,
    body       BLOB     NULL,
    created_at DATETIME NOT NULL
);
CREATE INDEX IF NOT EXISTS operator_log_subject ON operator_log (subject, subject_id);

-- +goose Down
DROP TABLE operator_log;
